"""Oblivious order-preserving compaction: of C rows, the k that a shared indicator marks, in their order, really shrunk.

Two methods with the same result:

* "shuffle": indicator, running count of marked rows and the rows are shuffled together (`shuffle`). Then the shuffled
  indicator is revealed, and for the marked rows alone their count, which is their destination 1..k. Rows move in the clear.
* "matrix": the k x C selection matrix (`selection_matrix`) is opened masked and multiplied with the masked rows. Its row j
  can be 1 from position j to j + C - k only, so that band alone is opened.

Why what "shuffle" reveals says nothing: it is the list of k pairs (shuffled position, destination). Row i lies at shuffled
position pi^-1(i); the marked row with destination j is fixed by the indicator, so the pairs are j -> pi^-1(i_j), the
restriction of a permutation that is uniform given everything a coalition of n - 1 parties knows. It is a uniformly random
injection of k destinations into C positions whatever the indicator is, and can be simulated from k and C. The counts of
unmarked rows, which would tell how marks are spread, are never opened: those rows are dropped after the first reveal.
The number of ones must be k, which is public.

Rounds: "matrix" 2 (one more where rows are Shared: it runs beside the first); "shuffle" n + 1 when indicator and rows are
masked, n + 2 otherwise.
Online bytes per party per direction, R = sum of columns times ring bytes: "matrix" k (C - k + 1) ring bytes, and C R for
rows that are Shared; "shuffle" at most C (R + bit_length(k)/8 + 1/8) each for collecting (Shared rows) and for a pass.
Offline bytes: "matrix" k R + C 2^bit_length(k) ring bytes; "shuffle" C (R + bit_length(k)/8 + 1/8).
`compact` takes the method with fewer bytes sent by the busiest party, predicted by running both on shapes.
Valid range: exactly k ones, 1 <= k <= C. k = C costs nothing. Error: none.
Leaks: nothing beyond k and C (docs/security.md, "Compaction").
Sources: Chase, Ghosh, Poburinnaya 2020; shuffle-then-reveal after Laur, Willemson, Zhang 2011.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mpc import ring
from mpc.errors import RangeError
from mpc.ledger import Cost
from mpc.tape import CountingTape
from protocols.masked.context import Context, open_value
from protocols.masked.product import product
from protocols.masked.selection_matrix import check_budget, count_bits, selection_matrix
from protocols.masked.shares import Masked, Shared
from protocols.masked.shuffle import Reveal, check_rows, shuffle, take_rows
from protocols.schedule import Scheduler, together

Method = Literal["shuffle", "matrix"]
METHODS: tuple[Method, ...] = ("shuffle", "matrix")


async def compact(
    c: Context,
    indicator: Shared | Masked,
    rows: Sequence[Shared | Masked],
    k: int,
    method: Method | None = None,
) -> list[Shared]:
    """Return the k marked rows of each tensor in their order: [batch, C, ...] -> [batch, k, ...], same ring and fraction
    bits.

    indicator: [batch, C], 0 or 1 with exactly k ones in each batch, in a ring of at least bit_length(k) bits. method: None
    takes the cheaper one by predicted bytes.
    """
    check_rows("compaction", [indicator.shape, *(x.shape for x in rows)], -1)
    check_budget("compaction", k, indicator.shape[-1])
    if indicator.bits < count_bits(k):
        raise RangeError(f"compaction: counts up to {k} need an indicator modulo 2^{count_bits(k)}, got 2^{indicator.bits}")
    if k == indicator.shape[-1]:
        return [x if isinstance(x, Shared) else c.shared(x) for x in rows]
    chosen = cheapest(c.parties, indicator, rows, k) if method is None else method
    if chosen == "shuffle":
        return await _by_shuffle(c, indicator, rows, k)
    if chosen == "matrix":
        return await _by_matrix(c, indicator, rows, k)
    raise RangeError(f"compaction: method '{chosen}' is unknown, use one of {list(METHODS)}")


def predict(parties: int, indicator: Shared | Masked, rows: Sequence[Shared | Masked], k: int, method: Method) -> list[Cost]:
    """Return every party's online costs (and the last party's offline bytes) of a method, from shapes and rings alone."""
    costs = []
    for party in range(parties):
        c = Context(CountingTape(), None, parties, perspective=party)
        shapes = [_blank(c, x) for x in (indicator, *rows)]
        Scheduler(c.flush).run(compact(c, shapes[0], shapes[1:], k, method))
        costs.append(c.ledger.total())
    return costs


def cheapest(parties: int, indicator: Shared | Masked, rows: Sequence[Shared | Masked], k: int) -> Method:
    """Return the method whose busiest party sends fewer bytes; "matrix", with fewer rounds, when they are equal."""

    def busiest(method: Method) -> int:
        return max(cost.bytes_sent for cost in predict(parties, indicator, rows, k, method))

    return "shuffle" if busiest("shuffle") < busiest("matrix") else "matrix"


def _blank(c: Context, x: Shared | Masked) -> Shared | Masked:
    empty = c.blank(x.shape)
    return Shared(empty, x.bits, x.frac) if isinstance(x, Shared) else Masked(empty, empty, x.bits, x.frac)


def _running_count(x: Shared | Masked, bits: int) -> Shared | Masked:
    if isinstance(x, Shared):
        return x.to_ring(bits).map(lambda t: t.cumsum(-1))
    return x.to_ring(bits).map(lambda t: t.cumsum(-1))


async def _by_shuffle(c: Context, indicator: Shared | Masked, rows: Sequence[Shared | Masked], k: int) -> list[Shared]:
    batch = indicator.shape[:-1]
    bits = count_bits(k)
    mark, count, *moved = await shuffle(c, [indicator.to_ring(1), _running_count(indicator, bits), *rows], len(batch))
    marks = await Reveal(mark)
    if not c.evaluating:
        await Reveal(Shared(c.blank((*batch, k)), bits, 0))
        return [Shared(c.blank((*batch, k, *x.shape[len(batch) + 1 :])), x.bits, x.frac) for x in moved]
    if not bool((marks.sum(-1) == k).all()):
        raise RangeError(f"compaction: the indicator does not have exactly the {k} ones of the public budget")
    at = marks.nonzero()[:, -1].reshape(*batch, k)  # shuffled positions of the marked rows
    reached = await Reveal(Shared(take_rows(count.x, at), bits, 0))
    order = reached.argsort(-1)  # destination - 1 -> which of the k
    if not torch.equal(reached.gather(-1, order), torch.arange(1, k + 1, device=order.device).expand(order.shape)):
        raise RangeError("compaction: the indicator holds values other than 0 and 1")
    source = at.gather(-1, order)
    return [Shared(take_rows(x.x, source), x.bits, x.frac) for x in moved]


async def _by_matrix(c: Context, indicator: Shared | Masked, rows: Sequence[Shared | Masked], k: int) -> list[Shared]:
    batch = len(indicator.shape) - 1
    bits = max((x.bits for x in rows), default=1)

    count = indicator.shape[-1]
    row = torch.arange(k, device=c.device)[:, None]
    column = row + torch.arange(count - k + 1, device=c.device)  # row j marks a position between j and j + C - k

    async def matrix() -> Masked:
        shared = indicator if isinstance(indicator, Shared) else c.shared(indicator)
        whole = await selection_matrix(c, shared, k, bits)
        band = await open_value(c, whole.map(lambda t: t[..., row, column]))

        def spread(t: Tensor) -> Tensor:
            out = t.new_zeros((*t.shape[:-2], k, count))
            return out.scatter_(-1, column.expand(t.shape), t)

        return band.map(spread)

    async def masked(x: Shared | Masked) -> Masked:
        return x if isinstance(x, Masked) else await open_value(c, x)

    e, *opened = await together(matrix(), *(masked(x) for x in rows))

    def contract(a: Tensor, b: Tensor, ring_bits: int) -> Tensor:
        flat = b.reshape(*b.shape[: batch + 1], -1)
        return ring.matmul(a, flat, ring_bits).reshape(*b.shape[:batch], k, *b.shape[batch + 1 :])

    return [product(c, "compaction", e, x, contract) for x in opened]
