"""The key/value cache of the suite `masked`: what is cached is masked once, in the full ring, and costs nothing from then
on.

Rounds: 1 for new rows (0 where they are masked already). Bytes: 8 per new element to each other party.

Rows that last (`lasting`) are stored shares x_i with sum x. They are opened once a load, x + lam for a fresh lam, and
every later session of the load goes on with the same (m, lam), as all do with a weight's: what a session opens of products
with them is masked by fresh randomness of its own, products of masks are dealt for each session, and nothing is opened
under lam but x. So m, uniform, is all that anybody sees of x, whatever the number of sessions. Of two loads the parties see
x + lam and x + lam' with independent masks: both uniform.
Leaks: nothing; what is opened is masked (docs/security.md, "Suite masked").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mpc.ledger import operation
from mpc.ring import RING_BITS
from protocols.masked import arithmetic, product
from protocols.masked.append_buffer import AppendBuffer, append_buffer
from protocols.masked.context import open_value
from protocols.masked.conversion import Conversion
from protocols.masked.magnitudes import ROOM
from protocols.masked.ranges import DIGIT
from protocols.masked.shares import Masked, Shared
from protocols.masked.values import MaskedTensor
from protocols.schedule import together
from protocols.suite import Value

ROWS_ROOM = 2  # bits of keys beyond the bound on a linear layer's outputs: what is flagged for certain, and a rotation


def _buffer(x: MaskedTensor, masked: Masked, dim: int) -> AppendBuffer:
    """Return the buffer in which x lies, or one of its own."""
    rows = x.rows
    return rows if rows is not None and rows.value is masked and rows.dim == dim else append_buffer(masked, dim)


async def mask_for_cache(convert: Conversion, new: Value, kind: str | None = None, limit: int | None = None) -> MaskedTensor:
    """Return keys or values masked for the cache, in the full ring. kind: whose bound is checked, or 2^limit, see
    `Suite.mask_for_cache`."""
    x, c, f = convert.tensor(new), convert.context, convert.fraction_bits
    with operation("cache"):
        x.masked = await convert.masked(x, f, RING_BITS)
        x.shared = x.wide = None
        if kind is not None:
            bound: int = getattr(convert.bounds.here, kind) if limit is None else limit
            bits = bound + 2 + ROOM
            more = 0 if limit is None else max(0, x.magnitude + 1 - bits)  # what is known of x may reach further
            convert.ranges.check(kind, x.masked.to_ring(f + bits + more), 2.0**bound, width=DIGIT + more)
    if c.tape.preprocessing:  # no term that is precomputed needs a cached value's mask
        x.masked = Masked(c.blank(x.shape), c.blank(x.shape), RING_BITS, x.masked.frac)
    return x


def stored_rows(convert: Conversion, shape: Sequence[int], share: Tensor | None) -> MaskedTensor:
    """Return rows from this party's stored share; local."""
    c = convert.context
    x = share.to(c.device) if share is not None else c.blank(shape)
    magnitude = convert.bounds.here.activation + ROWS_ROOM
    return convert.new(Shared(x, RING_BITS, convert.fraction_bits), magnitude)


async def lasting(convert: Conversion, new: Value) -> MaskedTensor:
    """Return rows, masked, that keep neither the session's tape nor its channel."""
    rows = await mask_for_cache(convert, new)
    assert rows.masked is not None
    return MaskedTensor(convert.context.local(), rows.magnitude, masked=rows.masked)


def own_rows(convert: Conversion, rows: Value) -> MaskedTensor:
    """Return rows that last as this session's; what is appended to them is written to a copy (`append_buffer`). Local."""
    c = convert.context
    assert isinstance(rows, MaskedTensor)
    masked = rows.masked
    assert masked is not None
    if c.tape.preprocessing:
        masked = Masked(c.blank(rows.shape), c.blank(rows.shape), masked.bits, masked.frac)
    return MaskedTensor(c, rows.magnitude, masked=masked)


async def append(convert: Conversion, cache: Value, new: Value, dim: int, kind: str | None = None) -> MaskedTensor:
    """Return the cache with `new` appended along `dim`: new rows are masked and written behind the old ones."""
    x = await mask_for_cache(convert, new, kind)
    old, masked = convert.tensor(cache), x.masked
    assert masked is not None
    if old.masked is None or (old.masked.frac, old.masked.bits) != (masked.frac, RING_BITS):
        return arithmetic.concat(convert, [old, x], dim)
    out = old.of_rows(_buffer(old, old.masked, dim).append(masked))
    out.magnitude = max(old.magnitude, x.magnitude)
    return out


def keep_first(x: MaskedTensor, count: int, dim: int) -> MaskedTensor:
    """Return the first `count` rows; what is given up of a cache is written over by what is appended next. Local."""
    if x.masked is None:
        return x[(*(slice(None),) * dim, slice(count))]
    return x.of_rows(_buffer(x, x.masked, dim).release(count))


async def replace(convert: Conversion, rows: Value, place: Value, new: Value) -> MaskedTensor:
    """Return cached rows with the marked one replaced, see `Suite.replace`: one round for the marks, one for the new rows,
    which are masked for the cache at once."""
    c, f = convert.context, convert.fraction_bits
    groups, count, channels = rows.shape
    old = convert.tensor(rows)
    with operation("replace"):
        e, m, fresh = await together(
            convert.masked(convert.tensor(place), 0, RING_BITS),
            convert.masked(old, f, RING_BITS),
            convert.masked(convert.tensor(new), f, RING_BITS),
        )
        change = fresh.map(lambda t: t.expand(groups, count, channels)).add(m.map(torch.neg))
        marks = e.map(lambda t: t.reshape(groups, count, 1).expand(groups, count, channels))
        out = c.shared(m).add(product.multiply(c, marks, change))
        return convert.new(await open_value(c, out), old.magnitude)
