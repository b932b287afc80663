"""What evicting policies share: rows of a layer's cache are really dropped, in secret, the others keep their order.

Leaks: to parties and dealer how many rows stay, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from models.cache import LayerCache, Stage, run_stages
from protocols.suite import Suite, Value


@dataclass
class Eviction:
    """Of the cached tokens start..stop-1 the `count` most important ones stay, and so does what lies outside.

    entries: the layers that keep this set, of equal lengths. importance: secret [G, stop - start], |importance| < bound, or
    [1, stop - start] for one set for all heads; exact ties go to the earlier token. following: tokens that what the one in
    front of them receives counts for, too. extra: a further row value [G, S] that
    moves along (one layer only); afterwards its kept part [G, S']. Its steps are those of `stages`, in this order; nothing
    happens where all tokens stay.
    """

    suite: Suite
    entries: Sequence[LayerCache]
    importance: Value
    count: int
    bound: float
    start: int
    stop: int
    extra: Value | None = None
    following: int = 0
    _keep: Value | None = field(default=None, init=False)
    _moved: list[Value] = field(default_factory=list, init=False)

    def stages(self) -> list[Stage]:
        """Choosing, moving, masking again."""
        if self.count >= self.stop - self.start:
            return []
        return [("keep-set", self._choose), ("compaction", self._move), ("masking again", self._mask)]

    async def _choose(self) -> None:
        votes, bound, behind = self.importance, self.bound, self.following
        if behind:  # sums of values that still have a product's fraction bits would not fit the ring
            votes = await self.suite.rounded(self.suite.with_bound(votes, bound), room=behind.bit_length() + 4)
            votes, bound = pooled(self.suite, votes, behind, 0), bound * (behind + 1)
        self._keep = await self.suite.keep_largest(votes, self.count, bound)

    async def _move(self) -> None:
        parts = [x[:, self.start : self.stop] for entry in self.entries for x in entry.keys_and_values()]
        groups, rows = parts[0].shape[0], self.stop - self.start
        if self.extra is not None:
            parts.append(self.extra[:, self.start : self.stop].reshape(groups, rows, 1))
        shared = self.importance.shape[0] == 1 and groups > 1
        widths = [x.shape[-1] for x in parts]
        if shared:  # one set: all heads' channels are one row
            parts = [x.permute(1, 0, 2).reshape(1, rows, groups * w) for x, w in zip(parts, widths, strict=True)]
        assert self._keep is not None
        moved = await self.suite.compact(self._keep, parts, self.count)
        if shared:
            moved = [x.reshape(self.count, groups, w).permute(1, 0, 2) for x, w in zip(moved, widths, strict=True)]
        self._moved = moved

    async def _mask(self) -> None:
        suite = self.suite
        masked = list(await suite.together(*(suite.mask_for_cache(x) for x in self._moved[: 2 * len(self.entries)])))
        for n, entry in enumerate(self.entries):
            k, v = entry.keys_and_values()
            pairs = zip((k, v), masked[2 * n : 2 * n + 2], strict=True)
            entry.k, entry.v = (_between(suite, old, kept, self.start, self.stop) for old, kept in pairs)
        if self.extra is not None:
            kept = self._moved[-1].reshape(self.extra.shape[0], self.count)
            self.extra = _between(suite, self.extra, kept, self.start, self.stop)


async def keep_rows(
    suite: Suite,
    entry: LayerCache,
    importance: Value,
    count: int,
    bound: float,
    start: int,
    stop: int,
    extra: Value | None = None,
) -> Value | None:
    """A whole `Eviction`; returns its `extra`."""
    eviction = Eviction(suite, [entry], importance, count, bound, start, stop, extra)
    await run_stages(eviction.stages())
    return eviction.extra


def _between(suite: Suite, old: Value, middle: Value, start: int, stop: int) -> Value:
    """old[:, :start], middle, old[:, stop:] along axis 1."""
    parts = [old[:, :start]] if start else []
    parts.append(middle)
    if stop < old.shape[1]:
        parts.append(old[:, stop:])
    return suite.concat(parts, 1) if len(parts) > 1 else middle


async def drop_least(suite: Suite, entry: LayerCache, scores: Value, bound: float, start: int, new: int) -> Value:
    """Drop the token with the lowest score among start..new; the one at `new` takes its place, or goes itself.

    scores: secret [G, S], |score| < bound, or [1, S] for one choice for all heads; of equal ones the earlier goes. Returns
    the scores [G or 1, S - 1] in the new order; keys and values of the layer have S - 1 rows afterwards.
    """
    k, v = entry.keys_and_values()
    groups, stop = k.shape[0], new
    hot = await suite.top_k(-scores[:, start : new + 1], 1, bound)
    place = hot[:, 0, : stop - start]
    wide = place if place.shape[0] == groups else place.expand(groups, stop - start)
    rows = scores.shape[0]
    score_rows = scores.reshape(rows, scores.shape[1], 1)
    new_k, new_v, new_scores = await suite.together(
        suite.replace(k[:, start:stop], wide, k[:, new : new + 1]),
        suite.replace(v[:, start:stop], wide, v[:, new : new + 1]),
        suite.replace(score_rows[:, start:stop], place, score_rows[:, new : new + 1]),
    )
    entry.k, entry.v = (_between(suite, x, y, start, new + 1) for x, y in ((k, new_k), (v, new_v)))
    return _between(suite, scores, new_scores.reshape(rows, stop - start), start, new + 1)


def pooled(suite: Suite, votes: Value, before: int, behind: int) -> Value:
    """Votes [G, S], each with those of `before` tokens in front of it and `behind` tokens after it added; zero beyond the
    ends. Local: no round and no byte."""
    if not before and not behind:
        return votes
    rows, count = votes.shape
    ends = [zeros(suite, rows, n) for n in (before, behind)]
    padded = suite.concat([x for x in (ends[0], votes, ends[1]) if x.shape[1]], -1)
    out = padded[:, :count]
    for shift in range(1, before + behind + 1):
        out = out + padded[:, shift : shift + count]
    return out


def zeros(suite: Suite, rows: int, count: int) -> Value:
    """Public zeros [rows, count]."""
    return suite.public(torch.zeros(1), (rows, count))
