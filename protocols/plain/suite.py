"""The suite `plain`: floats, one party, nothing secret. The reference that every other suite is compared with.

It computes in torch on CPU or CUDA, communicates nothing and needs no tape. Integers (one-hot rows, comparison bits) are
floats too; they are exact up to 2^24 in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from mpc.constants import placed
from mpc.errors import ConfigurationError, RangeError
from mpc.ledger import Ledger
from protocols.gumbel import gumbel
from protocols.suite import Activation, Linear, Norm, OutputShare, Suite, Value


class PlainValue(Value):
    """A float tensor. It belongs to no suite instance, so a loaded weight serves any number of sessions."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __repr__(self) -> str:
        return f"PlainValue(shape={list(self.tensor.shape)}, dtype={self.tensor.dtype})"

    @property
    def element_bytes(self) -> int:
        return self.tensor.element_size()

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor."""
        return self.tensor.shape

    def _operand(self, other: Value | Tensor | float) -> Tensor | float:
        if isinstance(other, Value):
            return tensor_of(other)
        return other.to(self.tensor) if isinstance(other, Tensor) else other

    def __add__(self, other: Value | Tensor | float) -> PlainValue:
        return PlainValue(self.tensor + self._operand(other))

    def __sub__(self, other: Value | Tensor | float) -> PlainValue:
        return PlainValue(self.tensor - self._operand(other))

    def __neg__(self) -> PlainValue:
        return PlainValue(-self.tensor)

    def __mul__(self, factor: int | Tensor) -> PlainValue:
        integer = isinstance(factor, int) or (isinstance(factor, Tensor) and factor.dtype == torch.int64)
        if not integer:
            kind = factor.dtype if isinstance(factor, Tensor) else type(factor).__name__
            raise ConfigurationError(f"'*' takes a public integer or int64 tensor, got {kind}; use Suite.scale or Suite.mul")
        if not isinstance(factor, Tensor):
            return PlainValue(self.tensor * factor)
        dtype = torch.promote_types(self.tensor.dtype, torch.float32)  # half precision cannot hold integers above 2^11
        return PlainValue(self.tensor * placed(factor, self.tensor.device).to(dtype))

    def __getitem__(self, index: Any) -> PlainValue:
        return PlainValue(self.tensor[index])

    def reshape(self, *shape: int) -> PlainValue:
        return PlainValue(self.tensor.reshape(*shape))

    def permute(self, *dims: int) -> PlainValue:
        return PlainValue(self.tensor.permute(*dims))

    def expand(self, *shape: int) -> PlainValue:
        return PlainValue(self.tensor.expand(*shape))

    def sum(self, dim: int, keepdim: bool = False) -> PlainValue:
        return PlainValue(self.tensor.sum(dim, keepdim=keepdim))

    def cumsum(self, dim: int) -> PlainValue:
        return PlainValue(self.tensor.cumsum(dim))


def tensor_of(value: Value) -> Tensor:
    """Return the float tensor of a value of this suite. Raises `ConfigurationError` for another suite's value."""
    if not isinstance(value, PlainValue):
        raise ConfigurationError(f"suite 'plain' was given a {type(value).__name__}; values cannot change suites")
    return value.tensor


class PlainSuite(Suite):
    """Float arithmetic in `dtype` on `device`. `input` and `weight` take float (or integer) tensors as they are.

    noise(shape): where a sample's Gumbel noise comes from, by default fresh noise of its own.

    >>> suite = PlainSuite()
    >>> x = suite.input((1, 2), torch.tensor([[3.0, 1.0]]), fraction_bits=0)
    >>> share = suite.output(suite.run(suite.argmax(x + 0.5)))
    >>> share.share.tolist()
    [[1.0, 0.0]]
    """

    name: ClassVar[str] = "plain"

    def __init__(
        self,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        ledger: Ledger | None = None,
        noise: Callable[[Sequence[int]], Tensor] = gumbel,
    ) -> None:
        if not dtype.is_floating_point:
            raise ConfigurationError(f"dtype must be a floating-point type, got {dtype}")
        super().__init__(1, 0, Ledger() if ledger is None else ledger, device)
        self.dtype = dtype
        self.noise = noise

    def _given(self, what: str, shape: Sequence[int], share: Tensor | None) -> PlainValue:
        if share is None:
            raise ConfigurationError(
                f"{what}: suite 'plain' computes on data, but no tensor of shape {list(shape)} was given"
            )
        if tuple(share.shape) != tuple(shape):
            raise ConfigurationError(f"{what}: declared shape {list(shape)}, got a tensor of shape {list(share.shape)}")
        return PlainValue(share.to(self.device, self.dtype))

    async def weight(self, name: str, shape: Sequence[int], share: Tensor | None) -> PlainValue:
        return self._given(f"weight '{name}'", shape, share)

    def input(
        self, shape: Sequence[int], share: Tensor | None, fraction_bits: int, bound: float | None = None
    ) -> PlainValue:
        return self._given("input", shape, share)

    def indices(self, count: int, share: Tensor | None, size: int) -> PlainValue:
        if share is None or tuple(share.shape) != (count,) or share.is_floating_point():
            raise ConfigurationError(f"indices: suite 'plain' needs {count} integers")
        if count and not 0 <= int(share.min()) <= int(share.max()) < size:
            raise ConfigurationError(f"indices: a place lies outside the table of {size} rows")
        return PlainValue(share.to(self.device, torch.int64))

    def output(self, x: Value) -> OutputShare:
        return OutputShare(tensor_of(x), bits=64, fraction_bits=0)

    async def perturbed(self, x: Value, temperature: float) -> PlainValue:
        tensor = tensor_of(x)
        return PlainValue(tensor + (self.noise(tuple(tensor.shape)) * temperature).to(tensor))

    def public(self, x: Tensor | float, shape: Sequence[int] | None = None) -> PlainValue:
        tensor = torch.as_tensor(x).to(self.device, self.dtype)
        return PlainValue(tensor if shape is None else tensor.expand(*shape))

    def concat(self, values: Sequence[Value], dim: int) -> PlainValue:
        return PlainValue(torch.cat([tensor_of(v) for v in values], dim))

    async def mul(self, x: Value, y: Value) -> PlainValue:
        return PlainValue(tensor_of(x) * tensor_of(y))

    async def matmul(self, x: Value, y: Value) -> PlainValue:
        return PlainValue(tensor_of(x) @ tensor_of(y))

    async def scale(self, x: Value, factor: Tensor | float) -> PlainValue:
        tensor = tensor_of(x)
        return PlainValue(tensor * (factor.to(tensor) if isinstance(factor, Tensor) else factor))

    async def linear(self, x: Value, layer: Linear, residual: Value | None = None) -> PlainValue:
        product = tensor_of(x) @ tensor_of(layer.weight)
        if layer.bias is not None:
            product = product + tensor_of(layer.bias)
        return PlainValue(product if residual is None else product + tensor_of(residual))

    async def one_hot(self, index: Value, size: int) -> PlainValue:
        return PlainValue(functional.one_hot(tensor_of(index), size).to(self.dtype))

    async def look_up(self, index: Value, table: Value) -> PlainValue:
        return PlainValue(tensor_of(table)[tensor_of(index).round().long()])

    async def embed(self, one_hot: Value, table: Value) -> PlainValue:
        return PlainValue(tensor_of(one_hot) @ tensor_of(table))

    async def rsqrt_moment(self, x: Value, norm: Norm) -> PlainValue:
        tensor = tensor_of(x)
        if norm.kind == "layer":
            moment = tensor.var(-1, unbiased=False, keepdim=True)
        else:
            moment = tensor.square().mean(-1, keepdim=True)
        return PlainValue(torch.rsqrt(moment + norm.epsilon))

    async def softmax(self, x: Value, mask: Tensor | None = None) -> PlainValue:
        tensor = tensor_of(x)
        if mask is not None:
            if not bool(mask.any(-1).all()):
                raise RangeError(f"softmax: a row of the mask of shape {list(mask.shape)} is False everywhere")
            tensor = tensor.masked_fill(~mask.to(tensor.device), float("-inf"))
        return PlainValue(torch.softmax(tensor, -1))

    async def activation(self, x: Value, kind: Activation) -> PlainValue:
        tensor = tensor_of(x)
        if kind == "gelu":
            return PlainValue(functional.gelu(tensor))
        if kind == "gelu_tanh":
            return PlainValue(functional.gelu(tensor, approximate="tanh"))
        if kind == "silu":
            return PlainValue(functional.silu(tensor))
        if kind == "relu":
            return PlainValue(torch.relu(tensor))
        raise ConfigurationError(f"unknown activation '{kind}'; known: gelu, gelu_tanh, silu, relu")

    async def tanh(self, x: Value) -> PlainValue:
        return PlainValue(torch.tanh(tensor_of(x)))

    async def soft_cap(self, x: Value, cap: float) -> PlainValue:
        return PlainValue(torch.tanh(tensor_of(x) / cap) * cap)

    async def less_than_zero(self, x: Value, fraction_bits: int | None = None) -> PlainValue:
        tensor = tensor_of(x)
        return PlainValue((tensor < 0).to(tensor.dtype))

    async def max(self, x: Value, background: bool = False) -> PlainValue:
        return PlainValue(tensor_of(x).amax(-1, keepdim=True))

    async def argmax(self, x: Value) -> PlainValue:
        tensor = tensor_of(x)
        highest = tensor == tensor.amax(-1, keepdim=True)
        return PlainValue((highest & (highest.cumsum(-1) == 1)).to(tensor.dtype))

    async def recast(self, x: Value, fraction_bits: int) -> PlainValue:
        return PlainValue(torch.round(tensor_of(x) * 2.0**fraction_bits) * 2.0**-fraction_bits)

    # ---- selection -----------------------------------------------------------------------------------------------
    async def top_k(self, x: Value, k: int, bound: float) -> PlainValue:
        tensor = tensor_of(x)
        return PlainValue(functional.one_hot(_order(tensor, k), tensor.shape[-1]).to(tensor.dtype))

    async def keep_largest(self, x: Value, k: int, bound: float, fraction_bits: int | None = None) -> PlainValue:
        tensor = tensor_of(x)
        return PlainValue(torch.zeros_like(tensor).scatter_(-1, _order(tensor, k), 1.0))

    async def compact(self, keep: Value, rows: Sequence[Value], k: int) -> list[Value]:
        index = tensor_of(keep).argsort(dim=-1, descending=True, stable=True)[..., :k].sort(-1).values
        return [PlainValue(t.gather(1, index[..., None].expand(-1, -1, t.shape[-1]))) for t in map(tensor_of, rows)]

    # ---- merging -------------------------------------------------------------------------------------------------
    async def copy_scan(self, marks: Value, values: Value, reverse: bool = False) -> PlainValue:
        marked, tensor = tensor_of(marks), tensor_of(values)
        if reverse:
            marked, tensor = marked.flip(-1), tensor.flip(-1)
        last = (marked * torch.arange(1, tensor.shape[-1] + 1).to(marked)).cummax(-1).values.long()
        padded = functional.pad(tensor, (1, 0))  # place 0: nothing was marked
        found = padded.gather(-1, last)
        return PlainValue(found.flip(-1) if reverse else found)

    async def reciprocal(self, x: Value, least: float, most: float) -> PlainValue:
        return PlainValue(1 / tensor_of(x))

    async def exp_negative(self, x: Value, most: float) -> PlainValue:
        return PlainValue(torch.exp(-tensor_of(x)))

    async def averaged(self, sums: Value, weights: Value, like: Value, limits: tuple[float, float]) -> PlainValue:
        return PlainValue(tensor_of(sums) / tensor_of(weights))

    async def normalised(self, x: Value) -> PlainValue:
        return PlainValue(functional.normalize(tensor_of(x), dim=-1, eps=1e-12))


def _order(x: Tensor, k: int) -> Tensor:
    """Return the positions of the k largest along the last axis, from the largest down."""
    if not 1 <= k <= x.shape[-1]:
        raise RangeError(f"{k} of {x.shape[-1]} values cannot be selected, the budget must be between 1 and {x.shape[-1]}")
    order: Tensor = x.argsort(dim=-1, descending=True, stable=True)
    return order[..., :k]
