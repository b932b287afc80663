"""[x = 0] of a masked value without a round: by point functions with two parties, or by tables where x has few bits.

A value masked by a sum or by XOR is zero where m = lam, and the dealer knows lam: keys for lam, read at m (`idpf`). The tree
ends early: its points are the b - e leading bits, whose payloads are the one-hot vector of the e lowest of lam, with
2^e <= 128 / k for a result of k bits.

`by_table`: the one-hot vector of lam, read at m; any number of parties.

Rounds and online bytes: none, it is local. Offline, to *each* party: 16 (b - e) + 2^e k / 8 bytes for x of b bits; of a
table 2^b k / 8 bytes, to the last one.
Valid range: any x. Error: none. Leaks: nothing (docs/security.md, "Zero tests").
Source: Boyle, Gilboa, Ishai 2016. With more parties, or where rounds are cheaper than bytes: `zero_words`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpc.ring import RING_BITS
from mpc.wide import Wide, Words
from protocols.masked import idpf
from protocols.masked.context import Context, require
from protocols.masked.dealing import table_cost
from protocols.masked.forms import Form, choose
from protocols.masked.one_hot import deal_scaled, look_up
from protocols.masked.shares import Masked, Shared

BLOCK_BITS = 128


def _points(bits: int, result: int) -> idpf.Points:
    """Return the tree for x of `bits` bits: its leaves are blocks full of entries."""
    word = next(p for p in (8, 16, 32, 64) if p >= result)
    entries = min((BLOCK_BITS // word).bit_length() - 1, bits - 1)
    return idpf.Points((bits - entries,), 0, 0, 1 << entries, result)


def points_form(elements: int, bits: int, result: int) -> Form:
    """Return what point functions cost, two parties, for values masked by a sum or by XOR."""
    p = _points(bits, result)
    # seconds of one core of an AMD EPYC with AES instructions: a call's own, and an element's
    work, dealing = 3e-4 + elements * (1e-7 + 2.7e-8 * p.depth), 6e-4 + elements * (1e-6 + 5e-8 * p.depth)
    return Form("points", 0, 0, 2 * p.key_bytes(elements), work, dealing)


def table_form(elements: int, bits: int, result: int) -> Form:
    """Return what tables cost, any number of parties."""
    cost = table_cost(elements, bits, result)
    return Form("table", 0, 0, cost.dealt_bytes, cost.party, cost.dealer)


def small_form(elements: int, bits: int, result: int, parties: int, prefer: str) -> Form:
    """Return the form that `of_few_bits` takes."""
    forms = [table_form(elements, bits, result)]
    if parties == 2:
        forms.append(points_form(elements, bits, result))
    name = choose(forms, prefer)
    return next(form for form in forms if form.name == name)


def of_few_bits(c: Context, x: Masked, bits: int) -> Shared:
    """Return 1 where x is 0, else 0, modulo 2^bits, for an x of few bits; local."""
    by = by_points if small_form(x.shape.numel(), x.bits, bits, c.parties, c.prefer).name == "points" else by_table
    return by(c, x, bits)


def by_table(c: Context, x: Masked, bits: int) -> Shared:
    """Return 1 where x is 0, else 0, modulo 2^bits, by tables; local, any number of parties."""
    dealt = deal_scaled(c, "zero", x.lam, x.bits, bits, [lambda: torch.ones_like(x.lam)])[0]
    return Shared(look_up(dealt, x.m) if c.evaluating else c.blank(x.shape), bits, 0)


def by_points(c: Context, x: Masked, bits: int) -> Shared:
    """Return 1 where x is 0, else 0, modulo 2^bits, by point functions; local, two parties."""
    require(1 <= bits <= RING_BITS, "zero test", f"a result has 1 to {RING_BITS} bits, got {bits}")
    p = _points(x.bits, bits)

    def payloads() -> Tensor:
        low = x.lam.reshape(-1) & (p.values - 1)
        return torch.nn.functional.one_hot(low, p.values)[None]

    return Shared(idpf.read_narrow(c, x, p, payloads, _own_entry(p.values)), bits, 0)


def _own_entry(entries: int) -> idpf.Combine:
    """Return what takes m's entry of a leaf: [1, 1, elements, entries] -> [elements]."""

    def take(share: Words, m: Tensor, cut: slice) -> Words:
        assert not isinstance(share, Wide)
        return share[0, 0].gather(-1, (m & (entries - 1))[:, None])[:, 0]

    return take
