"""What evicting policies share: rows of a layer's cache are really dropped, in secret, the others keep their order; what
becomes of those that go, a `Merge` says.

`EvictingPolicy` is one that drops tokens when its layer's cache has come to hold more than a public number: after the prompt
or, within `models.policies.batches.Batches`, after each batch of it.

Leaks: to parties and dealer how many rows stay, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch

from models.cache import CachePolicy, KVCache, LayerCache, Stage
from models.observation import Seen
from protocols.suite import Suite, Value


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

    def prompt_stages(self, suite: Suite, cache: KVCache, layer: int, seen: Seen) -> list[Stage]:
        """Return the steps of dropping all but `stays` tokens, and what follows."""
        tokens = cache.prompt_length(layer)
        dropping = self.eviction_stages(suite, cache, layer, seen, self.stays(tokens, layer))
        return [*dropping, *self.final_stages(suite, cache, layer)]


@dataclass(frozen=True)
class Scores:
    """How important cached tokens are: secret [G, n], or [1, n] for one set of tokens for all heads; |value| < bound. Exact
    ties go to the earlier token. following: tokens behind each one that its score counts for, too. fraction_bits: that are
    compared, see `Suite.keep_largest`."""

    value: Value
    bound: float
    following: int = 0
    fraction_bits: int | None = None


@dataclass(frozen=True)
class Kept:
    """Of the cached tokens start..stop-1 the `count` most important ones stay, and so does what lies outside. Public."""

    start: int
    stop: int
    count: int


@dataclass(frozen=True)
class Event:
    """What a `Merge` is told of an eviction among n tokens of a layer. scores: theirs. marks: secret [sets, n], 1 at
    the `count` (public) tokens of a set that stay; None before the choice. parts: keys and values [G, n, C], then the
    scorer's values a token, [G, n, 1] or [1, n, 1]. entry: the layer, in whose state a merger may keep something, and in
    whose segments rows that go."""

    scores: Scores
    marks: Value | None
    count: int
    parts: Sequence[Value]
    entry: LayerCache

    @property
    def chosen(self) -> Value:
        """Return the marks, once there are some."""
        assert self.marks is not None
        return self.marks


@dataclass(frozen=True)
class Moving:
    """Rows [G, n, width], or [1, n, width], that are moved by marks [sets, n] with `count` ones in each set. how: the marked
    ones are left; or all of them, the marked ones first; or, of `runs`, sums over what lies behind the mark before and up
    to each mark, the last place being marked."""

    marks: Value
    rows: Sequence[Value]
    count: int
    how: Literal["marked", "all", "runs"] = "marked"


class Merge(ABC):
    """What becomes of the tokens that go. keeps: whether something of them stays; holds: in segments of its own, beside the
    rows of those that stay."""

    keeps: ClassVar[bool] = True
    holds: ClassVar[bool] = False

    async def scored(self, suite: Suite, event: Event) -> Scores:
        """Return what tokens are chosen by."""
        return event.scores

    @abstractmethod
    async def before(self, suite: Suite, event: Event) -> list[Moving]:
        """Return what is moved, all at once."""

    @abstractmethod
    async def after(self, suite: Suite, event: Event, moved: Sequence[Sequence[Value]]) -> Sequence[Value]:
        """Return keys, values [G, count, C] and the scorer's values of what is left, from what was moved."""


@dataclass(frozen=True)
class Drop(Merge):
    """Nothing of them stays."""

    keeps: ClassVar[bool] = False

    async def before(self, suite: Suite, event: Event) -> list[Moving]:
        return [Moving(event.chosen, event.parts, event.count)]

    async def after(self, suite: Suite, event: Event, moved: Sequence[Sequence[Value]]) -> Sequence[Value]:
        return moved[0]


@dataclass
class Eviction:
    """Drops tokens after a prompt, in the steps of `stages`; nothing happens where all tokens stay.

    entries: the layers that keep this set, of equal lengths. scores(): of the tokens that `kept` chooses from, asked for
    when the choice is made. rows(): further values a token that move along (one layer only), secret, each [G, S], or [1, S]
    where one set is kept for all heads; moved(rows): takes those of the tokens that are left, in the same order. merge:
    what becomes of the others (one layer only).
    """

    suite: Suite
    entries: Sequence[LayerCache]
    scores: Callable[[], Scores]
    kept: Kept
    rows: Callable[[], Sequence[Value]] = lambda: ()
    moved: Callable[[Sequence[Value]], None] = lambda rows: None
    merge: Merge = field(default_factory=Drop)
    _event: Event | None = field(default=None, init=False)
    _moving: Sequence[Moving] = field(default=(), init=False)
    _moved: Sequence[Sequence[Value]] = field(default=(), init=False)
    _left: Sequence[Value] = field(default=(), init=False)

    def stages(self) -> list[Stage]:
        """Return the choice, the move, what a merger does around it, and the masking of what moved, in order."""
        if self.kept.count >= self.kept.stop - self.kept.start:
            return []
        first: list[Stage] = [("keep-set", self._choose)]
        last: list[Stage] = [("compaction", self._move), ("masking again", self._mask)]
        if not self.merge.keeps:
            return [*first, *last]
        return [*first, ("what goes where", self._prepare), last[0], ("merging", self._merge), last[1]]

    async def _choose(self) -> None:
        start, stop = self.kept.start, self.kept.stop
        parts = [x[:, start:stop] for entry in self.entries for x in entry.keys_and_values()]
        parts += [x[:, start:stop].reshape(x.shape[0], stop - start, 1) for x in self.rows()]
        event = Event(self.scores(), None, self.kept.count, parts, self.entries[0])
        scores = await self.merge.scored(self.suite, event)
        votes, bound, behind = scores.value, scores.bound, scores.following
        if behind:  # sums of values that still have a product's fraction bits would not fit the ring
            votes = await self.suite.rounded(self.suite.with_bound(votes, bound), room=behind.bit_length() + 4)
            votes, bound = pooled(self.suite, votes, behind, 0), bound * (behind + 1)
        marks = await self.suite.keep_largest(votes, self.kept.count, bound, scores.fraction_bits)
        self._event = replace(event, marks=marks)
        if not self.merge.keeps:
            await self._prepare()

    async def _prepare(self) -> None:
        assert self._event is not None
        self._moving = await self.merge.before(self.suite, self._event)

    async def _move(self) -> None:
        self._moved = await self.suite.together(*(_move(self.suite, one) for one in self._moving))
        if not self.merge.keeps:
            await self._merge()

    async def _merge(self) -> None:
        assert self._event is not None
        self._left = await self.merge.after(self.suite, self._event, self._moved)

    async def _mask(self) -> None:
        suite, start, stop = self.suite, self.kept.start, self.kept.stop
        masked = list(await suite.together(*(suite.mask_for_cache(x) for x in self._left[: 2 * len(self.entries)])))
        for n, entry in enumerate(self.entries):
            k, v = entry.keys_and_values()
            pairs = zip((k, v), masked[2 * n : 2 * n + 2], strict=True)
            entry.k, entry.v = (_between(suite, old, kept, start, stop) for old, kept in pairs)
        rows = zip(self.rows(), self._left[2 * len(self.entries) :], strict=True)
        self.moved([_between(suite, x, kept.reshape(x.shape[0], self.kept.count), start, stop) for x, kept in rows])


async def _move(suite: Suite, moving: Moving) -> list[Value]:
    """Return what is left of rows that one choice moves: [G, count, width] each, or all of them."""
    groups, count = max(x.shape[0] for x in moving.rows), moving.rows[0].shape[1]
    shared = moving.marks.shape[0] == 1 and groups > 1
    rows, shapes = list(moving.rows), [(x.shape[0], x.shape[-1]) for x in moving.rows]
    if shared:  # one set: all heads' channels are one row
        rows = [x.permute(1, 0, 2).reshape(1, count, g * w) for x, (g, w) in zip(rows, shapes, strict=True)]
    move = {"marked": suite.compact, "all": suite.partition, "runs": suite.merge_runs}[moving.how]
    moved = await move(moving.marks, rows, moving.count)
    if shared:
        moved = [x.reshape(x.shape[1], g, w).permute(1, 0, 2) for x, (g, w) in zip(moved, shapes, strict=True)]
    return moved


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
