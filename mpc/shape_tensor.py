"""Tensors without content: what the dealer's and the estimate's programs compute on.

A torch tensor on the meta device does the same, but an element-wise operation on it takes a quarter of a millisecond in
Python, and the first one imports a compiler for five seconds; here it takes a few microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from mpc.ledger import current

WORD_BYTES = 8
_ELEMENTWISE = frozenset(
    [
        "add",
        "sub",
        "rsub",
        "mul",
        "__and__",
        "__or__",
        "__xor__",
        "bitwise_and",
        "bitwise_or",
        "bitwise_xor",
        "__rshift__",
        "__lshift__",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
    ]
)
_UNARY = frozenset(["neg", "bitwise_not", "abs", "zeros_like", "ones_like", "flip", "roll", "cumsum"])
_VIEWS = frozenset(["reshape", "permute", "transpose", "flatten", "unbind", "movedim", "narrow", "squeeze", "unsqueeze"])


def broadcast(*shapes: Sequence[int]) -> tuple[int, ...]:
    """Return the common shape of `shapes`. Raises `ValueError` where there is none."""
    rank = max(len(shape) for shape in shapes)
    out = [1] * rank
    for shape in shapes:
        for i, n in enumerate(shape, rank - len(shape)):
            if n != 1:
                if out[i] not in (1, n):
                    raise ValueError(f"shapes {[list(s) for s in shapes]} do not broadcast")
                out[i] = n
    return tuple(out)


def matmul_shape(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a matrix product, both operands with two axes or more."""
    if a[-1] != b[-2]:
        raise ValueError(f"matrices {list(a)} and {list(b)} cannot be multiplied")
    return (*broadcast(a[:-2], b[:-2]), a[-2], b[-1])


def einsum_shape(equation: str, *shapes: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of an explicit Einstein sum, "ij,jk->ik", without an ellipsis."""
    inputs, output = equation.replace(" ", "").split("->")
    sizes: dict[str, int] = {}
    for names, shape in zip(inputs.split(","), shapes, strict=True):
        for name, size in zip(names, shape, strict=True):
            if sizes.setdefault(name, size) != size:
                raise ValueError(f"'{equation}' does not fit shapes {[list(s) for s in shapes]}")
    return tuple(sizes[name] for name in output)


def empty(shape: Sequence[int]) -> Tensor:
    """Return an int64 tensor on the meta device."""
    return torch.empty(tuple(shape), dtype=torch.int64, device="meta")


class LiveBytes:
    """Bytes of the shape tensors that were made since counting began. now: of those that are still referred to; most: of
    these at most, by stage and operation."""

    def __init__(self) -> None:
        self.now = 0
        self.most: dict[tuple[str, str], int] = {}

    def add(self, count: int) -> None:
        """Count bytes of a tensor that appears."""
        where = current()
        self.now += count
        if self.now > self.most.get(where, -1):
            self.most[where] = self.now


class Held:
    """What the views of one tensor have in common: its bytes are there as long as any of them is."""

    __slots__ = ("bytes", "live")

    def __init__(self, live: LiveBytes, count: int) -> None:
        self.live, self.bytes = live, count
        live.add(count)

    def __del__(self) -> None:
        self.live.now -= self.bytes


_live: ContextVar[LiveBytes | None] = ContextVar("live", default=None)


@contextmanager
def live_bytes() -> Iterator[LiveBytes]:
    """Count the bytes of shape tensors that are made inside, as if they were tensors, each result one of its own."""
    live = LiveBytes()
    token = _live.set(live)
    try:
        yield live
    finally:
        _live.reset(token)


class ShapeTensor:
    """The shape of an int64 tensor, with the operations of a tensor that our protocols use."""

    __slots__ = ("held", "meta")

    is_meta = True
    is_cuda = False
    dtype = torch.int64
    device = torch.device("meta")

    def __init__(self, meta: Tensor, held: Held | None = None) -> None:
        self.meta = meta
        self.held = held

    @property
    def shape(self) -> torch.Size:
        """Shape."""
        return self.meta.shape

    def size(self) -> torch.Size:
        return self.meta.shape

    def dim(self) -> int:
        return self.meta.dim()

    def numel(self) -> int:
        return self.meta.numel()

    def _binary(self, other: Any) -> ShapeTensor:
        shape, own = getattr(other, "shape", None), self.meta.shape
        if not shape or shape == own:
            return self if self.held is None else new_shape_tensor(own)
        return new_shape_tensor(broadcast(own, shape))

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _binary
    __and__ = __rand__ = __xor__ = __rxor__ = __or__ = _binary
    __lshift__ = __rshift__ = __ge__ = __gt__ = __le__ = __lt__ = _binary

    def _same(self, *_: Any, **__: Any) -> ShapeTensor:
        return self

    __neg__ = __invert__ = __abs__ = abs = neg = clone = contiguous = to = cumsum = flip = roll = _same
    scatter_ = index_add = index_add_ = _same

    def _view(self, name: str, *args: Any, **kwargs: Any) -> ShapeTensor:
        return ShapeTensor(getattr(self.meta, name)(*args, **kwargs), self.held)

    def reshape(self, *shape: Any) -> ShapeTensor:
        return self._view("reshape", *shape)

    def permute(self, *dims: Any) -> ShapeTensor:
        return self._view("permute", *dims)

    def expand(self, *shape: Any) -> ShapeTensor:
        return self._view("expand", *shape)

    def transpose(self, a: int, b: int) -> ShapeTensor:
        return self._view("transpose", a, b)

    def flatten(self, start: int = 0, end: int = -1) -> ShapeTensor:
        return self._view("flatten", start, end)

    def squeeze(self, dim: int) -> ShapeTensor:
        return self._view("squeeze", dim)

    def unsqueeze(self, dim: int) -> ShapeTensor:
        return self._view("unsqueeze", dim)

    def movedim(self, source: int, destination: int) -> ShapeTensor:
        return self._view("movedim", source, destination)

    def narrow(self, dim: int, start: int, length: int) -> ShapeTensor:
        return self._view("narrow", dim, start, length)

    def split(self, sizes: Any, dim: int = 0) -> tuple[ShapeTensor, ...]:
        return tuple(ShapeTensor(x, self.held) for x in torch.split(self.meta, sizes, dim))

    def t(self) -> ShapeTensor:
        return self._view("t")

    def new_zeros(self, shape: Sequence[int]) -> ShapeTensor:
        """Return another one of `shape`."""
        return new_shape_tensor(shape)

    def gather(self, dim: int, index: Any) -> ShapeTensor:
        """As many elements as `index` has."""
        return new_shape_tensor(index.shape)

    def repeat(self, *sizes: int) -> ShapeTensor:
        """Return `sizes` copies along each axis."""
        shape = (*(1,) * (len(sizes) - self.dim()), *self.shape)
        return new_shape_tensor([n * m for n, m in zip(shape, sizes, strict=True)])

    def unbind(self, dim: int = 0) -> tuple[ShapeTensor, ...]:
        return tuple(ShapeTensor(x, self.held) for x in self.meta.unbind(dim))

    def __getitem__(self, index: Any) -> ShapeTensor:
        if isinstance(index, Tensor) and index.dim() == 1 and index.dtype == torch.int64 and self.dim() == 1:
            return new_shape_tensor((index.numel(),))
        if isinstance(index, tuple) and len(index) == 2 and index[0] is Ellipsis and isinstance(index[1], Tensor):
            return new_shape_tensor((*self.shape[:-1], *index[1].shape))
        if isinstance(index, tuple):  # an index of any device is as good as one without content
            index = tuple(empty(i.shape) if isinstance(i, Tensor) and i.dtype == torch.int64 else i for i in index)
        return ShapeTensor(self.meta[index], self.held)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Do nothing."""

    def sum(self, dim: int, keepdim: bool = False) -> ShapeTensor:
        """Return the shape without (or with a single) axis `dim`."""
        shape = list(self.shape)
        if keepdim:
            shape[dim] = 1
        else:
            del shape[dim]
        return new_shape_tensor(shape)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func in (torch.cat, torch.stack):
            return _joined(func is torch.stack, args[0], *args[1:], **options)
        name = getattr(func, "__name__", "")
        if name in _UNARY:
            return args[0]
        if func is torch.where:
            return new_shape_tensor(broadcast(*(x.shape for x in args if hasattr(x, "shape"))))
        if name in _ELEMENTWISE:
            return new_shape_tensor(broadcast(*(x.shape for x in args[:2] if hasattr(x, "shape"))))
        if func is torch.matmul:
            return new_shape_tensor(matmul_shape(args[0].shape, args[1].shape))
        if func is torch.einsum:
            return new_shape_tensor(einsum_shape(args[0], *(x.shape for x in args[1:])))
        if name in _VIEWS or name == "sum":
            return getattr(args[0], name)(*args[1:], **options)
        raise NotImplementedError(f"{name or func} is not among the operations of a ShapeTensor")


def _joined(stacked: bool, parts: Sequence[Any], dim: int = 0) -> ShapeTensor:
    shape = list(parts[0].shape)
    if stacked:
        shape.insert(dim if dim >= 0 else len(shape) + 1 + dim, len(parts))
        return new_shape_tensor(shape)
    for part in parts[1:]:
        for axis, (n, m) in enumerate(zip(shape, part.shape, strict=True)):
            if n != m and axis != dim % len(shape):
                raise ValueError(f"shapes {[list(p.shape) for p in parts]} cannot be joined along axis {dim}")
    shape[dim] = sum(part.shape[dim] for part in parts)
    return new_shape_tensor(shape)


@lru_cache(maxsize=4096)
def _of_shape(shape: tuple[int, ...]) -> ShapeTensor:
    return ShapeTensor(empty(shape))


def new_shape_tensor(shape: Sequence[int], element_bytes: int = WORD_BYTES) -> ShapeTensor:
    """Return a tensor without content of `shape`: as nothing can be written into it, one serves all that ask, but where what
    is alive is counted (`live_bytes`), then of elements of so many bytes."""
    known = _of_shape(tuple(shape))
    live = _live.get()
    if live is None:
        return known
    return ShapeTensor(known.meta, Held(live, known.meta.numel() * element_bytes))


def shape_tensor(shape: Sequence[int], element_bytes: int = WORD_BYTES) -> Tensor:
    """Return a shape tensor where the type checker wants a tensor."""
    return cast(Tensor, new_shape_tensor(shape, element_bytes))
