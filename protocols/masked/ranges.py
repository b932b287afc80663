"""Range flags: whether masked values lie within their declared range, without a round or a byte online.

For x = m - lam modulo 2^k, the top digit of m less that of lam is x's top digit or one more (the borrow of what is below).
So for every checked value the dealer deals an XOR-shared one-time truth table over the *public* top digit of m: [x may be
outside]. The looked-up bits stay shared; each party XORs, over all values of a kind and layer, w_j where its share of bit j
is set, with 64-bit words w_j that all parties expand from one seed that the dealer deals them. By linearity the parties'
results are XOR shares of a word that is zero when no bit is set and uniformly random otherwise (zero by chance: 2^-64).

The client alone opens the words, with the answer that they belong to, after a dealt XOR sharing of zero has made each
party's share uniform. It learns which kinds left their range in which layers; it does not know the w_j, so nothing about
which values or how many. A party learns nothing. A client together with a party knows the w_j and learns, where a flag is
set, up to 64 parities of the bits.

With a digit of w bits, its unit u = 2^(k - w): a value within its limit is never flagged, one that exceeds it by two units
always, up to 2^k less the same on the other side, where the ring is around once; from there on only what falls outside on
the circle is. Between limit and two units more either may happen, so the rings of what follows have room for values there.
Leaks: to the client, per output, which kinds left their range in which layers; to it together with a party or the dealer up
to 64 parities of the bits (docs/security.md, "Range flags, masked").
Offline: 2^w bits per value at the last party, 32 bytes an output. Sources: Ishai et al. 2013 (one-time truth tables).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from mpc.device.folding import folded
from mpc.random import Prg, new_seed
from protocols.bounds import RANGE_KINDS
from protocols.masked.context import Context, require
from protocols.masked.shares import Masked

DIGIT = 5
SEED_WORDS = 4


class RangeFlags:
    """A role's flags of one session: [kinds, places] words since they were last taken. place: what is checked belongs to
    it."""

    def __init__(self, c: Context, places: int) -> None:
        self.place = 0
        self._c = c
        self._shape = (len(RANGE_KINDS), places)
        self._found: dict[tuple[int, int], int | Tensor] = {}  # words that are not 0, by kind and place
        self._coefficients: Prg | None = None
        self._seeded = False

    def check(self, kind: str, x: Masked, limit: float, signed: bool = True, width: int = DIGIT) -> None:
        """Flag `kind` here unless |x| (signed; else x, read from 0 on) is within `limit` in real units; local."""
        c = self._c
        require(3 <= width < x.bits, "range flags", f"a digit of {width} bits in a ring of {x.bits}")
        low = x.bits - width
        reach = -(-round(limit * 2.0**x.frac) // (1 << low))  # units
        size = 1 << width
        require(2 * reach + 1 < size, "range flags", f"a limit of {limit:g} leaves no room in a ring of {x.bits} bits")
        words = max(1, size // 64)

        def table() -> Tensor:
            return _tables(width, reach if signed else 0, reach, x.lam.device)[(x.lam >> low) & (size - 1)]

        dealt = c.deal_xor("range table", (*x.shape, words), table, min(size, 64))
        self._seed()
        if not c.evaluating or c.tape.preprocessing:
            return
        digit = (x.m >> low) & (size - 1)
        word = dealt[..., 0] if words == 1 else dealt.gather(-1, (digit >> 6)[..., None])[..., 0]
        self._set(kind, (word >> (digit & 63)) & 1)

    def watch(self, kind: str, bits: Tensor) -> None:
        """Flag `kind` here where one of these XOR-shared bits, 0 or 1, is set; local, and nothing is dealt for it."""
        self._seed()
        if self._c.evaluating and not self._c.tape.preprocessing:
            self._set(kind, bits)

    def _set(self, kind: str, bits: Tensor) -> None:
        assert self._coefficients is not None
        found = self._coefficients.ring(tuple(bits.shape), 64, bits.device) & -bits
        at = RANGE_KINDS.index(kind), self.place
        self._found[at] = self._found.get(at, 0) ^ folded(found)

    def _seed(self) -> None:
        """Take the seed of the coefficients, once an output: the same at all parties, unknown to clients."""
        if self._seeded:
            return
        self._seeded = True
        c = self._c
        value = (lambda: Prg(new_seed()).ring((SEED_WORDS,))) if c.tape.dealing else None
        seed = c.tape.common("range coefficients", (SEED_WORDS,), value, host=True)
        if c.evaluating and not c.tape.preprocessing:
            self._coefficients = Prg(seed.numpy().tobytes())

    def take(self) -> Tensor:
        """Return this party's share of the words, uniform; they are zero again, and the next ones have other
        coefficients."""
        c = self._c
        zero = c.deal_xor("zero flags", self._shape, self._zeros)
        self._seeded = False
        if not c.evaluating:
            return c.blank(self._shape)
        words, self._found = self._whole() ^ zero, {}
        return words.cpu()

    def _whole(self) -> Tensor:
        """Return the words of all kinds and places."""
        out = self._zeros()
        if out.device.type == "cpu":
            for at, word in self._found.items():
                out[at] = word
        elif self._found:
            kinds, places = (torch.tensor(at).to(out.device) for at in zip(*self._found, strict=True))
            out[kinds, places] = torch.stack([word for word in self._found.values() if isinstance(word, Tensor)])
        return out

    def _zeros(self) -> Tensor:
        return torch.zeros(self._shape, dtype=torch.int64, device=self._c.device)


@cache
def _tables(width: int, below: int, above: int, device: torch.device) -> Tensor:
    """Return the truth tables by the mask's digit, [2^width, words]: bit p is set unless p less that digit lies in [-below,
    above]."""
    size = 1 << width
    digit = torch.arange(size)
    start, end = (digit - below) & (size - 1), (digit + above + 1) & (size - 1)  # [start, end) around the circle is good
    words = max(1, size // 64)
    between = _prefix_table(start, words) ^ _prefix_table(end, words)
    return torch.where((end > start)[:, None], ~between, between).to(device)


def _prefix_table(bound: Tensor, words: int) -> Tensor:
    """Return the tables of [j < bound]: int64 words [..., words] whose bit j is set for j < bound."""
    start = torch.arange(words, device=bound.device) * 64
    inside = (bound[..., None] - start).clamp(0, 64)
    partial = (torch.ones_like(inside) << (inside & 63)) - 1
    return torch.where(inside == 64, torch.full_like(inside, -1), partial)
