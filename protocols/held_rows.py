"""Cached rows that are held in several ways, attended to in one softmax: what every suite has for them.

A *part* (`protocols.value.Part`) is a segment of a layer's cache with the queries as its keys meet them: fewer channels, a
few fraction bits, a product of low rank. Axis names as in `protocols.suite`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from mpc.ledger import operation
from protocols.observed import Observed
from protocols.operations import Operations
from protocols.paging import Pager
from protocols.value import Part, Value

Factor = Literal["keys", "values"]
"""What rows with few fraction bits are factors of: scores, or results of attention."""

ENERGY_BOUND = 2.0**14  # of channels, where the suite has no bound of its own on scores


def two_to(count: int) -> int:
    """Return the next power of two.

    >>> two_to(32), two_to(33)
    (32, 64)
    """
    return 1 << (count - 1).bit_length()


class HeldRows(Operations):
    """Attention over parts, and rows that are moved and held for it. fraction_bits: of activations. pager: keeps the rows of
    the session's cache, at a party that has more of them than memory for them (`protocols.paging`)."""

    fraction_bits: int
    pager: Pager | None = None

    @abstractmethod
    async def attention_scores(self, q: Value, k: Value) -> Value:
        """Return what attention takes the softmax of: q k^T, soft-capped where the program says so."""

    @abstractmethod
    async def mask_for_cache(self, new: Value, kind: str | None = None, limit: int | None = None) -> Value:
        """Return what is cached, masked for all products to come; see `protocols.suite.Suite`."""

    async def attention_over(
        self, parts: Sequence[Part], mask: Tensor | None = None, observed: Observed | None = None
    ) -> tuple[list[Value], Value | None]:
        """Return the softmax over the scores of all parts, joined in order, times their values: one sum for each `total`, in
        order, [G, n, C''] with the heads grouped as the first part's queries [G, n, C'] are.

        mask: public bool, broadcastable to [G, n, S] over the S rows of all parts, or None. observed: whose probabilities
        the second result adds up, [M, S], as in `protocols.suite.Suite.observed_attention`; None without it.
        """
        groups, rows = parts[0].q.shape[:2]
        near = [(await self.attention_scores(part.q, part.k)).reshape(groups, rows, part.k.shape[1]) for part in parts]
        with operation("softmax"):
            probabilities = await self.softmax(self.concat(near, 2) if len(near) > 1 else near[0], mask)
        found: dict[int, Value] = {}
        start = 0
        with operation("values"):
            for part in parts:
                stop = start + part.k.shape[1]
                weights = probabilities[..., start:stop].reshape(part.v.shape[0], -1, stop - start)
                one = (await self.matmul(weights, part.v)).reshape(groups, rows, part.v.shape[2])
                found[part.total] = found[part.total] + one if part.total in found else one
                start = stop
        mass = None if observed is None else observed.taken(probabilities).sum(1)
        return [found[key] for key in sorted(found)], mass

    async def lasting_rows(self, shape: Sequence[int], share: Tensor | None) -> Value:
        """Return rows [G, S, C] that are cached and never change, masked for the products of this session and later ones
        (`own_rows`). share: as `Operations.input` takes it, with `fraction_bits` fraction bits."""
        return await self.lasting(self.stored_rows(shape, share))

    def stored_rows(self, shape: Sequence[int], share: Tensor | None) -> Value:
        """Return rows of a cache from this party's stored share of them; local."""
        return self.input(shape, share, self.fraction_bits)

    async def lasting(self, rows: Value) -> Value:
        """Return rows as `lasting_rows` does, of what has become of such shares."""
        return await self.mask_for_cache(rows)

    def own_rows(self, rows: Value) -> Value:
        """Return `lasting_rows` as rows of this session's own cache, which may be appended to; local."""
        return rows

    @abstractmethod
    async def recast(self, x: Value, fraction_bits: int) -> Value:
        """Return x rounded to so few fraction bits: to a neighbour on that grid, in `plain` to the nearer one, in suites on
        shares by chance, so that it is right on average; what lies on the grid stays."""

    async def hold(self, x: Value, fraction_bits: int, factor: Factor) -> Value:
        """Return rows [G, S, C] rounded to so few fraction bits (`recast`) and masked for all products to come, in as little
        memory as the suite can. factor: what they will be; nothing else may be done with them but `concat`."""
        return await self.mask_for_cache(await self.recast(x, fraction_bits))

    async def channel_energies(self, q: Value, k: Value) -> tuple[Value, float]:
        """Return how much each channel says of scores, [G, C], to be ranked, and a public bound on it: the sum over queries
        [G, n, C] of its square times that over keys [G, S, C], both divided by the next power of two from n and S on."""
        sums = [(await self.mul(x, x)).sum(1) for x in (q, k)]
        means = [await self.scale(x, 1.0 / two_to(n.shape[1])) for x, n in zip(sums, (q, k), strict=True)]
        return await self.mul(means[0], means[1]), ENERGY_BOUND

    async def choose_channels(self, q: Value, chosen: Value) -> Value:
        """Return the channels of queries [G, n, C] that one-hot rows [G, c, C] name, masked for their products with cached
        keys: [G, n, c]."""
        return await self.mask_queries(await self.matmul(q, chosen.transpose(1, 2)))

    @abstractmethod
    async def mask_queries(self, q: Value, weighed: bool = False) -> Value:
        """Return queries, masked for all their products with cached keys; see `protocols.suite.Suite`."""

    async def partition(self, keep: Value, rows: Sequence[Value], k: int) -> list[Value]:
        """Return the rows of each tensor [B, n, C] in another order: the k that `keep` [B, n] marks in their order, then the
        others in theirs."""
        kept = await self.compact(keep, rows, k)
        others = await self.compact(-keep + 1.0, rows, keep.shape[-1] - k)
        return [self.concat([a, b], 1) for a, b in zip(kept, others, strict=True)]
