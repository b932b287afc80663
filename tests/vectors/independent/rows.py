"""Softmax, range flags and norms."""

from __future__ import annotations

import math

import numpy as np

from tests.vectors.independent.curves import power
from tests.vectors.independent.formats import Stream, U, Words, word
from tests.vectors.independent.linear import lift, open_cut, raise_ring, truncate
from tests.vectors.independent.lookup import digit
from tests.vectors.independent.wide import square_sums
from tests.vectors.independent.world import Masked, Shared, Steps, World

KINDS = ("residual", "score", "value", "activation", "logits")


# ---- range flags -----------------------------------------------------------------------------------------------------
class Flags:
    """Every party's words [kinds, places]; the client XORs what it is given."""

    def __init__(self, w: World, places: int = 1) -> None:
        self.w = w
        self.words = np.zeros((w.parties, len(KINDS), places), U)
        self._coefficients: Stream | None = None

    def check(self, kind: str, place: int, x: Masked, limit: float, signed_value: bool, width: int) -> None:
        """Flag x unless |x| (or x from 0 on) is within `limit` in real units."""
        start, size = x.bits - width, 1 << width
        reach = -(-round(limit * 2.0**x.frac) // (1 << start))
        below = reach if signed_value else 0
        distance = (np.arange(size) - digit(x.mask, start, width, x.bits).astype(np.int64)[..., None]) % size
        good = (distance <= reach) | (distance >= size - below)
        padded = np.zeros((*x.shape, max(64, size)), np.uint8)
        padded[..., :size] = ~good
        value = np.packbits(padded, -1, bitorder="little").view("<u8").astype(U)
        dealt = self.w.deal("range table", value.shape, min(size, 64), value, "xor")
        place_of = digit(x.m, start, width, x.bits)
        index = np.broadcast_to((place_of >> U(6)).astype(np.int64)[..., None], (*dealt.shape[:-1], 1))
        self.watch(kind, place, (np.take_along_axis(dealt, index, -1)[..., 0] >> (place_of & U(63))) & U(1))

    def watch(self, kind: str, place: int, bit: Words) -> None:
        """Flag XOR-shared bits [parties, ...] that are set."""
        if self._coefficients is None:
            seed = self.w.common("range coefficients", (4,), 64, None)
            self._coefficients = Stream(seed.astype("<u8").tobytes())
        weights = self._coefficients.elements(bit.shape[1:], 64)
        found = np.bitwise_xor.reduce((weights * bit).reshape(self.w.parties, -1), 1)
        self.words[:, KINDS.index(kind), place] ^= found

    def take(self) -> Words:
        """Every party's words under a fresh sharing of zero."""
        zero = self.w.deal("zero flags", self.words.shape[1:], 64, np.zeros(self.words.shape[1:], U), "xor")
        self._coefficients = None
        return self.words ^ zero


# ---- standard form ---------------------------------------------------------------------------------------------------
def fitting(w: World, x: Shared, magnitude: int, frac: int, bits: int, extra: int = 0) -> Steps:
    """<x> with `frac` fraction bits, |x| < 2^magnitude, opened with the excess cut: modulo 2^bits where the sharing's ring
    has room for it, else in a ring that holds it. extra: bits that it needs to be checked."""
    if x.frac < frac:
        x = Shared(x.x << U(frac - x.frac), x.bits, frac)
    excess = x.frac - frac
    least, most = max(frac + magnitude + 2 + extra, 2), x.bits - excess
    size = max(min(least, most), bits if most >= bits else 0)
    return (yield from open_cut(w, x.to(size + excess), excess))


def standard(w: World, x: Shared, magnitude: int, frac: int, bits: int, lifted: bool = False) -> Steps:
    """<x> with `frac` fraction bits modulo 2^bits: raised where its ring is too small. lifted: whether it will be."""
    found = yield from fitting(w, x, magnitude, frac, bits)
    noted = w.parties == 2 or x.frac <= frac
    if found.bits >= bits:
        return found.to(bits).noted(noted and lifted and found.bits == bits)
    return (yield from raise_ring(w, found.noted(noted), 0, bits))


# ---- norms -----------------------------------------------------------------------------------------------------------
def product_first(prefer: str, channels: int) -> bool:
    """Whether linear layers come before the division: a round of 0.01 s less, 170 bytes more, at 1.25e8 a second."""
    return {"rounds": True, "bytes": False, "auto": channels * 170 / 1.25e8 < 0.01}[prefer]


def stream_bits(shape: tuple[int, ...], frac: int, residual: int, activation: int, prefer: str) -> tuple[int, int]:
    """Fraction bits and ring of a residual stream [rows, D]."""
    product = 2.0 ** (activation + residual - math.log2(shape[-1]) / 2)
    stream = max(12, min(16, frac + 2))
    whole = 16 + math.ceil(math.log2(product / 0.75)) + 2
    first = product_first(prefer, math.prod(shape)) and stream + whole <= 64
    least = stream + residual + 4
    return stream, max(stream + whole, least) if first else least


def _centred(w: World, h: Masked, residual: int) -> Steps:
    """Less the mean of each row."""
    width = h.shape[-1]
    precision = min(12 + width.bit_length(), 60 - h.frac - residual)
    factor = word(round(2.0**precision / width))
    whole = lift(w, h, 64)
    mean = whole.each(lambda t: np.broadcast_to(t.sum(-1, keepdims=True, dtype=U) * factor, t.shape))
    raised = whole.each(lambda t: t << U(precision)).plus(mean, -1)
    return (yield from open_cut(w, Shared(raised.x, 64, h.frac + precision), precision))


def rsqrt_moment(w: World, h: Masked, kind: str, epsilon: float, residual: int, flags: Flags) -> Steps:
    """[1 / sqrt(moment + epsilon)] of each row [rows, D] -> [rows, 1]."""
    width = h.shape[-1]
    if kind == "layer":
        h = yield from _centred(w, h, residual)
    h = truncate(w, h, max(0, h.frac + residual - 30))
    squares = square_sums(w, h, min(64, 2 * h.frac + 2 * residual + 7))
    least = max(1, round(epsilon * width * 2.0**squares.frac))
    opened = yield from w.open(squares.plus_public(U(least)))
    flags.check("residual", 0, opened, 4.0**residual, False, 8)
    top = squares.frac + 2 * residual + 1
    return (yield from power(w, opened.to(top + 1), max(least.bit_length() - 1, 1), top, -0.5, math.sqrt(width)))


def norm(w: World, x: Shared, kind: str, epsilon: float, frac: int, residual: int, activation: int, prefer: str) -> Steps:
    """`rsqrt_moment` of an input as the suite evaluates it."""
    flags = Flags(w)
    h = yield from standard(w, x, residual + 2, *stream_bits(x.shape, frac, residual, activation, prefer), True)
    found = yield from rsqrt_moment(w, h, kind, epsilon, residual, flags)
    return found, flags.take()
