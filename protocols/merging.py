"""What merging of rows needs of a suite: runs, scans, nearest marks, averages, similarities; each written here in terms of
others, and overridden by a suite that can do it in fewer rounds. Vocabulary and axis names: `protocols.suite`.

Leaks: nothing; marks, runs, places and similarities stay shared (docs/security.md, "Merging").
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from mpc.ledger import operation
from protocols.operations import Operations
from protocols.value import Norm, Value

LEAST_NORM = 2.0**-7
"""Rows that are shorter are no longer brought to length 1: their length is at most 2^7 times what it was."""


class Merging(Operations):
    """Operations on rows of which some become one. n: rows; k: how many are left, public."""

    async def select(self, bit: Value, x: Value, room: int = 0) -> Value:
        """Return x where a secret bit (0 fraction bits) is 1, else 0, broadcasting; bound and fraction bits are x's. room:
        bits that sums of a few such values may need beyond it."""
        return await self.mul(bit, x)

    async def weighted(self, weights: Value, rows: Value, room: int) -> Value:
        """Return weights [.., n, 1] times rows [.., n, width], as `mul`. room: bits that sums of them need beyond one."""
        return await self.mul(weights, rows)

    async def copy_scan(self, marks: Value, values: Value, reverse: bool = False) -> Value:
        """Return at each place the value at the last marked place up to it (`reverse`: the next one from it on), 0 where
        there is none: [..., n] -> [..., n].

        marks: 0 or 1; values: integers (0 fraction bits), 0 where nothing is marked. ceil(log2 n) products.
        """
        count = values.shape[-1]
        found = self.concat([x.reshape(1, *x.shape) for x in (marks, values)], 0)  # marks: whether there was one so far
        step = 1
        while step < count:
            left = found[..., step:] if reverse else found[..., :-step]
            ends = found[..., :step] * 0
            moved = self.concat([left, ends] if reverse else [ends, left], -1)
            free = -found[:1] + 1.0
            found = found + await self.select(free.expand(*found.shape), moved)
            step *= 2
        return found[1]

    async def merge_runs(self, ends: Value, rows: Sequence[Value], k: int) -> list[Value]:
        """Return the sums over runs of neighbours: ends [B, n], 1 at the last row of each of k runs, the last place among
        them; rows [B, n, width] each -> [B, k, width]. Their bound is n times the rows'. As `compact`, of prefix sums."""
        moved = await self.compact(ends, [x.cumsum(1) for x in rows], k)
        return [self.concat([x[:, :1], x[:, 1:] - x[:, :-1]], 1) for x in moved]

    async def scatter_add(self, assign: Value, rows: Value) -> Value:
        """Return for each of B places the sum of the rows that are assigned to it: assign [G, E, B] (one-hot or zero rows,
        0 fraction bits), rows [G, E, width] -> [G, B, width]."""
        with operation("merging"):
            return await self.matmul(assign.transpose(1, 2), rows)

    async def reciprocal(self, x: Value, least: float, most: float) -> Value:
        """Return 1 / x for least <= x <= most, public bounds above 0; within 2^-14 of it, relatively."""
        with operation("merging"):
            inverse = await self.rsqrt_moment(x.reshape(*x.shape, 1), Norm("rms", least * least * 2.0**-16))
            return inverse.reshape(*x.shape)

    async def exp_negative(self, x: Value, most: float) -> Value:
        """Return e^-x for 0 <= x <= most, public; within 2^-11.

        Of the softmax (p, q) of (-x, 0) it is p / q, q being at least a half.
        """
        with operation("exponential"):
            below = (-x).reshape(*x.shape, 1)
            sides = await self.softmax(self.concat([below, below * 0], -1))
            return await self.mul(sides[..., 0], await self.reciprocal(sides[..., 1], 0.375, 1.0))

    async def averaged(self, sums: Value, weights: Value, like: Value, limits: tuple[float, float]) -> Value:
        """Return sums [..., width] / weights [..., 1], an average of rows as `like`, whose bound it keeps.

        limits: public, least <= weight <= most; infinite: as far as the suite knows.
        """
        with operation("merging"):
            return await self.mul(sums, await self.reciprocal(weights, *limits))

    async def normalised(self, x: Value) -> Value:
        """Return rows [..., C] brought to length 1, those of `LEAST_NORM` or more."""
        with operation("merging"):
            width = x.shape[-1]
            inverse = await self.output_moment(x, Norm("rms", LEAST_NORM**2 / width))
            return await self.scale(await self.mul(x, inverse), width**-0.5)

    async def most_similar(self, x: Value, y: Value, least: float | None = None, room: int = 0) -> tuple[Value, Value]:
        """Return for each row of x [G, E, C] the one of y [G, B, C] that it is most similar to, all of length 1: one-hot
        rows [G, E, B] (0 fraction bits), the first of equal ones, and the similarity, their product, [G, E].

        least: public; a row whose similarities are not above it is assigned to none, and its similarity is 0. room: bits
        that rows which are added up by it need beyond those of cached ones.
        """
        with operation("merging"):
            near = self.with_bound(await self.matmul(x, y.transpose(1, 2)), 1.0)
            offered = near
            if least is not None:
                offered = self.concat([self.public(torch.full((1,), least), (*near.shape[:-1], 1)), near], -1)
            assign = await self.argmax(offered * 16)  # an arg-max compares with fewer fraction bits than there are
            if least is not None:
                assign = assign[..., 1:]
            return assign, (await self.select(assign, near)).sum(-1)

    def bounded_as(self, x: Value, like: Value, room: int) -> Value:
        """Return x, declared to lie within 2^room times the bound of `like`; as `with_bound`."""
        return self.with_bound(x, math.inf)

    def with_bound(self, x: Value, bound: float) -> Value:
        """Return x, declared to lie within +-bound (public); suites that choose rings by bounds use it."""
        return x
