"""One-hot vectors dealt as bits, read with a sign that the dealer knows: 2^w bits in place of 2^w ring elements.

Two parties. For a digit of w bits of x = m - lam the dealer deals the one-hot vector of lam's digit XOR-shared: b0 is
random, b1 = b0 but at that digit. As integers b0 - b1 is sigma = +1 or -1 at the digit and 0 elsewhere. So for any public
table T, in any ring, party 0 with the sum of b0[j] T[m_digit, j] and party 1 with minus that of b1 hold shares of sigma
T[m_digit, lam_digit], however many tables there are. T is any function of both digits: of their difference around the
circle, or of whether a borrow leaves them. sigma depends on b0 and lam alone, so the dealer knows it: it is taken out where
the value, opened under a fresh mask, is multiplied by what the dealer deals anyway (`lifted.multiply_known` with sigma times
a factor). A borrow from below the digit is not taken out, as in `one_hot`.

More parties: additive shares of the one-hot vector in the ring of the table (`one_hot.one_hot_table`), and sigma = 1; the
parties' steps are the same.

Rounds: 0. Offline: 2^w bits per element for the last party; 2^w times the ring's bits with more than two parties.
Leaks: nothing; b0 and b1 alone are uniform (docs/security.md, "Signed one-hot lookups").
Sources: one-time truth tables, Ishai et al. 2013; a sign left by an XOR-shared one-hot vector, SIGMA (Gupta et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mpc.bit_sums import OCTET, bit_sums
from protocols.masked.context import Context
from protocols.masked.one_hot import deal_scaled, digit
from protocols.masked.shares import Masked, Shared


@dataclass(frozen=True, repr=False)
class SignedOneHot:
    """A signed one-hot vector of the digit of a masked value.

    m_digit: public [...] at a party. width: w. words: a party's bits as int64 [..., words], or with more than two parties
    its additive shares [..., 2^w] modulo 2^bits. sign: sigma [...], +1 or -1, called at the dealer alone.
    """

    m_digit: Tensor
    width: int
    words: Tensor
    bits: int | None
    sign: Callable[[], Tensor]

    @property
    def shape(self) -> torch.Size:
        """Shape of the value."""
        return self.m_digit.shape


def signed_one_hot(c: Context, x: Masked, low: int, width: int, bits: int) -> SignedOneHot:
    """Return the vector of bits low .. low + width of x, to be read with tables modulo 2^bits or less; local."""
    m_digit, lam_digit = digit(c, x, low, width)
    if c.parties > 2:
        dealt = deal_scaled(c, "one-hot", lam_digit, width, bits, [lambda: torch.ones_like(lam_digit)])[0]
        return SignedOneHot(m_digit, width, dealt, bits, lambda: torch.ones_like(lam_digit))
    shares = one_hot_words(c, lam_digit, width)

    def sign() -> Tensor:
        word = shares[0].gather(-1, (lam_digit >> 6)[..., None])[..., 0]
        return 2 * ((word >> (lam_digit & 63)) & 1) - 1

    return SignedOneHot(m_digit, width, shares[0], None, sign)


def one_hot_words(c: Context, lam_digit: Tensor, width: int, op: str = "one-hot bits") -> list[Tensor]:
    """Deal the one-hot vectors of lam's digit XOR-shared, any number of parties; words of 64 bits, or one of 2^width.

    Return the list of all shares [..., words] at the dealer, of the own one elsewhere. Offline: 2^width bits per element."""
    size = 1 << width
    word_bits, count = min(size, 64), max(1, size // 64)

    def point() -> Tensor:
        start = torch.arange(count, device=lam_digit.device) * 64
        offset = lam_digit[..., None] - start
        hit = (offset >= 0) & (offset < 64)
        return torch.where(hit, torch.ones_like(offset) << (offset & 63), torch.zeros_like(offset))

    shape = (*lam_digit.shape, count)
    return c.tape.dependent_shares(op, shape, point if c.tape.dealing else None, word_bits, "xor")


def turned(words: Tensor, start: Tensor, width: int, count: int = 0) -> Tensor:
    """Return the bits of words [..., words] from place `start` [...] on, around the circle of 2^width places, 2^width >= 8:
    bit i is that of place start + i. As many words as there are, or the first `count`; fewer than 64 bits are the lowest."""
    size, held = 1 << width, words.shape[-1]
    if size < 64:
        whole = words[..., 0]
        for step in (s for s in (8, 16, 32) if s >= size):
            whole = whole | (whole << step)
        words = whole[..., None]
    place, inside = start >> 6, start & 63
    left = 63 - inside
    out = []
    for i in range(count or held):
        first, second = (
            (words[..., 0], words[..., 0])
            if held == 1
            else tuple(words.gather(-1, ((place + i + j) & (held - 1))[..., None])[..., 0] for j in (0, 1))
        )
        low = (first >> inside) & ((2 << left) - 1)  # a shift by 64 is none: by 63, then by 1
        out.append(low | ((second << left) << 1))
    found = torch.stack(out, -1) if len(out) > 1 else out[0][..., None]
    return found if size >= 64 else found & ((1 << size) - 1)


def _bits(words: Tensor, width: int) -> Tensor:
    """Return the bits of words [..., count], 0 or 1, as uint8 [..., 2^width]."""
    octets = words.contiguous().view(torch.uint8)[..., : max(1, (1 << width) // OCTET)]
    places = torch.arange(OCTET, dtype=torch.uint8, device=words.device)
    return ((octets[..., None] >> places) & 1).flatten(-2)[..., : 1 << width]


def signed_look_up(c: Context, x: SignedOneHot, tables: Tensor, bits: int) -> Shared:
    """Return [sigma T[m's digit, lam's digit]] modulo 2^bits, [tables, ...], for public integer tables [tables, 2^width,
    2^width], equal at all parties.

    A party adds up what its bits name (`mpc.bit_sums`). Local."""
    shape = (tables.shape[0], *x.shape)
    if not c.evaluating or x.words.is_meta or x.m_digit.is_meta:
        return Shared(c.blank(shape), bits, 0)
    size, positive = 1 << x.width, x.bits is not None or c.first
    if x.bits is not None or size < OCTET:
        vector = x.words if x.bits is not None else _bits(x.words, x.width).to(torch.int64)
        out = torch.stack([(vector * table[x.m_digit]).sum(-1) for table in tables])
        return Shared(out if positive else -out, bits, 0)
    out = bit_sums(x.words.reshape(-1, x.words.shape[-1]), x.m_digit.reshape(-1), tables)
    return Shared((out if positive else -out).reshape(shape), bits, 0)
