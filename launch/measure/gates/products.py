"""Random products on shares, compared with exact ones: no error may exceed two units in the last place.

INSECURE FOR REAL DATA BY NATURE: one process holds all shares (`launch.local.in_process`).

Factors have the suite's own fraction bits and magnitudes spread evenly, in their logarithm, from one unit to the declared
bound of 256, so float64 holds the exact product and, for matrices, the sum over up to 64 of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from launch.measure.gates.check import Function, run_function
from launch.measure.gates.points import absolute
from mpc.errors import ConfigurationError
from protocols.registry import SUITES

BATCH = 500_000
INNER = 64  # of matrix products
MAGNITUDE = 8
LIMIT_UNITS = 2.0
KINDS = ("element by element", "matrix")


@dataclass
class Products:
    """What was found. worst: largest error in units in the last place; above: how many exceed `LIMIT_UNITS`."""

    kind: str
    suite: str
    parties: int
    count: int = 0
    worst: float = 0.0
    above: int = 0

    @property
    def ok(self) -> bool:
        """Return whether no error is above the limit."""
        return self.above == 0


def _factors(generator: torch.Generator, frac: int, *shape: int) -> Tensor:
    """Return random signs and magnitudes from 2^-frac to 2^8, in units of 2^-frac."""
    logs = torch.rand(shape, generator=generator, dtype=torch.float64) * (MAGNITUDE + frac) - frac
    sign = torch.where(torch.rand(shape, generator=generator) < 0.5, -1.0, 1.0)
    x = torch.round(sign * 2.0**logs * 2.0**frac) / 2.0**frac
    limit = 2.0**MAGNITUDE - 2.0**-frac
    return x.clamp(-limit, limit)


def _program(kind: str) -> Any:
    async def elements(s: Any, x: Any, y: Any) -> Any:
        return await s.rounded(await s.mul(x, y))

    async def matrices(s: Any, x: Any, y: Any) -> Any:
        return await s.rounded(await s.matmul(x, y))

    return elements if kind == KINDS[0] else matrices


def _sizes(count: int, batch: int) -> Iterator[int]:
    while count > 0:
        yield min(count, batch)
        count -= batch


def multiply(suite: str, parties: int, count: int, kind: str, seed: int = 1) -> Products:
    """Multiply at least `count` products of one kind, truncated to the suite's fraction bits. seed: of the (public) factors.

    A matrix product's batch is [n, 64] x [64, n]: each of its results counts as one product.
    """
    if count < 1:
        raise ConfigurationError(f"{count} products cannot be checked, give a positive number")
    if kind not in KINDS:
        raise ConfigurationError(f"products '{kind}' are unknown; known: {', '.join(KINDS)}")
    frac = SUITES[suite].options.fraction_bits
    found = Products(kind, suite, parties)
    generator = torch.Generator().manual_seed(seed)
    for size in _sizes(count, BATCH):
        if kind == KINDS[0]:
            x, y = _factors(generator, frac, size), _factors(generator, frac, size)
            exact = x * y
        else:
            side = -int(-(size**0.5) // 1)
            x, y = _factors(generator, frac, side, INNER), _factors(generator, frac, INNER, side)
            exact = x @ y
        check = Function(
            kind, "products", "", "absolute", lambda _: [], absolute(lambda _: []), _program(kind), {}, (), frac
        )
        (result,) = run_function(check, suite, parties, [x, y]).outputs
        units = (result - exact).abs() * 2.0**frac
        found.count += exact.numel()
        found.worst = max(found.worst, float(units.max()))
        found.above += int((~(units <= LIMIT_UNITS)).sum())
    return found
