"""What selecting policies share: a step chooses clusters in secret and attends to them and to what always counts.

`chosen` is a one-hot matrix; layers may share it (`taken`), which spares the others' ranking and its opening.

Leaks: to parties and dealer a `Layout`, which follows from lengths; not what is chosen (docs/security.md, "Policies").
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from models.cache import CachePolicy, KVCache, LayerCache, LayerState, Place, Sharing
from protocols.suite import Suite, Value
from protocols.value import there


@dataclass(frozen=True)
class Layout:
    """Public division of a layer's n cached tokens: behind the first `start` tokens lie `candidates` clusters of `size`, of
    which `count` are chosen; all other tokens always count."""

    size: int
    start: int
    candidates: int
    count: int

    @property
    def stop(self) -> int:
        """Return the place behind the last cluster's last token."""
        return self.start + self.candidates * self.size

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self.count >= self.candidates


def full_clusters(tokens: int, size: int, sinks: int, recent: int) -> int:
    """Return clusters of `tokens` cached tokens, from behind the sinks on, that end before the `recent` last tokens."""
    return max(0, tokens - sinks - recent) // size


def layout(tokens: int, size: int, sinks: int, recent: int, budget: int) -> Layout:
    """Return the clusters of `tokens` cached tokens for `budget` attended ones, sinks and recent tokens among them.

    >>> layout(tokens=50, size=8, sinks=4, recent=4, budget=30)
    Layout(size=8, start=4, candidates=5, count=2)
    """
    candidates = full_clusters(tokens, size, sinks, recent)
    always = tokens - candidates * size
    return Layout(size, min(sinks, tokens), candidates, max(1, (budget - always) // size))


@dataclass(frozen=True)
class Choice:
    """What one token has chosen in a layer: among which clusters and after how many tokens, both public, and what, secret:
    one-hot rows [G, count, candidates] or marks [G, candidates]."""

    layout: Layout
    seen: int
    chosen: Value


PENALTY = 32  # e^-32 is below 2^-46


async def attend_by_bias(suite: Suite, entry: LayerCache, q: Value, plan: Layout, marks: Value) -> Value:
    """Return the same attention over all scores: those of clusters without a mark are lowered. marks: [G, candidates], of
    all query heads together, or [G, R, candidates], of each."""
    k, v = entry.keys_and_values()
    groups, tokens = k.shape[0], k.shape[1]
    start, stop = plan.start, plan.stop
    marks = marks.reshape(groups, -1, plan.candidates)
    heads = marks.shape[1]
    inside = marks.reshape(groups, heads, plan.candidates, 1).expand(groups, heads, plan.candidates, plan.size)
    bias = inside.reshape(groups, heads, stop - start) * PENALTY + float(-PENALTY)
    none = (bias[:, :, :1] + float(PENALTY)) - marks[:, :, :1] * PENALTY  # secret zeros
    parts = [none.expand(groups, heads, n) for n in (start,) if n] + [bias]
    if stop < tokens:
        parts.append(none.expand(groups, heads, tokens - stop))
    return await suite.biased_attention(q, k, v, suite.with_bound(suite.concat(parts, 2), PENALTY))


async def attend_to(
    suite: Suite, entry: LayerCache, q: Value, plan: Layout, chosen: Value | Awaitable[Value], rows: bool = False
) -> Value:
    """Return the attention of q [G, R, C] to the chosen clusters and to what always counts.

    chosen: one-hot rows [G, count, candidates], or what gives them beside the work that needs none. rows: gather the chosen
    keys and values, instead of the suite's own way.
    """
    k, v = entry.keys_and_values()
    groups, channels = k.shape[0], k.shape[2]
    start, stop = plan.start, plan.stop
    shape = (groups, plan.candidates, plan.size, channels)
    parts = [(x[:, start:stop].reshape(*shape), x[:, :start], x[:, stop:]) for x in (k, v)]
    always = []
    for _, before, after in parts:
        pieces = [x for x in (before, after) if x.shape[1]]
        always.append(None if not pieces else pieces[0] if len(pieces) == 1 else suite.concat(pieces, 1))
    pair = None if always[0] is None or always[1] is None else (always[0], always[1])
    if rows:
        return await suite.gathered_attention(q, await there(chosen), parts[0][0], parts[1][0], pair)
    return await suite.selected_attention(q, chosen, parts[0][0], parts[1][0], pair)


async def attend_each(policy: CachePolicy, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
    """Return the attention of n drafted tokens, q [G, R n, C] -> [G, R n, C], each with the choice of its own that it would
    make as the only one of its step (`CachePolicy.attend`); their rounds are shared."""
    groups, stacked, channels = q.shape
    heads, rows = cache.group, cache.drafted
    queries = q.reshape(groups, heads, rows, channels)
    found = await suite.together(*(policy.attend(suite, cache.row(n, layer), layer, queries[:, :, n]) for n in range(rows)))
    if rows == 1:
        return found[0]  # type: ignore[no-any-return]
    joined = suite.concat([x.reshape(groups, heads, 1, channels) for x in found], 2)
    return joined.reshape(groups, stacked, channels)


@dataclass
class ChoosingState(LayerState):
    """chooser: the layer whose choice this one takes, its own number where it chooses. choice: the latest one made here."""

    chooser: int
    choice: Choice | None = None


def chooser_of(place: Place, own: Sharing, first: int = 0) -> int:
    """Return the layer whose choice a layer takes: the first one in its group that the same policy serves.

    own: the policy's groups, where no wrapper sets others. first: layers before it choose nothing.
    """
    group = (place.sharing or own).group(place.layer)
    return min(n for n in place.served if n in group and (n >= first or n == place.layer))


def made_or_taken(
    cache: KVCache, layer: int, plan: Layout, choose: Callable[[], Coroutine[Any, Any, Value]]
) -> Value | Coroutine[Any, Any, Value]:
    """Return what the layer takes from another one; else what gives its own choice, which others then find in its state."""
    choice = taken(cache, layer, plan)

    async def made() -> Value:
        found = Choice(plan, cache.seen, await choose())
        cache.layers[layer].state_of(ChoosingState).choice = found
        return found.chosen

    return made() if choice is None else choice.chosen


def taken(cache: KVCache, layer: int, plan: Layout) -> Choice | None:
    """Return the choice that a layer takes from another one; None where it chooses itself."""
    chooser = cache.layers[layer].state_of(ChoosingState).chooser
    if chooser == layer:
        return None
    choice = cache.layers[chooser].state_of(ChoosingState).choice
    if choice is None or (choice.layout, choice.seen) != (plan, cache.seen):
        raise RuntimeError(f"layer {layer} takes the choice of layer {chooser}, which made none among the same clusters")
    return choice


def widened(suite: Suite, chosen: Value, factor: int, rest: int) -> Value:
    """Turn a choice of coarse clusters [G, n, N] into that of the fine ones inside [G, n factor + rest, N factor + rest];
    `rest` more at the end."""
    groups, count, clusters = chosen.shape
    shape = (groups, count, factor, clusters, factor)
    wide = chosen.reshape(groups, count, 1, clusters, 1).expand(*shape) * _diagonal(factor)
    table = wide.reshape(groups, count * factor, clusters * factor)
    if not rest:
        return table
    width = clusters * factor + rest
    side = (table[:, :, :1] * 0).expand(groups, count * factor, rest)
    ones = (table[:, :1, :1] * 0).expand(groups, rest, width) + _last_ones(rest, width)
    return suite.concat([suite.concat([table, side], 2), ones], 1)


@cache
def _diagonal(factor: int) -> Tensor:
    """Return the unit matrix [1, 1, factor, 1, factor]."""
    return torch.eye(factor, dtype=torch.int64).reshape(1, 1, factor, 1, factor)


@cache
def _last_ones(rows: int, width: int) -> Tensor:
    """Return the rows [rows, width] whose ones are the last columns, one each."""
    return torch.cat([torch.zeros(rows, width - rows), torch.eye(rows)], 1)
