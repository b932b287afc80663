"""GELU, its tanh form, SiLU and ReLU: segments, waves, brackets, and bits times lifted values."""

from __future__ import annotations

import math
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from tests.vectors.independent import wide
from tests.vectors.independent.bits import Bit, Predicate, ask, less_than_zero
from tests.vectors.independent.curves import REAL
from tests.vectors.independent.formats import U, Words, word
from tests.vectors.independent.linear import open_cut
from tests.vectors.independent.lookup import digit, low, signed_one_hot
from tests.vectors.independent.wide import Integers, Wide, integers, sharing
from tests.vectors.independent.world import Masked, Open, Shared, Steps, World, together

HALF = {"gelu": 4, "gelu_tanh": 4, "silu": 12}
DEGREE = {"gelu": 2, "gelu_tanh": 2, "silu": 3}
SEGMENTS, SEGMENT_BITS, VALUE_BITS, POSITION_BITS, ROUND_BITS = 128, 22, 15, 12, 24
UNIT = 3  # log2 of what brackets count
FRAC, PUBLIC = 25, 12  # of a sum of waves, less twice the period's log2; of its public factors, less that


def period(kind: str) -> int:
    """log2 of what a segment's digit spans."""
    return 5 if kind == "silu" else 4


def even(kind: str, x: np.ndarray) -> np.ndarray:
    """f(x) - x / 2."""
    return np.asarray(REAL[kind](np.abs(x)) - np.abs(x) / 2)


def within_unit(kind: str) -> int:
    """Segments of a bracket's unit."""
    return SEGMENTS << UNIT >> period(kind)


@cache
def coefficients(kind: str) -> tuple[Integers, np.ndarray]:
    """[degree + 1, segments]: of f(x) - x from a unit below -H up, rounded and unrounded."""
    degree, size = DEGREE[kind], 2.0 ** period(kind) / SEGMENTS
    count = 4 * degree + 8
    angles = np.pi * (np.arange(count) + 0.5) / count
    x = (np.arange(-within_unit(kind), SEGMENTS)[:, None] + np.cos(angles)) * size - HALF[kind]
    values = even(kind, x) - x / 2
    parts = [(2 - (k == 0)) / count * (values * np.cos(k * angles)).sum(-1) for k in range(degree + 1)]
    basis = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [-1, 0, 2, 0], [0, -3, 0, 4]])[: degree + 1, : degree + 1]
    powers = np.stack(parts, -1) @ basis  # of Chebyshev polynomials in powers
    return np.floor(powers.T * 2.0**SEGMENT_BITS + 0.5).astype(np.int64).astype(object), powers.T


@cache
def largest(kind: str) -> list[float]:
    """Of every |v_e|."""
    a, degree, t = coefficients(kind)[1], DEGREE[kind], np.arange(65) / 64
    terms = [[a[i][:, None] * math.comb(i, e) * t ** (i - e) for i in range(e, degree + 1)] for e in range(degree + 1)]
    return [float(np.abs(sum(v)).max()) for v in terms]


def rings(kind: str) -> list[int]:
    """Of sigma v_e."""
    return [math.floor(math.log2(v * 2**VALUE_BITS + 2)) + 3 for v in largest(kind)]


@cache
def amplitudes(kind: str, p: int) -> list[tuple[int, int]]:
    """(j, a_j 2^24) of E - 2^p / 8, continued by its mirror image, down to 1e-5."""
    n, size = 4096, 2.0**p
    x = (np.arange(n // 4) + 0.5) * size / n
    out: list[tuple[int, int]] = []
    for j in range(1, n, 2):
        a = 8 / n * ((even(kind, x) - size / 8) * np.cos(2 * np.pi * j * x / size)).sum()
        if abs(a) < 1e-5:
            break
        out.append((j, math.floor(a * 2.0**ROUND_BITS + 0.5)))
    return out


# ---- E ---------------------------------------------------------------------------------------------------------------
def _times_sum(w: World, op: str, bit: Bit, terms: list[tuple[Masked, Integers, int]], bits: int) -> Shared | Wide:
    """bit times the sum of x_e F_e 2^s_e: factors, the sum of masks times factors, top bits, each where the mask
    bit is 0 or 1 as the second or first of two entries, one of which the opened bit reads."""
    shape = terms[0][0].shape
    rho, u = integers(bit.rho[0]), bit.u[0] != 0

    def read(name: str, ring: int, value: Integers) -> Any:
        entries = wide.deal(w, f"{op}: {name}", (2, *shape), ring, np.stack([rho * value, (1 - rho) * value]))
        return np.where(u, entries[:, 1], entries[:, 0])

    forms = [wide.form(x, bits) for x, _, _ in terms]
    out: Any = 0
    factors = [read("factor", bits - s, f) for _, f, s in terms]
    masks: Any = sum(form[1][0].known * f << s for form, (_, f, s) in zip(forms, terms, strict=True))
    out = out - read("factor: mask", bits, masks)
    for (public, known), factor, (_, f, s) in zip(forms, factors, terms, strict=True):
        out = out + (factor * public << s)
        for t in known[1:]:
            if s + t.shift < bits:
                out = out + (t.public * read("factor: top bit", bits - t.shift - s, t.known * f) << s)
    return sharing(out, bits, max(x.frac for x, _, _ in terms))


def segment(w: World, kind: str, x: Masked) -> Steps:
    """(x_e, F_e, s_e) of [f(x) - x] = sum of x_e F_e 2^s_e, and its fraction bits."""
    degree, length, unit = DEGREE[kind], x.frac + period(kind) - 7, within_unit(kind)
    x = x.plus_public(word(HALF[kind] << x.frac))
    cut = SEGMENT_BITS + POSITION_BITS - VALUE_BITS
    vector, sign = signed_one_hot(w, x, length, 7, max(rings(kind)) + cut)
    m = digit(x.m, length, 7, x.bits).astype(np.int64)[..., None]
    place = np.broadcast_to(np.arange(SEGMENTS), (*x.shape, SEGMENTS))  # m less lam, around the circle
    borrows = m % unit < (m - place) % SEGMENTS % unit
    place = np.where(borrows & (place >= SEGMENTS - unit), place - SEGMENTS, place) + unit
    read = [(integers(vector) * row[place]).sum(-1) for row in coefficients(kind)[0]]
    gamma = integers(low(x.m, length) << U(POSITION_BITS)) >> length
    powers = [gamma * 0 + (1 << POSITION_BITS)]
    for _ in range(degree):
        powers.append((powers[-1] * gamma + (1 << (POSITION_BITS - 1))) >> POSITION_BITS)
    opened = []
    for e, k in enumerate(rings(kind)):
        v = sum(read[i] * math.comb(i, e) * powers[i - e] for i in range(e, degree + 1))
        opened.append(open_cut(w, Shared(wide.words(v, k + cut), k + cut, VALUE_BITS + cut), cut))
    values = yield from together(*opened)
    rho = low(x.mask, length).astype(np.float64) / 2.0**length
    r = [max(0, min(12, e * length, 14 + math.ceil(math.log2(v)))) for e, v in enumerate(largest(kind))]
    known = [integers(sign.view(np.int64)) * np.rint((-rho) ** e * 2.0**bits).astype(np.int64) for e, bits in enumerate(r)]
    terms = [(v, f, max(r) - bits) for v, f, bits in zip(values, known, r, strict=True)]
    return terms, VALUE_BITS + max(r)


def _turns(x: Words, j: int, circle: int) -> Integers:
    """cos and sin of 2 pi j x / 2^circle, 24 fraction bits: [2, ...]."""
    places = integers(x) * j % (1 << circle)
    both = np.stack([places, (places - (1 << (circle - 2))) % (1 << circle)]).astype(np.float64)
    return np.rint(np.cos(both * (2 * np.pi / 2**circle)) * 2.0**ROUND_BITS).astype(np.int64).astype(object)


def waves(w: World, kind: str, x: Masked, p: int, bits: int) -> Shared | Wide:
    """[E] by harmonics of the period 2^p."""
    circle, found = p + x.frac, amplitudes(kind, p)
    largest = max(abs(a) for _, a in found)
    out: Any = 0
    for j, a in found:
        shift = (largest // abs(a)).bit_length() - 1
        spared = ROUND_BITS - (FRAC - PUBLIC) - p + shift
        known = (_turns(x.mask, j, circle) + (1 << (spared - 1))) >> spared
        dealt = wide.deal(w, f"{kind} waves", known.shape, bits - shift, known)
        cut_off = 2 * ROUND_BITS - PUBLIC - p
        public = (_turns(x.m, j, circle) * a + (1 << (cut_off - 1))) >> cut_off
        out = out + ((dealt * public).sum(1) << shift)
    return _plus(sharing(out, bits, FRAC + 2 * p), 1 << (p - 3 + FRAC + 2 * p))


def _plus(x: Shared | Wide, value: int) -> Shared | Wide:
    whole = integers(x.x)
    whole[0] += value
    return sharing(whole, x.bits, x.frac)


def _half(w: World, x: Masked, bits: int, frac: int) -> Shared | Wide:
    """[x / 2]."""
    up = frac - x.frac - 1
    return sharing(integers(wide.lift(w, x, bits - up, "half").x) << up, bits, frac)


# ---- brackets --------------------------------------------------------------------------------------------------------
def _part(bit: Bit, named: list[str], terms: list[Any], flip: str | None) -> Bit:
    """Another predicate in some of the bits."""
    p = bit.predicate
    places = [list(p.bits).index(n) for n in named]
    return Bit(bit.w, Predicate(p.digits, {n: p.bits[n] for n in named}, terms, flip), bit.u[places], bit.shares[:, places])


def _opposite(bit: Bit) -> Bit:
    """1 less the bit: its flip turned."""
    u = bit.u.copy()
    u[list(bit.predicate.bits).index(str(bit.predicate.flip))] ^= U(1)
    return Bit(bit.w, bit.predicate, u, bit.shares)


def alone(bit: Bit) -> Steps:
    """Looked up by the opened bits, masked and opened."""
    p, names = bit.predicate, list(bit.predicate.bits)
    count, w = len(names), bit.w
    answers = []
    for assigned in product((0, 1), repeat=count):
        true = {n for n, v in zip(names, reversed(assigned), strict=True) if v}
        answers.append((sum(k for k, term in p.terms if term <= true) + (p.flip in true)) % 2)
    weights = U(1) << np.arange(count, dtype=U)
    place = (bit.rho * weights.reshape(-1, *[1] * (bit.rho.ndim - 1))).sum(0, dtype=U)
    table = np.array(answers, U)[(place[..., None] ^ np.arange(1 << count, dtype=U)).astype(np.int64)]
    each = min(64, 1 << count)
    groups = table.reshape(*place.shape, -1, each)
    value = (groups << np.arange(each, dtype=U)).sum(-1, dtype=U)
    dealt = w.deal("table of a predicate", value.shape, each, value, "xor")
    mask = w.random("mask bits", (1, *place.shape), 1)
    u = (bit.u * weights.reshape(-1, *[1] * (bit.u.ndim - 1))).sum(0, dtype=U)
    word_of = np.take_along_axis(dealt, np.broadcast_to((u >> U(6))[..., None].astype(np.int64), (*dealt.shape[:-1], 1)), -1)
    own = (word_of[..., 0] >> (u & U(63))) & U(1)
    opened = yield Open(own[:, None] ^ mask, 1, "xor")
    single = Predicate([(0, 1)], {"bit": (0, lambda m, lam: m == lam)}, [], "bit")
    return Bit(w, single, opened, mask)


def brackets(w: World, x: Masked, half: int, unit: int, at_once: bool) -> Steps:
    """(inside, above)."""
    start, reads = x.frac + unit, (2 * half >> unit) + 1
    width, moved = x.bits - start, x.plus_public(word(half << x.frac))
    lower = max(3, reads.bit_length(), width // 2)
    if at_once or lower >= width:
        size = 1 << width
        opened = yield from ask(w, moved, Predicate([(start, width)], {
            "inside": (0, lambda m, lam: (m - lam) % size < reads),
            "s": (0, lambda m, lam: (m - lam) % size >= size // 2),
        }, []))  # fmt: skip
        return [_part(opened, ["inside"], [], "inside"), _opposite(_part(opened, ["s"], [], "s"))]
    size = 1 << (width - lower)

    def sign(m: np.ndarray, lam: np.ndarray) -> np.ndarray:
        return np.asarray((m - lam) % size >= size // 2)

    named = {
        "lt": (0, lambda m, lam: m < lam),
        "low": (0, lambda m, lam: (m - lam) % (1 << lower) < reads),
        "z0": (1, lambda m, lam: m == lam),
        "z1": (1, lambda m, lam: (m - lam) % size == 1 % size),
        "s": (1, sign),
        "t": (1, lambda m, lam: sign(m, lam) ^ sign(m - 1, lam)),
    }
    opened = yield from ask(w, moved, Predicate([(start, lower), (start + lower, width - lower)], named, []))
    first, second = frozenset({"low", "z0"}), frozenset({"low", "z1"})
    terms = [(1, first), (-1, first | {"lt"}), (1, second | {"lt"})]
    inside = _part(opened, ["lt", "low", "z0", "z1"], terms, None)
    below = _part(opened, ["lt", "s", "t"], [(1, frozenset({"lt", "t"}))], "s")
    found = yield from together(alone(inside), alone(below))
    return [found[0], _opposite(found[1])]


def times(w: World, op: str, bit: Bit, y: Masked, bits: int, lowest: int | None = None) -> Shared | Wide:
    """[bit y], y lifted: what is dealt of the answer times y, and y."""
    factors = integers(bit.products().view(np.int64))
    many = Masked(np.stack([y.m] * len(factors)), np.stack([y.lam] * len(factors), 1), y.bits, y.frac)
    masks = wide.multiply_known(w, op, many, factors, bits, lowest)
    whole = wide.lift(w, y, bits, op, lowest)
    constant, rest = bit.coefficients()
    out = integers(whole.x) * integers(constant.view(np.int64))
    for i, c in enumerate(rest):
        out = out + integers(masks.x)[:, i] * integers(c.view(np.int64))
    return sharing(out, bits, y.frac)


# ---- the gate --------------------------------------------------------------------------------------------------------
def activation(w: World, x: Masked, kind: str, curve: str, result: str, wanted: int) -> Steps:
    """f(x), opened: above x + inside P; x / 2 + E; or not negative x."""
    least = x.bits - int(curve == "waves")
    left = wanted if result == "lifted" else least
    f = x.frac
    if kind == "relu":
        negative = yield from less_than_zero(w, x, 8 if curve == "one step" else 6)
        if curve == "two steps":
            negative = yield from alone(negative)
        return (yield from wide.cut(w, times(w, "positive", _opposite(negative), x, left, 0), 0))
    if curve == "waves":
        fine = FRAC + 2 * (least - f)
        bits = left + fine - f
        even_part = waves(w, kind, x, least - f, bits)
        total = integers(even_part.x) + integers(_half(w, x, bits, fine).x)
        return (yield from wide.cut(w, sharing(total, bits, fine), fine - f))
    reach = HALF[kind] + (1 << UNIT)
    if curve != "segments":
        p_bits, period = (reach << f).bit_length() + 2, 6 if kind == "silu" else 5
        fine = FRAC + 2 * period

        def curved() -> Steps:
            if curve == "halved digits":
                terms, frac = yield from segment(w, kind, x)
                found = yield from wide.veiled_sum(w, f"{kind} segments", terms, (p_bits - f + frac, frac - f))
                return Masked(found.m, found.lam, found.bits, f, True)
            bits = p_bits + fine - f
            wave = waves(w, kind, x, period, bits)
            half = _half(w, x, bits, fine)
            assert isinstance(wave, Shared)
            assert isinstance(half, Shared)
            return (yield from open_cut(w, wave.plus(half, -1), fine - f))

        (inside, above), p = yield from together(brackets(w, x, HALF[kind], UNIT, curve == "brackets"), curved())
        lower, frac = times(w, "inside", inside, p.noted(p.counted or w.parties == 2), left), f
    else:
        (inside, above), (terms, frac) = yield from together(brackets(w, x, HALF[kind], UNIT, True), segment(w, kind, x))
        lower = _times_sum(w, f"{kind} segments", inside, terms, left + frac - f)
    upper = integers(times(w, "above", above, x, left, -(reach << f)).x) << (frac - f)
    both = sharing(upper + integers(lower.x), left + frac - f, frac)
    if frac == f:
        return both
    assert isinstance(both, Shared)
    return (yield from open_cut(w, both, frac - f)).shared


def judged(x: np.ndarray, kind: str, **_: Any) -> np.ndarray:
    """The function."""
    return np.asarray(REAL[kind](x))
