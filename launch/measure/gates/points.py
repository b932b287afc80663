"""Points at which gates are measured, and how their results are judged. Nothing here is secret."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from launch.measure.gates.check import Judge

REPEAT = 8
"""How often a point beside a breakpoint is taken: whether a digit borrows depends on its mask, which is random."""

Oracle = Callable[..., Tensor | Sequence[Tensor]]


def normal(name: str, *shape: int) -> Tensor:
    """Return standard normal values, the same for the same name and shape; float64."""
    seed = int.from_bytes(name.encode()[:6].ljust(6, b"."), "little")
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def span(low: float, high: float, unit: float, marks: Sequence[float] = ()) -> Callable[[int], Sequence[Tensor]]:
    """Return points evenly from low to high, both included; as many random ones; each mark within, with a unit before and
    behind it."""

    def points(count: int) -> list[Tensor]:
        half = max(count // 2, 2)
        even = torch.linspace(low, high, half, dtype=torch.float64)
        random = torch.rand(half, generator=torch.Generator().manual_seed(half), dtype=torch.float64) * (high - low) + low
        beside = [m + d * unit for m in (low, high, 0.0, *marks) for d in (-1, 0, 1)]
        inside = torch.tensor([x for x in beside if low <= x <= high], dtype=torch.float64).repeat(REPEAT)
        return [torch.cat([even, random, inside])]

    return points


def whole_ring(bits: int) -> Callable[[int], Sequence[Tensor]]:
    """Return every value of a signed ring of so many units; evenly spread ones and both ends where it has more than asked
    for."""
    half = 1 << (bits - 1)

    def points(count: int) -> list[Tensor]:
        if 2 * half <= max(count, 256):
            return [torch.arange(-half, half, dtype=torch.float64)]
        return [torch.round(x) for x in span(-half, half - 1, 1.0)(count)]

    return points


def _listed(found: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([p.reshape(-1) for p in parts])


def absolute(oracle: Oracle) -> Judge:
    """Bound |found - exact|, exact = oracle(*inputs) in float64."""

    def judge(inputs: Sequence[Tensor], found: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        pairs = zip(found, _listed(oracle(*inputs)), strict=True)
        error = _flat([(f - e.to(torch.float64)).abs() for f, e in pairs])
        return error, error

    return judge


def relative(oracle: Oracle, floor: float = 0.0) -> Judge:
    """Bound |found - exact| / (|exact| + floor)."""

    def judge(inputs: Sequence[Tensor], found: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        exact = [e.to(torch.float64) for e in _listed(oracle(*inputs))]
        error = [(f - e).abs() for f, e in zip(found, exact, strict=True)]
        return _flat(error), _flat([d / (e.abs() + floor) for d, e in zip(error, exact, strict=True)])

    return judge


def one_hot_at(positions: Tensor, count: int) -> Tensor:
    """Return one-hot rows in float64."""
    return torch.nn.functional.one_hot(positions, count).to(torch.float64)


def best(x: Tensor, k: int) -> Tensor:
    """Return the positions of the k largest along the last axis, from the largest down, ties to the earlier one."""
    return x.sort(dim=-1, descending=True, stable=True).indices[..., :k]
