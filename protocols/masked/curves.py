"""GELU, its tanh form and SiLU as integers that are equal at all parties: segments' coefficients and waves' amplitudes.

All three are x / 2 plus an even part E(x), which is |x| / 2 but for a bump around 0; f less max(x, 0) is below 2^-12.9 from
`HALF` on. Parties multiply their shares by these integers, so a last bit that differs between machines would spoil the
result. They are therefore sums in a fixed order of correctly rounded functions' neighbours (a few 1e-16 off on any machine),
rounded to 20 to 24 fraction bits; a test holds every one of them further than 1e-7 from a tie, and roles compare a hash
(`public_tables`).

Segments: P(x) = f(x) - x as polynomials in the position t within a segment, fitted on -1 < t < 1 (a borrow from below reads
the segment above). Chebyshev interpolation nodes, discrete projection. Segments are named by both digits that are read, m's
and the mask's: what they have of a bracket's unit lies in two's complement, what is above it goes around (`segments`).

Waves: E continued by its mirror image around a quarter period, period / 4 - E(period / 2 - x): odd harmonics alone, and
right up to |x| < period / 2 - HALF.
Public: all of it. Rounds, bytes: none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from mpc.trigonometry import cos_sin

COEFFICIENT_BITS = 22  # fraction bits of segments' coefficients
AMPLITUDE_BITS = 24  # fraction bits of amplitudes, and of cosines
GRID = 4096
SMALLEST = 1e-5  # an amplitude that counts


def _gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def _gelu_tanh(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _silu(x: float) -> float:
    return x / (1 + math.exp(-x))


FUNCTIONS: dict[str, Callable[[float], float]] = {"gelu": _gelu, "gelu_tanh": _gelu_tanh, "silu": _silu}
HALF = {"gelu": 4, "gelu_tanh": 4, "silu": 12}
UNIT = 3  # brackets count units of 2^3


def even_part(kind: str, x: float) -> float:
    """Return E(x) = f(x) - x / 2."""
    return FUNCTIONS[kind](abs(x)) - abs(x) / 2


def rounded(x: float, bits: int) -> int:
    """Return x 2^bits, rounded."""
    return math.floor(x * 2.0**bits + 0.5)


# ---- segments --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Segments:
    """Digits of 2^width segments, together 2^period real units; polynomials of `degree` in the position within a segment."""

    period: int
    width: int
    degree: int

    @property
    def unit_width(self) -> int:
        """The bits of a digit that name a segment within a bracket's unit."""
        return self.width - self.period + UNIT


SEGMENTS = {"gelu": Segments(4, 7, 2), "gelu_tanh": Segments(4, 7, 2), "silu": Segments(5, 7, 3)}


def _polynomial(f: Callable[[float], float], degree: int) -> list[float]:
    """Return the coefficients of the least-squares polynomial of f at Chebyshev nodes of (-1, 1)."""
    count = 4 * degree + 8
    angles = [math.pi * (i + 0.5) / count for i in range(count)]
    values = [f(math.cos(a)) for a in angles]
    found = [0.0] * (degree + 1)
    before, here = [0.0], [1.0]  # Chebyshev polynomials in powers
    for k in range(degree + 1):
        weight = (2 if k else 1) / count * math.fsum(v * math.cos(k * a) for v, a in zip(values, angles, strict=True))
        for i, power in enumerate(here):
            found[i] += weight * power
        after = [0.0, *[(2 if k else 1) * p for p in here]]
        for i, power in enumerate(before if k else []):
            after[i] -= power
        before, here = here, after
    return found


@cache
def exact_coefficients(kind: str) -> tuple[tuple[float, ...], ...]:
    """Return the real coefficients, [segments][degree + 1], of the segments from a bracket's unit below -HALF up."""
    s = SEGMENTS[kind]
    size = 2.0 ** (s.period - s.width)
    out = []
    for i in range(-1 << s.unit_width, 1 << s.width):
        edge = i * size - HALF[kind]

        def curve(t: float, edge: float = edge) -> float:
            x = edge + t * size
            return even_part(kind, x) - x / 2

        out.append(tuple(_polynomial(curve, s.degree)))
    return tuple(out)


@cache
def coefficients(kind: str, device: torch.device) -> Tensor:
    """Return the coefficients as integers with `COEFFICIENT_BITS` fraction bits, [degree + 1, m's digit, mask's digit]."""
    s = SEGMENTS[kind]
    found = [[rounded(a, COEFFICIENT_BITS) for a in segment] for segment in exact_coefficients(kind)]
    digits, unit = torch.arange(1 << s.width), 1 << s.unit_width
    m, lam = digits[:, None], digits[None]
    around = ((m // unit) - (lam // unit)) % ((1 << s.width) // unit)
    place = unit * around + m % unit - lam % unit
    return torch.tensor(found).t()[:, place + unit].contiguous().to(device)


@cache
def ranges(kind: str) -> tuple[float, ...]:
    """Return, of each power e of the mask's position, what |sum_i a_i C(i, e) t^(i - e)| is at most for 0 <= t < 1."""
    a = np.array(exact_coefficients(kind))[:, :, None]  # [segments, degree + 1, 1]
    count = a.shape[1]
    powers = np.array([[(j / 64) ** k for j in range(65)] for k in range(count)])  # of t
    out = []
    for e in range(count):
        total = np.zeros((len(a), 65))
        for i in range(e, count):  # in this order, on every machine
            total += a[:, i] * math.comb(i, e) * powers[i - e]
        out.append(float(np.abs(total).max()))
    return tuple(out)


# ---- waves -----------------------------------------------------------------------------------------------------------
@cache
def _grid_cosines() -> np.ndarray:
    return np.array([math.cos(2 * math.pi * k / (2 * GRID)) for k in range(2 * GRID)])


@cache
def exact_amplitudes(kind: str, period: int) -> tuple[tuple[int, float], ...]:
    """Return (j, a_j) of E(x) - period / 8 = sum of a_j cos(2 pi j x / period), j odd, for a period of 2^period units."""
    size = 2.0**period
    quarter = GRID // 4
    values = []
    for i in range(quarter):  # of a quarter period: the rest is its mirror image
        x = (i + 0.5) * size / GRID
        values.append(even_part(kind, x) - size / 8)
    out, given, cosine, odd = [], np.array(values), _grid_cosines(), 2 * np.arange(quarter) + 1
    for j in range(1, 2 * GRID, 2):
        a = 8 / GRID * math.fsum((given * cosine[j * odd % (2 * GRID)]).tolist())
        if abs(a) < SMALLEST:
            break
        out.append((j, a))
    return tuple(out)


@cache
def amplitudes(kind: str, period: int) -> tuple[tuple[int, int], ...]:
    """Return (j, a_j) with `AMPLITUDE_BITS` fraction bits."""
    return tuple((j, rounded(a, AMPLITUDE_BITS)) for j, a in exact_amplitudes(kind, period))


@cache
def cosines(bits: int, device: torch.device) -> Tensor:
    """Return cos(2 pi k / 2^bits) with `AMPLITUDE_BITS` fraction bits, int32 [2^bits]."""
    eighth = 1 << (bits - 3)
    angle = torch.arange(eighth + 1, dtype=torch.float64) * (2 * math.pi / (1 << bits))
    low, high = cos_sin(angle)
    quarter = torch.cat([low, high[:-1].flip(0)])  # cos up to a quarter period, from angles of at most an eighth
    half = torch.cat([quarter, -quarter[:-1].flip(0)])
    whole = torch.cat([half, half[1:-1].flip(0)])
    return torch.round(whole * 2.0**AMPLITUDE_BITS).to(torch.int32).to(device)
