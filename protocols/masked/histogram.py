"""Which bins of a row are empty from some bin on: hashes of one-hot bits that are dealt XOR-shared, or counts where rows are
short. No round, no sign.

A score's high digit, in units of 2^low, is its bin. The dealer deals the one-hot vector of the mask's digit XOR-shared, a
bit a bin; turned by the public digit it is the one-hot vector of the score's bin. XOR is linear: for public random words r_i
of `bits` bits, one for each place i in a row, the parties hold XOR shares of

    H_v = XOR of r_i over the scores i whose bin is v or higher,

which is zero where there is none. Where there are some it is zero for one choice of the words in 2^bits, and never for a
single score. All of a party's bits of a row are XORed a word at a time: 2^(range) bins side by side, four places at once.

The words come from a seed that the dealer takes anew for each call and every party gets: a row that is missed is not missed
again.

`counts`: the one-hot vectors are shared modulo 2^bits instead, more than a row has scores; what is added up is the number
of scores in bin v or a higher one. It is never zero by chance, and so small that its zero test is dealt in few bytes.

Bins are counted around a circle of 2^width; a borrow from below the digit is not taken out, so a score is in its bin
or in the next higher one.

Rounds 0; offline 2^width bits a score for the last party, 32 bytes for all; counts 2^width elements of their ring. Any
number of parties.
Leaks: nothing; a party's bits and shares are uniform (docs/security.md, "Histograms").
Sources: Ishai et al. 2013 (one-time truth tables); Carter, Wegman 1979 (random linear hashes).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mpc import ring
from mpc.device.deferred import deferred
from mpc.random import Prg, new_seed
from protocols.masked.context import Context
from protocols.masked.dealing import one_hot
from protocols.masked.one_hot import digit
from protocols.masked.rows import Rows
from protocols.masked.shares import Masked, Shared
from protocols.masked.signed_one_hot import one_hot_words, turned

GROUP = 4  # places whose XORs are made all at once
CHUNK_WORDS = 1 << 14  # words of a piece of rows: what is made of them stays in the cache
SEED_WORDS = 4


def hashes(c: Context, y: Masked, rows: Rows, low: int, bits: int, watch: Callable[[Tensor], None]) -> Tensor:
    """Return XOR shares of H_v, [rows, bins - 1], from v = the highest bin down to the second lowest; local.

    y: masked scores [entries]; bins are its digits from bit `low` up, read as signed numbers. watch: told the XOR shares of
    the hashes of each single bin, [rows, bits, words]: a word holds one bit of the hash of 64 bins, the highest first."""
    width = y.bits - low
    bins = 1 << width
    m_digit, lam_digit = digit(c, y, low, width)
    (words, *_) = one_hot_words(c, lam_digit, width, "histogram bits")
    seed = c.tape.common("histogram weights", (SEED_WORDS,), _fresh if c.tape.dealing else None, host=True)
    if not c.evaluating or words.is_meta or y.m.is_meta:
        watch(c.blank((rows.rows, bits, max(1, bins // 64))))
        return c.blank((rows.rows, bins - 1))
    bin_words = turned(words, (m_digit + (bins // 2 + 1)) & (bins - 1), width)  # bit i: the i-th highest bin
    found = _row_hashes(bin_words, rows, hash_words(seed, rows.longest, bits).to(c.device))
    watch(found)
    return _transposed(_running(found))[:, : bins - 1]


def counts(c: Context, y: Masked, rows: Rows, low: int, bits: int, watch: Callable[[Tensor], None]) -> Shared:
    """Return how many of a row's scores lie in bin v or a higher one, [rows, bins - 1], in the order of `hashes`; local.

    y, low: as in `hashes`. bits: their ring, 2^bits > rows.longest. watch: told the XOR shares of each score's one-hot bits,
    [entries, words], the highest bin's first."""
    width = y.bits - low
    bins = 1 << width
    hot = one_hot(c, y, low, width, bits)
    if not c.evaluating or hot.x.is_meta:
        watch(c.blank((y.shape.numel(), max(1, bins // 64))))
        return Shared(c.blank((rows.rows, bins - 1)), bits, 0)
    places = torch.arange(bins, device=hot.x.device)
    ordered = hot.x[..., (bins // 2 - 1 - places) & (bins - 1)]
    lowest = (ordered & 1).reshape(-1, max(1, bins // 64), min(bins, 64))  # of an additive sharing: an XOR sharing
    watch((lowest << places[: min(bins, 64)]).sum(-1))
    found = rows.sum(ordered).cumsum(-1)[:, : bins - 1]
    return Shared(ring.reduce(found, bits), bits, 0)


def _fresh() -> Tensor:
    return Prg(new_seed()).ring((SEED_WORDS,))


def hash_words(seed: Tensor, places: int, bits: int) -> Tensor:
    """Return a bit of the random words of four places at a time, no word being zero: [bits, groups] of 0 to 15."""
    groups = -(-places // GROUP)
    weights = Prg(seed.numpy().tobytes()).ring((groups * GROUP,), bits)
    weights = torch.where(weights == 0, torch.ones_like(weights), weights).reshape(1, groups, GROUP)
    picks = (weights >> torch.arange(bits)[:, None, None]) & 1
    return (picks << torch.arange(GROUP)).sum(-1)


def _row_hashes(words: Tensor, rows: Rows, picks: Tensor) -> Tensor:
    """Return the XORs of weights: words [entries, count] -> [rows, bits, count]."""
    bits, groups = picks.shape
    count = words.shape[-1]
    out = torch.zeros((rows.rows, bits, count), dtype=torch.int64, device=words.device)
    chosen = picks + (torch.arange(groups, device=picks.device) * (1 << GROUP))  # [bits, groups], groups first below
    for start, stop, piece in rows.pieces(words, max(1, CHUNK_WORDS // (count * max(rows.longest, 1)))):
        places, inside = piece.shape[0], stop - start  # [places, rows, count]
        used = -(-places // GROUP)
        four = torch.zeros((used * GROUP, inside * count), dtype=torch.int64, device=words.device)
        four[:places] = piece.reshape(places, inside * count)
        sums = _subsets(four.reshape(used, GROUP, inside * count)).reshape(used << GROUP, inside * count)
        part = sums[chosen[:, :used].t().reshape(-1)].reshape(used, bits * inside * count)
        out[start:stop] = _folded(part).reshape(bits, inside, count).movedim(0, 1)
    found: Tensor = deferred(out)
    return found


def _subsets(four: Tensor) -> Tensor:
    """Return the XORs of all subsets: [groups, 4, n] -> [groups, 16, n]."""
    out = torch.zeros((four.shape[0], 1 << GROUP, four.shape[2]), dtype=four.dtype, device=four.device)
    for i in range(GROUP):
        out[:, 1 << i : 2 << i] = out[:, : 1 << i] ^ four[:, i : i + 1]
    return out


def _folded(x: Tensor) -> Tensor:
    """Return the XOR along the first axis."""
    while x.shape[0] > 1:
        half = x.shape[0] // 2
        folded = x[:half] ^ x[half : 2 * half]
        if x.shape[0] % 2:
            folded[0] ^= x[-1]
        x = folded
    return x[0]


def _running(x: Tensor) -> Tensor:
    """Return words whose bit i is the XOR of bits 0 to i, through all words of the last axis."""
    for step in (1, 2, 4, 8, 16, 32):
        x = x ^ (x << step)
    parts = list(x.unbind(-1))
    for i in range(1, len(parts)):
        parts[i] = parts[i] ^ (parts[i - 1] >> 63)  # all ones after an odd number
    return torch.stack(parts, -1)


def _transposed(x: Tensor) -> Tensor:
    """Return bits of words as words of bits: [rows, bits, count] -> [rows, 64 count]."""
    rows, bits, count = x.shape
    square = torch.cat([x.transpose(1, 2), x.new_zeros((rows, count, 64 - bits))], -1)
    for step in (32, 16, 8, 4, 2, 1):
        mask = sum(((1 << step) - 1) << at for at in range(0, 64, 2 * step))
        low, high = square.reshape(rows, count, 32 // step, 2, step).unbind(3)
        change = ((low >> step) ^ high) & mask
        square = torch.stack([low ^ (change << step), high ^ change], 3).reshape(rows, count, 64)
    return square.reshape(rows, count * 64)


def parity(x: Tensor) -> Tensor:
    """Return the XOR of the bits of each word, 0 or 1."""
    for step in (32, 16, 8, 4, 2, 1):
        x = x ^ (x >> step)
    return x & 1
