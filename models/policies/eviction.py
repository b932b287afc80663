"""What evicting policies share: rows of a layer's cache are really dropped, in secret, the others keep their order.

`EvictingPolicy` is one that drops tokens when its layer's cache has come to hold more than a public number: after the prompt
or, within `models.policies.batches.Batches`, after each batch of it.

Leaks: to parties and dealer how many rows stay, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from models.cache import CachePolicy, KVCache, LayerCache, Stage
from protocols.suite import Suite, Value


@dataclass(frozen=True)
class Seen:
    """What a policy is told of a batch of the prompt, or of a decoded token. mass: secret [G, S], attention that each cached
    token got from the last `queries` queries, None for none of them. queries: public; each one gives 1 in each of the
    `heads` query heads of a key/value head."""

    mass: Value | None
    queries: int
    heads: int

    @property
    def most(self) -> int:
        """Return the most attention that one token can have got; public."""
        return self.queries * self.heads


class EvictingPolicy(CachePolicy):
    """A policy that drops tokens, in secret, down to a public number."""

    @property
    def sees_all(self) -> bool:
        """Whether every query of a prompt counts, those of batches after which nothing is dropped too."""
        return False

    @property
    def own_budgets(self) -> int:
        """Return how many layers keep a number of tokens of their own; 1 where all keep the same. Public."""
        return 1

    @abstractmethod
    def stays(self, tokens: int, layer: int) -> int:
        """Return how many tokens of a prompt of `tokens` tokens a layer caches after it; public."""

    @abstractmethod
    def least_batch(self) -> tuple[str, int]:
        """Return the setting, as text, that needs a batch of the prompt to have at least so many tokens, and that number."""

    @abstractmethod
    def eviction_stages(self, suite: Suite, cache: KVCache, layer: int, seen: Seen, kept: int) -> list[Stage]:
        """Return the steps of dropping tokens until `kept` are cached, where there are more, after any prompt batch."""

    def final_stages(self, suite: Suite, cache: KVCache, layer: int) -> list[Stage]:
        """Return the steps that follow once, when only those tokens of the prompt are cached that stay."""
        return []

    def prompt_stages(self, suite: Suite, cache: KVCache, layer: int, attention_mass: Value | None) -> list[Stage]:
        """Return the steps of dropping all but `stays` tokens, and what follows."""
        tokens = cache.prompt_length(layer)
        seen = Seen(attention_mass, min(tokens, self.observed_queries(tokens, layer)), cache.group)
        dropping = self.eviction_stages(suite, cache, layer, seen, self.stays(tokens, layer))
        return [*dropping, *self.final_stages(suite, cache, layer)]


@dataclass(frozen=True)
class Scores:
    """How important cached tokens are: secret [G, n], or [1, n] for one set of tokens for all heads; |value| < bound. Exact
    ties go to the earlier token. following: tokens behind each one that its score counts for, too."""

    value: Value
    bound: float
    following: int = 0


@dataclass(frozen=True)
class Kept:
    """Of the cached tokens start..stop-1 the `count` most important ones stay, and so does what lies outside. Public."""

    start: int
    stop: int
    count: int


@dataclass
class Eviction:
    """Drops tokens after a prompt, in the steps of `stages`; nothing happens where all tokens stay.

    entries: the layers that keep this set, of equal lengths. scores(): of the tokens that `kept` chooses from, asked for
    when the choice is made. rows(): further values a token that move along (one layer only), secret, each [G, S], or [1, S]
    where one set is kept for all heads; moved(rows): takes those of the tokens that are left, in the same order.
    """

    suite: Suite
    entries: Sequence[LayerCache]
    scores: Callable[[], Scores]
    kept: Kept
    rows: Callable[[], Sequence[Value]] = lambda: ()
    moved: Callable[[Sequence[Value]], None] = lambda rows: None
    _keep: Value | None = field(default=None, init=False)
    _shared: bool = field(default=False, init=False)
    _moved: list[Value] = field(default_factory=list, init=False)

    def stages(self) -> list[Stage]:
        """Return the choice, the move and the masking of what moved, in order."""
        if self.kept.count >= self.kept.stop - self.kept.start:
            return []
        return [("keep-set", self._choose), ("compaction", self._move), ("masking again", self._mask)]

    async def _choose(self) -> None:
        scores = self.scores()
        votes, bound, behind = scores.value, scores.bound, scores.following
        self._shared = votes.shape[0] == 1
        if behind:  # sums of values that still have a product's fraction bits would not fit the ring
            votes = await self.suite.rounded(self.suite.with_bound(votes, bound), room=behind.bit_length() + 4)
            votes, bound = pooled(self.suite, votes, behind, 0), bound * (behind + 1)
        self._keep = await self.suite.keep_largest(votes, self.kept.count, bound)

    async def _move(self) -> None:
        start, stop, count = self.kept.start, self.kept.stop, self.kept.count
        parts = [x[:, start:stop] for entry in self.entries for x in entry.keys_and_values()]
        groups, rows = parts[0].shape[0], stop - start
        parts += [x[:, start:stop].reshape(x.shape[0], rows, 1) for x in self.rows()]
        shared = self._shared and groups > 1
        shapes = [(x.shape[0], x.shape[-1]) for x in parts]
        if shared:  # one set: all heads' channels are one row
            parts = [x.permute(1, 0, 2).reshape(1, rows, g * w) for x, (g, w) in zip(parts, shapes, strict=True)]
        assert self._keep is not None
        moved = await self.suite.compact(self._keep, parts, count)
        if shared:
            moved = [x.reshape(count, g, w).permute(1, 0, 2) for x, (g, w) in zip(moved, shapes, strict=True)]
        self._moved = moved

    async def _mask(self) -> None:
        suite, start, stop = self.suite, self.kept.start, self.kept.stop
        masked = list(await suite.together(*(suite.mask_for_cache(x) for x in self._moved[: 2 * len(self.entries)])))
        for n, entry in enumerate(self.entries):
            k, v = entry.keys_and_values()
            pairs = zip((k, v), masked[2 * n : 2 * n + 2], strict=True)
            entry.k, entry.v = (_between(suite, old, kept, start, stop) for old, kept in pairs)
        rows = zip(self.rows(), self._moved[2 * len(self.entries) :], strict=True)
        self.moved([_between(suite, x, kept.reshape(x.shape[0], self.kept.count), start, stop) for x, kept in rows])


def _between(suite: Suite, old: Value, middle: Value, start: int, stop: int) -> Value:
    """Return old[:, :start], middle, old[:, stop:], joined along axis 1."""
    parts = [old[:, :start]] if start else []
    parts.append(middle)
    if stop < old.shape[1]:
        parts.append(old[:, stop:])
    return suite.concat(parts, 1) if len(parts) > 1 else middle


async def drop_least(suite: Suite, entry: LayerCache, scores: Scores, new: int, rows: Sequence[Value]) -> list[Value]:
    """Drop the token with the lowest score among 0..new; the one at `new` takes its place, or goes itself.

    scores: of all S cached tokens; of equal ones the earlier goes. rows: as in `Eviction`; returns those of the tokens that
    are left, in the new order. Keys and values of the layer have S - 1 rows afterwards.
    """
    k, v = entry.keys_and_values()
    hot = await suite.top_k(-scores.value[:, : new + 1], 1, scores.bound)
    place = hot[:, 0, :new]
    parts = [k, v, *(x.reshape(x.shape[0], x.shape[1], 1) for x in rows)]

    async def left(x: Value) -> Value:
        wide = place if place.shape[0] == x.shape[0] else place.expand(x.shape[0], new)
        return await suite.replace(x[:, :new], wide, x[:, new : new + 1])

    new_k, new_v, *new_rows = await suite.together(*map(left, parts))
    entry.k, entry.v = (_between(suite, x, y, 0, new + 1) for x, y in ((k, new_k), (v, new_v)))
    return [_between(suite, x, y.reshape(x.shape[0], new), 0, new + 1) for x, y in zip(rows, new_rows, strict=True)]


def pooled(suite: Suite, votes: Value, before: int, behind: int) -> Value:
    """Return votes [G, S], each with those of `before` tokens in front of it and `behind` tokens after it added; zero
    beyond the ends. Local: no round and no byte."""
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
    """Return public zeros [rows, count]."""
    return suite.public(torch.zeros(1), (rows, count))
