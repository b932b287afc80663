"""Where a session's cached rows lie while no layer needs them: in memory by default, or where a `Pager` keeps them.

A layer's rows are needed when the program enters the layer, once a token, in the order of layers; what else touches them (a
policy's work in the background, a choice that layers share) finds them as well, since whoever looks at `LayerCache.k` gets
rows, wherever they lay. So a pager decides about time and memory alone, never about a value: with it and without, a program
makes the same rounds, bytes and results, and one party may have one although the others do not.

Leaks: nothing. What is moved and when follows from the order of layers, from lengths and from when clients answer, which
every party knows; never from a value (docs/security.md, "The store").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar, overload

T = TypeVar("T")


class Away(Protocol):
    """Stands where rows would be while they are elsewhere. length: rows of the value; public."""

    length: int

    def back(self) -> Any:
        """Return the rows, which from now on are in memory again."""


class Pager(Protocol):
    """Keeps the rows of one session's cache."""

    def begin(self, layers: Sequence[Any]) -> None:
        """Keep the rows of these layers (`models.cache.LayerCache`), of a cache that nobody has asked for anything yet."""

    def enter(self, layer: int) -> None:
        """Hear that a layer's rows are needed from now on, and those of the layer before no more."""

    def enter_last(self) -> None:
        """Hear that each layer is entered once more, and then never again."""


class Paged:
    """What holds the rows of layers, which may lie elsewhere. pager: None where all are in memory."""

    pager: Pager | None = None

    def enter(self, layer: int) -> None:
        """Have a layer's rows in memory from here on; those of the layer before may go. Local."""
        if self.pager is not None:
            self.pager.enter(layer)

    def enter_token(self, last: bool) -> None:
        """Say whether what follows is the last token: no layer's rows are needed behind it."""
        if last and self.pager is not None:
            self.pager.enter_last()


class RowsField(Generic[T]):
    """A field of a dataclass that holds rows, or what stands for them: reading it gives rows."""

    def __init__(self, default: T) -> None:
        self._default = default
        self._slot = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._slot = slot_of(name)

    @overload
    def __get__(self, obj: None, kind: type) -> T: ...
    @overload
    def __get__(self, obj: object, kind: type) -> T: ...
    def __get__(self, obj: object | None, kind: type) -> T:
        if obj is None:  # the dataclass asks for its default
            return self._default
        found = obj.__dict__[self._slot]
        if is_away(found):
            found = obj.__dict__[self._slot] = found.back()
        rows: T = found
        return rows

    def __set__(self, obj: object, value: T) -> None:
        obj.__dict__[self._slot] = value


def rows_in(found: Any) -> int:
    """Return the rows of what lies in a slot; of rows that are elsewhere without having them back."""
    count: int = 0 if found is None else found.length if is_away(found) else found.shape[1]
    return count


def slot_of(name: str) -> str:
    """Return where a field of an object really lies, in its `__dict__`."""
    return f"_{name}"


def is_away(found: object) -> bool:
    """Whether something stands for rows that are elsewhere."""
    return hasattr(found, "back")
