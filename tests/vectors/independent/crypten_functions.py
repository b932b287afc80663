"""Functions of the suite `crypten`: they are made of its protocols and of local steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np

from tests.vectors.independent.crypten import (
    complement,
    less_than,
    less_than_together,
    matmul,
    mul,
    public,
    rescale,
    select,
    square,
    to_arithmetic,
    to_arithmetic_under,
    truncate,
)
from tests.vectors.independent.formats import U, Words, word
from tests.vectors.independent.lookup import prefix
from tests.vectors.independent.order import _balance
from tests.vectors.independent.world import Open, Steps, World

WORK = 28  # fraction bits of numbers in [1/4, 2]


def times(x: Words, factor: int) -> Words:
    """By a public integer."""
    return x * word(factor)


# ---- maximum ---------------------------------------------------------------------------------------------------------
def maximum(w: World, x: Words, bits: int = 64, drop: int = 0) -> Steps:
    """Halves against halves: a + [a < b] (b - a)."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        smaller = yield from less_than(w, a - b, [0], bits, drop)
        chosen, _ = yield from select(w, smaller, b - a)
        x = np.concatenate([a + chosen[:, 0], rest], -1)
    return x


def argmax(w: World, x: Words) -> Steps:
    """The position is appended as low bits."""
    count = x.shape[-1]
    ranked = public(w, x << U(max(count - 1, 1).bit_length()), np.arange(count - 1, -1, -1).astype(U))
    top = yield from maximum(w, ranked)
    bit = yield from less_than(w, ranked - top, [0])
    below = yield from to_arithmetic(w, bit)
    return public(w, -below[:, 0], U(1))


# ---- reciprocal, root ------------------------------------------------------------------------------------------------
def one_hot_factor(w: World, below: Words, factors: Sequence[int]) -> Words:
    """sum_j e_j factors[j] from the monotone bits [parties, J, ...]."""
    out = np.zeros_like(below[:, 0]) if below.shape[1] else np.zeros((w.parties, *below.shape[2:]), U)
    for j, (a, b) in enumerate(pairwise(factors)):
        out = out + times(below[:, j], a - b)
    return public(w, out, word(factors[-1]))


def reciprocal(w: World, x: Words, bits: int, low: int, high: int, wanted: int) -> Steps:
    """1 / x for x in [2^low, 2^high): y = line(u), then y (1 + e)(1 + e^2)(1 + e^4)."""
    steps = high - low - 1
    factor = None
    if steps:
        drop = max(0, low - 8)
        width = next(b for b in (16, 32, 64) if b > high - drop)
        drop = 0 if width == 64 else drop
        found = yield from less_than(w, x, [1 << (low + j) for j in range(1, high - low)], width, drop)
        below = yield from to_arithmetic(w, found)
        factor = one_hot_factor(w, below, [1 << (steps - j) for j in range(steps + 1)])
        x = yield from mul(w, x, factor)
    u = yield from rescale(w, x, high - 1, WORK)
    line = [round(1.41154464 * 2.0 ** (WORK + 24)), round(-0.46895108 * 2.0**24)]
    y = yield from truncate(w, public(w, times(u, line[1]), word(line[0])), 24)
    uy = yield from mul(w, u, y)
    one = U(1 << WORK)
    e = public(w, -(yield from truncate(w, uy, WORK)), one)
    for _ in range(2):
        both = yield from mul(w, np.stack([e, y], 1), np.stack([e, public(w, e, one)], 1))
        cut = yield from truncate(w, both, WORK)
        e, y = cut[:, 0], cut[:, 1]
    last = yield from mul(w, y, public(w, e, one))
    y = yield from truncate(w, last, WORK)
    if factor is not None:
        y = yield from mul(w, y, factor)
    return (yield from rescale(w, y, WORK + low + steps - bits, wanted))


def rsqrt_unit(w: World, u: Words) -> Steps:
    """1 / sqrt(u) for u in [1/4, 1): two steps of Newton from a parabola."""
    constant, linear, quadratic = (round(c * 2.0**24) for c in (2.67090618, -3.27387651, 1.62178875))
    u2 = yield from truncate(w, (yield from square(w, u)), WORK)
    y = yield from truncate(w, public(w, times(u, linear) + times(u2, quadratic), word(constant << WORK)), 24)
    for _ in range(2):
        both = yield from mul(w, np.stack([y, y], 1), np.stack([y, u], 1))
        cut = yield from truncate(w, both, WORK)
        product = yield from mul(w, cut[:, 0], cut[:, 1])
        y = yield from truncate(w, times(y, 3 << WORK) - product, WORK + 1)
    return y


# ---- softmax ---------------------------------------------------------------------------------------------------------
def exp_negative(w: World, x: Words, bits: int) -> Steps:
    """e^x with 30 fraction bits: a quartic in x / 64 made of two squares, squared six times."""
    far = yield from less_than(w, x, [-64 << bits], 16, bits + 2)
    beyond, _ = yield from select(w, far, public(w, x, word(64 << bits)))
    x = x - beyond[:, 0]
    fine = bits + 6
    lead = Fraction(13, 64) ** 2
    h = Fraction(round(2**fine / (24 * lead)), 2**fine)
    g = Fraction(round((Fraction(1, 2) / lead - 6 * h**2) / 2 * 4**fine), 4**fine)
    d, e = 1 - lead * 4 * h * (h**2 + g), 1 - lead * (h**2 + g) ** 2
    inner = yield from square(w, public(w, x, word(round(h * 2**fine))))
    q = yield from truncate(w, times(public(w, inner, word(round(g * 4**fine))), 13), 2 * fine + 6 - 30)
    squared = yield from square(w, q)
    y = public(w, squared + times(x, round(d * 2 ** (60 - fine))), word(round(e * 4**30)))
    y = yield from truncate(w, y, 30)
    for _ in range(6):
        y = yield from truncate(w, (yield from square(w, y)), 30)
    return y


def softmax(w: World, x: Words, bits: int) -> Steps:
    """Over the last axis."""
    count = x.shape[-1]
    top = yield from maximum(w, x, 32, max(0, bits - 8))
    powers = yield from exp_negative(w, x - top, bits)
    high = 30 + (count + (count >> 2)).bit_length()
    inverse = yield from reciprocal(w, powers.sum(-1, keepdims=True, dtype=U), 30, 30, high, 30)
    product = yield from mul(w, powers, inverse)
    return (yield from truncate(w, product, 60 - bits))


# ---- activation functions --------------------------------------------------------------------------------------------
GELU = (
    *(1.407640487, 0.732572762, -0.228405157, 0.157454971, -0.109156211, 0.065267122, -0.055983988, 0.044571615),
    -0.014157742,
)
GELU_TANH = (
    *(1.408067208, 0.732255372, -0.228574242, 0.160377764, -0.114697802, 0.060347899, -0.045853291, 0.046962024),
    -0.018937927,
)
SILU = (
    *(1.928049354, 1.105965498, -0.341407825, 0.173249504, -0.123427162, 0.144751978, 0.031254641, -0.091065179),
    -0.16151186,
)
TAIL = (0.001110991, -0.004010709, 0.006896984, -0.00735497, 0.006573507, -0.005344504, 0.002165171)
FITS = {"gelu": (4.25, 3, GELU), "gelu_tanh": (4.125, 3, GELU_TANH), "silu": (5.0, 4, SILU)}


def _polynomial(powers: Sequence[Words], coefficients: Sequence[float]) -> Words:
    out = np.zeros_like(powers[0])
    for p, c in zip(powers, coefficients, strict=True):
        out = out + times(p, round(c * 2.0**18))
    return out


def activation(w: World, x: Words, bits: int, kind: str) -> Steps:
    """Inside, x/2 plus a polynomial in x^2; outside, 0 or x; SiLU's tails by another polynomial."""
    if kind == "relu":
        negative = yield from less_than(w, x, [0])
        parts, _ = yield from select(w, complement(negative), x)
        return parts[:, 0]
    inner, scale, fit = FITS[kind]
    tailed = kind == "silu"
    thresholds = [-13.0, -inner, inner, 13.0] if tailed else [-inner, inner]
    limits = [round(t * 2.0**bits) for t in thresholds]
    below = yield from less_than(w, x, limits, 32, max(0, bits - 12))
    middle = len(limits) // 2
    wanted = [below[:, middle] ^ below[:, middle - 1], complement(below[:, middle])]
    if tailed:
        wanted += [below[:, 1] ^ below[:, 0], below[:, 3] ^ below[:, 2]]
    parts, flags = yield from select(w, np.stack(wanted, 1), x)
    inside, passed = parts[:, 0], parts[:, 1]
    ones = [flags[:, 0] << U(20)]
    squared = yield from square(w, inside)
    variables = (yield from truncate(w, squared, 2 * bits + scale - 20))[:, None] - ones[0][:, None]
    rows: list[Sequence[float]] = [fit]
    if tailed:
        outside = flags[:, 2] + flags[:, 3]
        t = ((parts[:, 3] - parts[:, 2]) << U(20 - bits)) - times(outside, round(9.0 * 2.0**20))
        variables = np.concatenate([variables, (yield from truncate(w, t, 2))[:, None]], 1)
        ones.append(outside << U(20))
        rows.append([-c for c in TAIL])
    second = yield from truncate(w, (yield from square(w, variables)), 20)
    product = yield from mul(w, second, np.stack([variables, second], 1))
    cut = yield from truncate(w, product, 20)
    third, fourth = cut[:, 0], cut[:, 1]
    uppers, total = [], inside << U(58 - 1 - bits)
    for row, (one, c) in enumerate(zip(ones, rows, strict=True)):
        powers = [one, variables[:, row], second[:, row], third[:, row], fourth[:, row]]
        total = total + (_polynomial(powers[:4], c[:4]) << U(20))
        uppers.append(_polynomial(powers[: len(c) - 4], c[4:]))
    total = total + (yield from mul(w, fourth, np.stack(uppers, 1))).sum(1, dtype=U)
    return (yield from truncate(w, total, 58 - bits)) + passed


# ---- norm ------------------------------------------------------------------------------------------------------------
def sums_of_squares(w: World, x: Words, cut: int) -> Steps:
    """Over the last axis: the sum of x^2 and that of (x >> cut)^2, from one opening."""
    r = w.random("square mask", x.shape[1:])
    mask = r.sum(0, dtype=U)
    b, c = mask >> U(cut), mask >> U(63)
    sums = np.stack([(mask * mask).sum(-1, keepdims=True, dtype=U), (b * b).sum(-1, keepdims=True, dtype=U)])
    squared = w.deal("squared masks", sums.shape, 64, sums)
    upper = w.deal("square high part", x.shape[1:], 64, b)
    top = w.deal("square top bit", x.shape[1:], cut - 1, c)
    mixed = w.deal("square mixed part", x.shape[1:], cut - 1, c * b)
    m = yield Open(public(w, x + r, U(1 << 62)), 64)
    known, coarse = m - U(1 << 62), (m >> U(cut)) - U(1 << (62 - cut))
    wrap = (U(1) - (m >> U(63))) << U(65 - cut)
    exact = squared[:, 0] - (known * r).sum(-1, keepdims=True, dtype=U) * U(2)
    small = squared[:, 1] + ((coarse * top - mixed) * wrap - coarse * upper * U(2)).sum(-1, keepdims=True, dtype=U)
    exact = public(w, exact, (known * known).sum(-1, keepdims=True, dtype=U))
    return exact, public(w, small, (coarse * coarse).sum(-1, keepdims=True, dtype=U))


def _under(condition: Words, below: Words, factors: Sequence[int]) -> Words:
    out = times(condition, factors[-1])
    for j, (a, b) in enumerate(pairwise(factors)):
        out = out + times(below[:, j], a - b)
    return out


def rsqrt_mean_square(w: World, x: Words, bits: int, epsilon: float, bound: int) -> Steps:
    """(1 / sqrt(mean(x^2) + epsilon), its fraction bits): rows below 2^(30 - bits) by their exact sum, larger ones by the
    coarse one."""
    width, crossing = x.shape[-1], 30 - bits
    offset = max(1, round(epsilon * width * 4.0**bits))
    least, top = (offset.bit_length() - 1) // 2 - bits, max(bound, crossing)
    exact, coarse = yield from sums_of_squares(w, x, bits - 5)
    exact = public(w, exact, U(offset))
    limit = round(4.0 ** (bound + 5) * (1 + 2.0**-5))
    fine_limits = [4 ** (k + bits) for k in range(least + 1, crossing)]
    large_limits = [*(4 ** (k + 5) for k in range(crossing, bound)), limit, 0]
    found = yield from less_than_together(w, [(exact, fine_limits, 64, 0), (coarse, large_limits, 64, 0)])
    fine_bits, large_bits = found
    up = [4 ** (crossing - 1 - k) for k in range(least, crossing)]
    back = [2 ** (top - 1 - k) for k in range(least, crossing)]
    if bound <= crossing:
        fine = yield from to_arithmetic(w, fine_bits)
        unit = yield from mul(w, exact, one_hot_factor(w, fine, up))
        inverse = one_hot_factor(w, fine, back)
    else:
        one, fine, large = yield from to_arithmetic_under(w, large_bits[:, 0], fine_bits, large_bits[:, 1:-2])
        large = np.concatenate([one[:, None], large], 1)
        large_up = [0, *(4 ** (24 - k) for k in range(crossing, top))]
        large_back = [0, *(2 ** (top - 1 - k) for k in range(crossing, top))]
        factors = np.stack([_under(one, fine, up), one_hot_factor(w, large, large_up)], 1)
        unit = (yield from mul(w, np.stack([exact, coarse], 1), factors)).sum(1, dtype=U)
        inverse = _under(one, fine, back) + one_hot_factor(w, large, large_back)
    y = yield from rsqrt_unit(w, (yield from rescale(w, unit, 60, WORK)))
    exponent = math.ceil(math.log2(width) / 2)
    fraction = min(WORK, 60 - (top - 1 - least))
    y = yield from truncate(w, times(y, round(math.sqrt(width) * 2.0 ** (WORK - exponent))), 2 * WORK - fraction)
    wanted = min(16 + top, 60 - bits - exponent)
    scaled = yield from mul(w, y, inverse)
    return (yield from rescale(w, scaled, fraction + top - exponent, wanted)), wanted


def norm(w: World, x: Words, bits: int, kind: str, epsilon: float, bound: int) -> Steps:
    """1 / sqrt(moment + epsilon); "layer" takes the mean off first."""
    if kind == "layer":
        width = x.shape[-1]
        size = min(30, 61 - (bits + bound - (width.bit_length() - 1) // 2))
        mean = yield from truncate(w, times(x.sum(-1, keepdims=True, dtype=U), round(2.0**size / width)), size)
        x = x - mean
    return (yield from rsqrt_mean_square(w, x, bits, epsilon, bound))


# ---- selection -------------------------------------------------------------------------------------------------------
def _below(w: World, x: Words, thresholds: Sequence[int], largest: int) -> Steps:
    found = yield from less_than(w, x, thresholds, 16 if largest < 1 << 14 else 32)
    return (yield from to_arithmetic(w, found))


def ranks(w: World, x: Words, bits: int) -> Steps:
    """0 for the largest, ties to the earlier."""
    count = x.shape[-1]
    i, j = np.triu_indices(count, 1)
    found = yield from less_than(w, x[..., i] - x[..., j], [0], bits)
    loses = yield from to_arithmetic(w, found[:, 0])
    lost = np.stack([_balance(share, count) for share in loses])
    return public(w, lost, np.broadcast_to(np.arange(count).astype(U), x.shape[1:]))


def top_k(w: World, x: Words, k: int, bits: int) -> Steps:
    """Row j is one-hot at rank j."""
    rank = yield from ranks(w, x, 32 if bits <= 31 else 64)
    reached = yield from _below(w, rank, range(1, k + 1), x.shape[-1])
    rows = np.concatenate([reached[:, :1], reached[:, 1:] - reached[:, :-1]], 1)
    return np.moveaxis(rows, 1, -2)


def keep_largest(w: World, x: Words, k: int, bits: int) -> Steps:
    """[rank < k]."""
    rank = yield from ranks(w, x, 32 if bits <= 31 else 64)
    return (yield from _below(w, rank, [k], x.shape[-1]))[:, 0]


def by_threshold(w: World, x: Words, k: int, bits: int) -> Steps:
    """The largest t that k values reach, bit by bit; then [x > t] and the first of those equal to it."""
    n, width = x.shape[-1], 32 if bits <= 31 else 64
    threshold = public(w, np.zeros_like(x[..., :1]), word(-(1 << (bits - 1))))
    for place in range(bits - 1, -1, -1):
        found = yield from less_than(w, x - public(w, threshold, U(1 << place)), [0], width)
        below = (yield from to_arithmetic(w, found[:, 0])).sum(-1, keepdims=True, dtype=U)
        missed = yield from _below(w, below, [n - k + 1], n)
        threshold = threshold + (missed[:, 0] << U(place))
    found = yield from less_than(w, x - threshold, [0, 1], width)
    bits_found = yield from to_arithmetic(w, found)
    equal = bits_found[:, 1] - bits_found[:, 0]
    above = public(w, -bits_found[:, 1], U(1))
    taken = above.sum(-1, keepdims=True, dtype=U) + prefix(equal)
    fits = yield from _below(w, taken, [k + 1], n)
    return above + (yield from mul(w, equal, fits[:, 0]))


def compact(w: World, marks: Words, rows: Words, k: int) -> Steps:
    """The selection matrix times the rows."""
    reached = public(w, -(yield from _below(w, prefix(marks), range(1, k + 1), marks.shape[-1])), U(1))
    before = np.concatenate([np.zeros_like(reached[..., :1]), reached[..., :-1]], -1)
    return (yield from matmul(w, np.moveaxis(reached - before, 1, 2), rows))
