"""Oblivious partition: of n rows the k that a shared indicator marks in their order, then the n - k others in theirs.

Two methods with the same result:

* "matrix": the marked rows are compacted by their selection matrix, and so are the others by theirs (`compaction`).
* "shuffle": indicator, running count of marked rows, that of the others and the rows are shuffled together (`shuffle`). The
  shuffled indicator is revealed; then of each marked row the count of marked ones up to it, and of each other row that of
  the others, which together are each row's destination. Rows move in the clear.

Why what "shuffle" reveals says nothing: it is the list of pairs (shuffled position, destination), a bijection d of rows
after the shuffle pi, and pi is uniform given everything that a coalition of n - 1 parties knows. So d o pi is uniform
whatever d is, and can be simulated from k and n. Of a row only its own kind's count is opened: the count of marked rows up
to an *unmarked* one would tell how marks are spread.
The number of ones must be k, which is public.

Rounds: "matrix" 2 (one more where rows are Shared: it runs beside the first); "shuffle" n + 1 when all is masked, n + 2
otherwise. Bytes: "matrix" those of both compactions; "shuffle" of one shuffle of the rows, two counts and the indicator,
and of revealing a bit and a count a row. `partition` takes the method with fewer bytes sent by the busiest party.
Valid range: exactly k ones, 1 <= k < n. Error: none.
Leaks: nothing beyond k and n (docs/security.md, "Partition").
Sources: as `compaction`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mpc.errors import RangeError
from mpc.ledger import Cost
from mpc.tape import CountingTape
from protocols.masked.compaction import METHODS, Method, compact
from protocols.masked.context import Context
from protocols.masked.selection_matrix import count_bits
from protocols.masked.shares import Masked, Shared
from protocols.masked.shuffle import Reveal, check_rows, shuffle, take_rows
from protocols.schedule import Scheduler, together

Rows = Shared | Masked


async def partition(c: Context, indicator: Rows, rows: Sequence[Rows], k: int, method: Method | None = None) -> list[Shared]:
    """Return the rows of each tensor [batch, n, ...], marked ones first, same ring and fraction bits.

    indicator: [batch, n], 0 or 1 with exactly k ones in each batch, in a ring of at least bit_length(n) bits. method: None
    takes the cheaper one by predicted bytes.
    """
    check_rows("partition", [indicator.shape, *(x.shape for x in rows)], -1)
    count = indicator.shape[-1]
    if not 1 <= k < count:
        raise RangeError(f"partition: {k} of {count} rows cannot be split off, it must be between 1 and {count - 1}")
    if indicator.bits < count_bits(count):
        raise RangeError(f"partition: {count} rows need an indicator modulo 2^{count_bits(count)}, got 2^{indicator.bits}")
    chosen = cheapest(c.parties, indicator, rows, k) if method is None else method
    if chosen == "shuffle":
        return await _by_shuffle(c, indicator, rows, k)
    if chosen == "matrix":
        kept, others = await together(
            compact(c, indicator, rows, k, "matrix"),
            compact(c, complement(c, indicator), rows, count - k, "matrix"),
        )
        return [
            Shared(torch.cat([a.x, b.x], len(indicator.shape) - 1), a.bits, a.frac)
            for a, b in zip(kept, others, strict=True)
        ]
    raise RangeError(f"partition: method '{chosen}' is unknown, use one of {list(METHODS)}")


def complement(c: Context, indicator: Rows) -> Rows:
    """Return 1 where an indicator is 0; local."""
    if isinstance(indicator, Masked):
        return indicator.map(torch.neg).add_public(1)
    return c.add_public(indicator.negate(), 1)


def predict(parties: int, indicator: Rows, rows: Sequence[Rows], k: int, method: Method) -> list[Cost]:
    """Return every party's online costs (and the last party's offline bytes) of a method, from shapes and rings alone."""
    costs = []
    for party in range(parties):
        c = Context(CountingTape(), None, parties, perspective=party)
        shapes = [_blank(c, x) for x in (indicator, *rows)]
        Scheduler(c.flush).run(partition(c, shapes[0], shapes[1:], k, method))
        costs.append(c.ledger.total())
    return costs


def cheapest(parties: int, indicator: Rows, rows: Sequence[Rows], k: int) -> Method:
    """Return the method whose busiest party sends fewer bytes; "matrix", with fewer rounds, when they are equal."""

    def busiest(method: Method) -> int:
        return max(cost.bytes_sent for cost in predict(parties, indicator, rows, k, method))

    return "shuffle" if busiest("shuffle") < busiest("matrix") else "matrix"


def _blank(c: Context, x: Rows) -> Rows:
    empty = c.blank(x.shape)
    return Shared(empty, x.bits, x.frac) if isinstance(x, Shared) else Masked(empty, empty, x.bits, x.frac)


def _running(x: Rows, bits: int) -> Rows:
    """Return the count of ones up to each position, modulo 2^bits; local."""
    cut = x.to_ring(bits)
    return cut.map(lambda t: t.cumsum(-1))


def own_counts(marks: Tensor, ones: Tensor, zeros: Tensor) -> Tensor:
    """Return of each shuffled row the share of the count of its own kind, the only one that may be revealed."""
    return torch.where(marks.bool(), ones, zeros)


async def _by_shuffle(c: Context, indicator: Rows, rows: Sequence[Rows], k: int) -> list[Shared]:
    count, bits = indicator.shape[-1], count_bits(indicator.shape[-1])
    counts = _running(indicator, bits), _running(complement(c, indicator), bits)
    mark, ones, zeros, *moved = await shuffle(c, [indicator.to_ring(1), *counts, *rows], len(indicator.shape) - 1)
    marks = await Reveal(mark)
    if not c.evaluating:
        await Reveal(ones)
        return [Shared(c.blank(x.shape), x.bits, x.frac) for x in moved]
    if not bool((marks.sum(-1) == k).all()):
        raise RangeError(f"partition: the indicator does not have exactly the {k} ones of the public budget")
    reached = await Reveal(Shared(own_counts(marks, ones.x, zeros.x), bits, 0)) + k * (1 - marks)  # destination + 1
    source = reached.argsort(-1)
    if not torch.equal(reached.gather(-1, source), torch.arange(1, count + 1, device=source.device).expand(source.shape)):
        raise RangeError("partition: the indicator holds values other than 0 and 1")
    return [Shared(take_rows(x.x, source), x.bits, x.frac) for x in moved]
