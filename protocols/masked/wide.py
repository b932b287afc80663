"""Element-wise values in rings of more than 64 bits: how they are dealt, and how they are opened and cut to a word.

A truncation takes bits from the ring. A product that is to have 64 bits left after it is made in a ring that is wider by as
much (`protocols.masked.lifted`), so it is opened once where it would be opened and raised.

deal: an additive sharing modulo 2^bits as two entries of the tape: the low words, and the high ones less the carry of the
low shares, which the dealer knows. Offline: bits per element for the last party.

open_cut: with two parties the low bits are cut from the shares before they are sent, as in `truncation.open_cut`: bits -
count per element, nothing dealt. With more parties it is opened whole, then truncated: bits per element to each other party,
bits - count dealt. 1 round. floor(x / 2^count) + Bernoulli(fraction).

Leaks: nothing; the mask is fresh and uniform in the whole ring; the rounding is decided by bits that parties know
(docs/security.md, "Openings", "Rounding").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from mpc import wide
from mpc.ledger import current
from mpc.messages import Message, joined, packed, unpacked
from mpc.packing import packed_size
from mpc.ring import RING_BITS
from mpc.wide import Wide, Words
from protocols.masked.context import Context, require
from protocols.masked.shares import Masked, Shared, WideShared
from protocols.masked.truncation import open_cut
from protocols.schedule import Request


def deal(c: Context, op: str, shape: Sequence[int], bits: int, value: Callable[[], Words]) -> Words:
    """Return a value computed from masks, shared modulo 2^bits; the dealer gets it whole. value: as wide as the ring."""
    if bits <= RING_BITS:

        def narrow() -> Tensor:
            found = value()
            return found.low if isinstance(found, Wide) else found

        return c.deal(op, shape, bits, narrow)
    if not c.tape.dealing:
        (low,) = c.tape.dependent_shares(op, tuple(shape), None)
        return Wide(low, c.tape.dependent(f"{op}, high", tuple(shape), None, bits - RING_BITS))
    found = value()
    whole = found if isinstance(found, Wide) else Wide.of(found)
    shares = c.tape.dependent_shares(op, tuple(shape), lambda: whole.low)
    total = Wide.of_unsigned(shares[0])
    for share in shares[1:]:
        total = total + Wide.of_unsigned(share)
    c.tape.dependent(f"{op}, high", tuple(shape), lambda: whole.high - total.high, bits - RING_BITS)
    return whole


class WideOpening(Request[Wide]):
    """A request to open a wide sharing under a mask. Cost: 1 round (shared), bits per element per direction."""

    def __init__(self, x: WideShared, lam: Wide) -> None:
        self.x, self.lam = x, lam
        self.key = current()
        self._high_bits = x.bits - RING_BITS
        self._low_bytes = packed_size(x.shape.numel(), RING_BITS)
        self.size = self._low_bytes + packed_size(x.shape.numel(), self._high_bits)

    def encode(self) -> Message:
        """Return this party's message: its share of x + lam, low words first."""
        sent = self.x.x + self.lam
        return joined([packed(sent.low, RING_BITS), packed(sent.high, self._high_bits)])

    def decode(self, parts: Sequence[Message], c: Context) -> Wide:
        """Return m from everybody's messages."""
        shape = self.x.shape
        total = self.x.x + self.lam
        for party, part in enumerate(parts):
            if party != c.perspective:
                low, high = part[: self._low_bytes], part[self._low_bytes :]
                total = total + Wide(unpacked(low, RING_BITS, shape), unpacked(high, self._high_bits, shape))
        m = wide.reduce(total, self.x.bits)
        assert isinstance(m, Wide)
        if c.observer is not None:
            c.observer(m.low, RING_BITS)
            c.observer(m.high, self._high_bits)
        return m

    def blank(self, c: Context) -> Wide:
        """Return what a role that does not evaluate gets."""
        return Wide(c.blank(self.x.shape), c.blank(self.x.shape))


def random(c: Context, op: str, shape: Sequence[int], bits: int) -> Words:
    """Return a fresh uniform value modulo 2^bits: the dealer gets it whole, a party its share. Nothing is dealt."""
    if bits <= RING_BITS:
        return c.tape.random(op, tuple(shape), bits)
    low = c.tape.random_shares(op, tuple(shape), RING_BITS)
    high = c.tape.random_shares(f"{op}, high", tuple(shape), bits - RING_BITS)
    total = Wide(low[0], high[0])
    for a, b in zip(low[1:], high[1:], strict=True):
        total = total + Wide(a, b)
    return wide.reduce(total, bits)


async def open_cut_wide(c: Context, x: WideShared, count: int, wraps: bool = False) -> Masked:
    """Return <x / 2^count> in the ring 2^(bits - count) of at most 64 bits, `count` fraction bits fewer. 1 round.

    wraps: as in `truncation.open_cut`."""
    left, frac = x.bits - count, x.frac - count
    require(2 <= left <= RING_BITS, "truncate", f"{count} bits cut from a ring of {x.bits} bits leave {left}")
    if c.parties == 2:
        if not c.evaluating:
            return await open_cut(c, Shared(c.blank(x.shape), left, frac), 0, wraps)
        own = x.x
        if c.first:
            own = own + ((Wide.of(own.low * 0 + 1) << count) + -1)
        cut = wide.shifted(wide.reduce(own, x.bits), count, x.bits)
        return await open_cut(c, Shared(cut, left, frac), 0, wraps)
    lam = random(c, "open", x.shape, x.bits)
    assert isinstance(lam, Wide)
    m = await WideOpening(x, lam)
    short = c.deal("truncate", x.shape, left, lambda: wide.shifted(lam, count, x.bits))
    return Masked(wide.shifted(m, count, x.bits) if c.evaluating else c.blank(x.shape), short, left, frac)


async def open_any(c: Context, x: Shared | WideShared, count: int, wraps: bool = False) -> Masked:
    """Return <x / 2^count> of a sharing in however many bits, at most 64 of which are left. 1 round. wraps: as in
    `truncation.open_cut`."""
    return await (open_cut_wide(c, x, count, wraps) if isinstance(x, WideShared) else open_cut(c, x, count, wraps))
