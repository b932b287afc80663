"""Secret token indices as rows of a fixed secret table: right by construction, with no dense rows in anybody's memory.

An index x in [0, V) is shared modulo 2^w, w = ceil(log2 V), opened once as x + lam, and its one-hot row is a dealt one-hot
vector of lam, rotated by what was opened (`protocols.masked.dealing`). Whoever shares the index can say nothing but a row of
the table: any w bits are an index, and those from V on stand for the indices from 0 on. So nobody has to prove that a row
is one-hot, and no linear combination of rows can be asked for.

The one-hot rows e are then opened masked and multiplied with the table W, of whose K bits each all that is said is one row.
Two forms, for any number of parties; at most `ROW_ENTRIES` elements of rows exist as integers at a time, and the packed
messages of all blocks leave in one round.

* `rows`: the mask is one of the ring 2^K, so m [W] - [lam] m_W + [lam lam_W] is the row (`protocols.masked.product`).
* `bits`: the mask rho is a bit, and one bit of each entry is opened, m = e xor rho. As integers

      e_v = m_v - rho_v + 2 e_v [m_v = 0]

  for e_v in {0, 1}, and only at v = x is the last term not 0. With [rho_v] dealt modulo 2^K, Z = sum_v (m_v - rho_v) W_v is
  local as above, and Z = (1 - 2 tau) W_x for the bit tau = [m_x = 0] = sum_v e_v [m_v = 0]. Parties have XOR shares of tau
  in theirs of e. It is opened masked by a bit beside Z, and taken out again: W_x = (1 - 2 tau) Z. Nothing but parities of e
  is read, so one-hot vectors are dealt as bits too.

| form | rounds | sent a token | dealt a token, beside the one-hot vector |
| --- | --- | --- | --- |
| `rows` | 2 | w + K V bits | K D bits |
| `bits` | 3 | w + V + K D + 1 bits | K V + 2 K D + K bits |

What `bits` does not send is dealt: it comes before the input is there, and neither packed nor added up when it is. `forms`
chooses by both, and by work. Error: none. All openings are masked by fresh uniform values: of `bits`, a simulator draws m,
Z's masked form and tau's from its coins.

Leaks: nothing (docs/security.md, "Token indices").
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mpc import ring
from mpc.ledger import current
from mpc.messages import Message, joined, packed, unpacked
from mpc.packing import packed_size
from protocols.masked.context import BitOpening, Context, open_value
from protocols.masked.dealing import one_hot_words
from protocols.masked.forms import Form, choose
from protocols.masked.product import FixedWeight
from protocols.masked.shares import Masked, Shared
from protocols.schedule import Request, together

ROW_ENTRIES = 1 << 23  # 64 MiB of 64-bit words; a table is taken apart once for each block (`mpc.byte_matmul`)
OCTET = 8
# seconds of one core with products of 8-bit integers, an entry of a row: a party online, the dealer
WORK = {"rows": (1.5e-7, 1.5e-7), "bits": (8.0e-8, 1.0e-7)}


def index_bits(size: int) -> int:
    """Return w, the bits of an index into a table of `size` rows."""
    return max(1, (size - 1).bit_length())


def blocks(tokens: int, size: int) -> Iterator[slice]:
    """Return the consecutive tokens whose one-hot rows are held at the same time."""
    step = max(1, ROW_ENTRIES >> index_bits(size))
    for start in range(0, tokens, step):
        yield slice(start, min(start + step, tokens))


def one_hot_rows(c: Context, index: Masked, size: int, bits: int) -> Shared:
    """Return the one-hot rows [T, size] modulo 2^bits of masked indices [T] modulo 2^w; local."""
    if not c.evaluating:
        one_hot_words(c, index, 0, index_bits(size), bits)
        return Shared(c.blank((*index.shape, size)), bits, 0)
    return Shared(_folded(one_hot_words(c, index, 0, index_bits(size), bits).to(torch.int64), size), bits, 0)


def _folded(rows: Tensor, size: int) -> Tensor:
    """Return rows [T, 2^w] with the indices from `size` on added to those from 0 on."""
    inside = rows[..., :size].clone()
    inside[..., : rows.shape[-1] - size] += rows[..., size:]
    return inside


async def opened_rows(c: Context, index: Shared, size: int, bits: int) -> Shared:
    """Return the one-hot rows [T, size] modulo 2^bits of secret indices [T]. 1 round, w bits each; dealt as a one-hot vector
    of w bits' places each."""
    return one_hot_rows(c, await open_value(c, index.to_ring(index_bits(size))), size, bits)


def row_forms(shape: tuple[int, int, int], bits: int, parties: int) -> list[Form]:
    """Return what each form costs beyond the index and its one-hot vector: shape [tokens, V, D]."""
    tokens, size, width = shape
    entries, values, others = tokens * size, tokens * width * bits / 8, parties - 1
    whole, short = entries * bits / 8, entries / 8
    (online, dealing), (bits_online, bits_dealing) = WORK["rows"], WORK["bits"]
    return [
        Form("rows", 0, whole * others, values, entries * online, entries * dealing),
        Form("bits", 1, (short + values) * others, whole + 2 * values, entries * bits_online, entries * bits_dealing),
    ]


async def look_up(c: Context, index: Shared, table: FixedWeight, bits: int) -> Shared:
    """Return the rows of the table [V, D] at secret indices [T]: [T, D] modulo 2^bits, with the table's fraction bits. 2
    rounds, or 3."""
    shape = (index.shape[0], table.shape[0], table.shape[1])
    by = by_bits if choose(row_forms(shape, bits, c.parties), c.prefer) == "bits" else by_rows
    return await by(c, index, table, bits)


async def _blocks(c: Context, index: Shared, size: int) -> list[Masked]:
    """Open indices; return them by blocks. 1 round."""
    m = await open_value(c, index.to_ring(index_bits(size)))
    return [Masked(m.m[cut], m.lam[cut], m.bits, 0) for cut in blocks(index.shape[0], size)]


# ---- by rows ---------------------------------------------------------------------------------------------------------
class RowProduct(Request[Tensor]):
    """A request to open masked rows [T, V] block by block and to multiply each with this party's share of a table [V, D].

    messages: this party's packed rows + lam, one a block of `counts` rows. Gives m [W] of all rows, [T, D]. Cost: 1 round,
    bits per element of the rows.
    """

    def __init__(self, messages: Sequence[Message], counts: Sequence[int], table: FixedWeight, bits: int) -> None:
        self.messages = messages
        self.counts = counts
        self.table = table
        self.bits = bits
        self.key = current()
        self.sizes = [packed_size(count * table.shape[0], bits) for count in counts]
        self.size = sum(self.sizes)

    def encode(self) -> Message:
        """Return this party's rows, packed already."""
        return joined(self.messages)

    def decode(self, parts: Sequence[Message], c: Context) -> Tensor:
        """Return the product, from everybody's messages."""
        out, start = [], 0
        for count, size in zip(self.counts, self.sizes, strict=True):
            shape = (count, self.table.shape[0])
            rows = (unpacked(part[start : start + size], self.bits, shape) for part in parts)
            m = ring.reduce(functools.reduce(operator.add, rows), self.bits)
            if c.observer is not None:
                c.observer(m, self.bits)
            out.append(self.table.times_own(m, self.bits))
            start += size
        return torch.cat(out)

    def blank(self, c: Context) -> Tensor:
        """Return what a role that does not evaluate gets."""
        return c.blank((sum(self.counts), self.table.shape[1]))


async def by_rows(c: Context, index: Shared, table: FixedWeight, bits: int) -> Shared:
    """As `look_up`, by rows under masks of the ring. 2 rounds."""
    parts = await _blocks(c, index, table.shape[0])
    messages, precomputed = [], []
    for part in parts:
        rows = one_hot_rows(c, part, table.shape[0], bits)
        lam = c.tape.random("open", tuple(rows.shape), bits)
        precomputed.append(_of_masks(c, (lam, bits), lam, table, bits))
        messages.append(packed(rows.x + lam, bits) if c.evaluating else b"")
    product = await RowProduct(messages, [part.shape[0] for part in parts], table, bits)
    return Shared(product + torch.cat(precomputed) if c.evaluating else product, bits, table.frac)


def _of_masks(c: Context, masks: tuple[Tensor, int], own: Tensor, table: FixedWeight, bits: int) -> Tensor:
    """Return this party's share of -lam W for masks of rows, which needs no input. masks: lam [T, V] at the dealer, and its
    bits; own: this party's share of it modulo 2^bits."""
    whole, width = masks
    shape = (whole.shape[0], table.shape[1])
    term = c.deal("embed", shape, bits, lambda: table.times_mask(whole, bits, width))
    return c.tape.precompute("embed", shape, lambda: term - table.times_m(own.to(torch.int64), bits))


# ---- by bits ---------------------------------------------------------------------------------------------------------
class BitProduct(Request[tuple[Tensor, Tensor]]):
    """A request to open masked bits of rows [T, V] block by block and to multiply each with this party's share of a table
    [V, D].

    masked: this party's bits xor rho, packed, one tensor uint8 [rows, octets] a block; own: its bits alone, likewise; rows:
    T. Gives m [W] of all rows, [T, D], modulo 2^bits, and this party's XOR shares of sum_v e_v [m_v = 0], [T]. Cost: 1
    round, V bits a row in whole bytes.
    """

    def __init__(self, masked: Sequence[Tensor], own: Sequence[Tensor], rows: int, table: FixedWeight, bits: int) -> None:
        self.masked = masked
        self.own = own
        self.rows = rows
        self.table = table
        self.bits = bits
        self.key = current()
        self.size = rows * packed_size(table.shape[0], 1)

    def encode(self) -> Message:
        """Return this party's bits, packed already."""
        return joined([_message(part) for part in self.masked])

    def decode(self, parts: Sequence[Message], c: Context) -> tuple[Tensor, Tensor]:
        """Return both, from everybody's messages."""
        out, taus, start, size = [], [], 0, self.table.shape[0]
        for own in self.own:
            end = start + own.numel()
            opened = functools.reduce(operator.xor, [_octets(part[start:end], own) for part in parts])
            m = _unpacked_bits(opened, size)
            if c.observer is not None:
                c.observer(m, 1)
            out.append(self.table.times_own(m, self.bits, 1))
            taus.append(_parities(own & ~opened))
            start = end
        return torch.cat(out), torch.cat(taus)

    def blank(self, c: Context) -> tuple[Tensor, Tensor]:
        """Return what a role that does not evaluate gets."""
        return c.blank((self.rows, self.table.shape[1])), c.blank((self.rows,))


def _message(octets: Tensor) -> Message:
    return octets.reshape(-1).numpy().tobytes() if octets.device.type == "cpu" else octets.reshape(-1)


def _octets(part: Message, like: Tensor) -> Tensor:
    """Return a part of a message as uint8 of `like`'s shape."""
    found = part if isinstance(part, Tensor) else torch.from_numpy(np.frombuffer(part, np.uint8).copy())
    return found.reshape(like.shape)


def _packed_bits(x: Tensor) -> Tensor:
    """Return the lowest bits of [rows, V] as uint8 [rows, octets], those of a row in whole bytes, the first one lowest."""
    bits = torch.nn.functional.pad(x.to(torch.uint8) & 1, (0, -x.shape[-1] % OCTET))
    if bits.device.type == "cpu":
        return torch.from_numpy(np.packbits(bits.numpy(), -1, bitorder="little"))
    places = torch.arange(OCTET, dtype=torch.uint8, device=bits.device)
    return (bits.reshape(bits.shape[0], -1, OCTET) << places).sum(-1, dtype=torch.uint8)


def _unpacked_bits(octets: Tensor, size: int) -> Tensor:
    """Return the inverse of `_packed_bits`, int64 [rows, size]."""
    if octets.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(octets.numpy(), -1, size, "little")).to(torch.int64)
    places = torch.arange(OCTET, dtype=torch.uint8, device=octets.device)
    return ((octets[..., None] >> places) & 1).flatten(-2)[:, :size].to(torch.int64)


def _parities(octets: Tensor) -> Tensor:
    """Return the XOR of all bits of each row, int64 [rows]."""
    return functools.reduce(operator.xor, (((octets >> i) & 1).sum(-1, dtype=torch.int64) & 1 for i in range(OCTET)))


async def by_bits(c: Context, index: Shared, table: FixedWeight, bits: int) -> Shared:
    """As `look_up`, by one bit of each entry. 3 rounds."""
    size = table.shape[0]
    parts = await _blocks(c, index, size)
    masked, own, precomputed = [], [], []
    for part in parts:
        rows, shape = one_hot_words(c, part, 0, index_bits(size), 1), (part.shape[0], size)
        rho = c.tape.random("mask bits", shape, 1)
        dealt = c.deal_table("row masks", shape, bits, lambda rho=rho: rho)  # type: ignore[misc]
        precomputed.append(_of_masks(c, (rho, 1), dealt, table, bits))
        if c.evaluating:
            own.append(_packed_bits(_folded(rows, size)))
            masked.append(own[-1] ^ _packed_bits(rho))
    product, tau = await BitProduct(masked, own, index.shape[0], table, bits)
    signed = Shared(product + torch.cat(precomputed) if c.evaluating else product, bits, table.frac)
    return await _without_sign(c, signed, tau)


async def _without_sign(c: Context, x: Shared, tau: Tensor) -> Shared:
    """Return [(1 - 2 tau) x] of rows [T, D], tau [T] a bit of each row that is shared by XOR. 1 round, a ring element an
    entry and a bit a row."""
    bits, rho = x.bits, c.tape.random("mask bits", tuple(tau.shape), 1)

    async def opened_tau() -> Tensor:
        return await BitOpening(tau ^ rho if c.evaluating else tau)

    opened, m = await together(opened_tau(), open_value(c, x))
    sign = c.deal("row signs", (tau.shape[0], 1), bits, lambda: (1 - 2 * rho)[:, None])
    of_mask = c.deal("row signs: mask", tuple(x.shape), bits, lambda: (1 - 2 * rho)[:, None] * m.lam)
    if not c.evaluating:
        return Shared(c.blank(x.shape), bits, x.frac)
    return Shared((1 - 2 * opened)[:, None] * (m.m * sign - of_mask), bits, x.frac)
