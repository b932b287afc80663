"""Values that leave their range: seen on shares, told to the client alone.

Where a value x is opened under a mask anyway, as x - a, the dealer adds the high bits of a, and sums of squares of x cost no
round and no byte between parties: in Z_2^32, x / 2^t is ((x - a) >> t) + (a >> t) + 1, the integer below or above, since
what wraps is a multiple of 2^(64-t). The squares of `GROUP` neighbours are added up, and the sum is compared with its
threshold beside the next comparison that happens anyway (`protocols.crypten.comparison.less_than`): a check costs 5 offline
bytes an element and 0.9 byte online.

A sum says "beyond" for certain when the group's norm has reached 2^limit, as long as every element stays below 2^(limit+7)
(a single large one: 2^(limit+9)). Beyond that the sum wraps, and goes unseen where it lies below `LEAST` by chance, one in a
million, or for round multiples of 2^(limit+10). It never says so while every element is below 9/64 of 2^limit, or the norm
below 52/64 of it. In between it may say either, and results are right.

Flags. Comparisons leave bits b_j shared by XOR, 1 for "beyond". Party i's share of a word is the XOR over j of b_ij w_j,
with w_j 64 bits that all parties know and the client does not: AES-CTR from a SHA-256 of what the session opened first. That
is uniform and went between parties only. The word is 0 if no bit is set; otherwise it is the XOR of some unknown words, 0
with probability 2^-64. A fresh zero-sharing is added before a share leaves its party.

Security: nothing is opened but under fresh masks. Leaks: to the client which words are not zero; to it together with a party
or the dealer, who can know the w_j, up to 64 parities of which sums were beyond (docs/security.md, "Range flags, crypten").
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mpc import ring
from mpc.random import Prg, derive_seed
from protocols.bounds import RANGE_KINDS
from protocols.crypten.binding.library import CryptenSession
from protocols.crypten.comparison import SUM_BITS

GROUP = 32
"""Elements of a sum of squares."""
PART_BITS = 6
"""A value at its limit is so many bits long; `LEAST` is (2^6 - sqrt(32))^2, the least sum of a group whose norm is at its
limit, when every element is off by a unit."""

ACTIVATION_LIMIT = 15
"""log2 of the norm of 32 inputs of an activation function, or of its factor: below, results are right."""
SCORE_LIMIT = 16
"""The same of 32 differences between attention scores and the largest of their row."""
KEY_LIMIT = 15
"""The same of 32 elements of cached keys."""

ELEMENT_BITS = 3
"""Bits by which a limit exceeds that of elements none of which may be flagged, 9/64 of it."""


def unattended_limit(fraction_bits: int) -> int:
    """Return the log2 of the norm of 32 shares of attention that must be 0, or the least that can be watched."""
    return max(-6, PART_BITS - fraction_bits)


def query_limit(channels: int) -> int:
    """Return the log2 of the norm of 32 elements of queries, at which no score with keys below `KEY_LIMIT` reaches 2^30."""
    pieces = -(-channels // GROUP)
    return 30 - KEY_LIMIT - (pieces - 1).bit_length()


@dataclass(repr=False)
class Ranges:
    """What a session has seen of its ranges since the last `words`.

    place: of the program, see `Suite.at`; None before its first one, where nothing is watched.
    """

    session: CryptenSession
    places: int = 1
    place: int | None = None
    _waiting: list[tuple[str, int, Tensor]] = field(default_factory=list)
    _bits: list[tuple[str, int, Tensor]] = field(default_factory=list)
    _prg: Prg | None = None

    def begin(self, places: int) -> None:
        """Forget everything: a program begins."""
        self.places, self.place = places, None
        self._waiting.clear()
        self._bits.clear()

    def watch(self, kind: str, opened: Tensor, mask: Tensor, fraction_bits: int, limit: int) -> None:
        """Check x = opened + mask (both [...], in Z_2^64, x with `fraction_bits`) against 2^limit, see the module's head.

        mask: as the tape gives it: whole at the dealer. Costs no round; the comparison comes later.
        """
        s = self.session
        if self.place is None:
            return
        cut = fraction_bits + limit - PART_BITS
        assert 0 <= cut <= SUM_BITS
        groups = (-(-opened.numel() // GROUP),)

        def part() -> Tensor:
            return ring.reduce(ring.shift_right(mask, cut, 64), SUM_BITS)

        high = s.held(s.tape.dependent("range part", opened.shape, part, SUM_BITS))
        total = s.held(s.tape.dependent("range squares", groups, lambda: _grouped(part().square()), SUM_BITS))
        if s.channel is not None:
            public = ring.shift_right(opened, cut, 64) + 1
            total = total + _grouped(public * high * 2)
            if s.party == 0:
                total = total + _grouped(public.square())
        self._waiting.append((kind, self.place, total))

    def take(self) -> Tensor | None:
        """Return the sums that wait, one after the other: [n] in Z_2^32; from 0 to `LEAST` is within range."""
        return torch.cat([total for _, _, total in self._waiting]) if self._waiting else None

    def settle(self, within: Tensor) -> None:
        """Return the XOR-shared bits [n] of what `take` gave: 1 where it is within range."""
        waiting, self._waiting = self._waiting, []
        start = 0
        for kind, place, total in waiting:
            self.note(kind, within[start : start + total.numel()], place)
            start += total.numel()

    def note(self, kind: str, within: Tensor, place: int | None = None) -> None:
        """Return the XOR-shared bits [...]: 1 where a value of that kind stayed within its range."""
        place = self.place if place is None else place
        if self.session.channel is not None and place is not None:
            bits = within ^ 1 if self.session.party == 0 else within
            self._bits.append((kind, place, bits.reshape(-1).to(torch.int8)))

    def words(self) -> Tensor:
        """Return this party's XOR share of the flags [kinds, places], see `Suite.flags`. Local.

        What waits for its comparison goes with the next ones: nothing that was output depends on it.
        """
        s = self.session
        shape = (len(RANGE_KINDS), self.places)
        if s.channel is None:
            return torch.empty(shape, dtype=torch.int64, device="meta")
        out = s.zero_sharing(shape, "xor")
        if self._bits and self._prg is None:
            self._prg = Prg(derive_seed(s.common_seed(), "range flags"))
        for kind, place, bits in self._bits:
            assert self._prg is not None
            chosen = self._prg.ring(bits.shape, 64, s.device) & -bits.to(torch.int64)
            out[RANGE_KINDS.index(kind), place] ^= _xor(chosen)
        self._bits.clear()
        return out.cpu()


def watch(s: CryptenSession, kind: str, opened: Tensor, mask: Tensor, fraction_bits: int, limit: int) -> None:
    """Watch a value where the session keeps ranges, see `Ranges.watch`."""
    if isinstance(s.ranges, Ranges):
        s.ranges.watch(kind, opened, mask, fraction_bits, limit)


def _grouped(x: Tensor) -> Tensor:
    """Return the sums over `GROUP` neighbours of the flattened x."""
    flat = x.reshape(-1)
    missing = -flat.numel() % GROUP
    if missing:
        flat = torch.cat([flat, flat.new_zeros(missing)])
    return flat.reshape(-1, GROUP).sum(1)


def _xor(x: Tensor) -> Tensor:
    """Return the XOR of the words of x [n], n > 0."""
    while x.numel() > 1:
        half = x.numel() // 2
        x = torch.cat([x[:half] ^ x[half : 2 * half], x[2 * half :]])
    return x[0]
