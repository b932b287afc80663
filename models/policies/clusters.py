"""Clusters of neighbouring cached tokens: their extreme keys, and how similar a query is to each of them.

A cluster of s tokens is described by the highest and lowest key in every channel, r_max and r_min. Two similarities:

* the upper bound sum_c max(q_c r_max_c, q_c r_min_c), used by Quest; computed as q . (r_max + r_min) + |q| . (r_max -
  r_min), which is twice the bound, with one comparison per channel of the query and none per cluster;
* its linearisation q . (alpha r_max + (1 - alpha) r_min) of MPCache, without any comparison.

Sources: Tang et al., "Quest", ICML 2024, section 3.3; Zeng et al., "MPCache", NeurIPS 2025, section 4.2.

Leaks: to parties and dealer how many clusters there are (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols.suite import Suite, Value


@dataclass
class Clusters:
    """Descriptions of a layer's first N clusters. Secret values, [G, N, C] each, public N.

    high, low: extreme keys. ready: what similarities multiply the query with, masked once where the suite does that.
    """

    high: Value
    low: Value
    ready: tuple[Value, ...]

    @property
    def count(self) -> int:
        """Return N."""
        return self.high.shape[1]


async def _ready(suite: Suite, high: Value, low: Value, alpha: float | None) -> tuple[Value, ...]:
    if alpha is None:
        both = await suite.together(suite.mask_for_cache(high + low), suite.mask_for_cache(high - low))
        return both[0], both[1]
    upper, lower = await suite.together(suite.scale(high, alpha), suite.scale(low, 1.0 - alpha))
    return (await suite.mask_for_cache(upper + lower),)


async def describe(suite: Suite, keys: Value, size: int, alpha: float | None, background: bool = False) -> Clusters:
    """Return the descriptions of the N clusters of keys [G, N s, C]. alpha: of the linearised similarity, None for the
    bound.

    background: see `Suite.max`.
    """
    groups, tokens, channels = keys.shape
    columns = keys.reshape(groups, tokens // size, size, channels).permute(0, 1, 3, 2)  # [G, N, C, s]
    if size == 1:
        high = low = columns[..., 0]
    else:
        top, bottom = await suite.together(suite.max(columns, background), suite.max(-columns, background))
        high, low = top[..., 0], -bottom[..., 0]
    return Clusters(high, low, await _ready(suite, high, low, alpha))


async def merged(suite: Suite, fine: Clusters, factor: int, alpha: float | None, background: bool = False) -> Clusters:
    """Return the descriptions of clusters of `factor` neighbours each, from theirs: [G, N, C] -> [G, N / factor, C]."""
    groups, count, channels = fine.high.shape

    async def extreme(x: Value) -> Value:
        columns = x.reshape(groups, count // factor, factor, channels).permute(0, 1, 3, 2)
        return (await suite.max(columns, background))[..., 0]

    high, negative = await suite.together(extreme(fine.high), extreme(-fine.low))
    low = -negative
    return Clusters(high, low, await _ready(suite, high, low, alpha))


@dataclass
class Growing:
    """The cluster that further tokens still join. Secret, [G, C, 1] each: the highest keys and the highest negated keys of
    its tokens so far. tokens: how many these are, public, less than a cluster has."""

    high: Value
    negative: Value
    tokens: int


async def grown(suite: Suite, growing: Growing | None, keys: Value, background: bool = False) -> Growing:
    """Return the begun cluster with further tokens' keys [G, T, C]. This takes T comparisons per channel and extreme, one
    fewer in a cluster that begins.

    background: see `Suite.max`.
    """
    columns = keys.permute(0, 2, 1)  # [G, C, T]

    async def extreme(known: Value | None, x: Value) -> Value:
        x = x if known is None else suite.concat([known, x], -1)
        return x if x.shape[-1] == 1 else await suite.max(x, background)

    before = (None, None, 0) if growing is None else (growing.high, growing.negative, growing.tokens)
    high, negative = await suite.together(extreme(before[0], columns), extreme(before[1], -columns))
    return Growing(high, negative, before[2] + keys.shape[1])


async def completed(suite: Suite, growing: Growing, alpha: float | None) -> Clusters:
    """Return the description of one cluster, which no further token joins."""
    high, low = growing.high.permute(0, 2, 1), -growing.negative.permute(0, 2, 1)
    return Clusters(high, low, await _ready(suite, high, low, alpha))


async def extended(suite: Suite, old: Clusters | None, new: Clusters) -> Clusters:
    """Return the descriptions of further clusters behind those that there are."""
    if old is None:
        return new
    ready = tuple(suite.concat([a, b], 1) for a, b in zip(old.ready, new.ready, strict=True))
    return Clusters(suite.concat([old.high, new.high], 1), suite.concat([old.low, new.low], 1), ready)


async def similarities(suite: Suite, q: Value, clusters: Clusters, start: int, stop: int, per_head: bool = False) -> Value:
    """Return the similarity of one token's queries q [G, R, C], summed over R, to clusters start..stop-1: [G, stop - start].

    What matters is their order; their spread is bounded by `similarity_limit(suite, R)`. per_head: where R is above 1, that
    of each query, [G, R, stop - start], bounded as of one.
    """
    if len(clusters.ready) == 1:
        found = await suite.scores(q, clusters.ready[0][:, start:stop])
    else:
        magnitude = await suite.absolute(q)
        middle, spread = await suite.together(
            suite.scores(q, clusters.ready[0][:, start:stop]), suite.scores(magnitude, clusters.ready[1][:, start:stop])
        )
        found = middle + spread
    if q.shape[1] > 1:
        return suite.relative(found if per_head else found.sum(1))
    return suite.relative(found[:, 0])


def similarity_limit(suite: Suite, heads: int) -> float:
    """Return the public bound on `similarities`."""
    return suite.similarity_bound * heads
