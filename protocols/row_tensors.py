"""Cached rows as tensors, for whoever keeps them elsewhere for a while: in a file, say (`protocols.paging`).

All that a party holds of the rows is in the tensors, and what is made of them again is the same value, to the last public
fact that decides about a ring: a party may do so although the others do not. Local; no round, no byte.
Leaks: nothing; which rows are moved, and when, follows from public numbers (`protocols.paging`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Fill = tuple[tuple[Tensor, ...], Callable[[int], Any]]
"""Tensors to be filled, and what makes a value of their rows from a place on."""


def never() -> int | None:
    """Return None: rows that nobody changes."""
    return None


@dataclass(frozen=True, repr=False)
class RowTensors:
    """What a party holds of a cached value [G, S, C]. Secret: masked values with shares of their masks, or shares.

    source: the same object as long as rows are only appended, which may be referred to weakly; first: the place of the first
    row in it. tensors: rows along axis 1, [G, S, C] each. empty(rows): room for so many rows, with more behind where rows
    may be appended. changed(): the place in `source` from which rows may be others than when it was asked last; None: none.
    """

    source: object
    first: int
    tensors: tuple[Tensor, ...]
    empty: Callable[[int], Fill]
    changed: Callable[[], int | None] = never
