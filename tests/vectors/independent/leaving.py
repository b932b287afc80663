"""What leaves a program: exact floors, released values, scores with a sample's noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.vectors.independent import crypten
from tests.vectors.independent.bits import borrow
from tests.vectors.independent.formats import Stream, Words, from_real, reduce
from tests.vectors.independent.linear import output, raise_ring, truncate
from tests.vectors.independent.order import first_largest
from tests.vectors.independent.results import Result, close, exact, flagged, hots
from tests.vectors.independent.rows import Flags, fitting
from tests.vectors.independent.world import Masked, Open, Shared, Steps, World

FRAC, CHOICE, EMBED = 14, 10, 32  # fraction bits of the suite and of a choice, ring of a choice's one-hot
LARGEST = 37.5  # of the noise


# ---- noise -----------------------------------------------------------------------------------------------------------
def gumbel(words: Words) -> np.ndarray:
    """-ln(-ln u), u = (word + 1) / 2^53 of words of 53 random bits."""
    u = (words.astype(np.float64) + 1) * 2.0**-53
    return np.asarray(-np.log(np.maximum(-np.log(u), 2.0**-54)))


def drawn(seed: str, shape: Sequence[int]) -> np.ndarray:
    """The noise of a seed."""
    return gumbel(Stream(bytes.fromhex(seed)).elements(shape, 53))


def noise(w: World, seed: str, shape: Sequence[int], temperature: float, frac: int, bits: int) -> Words:
    """Shares of noise times the temperature."""
    value = from_real(drawn(seed, shape) * temperature * 2.0**frac)
    return w.deal("gumbel", shape, bits, value, slack=1)


# ---- masked ----------------------------------------------------------------------------------------------------------
def floor(w: World, x: Masked, cut: Masked) -> Steps:
    """The truncation less the borrow out of the bits that were cut."""
    count = x.bits - cut.bits
    if not count:
        return cut.shared
    bit = yield from borrow(w, x.to(count))
    return cut.shared.plus(bit.share(cut.bits), -1)


def cut_exactly(w: World, x: Masked, count: int, frac: int) -> Steps:
    """A masked value without its lowest bits."""
    return (yield from floor(w, x, truncate(w, x, count)))


def released(w: World, x: Shared, magnitude: int, form: str) -> Steps:
    """Opened with all its fraction bits, cut, checked, made fresh."""
    flags = Flags(w)
    found = yield from w.open(x if form == "masked" else x.to(x.frac + magnitude + 2 + (form == "checked")))
    cut = truncate(w, found, max(0, x.frac - FRAC))
    if form == "checked":
        flags.check("activation", 0, cut, 2.0 ** (magnitude - 1), True, 5)
    left = yield from floor(w, found, cut)
    return output(w, left), flags.take()


def sample(w: World, x: Shared, temperature: float, magnitude: int, form: str, noise_seeds: Sequence[str]) -> Steps:
    """The noise is taken off the mask; then the arg-max in the ring of the sum."""
    flags = Flags(w)
    most = 2.0**magnitude * (0.75 if form == "checked" else 1.0) + LARGEST * temperature + 2.0**-8
    reach = math.ceil(most * 2.0**CHOICE)
    bits = (2 * reach).bit_length() + 1
    if form == "masked":
        found = yield from w.open(x)
        scores = truncate(w, found, x.frac - CHOICE).to(bits)
    else:
        found = yield from fitting(w, x, magnitude, CHOICE, bits, int(form == "checked"))
        if form == "checked":
            flags.check("activation", 0, found.to(CHOICE + magnitude + 3), 2.0 ** (magnitude - 1), True, 5)
        wraps = w.parties == 2 or x.frac <= CHOICE
        scores = found.to(bits) if found.bits >= bits else (yield from raise_ring(w, found.noted(wraps), 0, bits))
    dealt = noise(w, noise_seeds[0], scores.shape, temperature, CHOICE, bits)
    scores = Masked(scores.m, reduce(scores.lam - dealt, bits), bits, CHOICE)
    choice = yield from first_largest(w, scores, reach, [x.shape[-1]], EMBED)
    return scores.shared, choice, flags.take()


# ---- crypten ---------------------------------------------------------------------------------------------------------
def crypten_floor(w: World, x: Words, count: int) -> Steps:
    """The truncation less the borrow of m mod 2^t - r mod 2^t, by a carry tree over the dealt bits of r mod 2^t."""
    cut = crypten.Cut.deal(w, x, count)
    width = next(bits for bits in (16, 32, 64) if bits > count)
    value = crypten.spread(reduce(cut.mask, count), width)
    bits = w.deal("floor mask bits", x.shape[1:], width, value, "xor")
    m = yield Open(cut.blinded, 64)
    parts = crypten.borrows(reduce(m, count).reshape(-1), bits.reshape(w.parties, -1), width)
    (more,) = yield from crypten.tree(w, [parts], [width])
    as_sum = yield from crypten.to_arithmetic(w, more.reshape(x.shape))
    return cut.value(w, m) - as_sum


def crypten_cut(w: World, x: Shared, count: int) -> Steps:
    """A value without its lowest bits."""
    return Shared((yield from crypten_floor(w, x.x, count)), 64, x.frac - count)


def crypten_released(w: World, x: Shared) -> Steps:
    """Cut to 16 fraction bits, made fresh by a sharing of zero from seeds that were agreed first."""
    pairs = yield from crypten.agreed(w)
    left = yield from crypten_floor(w, x.x, x.frac - 16)
    return Shared(left + crypten.zeros(w, pairs, x.shape), 64, 16)


def crypten_perturbed(w: World, x: Shared, temperature: float, noise_seeds: Sequence[str]) -> Steps:
    """x plus the dealt noise."""
    yield from crypten.agreed(w)
    return Shared(x.x + noise(w, noise_seeds[0], x.shape, temperature, x.frac, 64), 64, x.frac)


# ---- what results must be --------------------------------------------------------------------------------------------
def floored(x: np.ndarray, frac: int) -> Result:
    """The largest multiple of 2^-frac that is not above x."""
    return exact(np.floor(x * 2.0**frac) / 2.0**frac)


def judge_released(x: np.ndarray, magnitude: int, form: str) -> list[Result]:
    """Flagged from 3/2 of the bound on; if it is checked."""
    beyond = form == "checked" and bool((np.abs(x) >= 0.75 * 2.0**magnitude).any())
    return [floored(x, FRAC), flagged(beyond)]


def judge_sample(x: np.ndarray, temperature: float, noise_seeds: Sequence[str], **_: Any) -> list[Result]:
    """The scores are cut and the noise is rounded; the choice is that of the real sum."""
    value = x + temperature * drawn(noise_seeds[0], x.shape)
    return [close(value, 1.501 * 2.0**-CHOICE), exact(hots(value.argmax(-1), x.shape[-1])), flagged(False)]


def judge_perturbed(x: np.ndarray, temperature: float, noise_seeds: Sequence[str]) -> Result:
    """Noise is rounded to the fraction bits of the scores, 16 at least."""
    return close(x + temperature * drawn(noise_seeds[0], x.shape), 0.501 * 2.0**-16)
