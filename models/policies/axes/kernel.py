"""Runs of neighbours become one row each by a Gaussian of the distance to their most attended key.

A run has at most a public number of tokens, and public cuts stand that far apart: so all runs lie within public blocks, and
who is in a token's run, which one of them received most and how far its key is away are found block by block, from all
pairs of a block: no row is moved for it.

Leaks: nothing; where runs end, their pivots and distances stay shared (docs/security.md, "Merging").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.policies.axes.runs import Runs
from models.policies.eviction import Event
from protocols.suite import Suite, Value

LEAST_SPREAD = 2.0**-4  # squared distance that is added to the sum of a run's: one of equal keys has a width, too
APART = 2  # log2 of what a squared distance is at most of the largest product of two keys


@dataclass(frozen=True)
class Gaussian(Runs):
    """As `Runs`, but the weights of a run's rows are e^(-d / 2 sigma^2), d the squared distance of a key to that of the
    run's pivot: of its tokens the one that received most, of equal ones the earlier.

    sigma^2 is the mean of d over the run, to whose sum 2^-4 is added: exponents are at most half the tokens of a run.

    Source: as `Runs`; there sigma is recalled as the mean distance, and not its square's root. About 20 rounds.
    """

    def limits(self, event: Event) -> tuple[float, float]:
        """As in `Runs`; a run's pivot has the weight 1."""
        return 0.5, self.most(event.chosen.shape[-1], event.count) + 1.0

    async def weights(self, suite: Suite, event: Event) -> Value:
        """Return the weights [G, n]."""
        count = event.chosen.shape[-1]
        blocks = Blocks(suite, count, self.most(count, event.count))
        if blocks.size == 1:
            return suite.public(1.0, tuple(event.parts[0].shape[:2]))
        spread = await self._exponents(suite, event, blocks)
        most = blocks.size / 2
        found = await suite.exp_negative(suite.with_bound(spread, most), most)
        return suite.with_bound(found.reshape(found.shape[0], -1)[:, :count], 1.0)

    async def _exponents(self, suite: Suite, event: Event, blocks: Blocks) -> Value:
        """Return d / 2 sigma^2 of each token of each block: [G, N, L]."""
        received = suite.with_bound(event.scores.value, event.scores.bound)
        ends, received = (blocks.of(x) for x in (event.chosen, received))
        keys = blocks.of(event.parts[0])
        groups, number, size = keys.shape[:3]
        first, second = blocks.pairs
        runs = ends.cumsum(-1) - ends
        near = suite.with_bound(runs[..., second] - runs[..., first] - 1.0, size)
        less = suite.with_bound(received[..., first] - received[..., second], 2 * event.scores.bound)
        products, same, loses = await suite.together(
            self._products(suite, keys), suite.less_than_zero(near, 0), suite.less_than_zero(less)
        )
        lengths = products.reshape(groups, number, size * size)[..., blocks.diagonal]
        inner = products.reshape(groups, number, size * size)[..., first * size + second]
        away = suite.bounded_as(lengths[..., first] + lengths[..., second] - inner * 2, products, APART)
        of_run = APART + (size - 1).bit_length()
        wide = same if same.shape[0] == groups else same.expand(groups, *same.shape[1:])
        room = size.bit_length() + 1
        distances, lost = await suite.together(suite.select(wide, away, room), suite.select(same, loses, room))
        # a token is its run's pivot where it loses against none of those behind it, and none of those before it wins or ties
        losses = (blocks.square(lost) * blocks.sign + blocks.square(same) * blocks.lower).sum(-1)
        every = blocks.square(distances) * blocks.off
        of_pivot = suite.less_than_zero(suite.with_bound(losses - 1.0, size), 0)
        sums = suite.bounded_as(every.sum(-1), products, of_run)  # of a pivot's: those of its run
        others = sums.reshape(groups, number, 1, size).expand(groups, number, size, size)
        members = blocks.square(wide) * blocks.off
        pivot, shared = await suite.together(of_pivot, suite.select(members, others, room))
        own = sums.reshape(groups, number, 1, size) * torch.eye(size, dtype=torch.int64)
        shared = suite.bounded_as(shared + own, products, of_run)
        found = await self._to_pivots(suite, suite.concat([every, shared], 2), pivot)
        distance = suite.bounded_as(found[..., :size, 0], products, APART)
        total = suite.bounded_as(found[..., size:, 0], products, of_run)
        scaled = await suite.mul(distance, members.sum(-1) + 1.0)
        shape = (*distance.shape, 1)
        like = suite.public(size / 2, shape)
        over = (total * 2 + 2 * LEAST_SPREAD).reshape(*shape)
        return (await suite.averaged(scaled.reshape(*shape), over, like, (LEAST_SPREAD, math.inf)))[..., 0]

    async def _products(self, suite: Suite, keys: Value) -> Value:
        """Return the products of the keys of each block, [G, N, L, L], with room for their distances."""
        return await suite.rounded(await suite.matmul(keys, keys.permute(0, 1, 3, 2)), room=4)

    async def _to_pivots(self, suite: Suite, rows: Value, pivot: Value) -> Value:
        """Return of rows [G, N, M, L] the sums over pivots [G or 1, N, L] alone: [G, N, M, 1]."""
        groups, number, _, size = rows.shape
        column = pivot.reshape(pivot.shape[0], number, size, 1)
        return await suite.matmul(rows, column if pivot.shape[0] == groups else column.expand(groups, number, size, 1))


class Blocks:
    """n tokens in N blocks of L, behind the last ones places that are no tokens: zeros. All public.

    pairs: first and second of each pair of a block. The others are matrices [L, L] or places in one.
    """

    def __init__(self, suite: Suite, count: int, size: int) -> None:
        self.suite, self.count, self.size = suite, count, size
        self.pairs: tuple[Tensor, Tensor] = tuple(torch.triu_indices(size, size, 1))
        self.diagonal = torch.arange(size) * (size + 1)
        self.lower = torch.ones(size, size, dtype=torch.int64).tril(-1)
        self.off = self.lower + self.lower.t()
        self.sign = self.lower.t() - self.lower
        place = torch.zeros(size, size, dtype=torch.int64)
        place[self.pairs] = torch.arange(len(self.pairs[0]))
        self.places = (place + place.t()).reshape(-1)

    def of(self, x: Value) -> Value:
        """Return [sets, n, ...] as [sets, N, L, ...]."""
        spare = -self.count % self.size
        padded = self.suite.concat([x, x[:, :spare] * 0], 1) if spare else x
        return padded.reshape(x.shape[0], -1, self.size, *x.shape[2:])

    def square(self, pairs: Value) -> Value:
        """Return what pairs have, [.., L (L - 1) / 2], as a symmetric matrix [.., L, L]; on its diagonal anything."""
        return pairs[..., self.places].reshape(*pairs.shape[:-1], self.size, self.size)
