"""What is written down of a computation on a device: a number for each element of each node, of integers alone.

Operations: "held" (a tensor that is there), "constant" (the same number everywhere), element by element (`UNARY`, `BINARY`,
"where", "cast"), ones that move elements ("axes", "reshape", "permute", "expand", "slice", "cat"), looks ("gather", "take"),
"sum" and "fold" (the XOR) over an axis, and the layout of `mpc.packing` ("unpack", "pack").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mpc import shape_tensor

UNARY = ("neg", "invert")
ARITHMETIC = ("add", "sub", "mul", "and", "or", "xor", "shl", "shr", "min", "max")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
BINARY = ARITHMETIC + COMPARISONS
MOVES = ("axes", "reshape", "permute", "expand", "slice")


FIXED = ("cat", "gather", "sum", "fold", "unpack", "pack", "axes", "permute", "constant")
"""Operations whose attributes a kernel's text says; of others they are its arguments."""

MOST_STEPS = 64  # operations that the host does again rather than wait for the device


class Node:
    """One operation. attrs: what it needs beside its arguments. held: its elements, once they are there. shared: another
    node may share its memory, so that nobody may write into it. host: how the host knows the elements without asking the
    device, since they follow from bytes that it has sent or received (`Recipe`); nobody writes into these."""

    __slots__ = ("args", "attrs", "device", "dtype", "held", "host", "op", "shape", "shared")

    def __init__(
        self,
        op: str,
        args: tuple[Node, ...],
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        attrs: tuple[Any, ...] = (),
    ) -> None:
        self.op = op
        self.args = args
        self.attrs = attrs
        self.shape = tuple(shape)
        self.dtype = dtype
        self.device = device
        self.held: Tensor | None = None
        self.shared = False
        self.host: Recipe | None = None
        if any(a.host is not None for a in args) and all(a.host is not None or a.op == "constant" for a in args):
            recipe = Recipe(self, tuple(a.host or Recipe(a, ()) for a in args))
            self.host = recipe if recipe.steps <= MOST_STEPS else None

    @property
    def count(self) -> int:
        """Elements."""
        out = 1
        for size in self.shape:
            out *= size
        return out

    def settled(self, held: Tensor) -> None:
        """Say what the elements are: what they were made of is forgotten."""
        self.held = held
        self.op, self.args, self.attrs = "held", (), ()


class Recipe:
    """How the host computes what a node holds: an operation on what it knows, or a leaf that gives it."""

    __slots__ = ("args", "attrs", "device", "dtype", "leaf", "op", "shape", "steps")

    def __init__(self, node: Node, args: tuple[Recipe, ...], leaf: Callable[[], Tensor] | None = None) -> None:
        self.op, self.attrs, self.shape, self.dtype = node.op, node.attrs, node.shape, node.dtype
        self.device = torch.device("cpu")
        self.args = args
        self.leaf = leaf
        self.steps: int = 1 + sum(a.steps for a in args)


def held(x: Tensor) -> Node:
    """Return a node of a tensor that is there; others may write into it."""
    out = Node("held", (), x.shape, x.dtype, x.device)
    out.held, out.shared = x, True
    return out


def constant(value: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Node:
    """Return a node that is the same number everywhere."""
    return Node("constant", (), shape, dtype, device, (int(value),))


def broadcast(*shapes: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of an operation, element by element."""
    first = tuple(shapes[0])
    if all(tuple(shape) == first for shape in shapes[1:]):
        return first
    out = shape_tensor.broadcast(first, *(tuple(shape) for shape in shapes[1:]))
    return tuple(out)


def reshaped(x: Node, shape: Sequence[int]) -> Node:
    """Return the same elements in another shape, one of whose sizes may be -1."""
    sizes = list(shape)
    if -1 in sizes:
        rest = 1
        for size in sizes:
            rest *= 1 if size == -1 else size
        sizes[sizes.index(-1)] = x.count // rest if rest else 0
    if tuple(sizes) == x.shape:
        return x
    long = [i for i, size in enumerate(x.shape) if size != 1]
    places = [i for i, size in enumerate(sizes) if size != 1]
    if [x.shape[i] for i in long] == [sizes[i] for i in places]:
        at = dict(zip(long, places, strict=True))
        return _moved("axes", x, sizes, tuple(at.get(i) for i in range(len(x.shape))))
    before = x.args  # another thread may compute x meanwhile
    if x.op == "reshape" and before:
        return reshaped(before[0], sizes)
    return _moved("reshape", x, sizes, ())


def _moved(op: str, x: Node, shape: Sequence[int], attrs: tuple[Any, ...]) -> Node:
    return Node(op, (x,), shape, x.dtype, x.device, attrs)


def permuted(x: Node, dims: Sequence[int]) -> Node:
    """Return x with its axes in another order."""
    order = tuple(d % len(x.shape) for d in dims)
    return _moved("permute", x, [x.shape[d] for d in order], order)


def expanded(x: Node, shape: Sequence[int]) -> Node:
    """Return x repeated along axes of size 1, and along new ones in front."""
    more = len(shape) - len(x.shape)
    sizes = [x.shape[i - more] if size == -1 else size for i, size in enumerate(shape)]
    return x if tuple(sizes) == x.shape else _moved("expand", x, sizes, ())


def sliced(x: Node, starts: Sequence[int], steps: Sequence[int], shape: Sequence[int]) -> Node:
    """Return every steps-th element from starts on, along each axis."""
    if tuple(shape) == x.shape and not any(starts) and all(step == 1 for step in steps):
        return x
    return _moved("slice", x, shape, (tuple(starts), tuple(steps)))
