"""Piecewise polynomials, reciprocals and roots; functions in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from tests.vectors.independent.formats import U, Words, from_real, high, reduce, word
from tests.vectors.independent.incremental import Tree, read
from tests.vectors.independent.linear import open_cut
from tests.vectors.independent.lookup import at, digit, low, scaled
from tests.vectors.independent.world import Masked, Shared, Steps, World, together

COEFFICIENTS = Path(__file__).parents[1] / "coefficients.json"
Real = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Curve:
    """coefficients [segments, degree + 1] in powers of (x - left edge) / width; segment 0 lies at `start`."""

    start: float
    width: float
    coefficients: np.ndarray


@cache
def curve(name: str) -> Curve:
    """From coefficients.json."""
    given = json.loads(COEFFICIENTS.read_text())["curves"][name]
    return Curve(given["start"], given["width"], np.array(given["coefficients"]))


def fitted(f: Real, start: float, width: float, segments: int, degree: int) -> np.ndarray:
    """Least squares at 4 degree + 8 Chebyshev nodes on (-1, 1) widths around each left edge."""
    count = 4 * degree + 8
    nodes = np.cos(np.pi * (np.arange(count) + 0.5) / count)
    values = f((start + width * np.arange(segments))[:, None] + width * nodes)
    return np.linalg.lstsq(np.vander(nodes, degree + 1, increasing=True), values.T, rcond=None)[0].T


# ---- functions in float64 --------------------------------------------------------------------------------------------
_erf = np.vectorize(math.erf, otypes=[float])
REAL: dict[str, Real] = {
    "gelu": lambda x: x * 0.5 * (1 + _erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
}


def root(exponent: float) -> Real:
    """t^exponent on [0.2, 2.2): what lies below stands for t + 2."""
    return lambda t: np.where(t < 0.2, t + 2, t) ** exponent


# ---- piecewise polynomials -------------------------------------------------------------------------------------------
def _tables(f: Curve, x: Masked, high_bits: int, frac: int, scale: float) -> Words:
    """A_j[p] = sum_i a_(s(p), i) binom(i, j) (-rho)^(i - j), rounded: [degree + 1, ..., 2^high_bits]."""
    low_bits, size = x.bits - high_bits, 1 << high_bits
    rho = low(x.mask, low_bits).astype(np.float64) / 2.0**low_bits
    segment = (
        np.arange(size) - high(x.mask, low_bits, x.bits).astype(np.int64)[..., None] - round(f.start / f.width)
    ) % size
    a = f.coefficients * scale * 2.0**frac
    degree = a.shape[1] - 1
    return np.stack(
        [
            from_real(sum(a[segment, i] * (math.comb(i, j) * (-rho) ** (i - j))[..., None] for i in range(j, degree + 1)))
            for j in range(degree + 1)
        ]
    )


def piecewise(
    w: World,
    name: str,
    f: Curve,
    x: Masked,
    bits: int,
    frac: int,
    power_bits: int,
    factor: Masked | None = None,
    scale: float = 1.0,
) -> Shared:
    """[scale f(x)] or, with a factor, [scale f(x) factor]; local."""
    high_bits = len(f.coefficients).bit_length() - 1
    low_bits = x.bits - high_bits
    value = _tables(f, x, high_bits, frac - power_bits, scale)
    dealt = w.deal(f"{name} tables", value.shape, bits, value, slack=1)
    gamma = low(x.m, low_bits).astype(np.float64) / 2.0**low_bits
    powers = np.cumprod(np.stack([np.ones_like(gamma), *[gamma] * (len(value) - 1)]), 0)
    public = from_real(powers * 2.0**power_bits)
    index = digit(x.m, low_bits, high_bits, x.bits)

    def pick(entries: Words) -> Words:
        return (public * at(entries, np.broadcast_to(index, public.shape))).sum(1, dtype=U)

    if factor is None:
        return Shared(reduce(pick(dealt), bits), bits, frac)
    factor = factor.to(bits)
    whole = reduce(dealt.sum(0, dtype=U), bits)  # as it was dealt, whatever its rounding
    both = w.deal(f"{name} tables times mask", value.shape, bits, whole * factor.mask[..., None])
    return Shared(reduce(factor.m * pick(dealt) - pick(both), bits), bits, frac + factor.frac)


# ---- powers by thresholds --------------------------------------------------------------------------------------------
def _digits(bits: int) -> tuple[int, int]:
    """Width and number of digits with the smallest tables, of digits and of counts."""
    cuts = [(width, -(-bits // width)) for width in range(1, 9)]
    return min(cuts, key=lambda d: (d[1] << d[0]) * d[1].bit_length() + (1 << d[1].bit_length()) * 128)


def _below(w: World, x: Masked, ps: list[int], bits: int) -> Steps:
    """[x < 2^p] modulo 2^64 and [x < 2^p] x modulo 2^bits, from two candidates a threshold for the public m >> p."""
    size, digits = _digits(x.bits - ps[0])
    count_bits = digits.bit_length()
    lam = np.zeros((2, len(ps), digits, *x.shape), U)
    m = np.zeros((len(ps), digits, *x.shape), U)
    for j, p in enumerate(ps):
        for i in range(digits):
            start, width = p + i * size, max(0, min(size, x.bits - p - i * size))
            m[j, i] = reduce(high(x.m, start, x.bits), width) if width else U(0)
            for step in range(2):
                candidate = reduce(high(x.mask, p, x.bits) + U(step), x.bits - p)
                lam[step, j, i] = reduce(high(candidate, i * size, 64), size)
    dealt = scaled(w, "threshold digits", lam, size, count_bits, [U(1)])[:, 0]
    match = at(dealt, np.broadcast_to(m, lam.shape)).sum(3, dtype=U)
    mismatch = Shared(-match, count_bits, 0).plus_public(U(digits))
    counts = yield from w.open(mismatch)
    ones = scaled(w, "threshold bits", counts.mask, count_bits, 64, [U(1)])[:, 0]
    masks = scaled(w, "threshold bits times mask", counts.mask, count_bits, bits, [np.broadcast_to(x.mask, counts.shape)])[
        :, 0
    ]
    bit, bit_lam = (at(t, counts.m).sum(1, dtype=U) for t in (ones, masks))
    return Shared(bit, 64, 0), Shared(reduce(x.m * bit - bit_lam, bits), bits, x.frac)


def _weighted(below: Shared, top: Shared, weights: list[int]) -> Shared:
    """sum_p e_p weights[p], e_p = b_p - b_(p - 2)."""
    out = top.x * word(weights[-1])
    for i, (a, b) in enumerate(pairwise(weights)):
        out = out + below.x[:, i] * word(a - b)
    return Shared(reduce(out, below.bits), below.bits, below.frac)


def by_thresholds(w: World, x: Masked, lowest: int, highest: int, exponent: float, constant: float) -> Steps:
    """Two rounds, any number of parties."""
    ps = [*range(lowest + (highest - lowest) % 2, highest, 2), highest]
    factor = constant * 2.0 ** (exponent * (highest - x.frac))
    step = 1 if exponent == -0.5 else 2
    frac = 30 - math.floor(math.log2(factor))
    x = x.to(highest + 1)
    below, below_x = yield from _below(w, x, ps[:-1], highest + 1)
    normal = _weighted(below_x, x.shared.to(highest + 1), [1 << (highest - p) for p in ps])
    one = w.sharing(np.ones(x.shape, U), 64)
    undo = _weighted(below, one, [1 << ((highest - p) // 2 * step) for p in ps])
    t, undone = yield from together(open_cut(w, normal, highest - 18), w.open(undo))
    name = f"power {exponent:g}"
    unit = Masked(t.m, t.lam, t.bits, 18)
    return piecewise(w, name, curve(name), unit, 64, frac, 12, undone, factor)


# ---- powers by points ------------------------------------------------------------------------------------------------
PIECES, RHO_BITS = 12, (0, 13, 10, 7)
NODES = (0.9238795325112867, 0.3826834323650898, -0.3826834323650898, -0.9238795325112867)


def cubic(exponent: float, y: int) -> list[float]:
    """(y + z)^exponent for |z| < 1 in powers of z: Newton's interpolation, multiplied out from its innermost bracket."""
    table = [1 / (y + z) if exponent == -1.0 else 1 / math.sqrt(y + z) for z in NODES]
    for order in range(1, 4):
        for i in range(3, order - 1, -1):
            table[i] = (table[i] - table[i - 1]) / (NODES[i] - NODES[i - order])
    out = [0.0] * 4
    for i in range(3, -1, -1):
        out = [table[i] - NODES[i] * out[0], *(out[k - 1] - NODES[i] * out[k] for k in range(1, 4))]
    return out


def _factor(c: list[float], gamma: float, j: int, scale: float) -> int:
    """The coefficient of rho^j, in units of `scale`."""
    value = 0.0
    for n in range(3 - j, -1, -1):
        value = value * gamma + (-1) ** j * math.comb(n + j, j) * c[n + j]
    return round(value * scale)


def by_points(w: World, x: Masked, lowest: int, highest: int, exponent: float, constant: float) -> Shared:
    """No round, two parties."""
    frac = 30 - math.floor(math.log2(constant * 2.0 ** (exponent * (highest - x.frac))))
    up = max(0, 4 - lowest)
    ring, f = highest + 1 + up, x.frac + up
    x = Masked(reduce(x.m << U(up), ring), reduce(x.lam << U(up), ring), ring, f)
    octaves = range(highest + up - 4, lowest + up - 5, -1)
    rho = np.stack([low(x.mask, cut).reshape(-1).astype(float) / 2.0**cut for cut in octaves])
    payloads = from_real(np.stack([np.rint(rho**j * 2.0**b) for j, b in enumerate(RHO_BITS)], -1))
    offsets = range(PIECES, 2 * PIECES)
    found = read(w, x, Tree([ring - cut for cut in octaves], offsets, 4, 64), payloads)
    out = np.zeros((2, x.m.size), U)
    for i, m in enumerate(x.m.reshape(-1).tolist()):
        for o, cut in enumerate(octaves):
            half = cut - f if exponent == -0.5 else 2 * (cut - f)
            scale = constant * (math.sqrt(2) if half % 2 else 1.0) * 2.0 ** (-(half + half % 2) // 2 + frac)
            shift = max(0, math.frexp(scale)[1] - 50)
            for k, y in enumerate(offsets):
                if y == offsets[-1] and not m >> cut & 1:
                    continue  # its parent has been read
                c, gamma = cubic(exponent, y), m % (1 << cut) / 2.0**cut
                for j, bits in enumerate(RHO_BITS):
                    a = _factor(c, gamma, j, scale * 2.0 ** -(shift + bits))
                    out[:, i] += found[:, o, i, k, j] * word(a << shift)
    return Shared(out.reshape(2, *x.shape), 64, frac)


def power(w: World, x: Masked, lowest: int, highest: int, exponent: float, constant: float = 1.0) -> Steps:
    """[constant x^exponent], exponent -1 or -1/2, 2^lowest <= x < 2^highest ring units."""
    if w.parties == 2:
        return by_points(w, x, lowest, highest, exponent, constant)
    return (yield from by_thresholds(w, x, lowest, highest, exponent, constant))
