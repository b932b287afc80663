"""What goes up to a device: written down first, copied when a launch needs it, all that waits in one copy.

Bytes that have arrived, entries of a tape, bytes that the host has expanded and what it has computed (`going_up`) are nodes
without elements until a launch reads one of them; then what it reads, and what else is still held, goes up in one buffer,
each part at a multiple of 16 bytes. What is large goes up at once, while the device computes what was launched before.

On a GPU the copy is one of its own stream, through two buffers of locked memory a thread: the host fills one while the other
is copied. The stream that computes waits for the copy, not the host.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpc.device.node import Node, Recipe

ALIGNED = 16
PIECE = 1 << 22  # bytes of a locked buffer
AT_ONCE = 1 << 20  # bytes that do not wait for a launch
OP = "going up"
DTYPES = {"u1": torch.uint8, "i1": torch.int8, "i2": torch.int16, "i4": torch.int32, "i8": torch.int64}


def going_up(host: np.ndarray, device: torch.device) -> Node:
    """Return a node of integers that the host has, and that nobody writes into."""
    out = Node(OP, (), host.shape, DTYPES[host.dtype.str[1:]], device, (np.ascontiguousarray(host),))
    out.shared = True
    out.host = Recipe(out, (), lambda: torch.from_numpy(host if host.flags.writeable else host.copy()))
    return out


def bring(nodes: Sequence[Node]) -> None:
    """Give nodes of `going_up` their elements: one copy a device."""
    waiting = [node for node in nodes if node.op == OP]
    for device in dict.fromkeys(node.device for node in waiting):
        here = [node for node in waiting if node.device == device]
        starts, size = [], 0
        for node in here:
            starts.append(size)
            size += -(-_bytes(node).nbytes // ALIGNED) * ALIGNED
        there = _copied([_bytes(node) for node in here], starts, size, device)
        for node, start in zip(here, starts, strict=True):
            held = there[start : start + _bytes(node).nbytes]
            node.settled(held.view(node.dtype).reshape(node.shape))


def _bytes(node: Node) -> np.ndarray:
    found: np.ndarray = node.attrs[0].reshape(-1).view(np.uint8)
    return found


def _copied(parts: Sequence[np.ndarray], starts: Sequence[int], size: int, device: torch.device) -> Tensor:
    """Return parts on a device, each from its start on, uint8 [size]."""
    if torch.cuda.is_available():
        return _lanes(device).copied(parts, starts, size)
    host = np.zeros(size, np.uint8)
    for part, start in zip(parts, starts, strict=True):
        host[start : start + part.size] = part
    return torch.from_numpy(host).to(device)


class _Lane:
    """A thread's way to a GPU: a stream, and two buffers of locked memory with the copy that each is part of."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        cuda: Any = torch.cuda
        self._stream = cuda.Stream(device)
        self._buffers = [torch.empty(PIECE, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._done = [cuda.Event() for _ in self._buffers]  # a wait for one without a copy is none
        self._turn = 0

    def copied(self, parts: Sequence[np.ndarray], starts: Sequence[int], size: int) -> Tensor:
        """As `_copied`. The memory is the copying stream's until the computing one has used it."""
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            there = torch.empty(size, dtype=torch.uint8, device=self._device)
            for first in range(0, size, PIECE):
                self._turn = 1 - self._turn
                buffer, done = self._buffers[self._turn], self._done[self._turn]
                done.synchronize()
                last = min(first + PIECE, size)
                for at, part in pieces(parts, starts, first, last):
                    buffer.numpy()[at : at + part.size] = part
                there[first:last].copy_(buffer[: last - first], non_blocking=True)
                done.record(self._stream)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        there.record_stream(computing)
        return there


def pieces(parts: Sequence[np.ndarray], starts: Sequence[int], first: int, last: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield what of the parts lies from byte `first` to `last`, and where it begins there."""
    for part, start in zip(parts, starts, strict=True):
        low, high = max(first, start), min(last, start + part.size)
        if low < high:
            yield low - first, part[low - start : high - start]


_own = threading.local()


def _lanes(device: torch.device) -> _Lane:
    """Return this thread's way to a device."""
    found: dict[torch.device, _Lane] = _own.__dict__.setdefault("lanes", {})
    if device not in found:
        found[device] = _Lane(device)
    return found[device]
