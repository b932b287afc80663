"""Piecewise polynomials of a masked value: no round, no byte online.

The high digit of the public m picks the segment, the low part m_lo is public, so a polynomial in x_lo = m_lo - lam_lo is a
polynomial in m_lo whose coefficients the dealer expands. For every power j it deals a one-time table over the public high
digit: A_j[p] = sum_i a_{s(p), i} binom(i, j) (-rho)^(i - j), s(p) = p - lam_hi, rho = lam_lo / 2^l, and the parties evaluate
sum_j (m_lo / 2^l)^j [A_j[m_hi]]. A borrow shifts the segment by one and makes x_lo negative, so the polynomial of a segment
is fitted on (-1, 1) segment widths.

The range is the ring: x is read modulo 2^bits, and the last segment is not usable (a borrow from it wraps to the first);
x must not leave it. Offline: (degree + 1) 2^hi out_bits per
element (twice with a factor). Error: the fit's plus about 2^(power_bits - frac) (rounded coefficients) plus |f'| width
2^-power_bits.
Leaks: nothing, it is local (docs/security.md, "Piecewise polynomials").
Sources: Boyle, Gilboa, Ishai 2019; SIGMA (Gupta et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from mpc import ring
from protocols.masked.context import Context, require
from protocols.masked.one_hot import digit, look_up
from protocols.masked.shares import Masked, Shared

POWER_BITS = 12  # default fraction bits of the public powers of m_lo


@dataclass(frozen=True, repr=False)
class Piecewise:
    """A function on the signed (or unsigned) range of a ring, as polynomials on 2^high equal segments.

    low, high: the range [low, high) that the ring covers, high - low = 2^(bits - frac). coefficients: [segments, degree + 1]
    in powers of (x - left edge) / width, segment 0 at `low`; where the dealer's masks are.
    """

    name: str
    low: float
    width: float
    coefficients: Tensor

    @property
    def segments(self) -> int:
        """Number of segments, a power of two."""
        return int(self.coefficients.shape[0])

    @property
    def degree(self) -> int:
        """Degree of each polynomial."""
        return int(self.coefficients.shape[1]) - 1


def fit(name: str, f: Callable[[np.ndarray], np.ndarray], low: float, high: float, segments: int, degree: int) -> Piecewise:
    """Return Chebyshev least squares on (-1, 1) widths around each segment's left edge, in float64."""
    width = (high - low) / segments
    count = 4 * degree + 8
    nodes = np.cos(np.pi * (np.arange(count) + 0.5) / count)
    edges = low + width * np.arange(segments)
    values = f(edges[:, None] + width * nodes[None, :])
    powers = np.vander(nodes, degree + 1, increasing=True)
    coefficients = np.linalg.lstsq(powers, values.T, rcond=None)[0].T
    return Piecewise(name, low, width, torch.from_numpy(np.ascontiguousarray(coefficients)))


def _tables(f: Piecewise, x: Masked, high_bits: int, frac: int) -> Tensor:
    """Return the dealer's tables: [degree + 1, ..., 2^high_bits] int64 with `frac` fraction bits."""
    low_bits = x.bits - high_bits
    lam_hi = ring.shift_right(x.lam, low_bits, x.bits)
    minus_rho = -(x.lam & ((1 << low_bits) - 1)).to(torch.float64).reshape(-1, 1) / 2.0**low_bits
    size = 1 << high_bits
    # segment of public digit p: (p - lam_hi) mod size, counted from the ring value 0; segment 0 of f lies at f.low
    start = round(f.low / f.width)
    segment = (torch.arange(size, device=lam_hi.device) - lam_hi.reshape(-1, 1) - start) & (size - 1)
    powers = [torch.ones_like(minus_rho)]
    for _ in range(f.degree):
        powers.append(powers[-1] * minus_rho)
    scaled = f.coefficients * 2.0**frac  # [segments, degree + 1]
    out = torch.empty((f.degree + 1, *segment.shape), dtype=torch.int64, device=lam_hi.device)
    for j in range(f.degree + 1):
        weights = torch.cat([powers[i - j] * math.comb(i, j) for i in range(j, f.degree + 1)], 1)
        values = (weights @ scaled[:, j:].t()).round_()  # [elements, segments], one small product for all of them
        out[j] = values.to(torch.int64).gather(1, segment)
    return out.reshape(f.degree + 1, *x.lam.shape, size)


def evaluate(
    c: Context, f: Piecewise, x: Masked, bits: int, frac: int, factor: Masked | None = None, power_bits: int = POWER_BITS
) -> Shared:
    """Return [f(x)] or [f(x) factor] modulo 2^bits with `frac` (+ the factor's) fraction bits; local.

    factor: a masked value of x's shape whose ring has at least `bits` bits; multiplied in at no round.
    """
    high_bits = f.segments.bit_length() - 1
    low_bits = x.bits - high_bits
    require(low_bits > 0, f.name, f"a ring of {x.bits} bits is too small for {f.segments} segments")
    shape = (f.degree + 1, *x.shape, f.segments)
    cached: list[Tensor] = []

    def tables() -> Tensor:
        if not cached:
            cached.append(_tables(f, x, high_bits, frac - power_bits))
        return cached[0]

    dealt = c.deal_table(f"{f.name} tables", shape, bits, tables)
    scaled = None
    if factor is not None:
        factor = factor.to_ring(bits)
        lam = factor.lam
        scaled = c.deal_table(f"{f.name} tables times mask", shape, bits, lambda: tables() * lam[None, ..., None])
    out_frac = frac + (factor.frac if factor is not None else 0)
    if not c.evaluating:
        return Shared(c.blank(x.shape), bits, out_frac)
    m_hi, _ = digit(c, x, low_bits, high_bits)
    gamma = (x.m & ((1 << low_bits) - 1)).to(torch.float64) / 2.0**low_bits
    power, powers = torch.ones_like(gamma), []
    for _ in range(f.degree + 1):
        powers.append(power)
        power = power * gamma
    public = torch.round(torch.stack(powers) * 2.0**power_bits).to(torch.int64)
    index = m_hi.expand(public.shape)

    def pick(entries: Tensor) -> Tensor:
        return (public * look_up(entries, index)).sum(0)

    value = pick(dealt)
    if factor is not None and scaled is not None:
        value = factor.m * value - pick(scaled)
    return Shared(value, bits, out_frac)


@cache
def normalised_power(exponent: float, device: torch.device | str = "cpu") -> Piecewise:
    """Return t^exponent for t in [0.25, 2), on 64 segments of the ring [0, 2), degree 4; its coefficients lie on a device.

    t just below 2 with a borrow is looked up in segment 0, which no t of the domain reaches otherwise: the first segments
    hold the function beyond 2.
    """
    found = fit(f"power {exponent:g}", lambda t: np.where(t < 0.2, t + 2, t) ** exponent, 0.0, 2.0, 64, 4)
    return replace(found, coefficients=found.coefficients.to(device))
