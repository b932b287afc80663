"""1/x and 1/sqrt(x) of a positive scalar of unknown magnitude: relative error below 2^-14, in no round or in two.

By points (two parties, no round, `by_points`). At every precision 2^l the digit difference y = (m >> l) - (lam >> l) is
x / 2^l but for less than one unit. The *first* (coarsest) l at which y >= 12 has 12 <= y < 24: a fact of m and lam, true of
one point m - y that is a prefix of lam, while its parent, whose difference is public, has less than 12. So one incremental
point function (`idpf`), read at 12 points of each octave, is a one-hot vector over all pieces of all octaves at once; its
payloads 1, rho, rho^2 and rho^3 of rho = (lam mod 2^l) / 2^l make each piece a cubic in gamma - rho, gamma that of m. Pieces
are fitted on both sides of y.

By thresholds (any number of parties, two rounds, `by_thresholds`).
1. For thresholds 2^p (p = low, low + 2, ..., high) decide x < 2^p up to a factor of two: m >> p must be lam >> p or one
   more. Both candidates are known to the dealer, so the parties add up digit mismatches (dealt one-hot vectors, small ring)
   and open the two masked counts: round 1. A count is zero for at most one candidate.
2. The thresholds give a one-hot exponent; x times the matching power of four, in [0.25, 2) 2^high, and the factor that
   undoes it are opened together: round 2.
3. A piecewise polynomial of the normalised value, times the factor (no round), is the result.

Either result is Shared: the caller opens it together with something else. By points is less of everything: 1.1 to 1.8 kB
at each party for 7 to 12 kB at the last, no round, half the error; a row of many takes 29 us of one core at a party (by
thresholds 30) and 19 at the dealer (470). So two parties take it always.
Range: 2^low <= x < 2^high ring units (outside it the result is meaningless); x.bits >= high + 1.
What both parties must compute alike uses sums, products, quotients and roots of float64 in a fixed order, which IEEE 754
rounds correctly everywhere.
Leaks: nothing; counts, normalised value and factor are opened under fresh uniform masks (docs/security.md, "Powers").
Sources: `idpf`; otherwise as in the gates used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpc import ring
from mpc.ring import RING_BITS
from mpc.wide import Wide, Words, widened
from protocols.masked import idpf
from protocols.masked.context import Context, open_value, require
from protocols.masked.one_hot import deal_scaled, look_up
from protocols.masked.piecewise import Piecewise, evaluate, normalised_power
from protocols.masked.shares import Masked, Shared
from protocols.masked.truncation import open_cut
from protocols.schedule import together

Reals = npt.NDArray[np.float64]

PIECES = 12  # of an octave
OCTAVE = 4  # log2 of PIECES, rounded up
RHO_BITS = (0, 13, 10, 7)  # fraction bits of the dealt 1, rho, rho^2, rho^3
FACTOR_BITS = 50  # bits of a public coefficient

MANTISSA_BITS = 18  # fraction bits kept of the normalised value
GAMMA_BITS = 12  # of the public powers in its polynomial


@dataclass(frozen=True)
class Power:
    """constant * x^exponent, exponent -1 or -1/2, for 2^low <= x < 2^high ring units.

    bits: the result's ring. significant: bits of the smallest result; they say how many are fraction bits.
    """

    low: int
    high: int
    exponent: float
    constant: float = 1.0
    bits: int = RING_BITS
    significant: int = 30

    def at(self, log: int) -> float:
        """Return the result for 2^log in real units."""
        half = log if self.exponent == -0.5 else 2 * log
        root = math.sqrt(2.0) if half % 2 else 1.0  # 2^(-half / 2), rounded alike everywhere
        return math.ldexp(self.constant * root, -(half + half % 2) // 2)

    def frac(self, x: Masked) -> int:
        """Return the fraction bits of the result."""
        return self.significant + 1 - math.frexp(self.at(self.high - x.frac))[1]

    def check(self, x: Masked) -> None:
        """Raise `RangeError` where the rings do not fit."""
        require(self.exponent in (-1.0, -0.5), "power", f"the exponent must be -1 or -0.5, got {self.exponent}")
        require(0 <= self.low < self.high, "power", f"a range of 2^{self.low} to 2^{self.high} is none")
        require(x.bits >= self.high + 1, "power", f"a ring of {x.bits} bits cannot hold values up to 2^{self.high}")
        largest = self.frac(x) + math.frexp(self.at(self.low - x.frac))[1]
        require(largest < self.bits - 1, "power", f"a range of 2^{self.low} to 2^{self.high} is too wide")


async def power(c: Context, x: Masked, p: Power) -> Shared:
    """Return [constant * x^exponent], x read in real units (x.frac fraction bits). No round with two parties, else two.

    The result has p.frac(x) fraction bits, modulo 2^bits of at most 64."""
    require(p.bits <= RING_BITS, "power", f"a result of {p.bits} bits does not fit a word")
    p.check(x)
    if c.parties > 2:
        return await by_thresholds(c, x, p)
    share = by_points(c, x, p)
    assert not isinstance(share, Wide)
    return Shared(share, p.bits, p.frac(x))


# ---- by points -------------------------------------------------------------------------------------------------------
@cache
def pieces(exponent: float) -> Reals:
    """Return the cubics of (y + z)^exponent, |z| < 1, in gamma for z = gamma - rho: [power of gamma, y, power of rho, 1].

    Interpolated at Chebyshev's nodes, by divided differences."""
    nodes = (0.9238795325112867, 0.3826834323650898, -0.3826834323650898, -0.9238795325112867)
    degree = len(nodes) - 1
    y = np.arange(PIECES, 2 * PIECES, dtype=np.float64)
    values = [1 / (y + z) if exponent == -1.0 else 1 / np.sqrt(y + z) for z in nodes]
    for order in range(1, degree + 1):
        for i in range(degree, order - 1, -1):
            values[i] = (values[i] - values[i - 1]) / (nodes[i] - nodes[i - order])
    monomials = [np.zeros_like(y) for _ in nodes]  # c_0 + c_1 z + ...
    for i in range(degree, -1, -1):
        monomials = [values[i] - nodes[i] * monomials[0]] + [
            monomials[j - 1] - nodes[i] * monomials[j] for j in range(1, degree + 1)
        ]
    out = np.zeros((degree + 1, PIECES, degree + 1, 1))
    for n in range(degree + 1):
        for j in range(degree + 1 - n):
            out[n, :, j, 0] = (-1) ** j * math.comb(n + j, j) * monomials[n + j]
    return out


@dataclass(frozen=True)
class _Octaves:
    """The octaves of a range: their l, first to last, what is read there, and what scales a coefficient before it is rounded
    [octaves, powers of rho], and after it."""

    lows: npt.NDArray[np.uint64]
    points: idpf.Points
    scales: Reals
    shifts: tuple[int, ...]


@cache
def _octaves(p: Power, frac: int, out_frac: int) -> _Octaves:
    """Return the octaves of x modulo 2^(high + 1) with `frac` fraction bits."""
    lows = range(p.high - OCTAVE, p.low - OCTAVE - 1, -1)
    scales, shifts = [], []
    for low in lows:
        scale = math.ldexp(p.at(low - frac), out_frac)
        shift = max(0, math.frexp(scale)[1] - FACTOR_BITS)  # a coefficient is below 1 before it is scaled
        scales.append([math.ldexp(scale, -shift - bits) for bits in RHO_BITS])
        shifts.append(shift)
    levels = tuple(p.high + 1 - low for low in lows)
    points = idpf.Points(levels, PIECES, 2 * PIECES - 1, len(RHO_BITS), p.bits)
    return _Octaves(np.array(lows, np.uint64), points, np.array(scales), tuple(shifts))


def _remainders(x: Tensor, lows: npt.NDArray[np.uint64]) -> Reals:
    """Return (x mod 2^l) / 2^l of canonical x [elements] for every l: [octaves, elements]."""
    words, at = x.reshape(-1).cpu().numpy().view(np.uint64), lows[:, None]
    found = words & ((np.uint64(1) << at) - np.uint64(1))
    return np.ldexp(found.astype(np.float64), -at.astype(np.int64))


def _payloads(lam: Tensor, octaves: _Octaves, bits: int) -> Words:
    """Return 1, rho, rho^2 and rho^3, rounded: [octaves, elements, 4]."""
    rho = _remainders(lam, octaves.lows)
    powers = np.stack([np.rint(rho**j * 2.0**b) for j, b in enumerate(RHO_BITS)], -1)
    return widened(torch.from_numpy(powers.astype(np.int64)), bits)


def _read_pieces(share: Words, m: Tensor, p: Power, octaves: _Octaves) -> Words:
    """Return the sum over all pieces: shares [octaves, PIECES, elements, 4] at public m [elements] -> [elements]."""
    gamma = _remainders(m, octaves.lows)[:, None]  # [octaves, 1, elements]
    table, scales = pieces(p.exponent), octaves.scales[..., None, None]
    public = np.empty((len(octaves.lows), PIECES, gamma.shape[2], len(RHO_BITS)), np.int64)
    for j in range(len(RHO_BITS)):
        value = np.zeros(public.shape[:-1])
        for coefficients in table[len(RHO_BITS) - 1 - j :: -1, :, j]:
            value *= gamma
            value += coefficients
        value *= scales[:, j]
        public[..., j] = np.rint(value, out=value)
    # the last point's parent lies in the octave above where m's bit is 0: it has been read there
    public[:, -1] *= ((m.numpy().view(np.uint64) >> octaves.lows[:, None]) & np.uint64(1)).astype(np.int64)[..., None]
    terms = share * torch.from_numpy(public)
    if not isinstance(terms, Wide):
        return (terms.sum((1, 3)) << torch.tensor(octaves.shifts)[:, None]).sum(0)
    total = Wide.of(torch.zeros(len(m), dtype=torch.int64))
    for low, high, shift in zip(terms.low, terms.high, octaves.shifts, strict=True):
        total = total + (Wide(low, high).sum(-1).sum(0) << shift)
    return total


def by_points(c: Context, x: Masked, p: Power) -> Words:
    """Return the share of the power, as `power`, in no round; two parties."""
    out_frac = p.frac(x)
    x = x.to_ring(p.high + 1)
    lift = max(0, OCTAVE - p.low)  # the smallest octaves need so many low bits
    if lift:
        require(x.bits + lift <= RING_BITS, "power", f"a range of 2^{p.low} to 2^{p.high} is too wide")
        short = x
        x = Masked(x.m << lift, lambda: short.lam << lift, x.bits + lift, x.frac + lift)
        p = replace(p, low=p.low + lift, high=p.high + lift)
    octaves = _octaves(p, x.frac, out_frac)
    return idpf.read(
        c,
        x,
        octaves.points,
        lambda: _payloads(x.lam, octaves, p.bits),
        lambda share, m, _: _read_pieces(share, m, p, octaves),
    )


# ---- by thresholds ---------------------------------------------------------------------------------------------------
def _thresholds(low: int, high: int) -> list[int]:
    return list(range(low + (high - low) % 2, high, 2))


@dataclass(frozen=True)
class _Digits:
    """How many bits are cut into how many digits, and the ring that counts mismatches of as many."""

    width: int
    count: int

    @property
    def count_bits(self) -> int:
        return self.count.bit_length()

    @staticmethod
    @cache
    def of(bits: int) -> _Digits:
        """Return the cut with the smallest tables: of digits and, in rings of about 64 bits twice, of counts."""
        cuts = [_Digits(width, -(-bits // width)) for width in range(1, 9)]
        return min(cuts, key=lambda d: (d.count << d.width) * d.count_bits + (1 << d.count_bits) * 2 * RING_BITS)


def _candidate_digits(lam: Tensor, shift: int, bits: int, d: _Digits) -> Tensor:
    """Return the digits of lam >> shift and (lam >> shift) + 1 modulo 2^(bits - shift): [2, count, ...]."""
    mask = (1 << d.width) - 1
    base = ring.shift_right(lam, shift, bits)
    out = []
    for step in (0, 1):
        value = ring.reduce(base + step, bits - shift)
        out.append(torch.stack([ring.shift_right(value, i * d.width, 64) & mask for i in range(d.count)]))
    return torch.stack(out)


@cache
def _digit_cuts(ps: tuple[int, ...], d: _Digits, bits: int) -> tuple[Tensor, Tensor]:
    """Shift and mask of digit i above threshold p in a ring of `bits` bits: [thresholds, count] each."""
    shifts = torch.tensor([[p + i * d.width for i in range(d.count)] for p in ps])
    return shifts.clamp(max=63), (1 << (bits - shifts).clamp(0, d.width)) - 1


async def _below(c: Context, x: Masked, ps: Sequence[int]) -> tuple[Shared, Shared]:
    """Return for each threshold [x < 2^p] modulo 2^64 and [x < 2^p] x in x's ring, [thresholds, ...]. One round."""
    d = _Digits.of(x.bits - ps[0])
    count_bits = d.count_bits
    shape = (2, len(ps), d.count, *x.shape)

    def candidates() -> Tensor:
        return torch.stack([_candidate_digits(x.lam, p, x.bits, d) for p in ps], 1)

    # mismatch counts: sum over digits of 1 - [digit of m = candidate's digit]
    lam_digits = candidates() if c.tape.dealing else c.blank(shape)
    dealt = deal_scaled(c, "threshold digits", lam_digits, d.width, count_bits, [lambda: torch.ones_like(lam_digits)])[0]
    if c.evaluating:
        shifts, masks = _digit_cuts(tuple(ps), d, x.bits)
        axes = (len(ps), d.count, *[1] * x.m.dim())
        m_digits = (x.m >> shifts.to(x.m.device).reshape(axes)) & masks.to(x.m.device).reshape(axes)
        m_digits = m_digits[None].expand(shape)
        match = look_up(dealt, m_digits).sum(2)
        mismatch = Shared(-match, count_bits, 0)
        mismatch = c.add_public(mismatch, torch.full(mismatch.shape, d.count, device=c.device))
    else:
        mismatch = Shared(c.blank((2, len(ps), *x.shape)), count_bits, 0)
    counts = await open_value(c, mismatch)
    ones = deal_scaled(c, "threshold bits", counts.lam, count_bits, 64, [lambda: torch.ones_like(counts.lam)])[0]
    factors = [lambda: x.lam.expand(counts.shape)]
    scaled = deal_scaled(c, "threshold bits times mask", counts.lam, count_bits, x.bits, factors)[0]
    shape = (len(ps), *x.shape)
    if not c.evaluating:
        return Shared(c.blank(shape), 64, 0), Shared(c.blank(shape), x.bits, x.frac)
    # a count is zero where lam = m; at most one of the two candidates has none
    bit = look_up(ones, counts.m).sum(0)
    bit_lam = look_up(scaled, counts.m).sum(0)
    return Shared(bit, 64, 0), Shared(x.m * bit - bit_lam, x.bits, x.frac)


async def by_thresholds(c: Context, x: Masked, p: Power) -> Shared:
    """Return the power in two rounds, modulo 2^64; any number of parties. See `power`."""
    require(p.high >= MANTISSA_BITS, "power", f"values below 2^{p.high} have fewer bits than are kept, {MANTISSA_BITS}")
    require(p.high - p.low > 1, "power", f"a range of 2^{p.low} to 2^{p.high} is one octave, two at least are needed")
    x = x.to_ring(p.high + 1)
    ps = [*_thresholds(p.low, p.high), p.high]
    # x^e = t^e 2^(e (high - x.frac)) up^-e for x = t 2^high / up; up^-e is an integer for powers of four
    step = 1 if p.exponent == -0.5 else 2
    below, below_x = await _below(c, x, ps[:-1])
    up = [1 << (p.high - at) for at in ps]
    back = [1 << ((p.high - at) // 2 * step) for at in ps]
    normal = _weighted(c, below_x, c.shared(x), up)
    one = c.public(torch.ones(x.shape, dtype=torch.int64, device=c.device), 64, 0)
    undo = _weighted(c, below, one, back)
    t, masked_undo = await together(open_cut(c, normal, p.high - MANTISSA_BITS), open_value(c, undo))
    f = normalised_power(p.exponent, c.device)
    scaled = Piecewise(f.name, f.low, f.width, f.coefficients * p.at(p.high - x.frac))
    unit = Masked(t.m, t.lam, t.bits, MANTISSA_BITS)
    return evaluate(c, scaled, unit, 64, p.frac(x), masked_undo, GAMMA_BITS).to_ring(p.bits)


def _weighted(c: Context, below: Shared, top: Shared, weights: list[int]) -> Shared:
    """Return the sum_p e_p weights[p] where e_p = b_p - b_(p-2) is one-hot, b_high = `top`."""
    if not c.evaluating:
        return Shared(c.blank(top.shape), below.bits, below.frac)
    steps = torch.tensor([a - b for a, b in pairwise(weights)], device=below.x.device)
    parts = below.x * steps.reshape(-1, *[1] * (below.x.dim() - 1))
    return Shared(top.x * weights[-1] + parts.sum(0), below.bits, below.frac)
