"""[x = 0] of a masked value, by the form that is done soonest.

x = m - lam is zero where m = lam, and the dealer knows lam:

| form | parties | rounds | dealt, for x of b bits and a result of k | |
| --- | --- | --- | --- | --- |
| points | 2 | 0 | to each 16 (b - e) + 2^e k / 8 bytes, 2^e <= 128 / k | a point function of lam, read at m (`idpf`) |
| table | any | 0 | to the last 2^b k / 8 bytes | [p = lam] for every value p of m |
| comparison | any | 1 | to the last 32 bytes a digit of 8 bits, a bit of it opened | `comparison.is_zero`, b <= 32 |

The point function ends early: it is one of the b - e leading bits, whose payloads are the one-hot vector of lam's e lowest.
Which form is taken is decided by public sizes (`forms.choose`).

Valid range: any x. Error: none. Leaks: nothing (docs/security.md, "Zero tests").
Sources: Boyle, Gilboa, Ishai 2016; Ishai et al. 2013 (one-time truth tables).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mpc.packing import packed_size
from mpc.wide import Wide, Words
from protocols.masked import idpf
from protocols.masked.comparison import is_zero, zero_form
from protocols.masked.context import Context, require
from protocols.masked.forms import Form, choose
from protocols.masked.one_hot import look_up
from protocols.masked.shares import Masked, Shared

BLOCK_BITS = 128
MOST_ENTRIES = 1 << 16  # of a table
MOST_COMPARED = 32  # bits


def _points(bits: int, result: int) -> idpf.Points:
    """Return the tree for x of `bits` bits: its leaves are blocks full of entries."""
    word = next(p for p in (8, 16, 32, 64) if p >= result)
    entries = min((BLOCK_BITS // word).bit_length() - 1, bits - 1)
    return idpf.Points((bits - entries,), 0, 0, 1 << entries, result)


# Seconds below: one core of an AMD EPYC with AES instructions, a call's own and an element's.
def costs(elements: int, bits: int, result: int, parties: int) -> list[Form]:
    """Return what each form costs that can be taken for x modulo 2^bits and a result modulo 2^result."""
    out = [] if parties > 2 else [points_form(elements, bits, result)]
    if 1 << bits <= MOST_ENTRIES:
        entries = elements << bits
        out.append(Form("table", 0, 0, packed_size(entries, result), 5e-5 + 2.5e-9 * entries, 1e-4 + 1e-8 * entries))
    if bits <= MOST_COMPARED:
        form = zero_form(bits)
        names, subsets = len(form.names), form.products
        table = packed_size(elements * form.table_bits, 1)
        sent = packed_size(elements * names, 1) * (parties - 1)
        dealt = table + packed_size(elements * subsets, result)
        out.append(Form("comparison", 1, sent, dealt, 3e-4 + 4e-8 * names * elements, 4e-4 + 6e-8 * names * elements))
    return out


def points_form(elements: int, bits: int, result: int) -> Form:
    """Return what point functions cost, two parties, for values masked by a sum or by XOR."""
    p = _points(bits, result)
    work, dealing = 3e-4 + elements * (1e-7 + 2.7e-8 * p.depth), 6e-4 + elements * (1e-6 + 5e-8 * p.depth)
    return Form("points", 0, 0, 2 * p.key_bytes(elements), work, dealing)


async def zero_test(c: Context, x: Masked, bits: int) -> Shared:
    """Return 1 where x is 0, else 0, modulo 2^bits of at most 64; no round, or 1 where `costs` says so."""
    require(1 <= bits <= 64, "zero test", f"a result has 1 to 64 bits, got {bits}")
    forms = costs(x.shape.numel(), x.bits, bits, c.parties)
    require(bool(forms), "zero test", f"{c.parties} parties test values of at most {MOST_COMPARED} bits, got {x.bits}")
    name = choose(forms, c.prefer)
    if name == "comparison":
        return (await is_zero(c, x)).share(bits)
    return by_points(c, x, bits) if name == "points" else by_table(c, x, bits)


def by_points(c: Context, x: Masked, bits: int) -> Shared:
    """Return 1 where x is 0, else 0, modulo 2^bits, by point functions; local, two parties."""
    p = _points(x.bits, bits)

    def payloads() -> Tensor:
        low = x.lam.reshape(-1) & (p.values - 1)
        return torch.nn.functional.one_hot(low, p.values)[None]

    return Shared(idpf.read_narrow(c, x, p, payloads, _own_entry(x, p.values)), bits, 0)


def _own_entry(x: Masked, entries: int) -> Callable[[Words, slice], Words]:
    """Return what takes m's entry of a leaf: [1, 1, elements, entries] -> [elements]."""
    low = x.m.reshape(-1) & (entries - 1)

    def take(share: Words, cut: slice) -> Words:
        assert not isinstance(share, Wide)
        return share[0, 0].gather(-1, low[cut, None].to(share.device))[:, 0]

    return take


def by_table(c: Context, x: Masked, bits: int) -> Shared:
    """Return 1 where x is 0, else 0, modulo 2^bits, by a table over all of m; local."""
    size = 1 << x.bits
    dealt = c.deal_table("zero test", (*x.shape, size), bits, lambda: torch.nn.functional.one_hot(x.lam, size))
    if not c.evaluating:
        return Shared(c.blank(x.shape), bits, 0)
    return Shared(look_up(dealt, x.m), bits, 0)
