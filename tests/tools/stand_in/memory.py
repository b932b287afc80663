"""Memory of the stand-in device: bytes that each role holds, most of them at once, and by what.

A block is memory that tensors show; it lives as long as one of them. What a kernel keeps in registers is no tensor, so it
is not counted, as on a GPU; what an allocator keeps between two uses is not counted either.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from tests.tools.stand_in.counts import line


@dataclass
class Held:
    """Of one role, in bytes: now, the most since `Memory.begin`, what there was then, and by (line, shape) what was held
    when it was the most."""

    now: int = 0
    most: int = 0
    before: int = 0
    held: Counter[str] = field(default_factory=Counter)
    held_before: Counter[str] = field(default_factory=Counter)
    at_most: Counter[str] = field(default_factory=Counter)

    def add(self, what: str, size: int) -> None:
        """Count a block that is there, or is there no more."""
        self.now += size
        self.held[what] += size
        if self.now > self.most:
            self.most, self.at_most = self.now, self.held.copy()

    def copy(self) -> Held:
        """Return what is counted now."""
        return replace(self)

    @property
    def more(self) -> int:
        """Bytes above what there was at the beginning, most."""
        return self.most - self.before

    def by_line(self) -> list[tuple[str, int]]:
        """Return what was held, above what there was at the beginning, when it was the most: most first."""
        return (self.at_most - self.held_before).most_common()


class Memory:
    """Of all roles, by their threads."""

    def __init__(self) -> None:
        self.roles: dict[str, Held] = {}
        self._blocks: WeakValueDictionary[int, Block] = WeakValueDictionary()
        self._lock = threading.RLock()  # a block may go while another one is made

    def begin(self) -> None:
        """Count anew from what this thread holds now."""
        with self._lock:
            role = self.role()
            role.most = role.before = role.now
            role.at_most = role.held_before = role.held.copy()

    def role(self) -> Held:
        """Return what this thread holds."""
        return self.roles.setdefault(threading.current_thread().name, Held())

    def block(self, x: Tensor) -> Block:
        """Return the block that a tensor shows."""
        storage = x.untyped_storage()
        with self._lock:
            found = self._blocks.get(storage._cdata)
            if found is None:
                what = f"{line()} {str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
                found = self._blocks[storage._cdata] = Block(self, self.role(), what, storage)
            return found

    def add(self, role: Held, what: str, size: int) -> None:
        """Count bytes of a role."""
        with self._lock:
            role.add(what, size)


class Block:
    """Memory of the device, there as long as this object is."""

    def __init__(self, memory: Memory, role: Held, what: str, storage: torch.UntypedStorage) -> None:
        self._memory, self._role, self._what = memory, role, what
        self._storage = storage  # while it is there, no other memory has its place in `Memory`
        memory.add(role, what, storage.nbytes())

    def __del__(self) -> None:
        self._memory.add(self._role, self._what, -self._storage.nbytes())


_watched: list[Memory] = []


@contextmanager
def watching() -> Iterator[Memory]:
    """Watch the memory of tensors that are made within."""
    memory = Memory()
    _watched.append(memory)
    try:
        yield memory
    finally:
        _watched.remove(memory)


def block(x: Tensor) -> Block | None:
    """Return the memory that a tensor shows, where memory is watched."""
    return _watched[-1].block(x) if _watched else None
