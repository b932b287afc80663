"""Tensors without content: what the dealer's and the estimate's programs compute on.

A torch tensor on the meta device does the same, but an element-wise operation on it takes a quarter of a millisecond in
Python; here it takes a few microseconds, which is what a dealer spends on a round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_ELEMENTWISE = ("add", "sub", "rsub", "mul", "__and__", "__or__", "__xor__", "bitwise_and", "bitwise_or", "bitwise_xor")


def broadcast(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The common shape of `shapes`. Raises `ValueError` where there is none."""
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
    """The shape of a matrix product, both operands with two axes or more."""
    if a[-1] != b[-2]:
        raise ValueError(f"matrices {list(a)} and {list(b)} cannot be multiplied")
    return (*broadcast(a[:-2], b[:-2]), a[-2], b[-1])


def empty(shape: Sequence[int]) -> Tensor:
    """An int64 tensor on the meta device."""
    return torch.empty(tuple(shape), dtype=torch.int64, device="meta")


class Ghost:
    """The shape of an int64 tensor, with the operations of a tensor that our protocols use."""

    __slots__ = ("meta",)

    is_meta = True
    is_cuda = False
    dtype = torch.int64
    device = torch.device("meta")

    def __init__(self, meta: Tensor) -> None:
        self.meta = meta

    @property
    def shape(self) -> torch.Size:
        """Shape."""
        return self.meta.shape

    def size(self) -> torch.Size:
        """Shape."""
        return self.meta.shape

    def dim(self) -> int:
        """Number of axes."""
        return self.meta.dim()

    def numel(self) -> int:
        """Number of elements."""
        return self.meta.numel()

    def _binary(self, other: Any) -> Ghost:
        shape = getattr(other, "shape", None)
        if not shape or shape == self.meta.shape:
            return self
        return ghost(broadcast(self.meta.shape, shape))

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _binary
    __and__ = __rand__ = __xor__ = __rxor__ = __or__ = _binary
    __lshift__ = __rshift__ = __ge__ = __lt__ = _binary

    def _same(self, *_: Any, **__: Any) -> Ghost:
        return self

    __neg__ = __invert__ = clone = contiguous = to = _same

    def _view(self, name: str, *args: Any, **kwargs: Any) -> Ghost:
        return Ghost(getattr(self.meta, name)(*args, **kwargs))

    def reshape(self, *shape: Any) -> Ghost:
        """A view."""
        return self._view("reshape", *shape)

    def permute(self, *dims: Any) -> Ghost:
        """A view."""
        return self._view("permute", *dims)

    def expand(self, *shape: Any) -> Ghost:
        """A view."""
        return self._view("expand", *shape)

    def transpose(self, a: int, b: int) -> Ghost:
        """A view."""
        return self._view("transpose", a, b)

    def unbind(self, dim: int = 0) -> tuple[Ghost, ...]:
        """Views."""
        return tuple(Ghost(x) for x in self.meta.unbind(dim))

    def __getitem__(self, index: Any) -> Ghost:
        if isinstance(index, Tensor) and index.dim() == 1 and index.dtype == torch.int64 and self.dim() == 1:
            return ghost((index.numel(),))
        return Ghost(self.meta[index])

    def __setitem__(self, index: Any, value: Any) -> None:
        """Nothing."""

    def sum(self, dim: int, keepdim: bool = False) -> Ghost:
        """The shape without (or with a single) axis `dim`."""
        shape = list(self.shape)
        if keepdim:
            shape[dim] = 1
        else:
            del shape[dim]
        return ghost(shape)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func in (torch.cat, torch.stack):
            return _joined(func is torch.stack, args[0], *args[1:], **options)
        if func is torch.zeros_like:
            return args[0]
        if func is torch.where:
            return ghost(broadcast(*(x.shape for x in args)))
        if getattr(func, "__name__", "") in _ELEMENTWISE:
            return ghost(broadcast(*(x.shape for x in args[:2] if hasattr(x, "shape"))))
        if func is torch.matmul:
            return ghost(matmul_shape(args[0].shape, args[1].shape))
        raise NotImplementedError(f"{getattr(func, '__name__', func)} is not among the operations of a Ghost")


def _joined(stacked: bool, parts: Sequence[Any], dim: int = 0) -> Ghost:
    shape = list(parts[0].shape)
    if stacked:
        shape.insert(dim if dim >= 0 else len(shape) + 1 + dim, len(parts))
        return ghost(shape)
    for part in parts[1:]:
        for axis, (n, m) in enumerate(zip(shape, part.shape, strict=True)):
            if n != m and axis != dim % len(shape):
                raise ValueError(f"shapes {[list(p.shape) for p in parts]} cannot be joined along axis {dim}")
    shape[dim] = sum(part.shape[dim] for part in parts)
    return ghost(shape)


def ghost(shape: Sequence[int]) -> Ghost:
    """A tensor without content of `shape`."""
    return Ghost(empty(shape))
