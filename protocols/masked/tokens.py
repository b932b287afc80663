"""Secret token indices as rows of a fixed secret table: right by construction, with no dense rows in anybody's memory.

An index x in [0, V) is shared modulo 2^w, w = ceil(log2 V), opened once as x + lam, and its one-hot row is a dealt one-hot
vector of lam, rotated by what was opened (`protocols.masked.dealing`). Whoever shares the index can say nothing but a row of
the table: any w bits are an index, and those from V on stand for the indices from 0 on. So nobody has to prove that a row
is one-hot, and no linear combination of rows can be asked for.

The rows are then opened, masked in the table's ring, and multiplied (`protocols.masked.product`). At most `ROW_ENTRIES` of
their elements exist as integers at a time; the bit-packed messages of all blocks leave in one round.

Rounds: 2. Bytes to each other party: w bits and V ring elements a token. Offline: a one-hot vector and D ring elements a
token at the last party. Error: none. Both openings are masked by fresh uniform values.

Leaks: nothing (docs/security.md, "Token indices").
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mpc import ring
from mpc.ledger import current
from mpc.messages import Message, joined, packed, unpacked
from mpc.packing import packed_size
from protocols.masked.context import Context, open_value
from protocols.masked.dealing import one_hot
from protocols.masked.product import FixedWeight
from protocols.masked.shares import Masked, Shared
from protocols.schedule import Request

ROW_ENTRIES = 1 << 22  # 32 MiB of 64-bit words


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
    rows = one_hot(c, index, 0, index_bits(size), bits)
    if not c.evaluating:
        return Shared(c.blank((*index.shape, size)), bits, 0)
    inside = rows.x[..., :size].clone()
    inside[..., : rows.shape[-1] - size] += rows.x[..., size:]
    return Shared(inside, bits, 0)


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


async def look_up(c: Context, index: Shared, table: FixedWeight, bits: int) -> Shared:
    """Return the rows of the table [V, D] at secret indices [T]: [T, D] modulo 2^bits, with the table's fraction bits. 2
    rounds."""
    size = table.shape[0]
    opened = await open_value(c, index.to_ring(index_bits(size)))
    cuts = list(blocks(index.shape[0], size))
    messages, precomputed = [], []
    for cut in cuts:
        message, rest = _block(c, Masked(opened.m[cut], opened.lam[cut], opened.bits, 0), table, bits)
        messages.append(message)
        precomputed.append(rest)
    product = await RowProduct(messages, [cut.stop - cut.start for cut in cuts], table, bits)
    return Shared(product + torch.cat(precomputed) if c.evaluating else product, bits, table.frac)


def _block(c: Context, index: Masked, table: FixedWeight, bits: int) -> tuple[Message, Tensor]:
    """Return this party's message of some rows, and the part of their product that needs no input."""
    rows = one_hot_rows(c, index, table.shape[0], bits)
    lam = c.tape.random("open", tuple(rows.shape), bits)
    shape = (index.shape[0], table.shape[1])
    term = c.deal("embed", shape, bits, lambda: ring.matmul(lam, table.lam, bits))
    precomputed = c.tape.precompute("embed", shape, lambda: term - table.times_m(lam, bits))
    return (packed(rows.x + lam, bits) if c.evaluating else b""), precomputed
