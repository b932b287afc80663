"""The key/value cache of a session, and what decides which of it a new token attends to.

A *policy* is written once against the suite interface and runs on every suite. The decoder calls it at four points; a
policy overrides those that it needs:

* `after_batch`: once a layer and prompt batch, after its attention; a prompt comes in the batches of `prompt_batches`, all
  of it in one by default. It is told what the batch's last queries gave to every cached token, as `observed_in` asked
  (`models.observation`). By default that adds up, and the last batch is followed by:
* `prompt_stages`: once a layer, after the prompt; may shrink the layer's cache. It is told what the prompt's last queries
  gave to every token, as `observation` asked. `after_prefill` runs these stages;
* `after_append`: once a layer and token, when the token's key and value have joined the cache;
* `attend`: once a layer and token, the attention of that token; by default to all that is cached.

Drafted tokens (`models.drafting`) come several in one step, and some of them are dropped again. A policy that `verifies`
has, in place of the last two, `attend_drafted`, for all rows of the step, and `after_kept`, once it is known how many stay.

What a policy keeps between calls is a `LayerState` of its own, made by `CachePolicy.new_state` for every layer of every
session; a policy object itself is configuration and serves any number of sessions. What layers share lies in the state of
one of them. Which tokens are kept or selected is secret; how many is public. `docs/policies.md` says how to add one.

Rotary positions are applied before a key is cached, so rows can move without any book-keeping of positions.

Axis names as in `protocols.suite`: G key/value heads, R query heads per key/value head, T tokens, S cached tokens, C.
"""

from __future__ import annotations

import copy
from abc import ABC
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, TypeVar, final

from torch import Tensor

from models.architecture import Architecture, Rotary
from models.learned import Learned
from models.masks import Places, causal_mask
from models.observation import Observation, Seen
from models.prompt_rows import Looking, PromptRows
from models.segments import Segment, attention_over
from protocols.paging import Paged, RowsField, rows_in, slot_of
from protocols.schedule import Future, later
from protocols.suite import Suite, Value

Stage = tuple[str, Callable[[], Awaitable[None]]]
"""A step of what a policy does after the prompt: its name and its work."""

SettingValue = bool | int | float | str
"""A setting of a policy, as its text gives it."""


@dataclass
class LayerState:
    """What a policy keeps of one layer between calls; nothing, where it does not derive a dataclass from this one.

    A policy assigns new values to the fields and never changes a value in place: copies of a cache may share them."""

    def parts(self) -> tuple[LayerState, ...]:
        """Return it, and the states within it."""
        return (self,)


State = TypeVar("State", bound=LayerState)


@dataclass(frozen=True)
class Sharing:
    """Groups of `layers` adjacent layers share, behind the first `apart` ones, which stand alone. Public.

    >>> [list(Sharing(layers=2, apart=1).group(layer)) for layer in range(4)]
    [[0], [1, 2], [1, 2], [3, 4]]
    """

    layers: int = 1
    apart: int = 0

    def group(self, layer: int) -> range:
        """Return the numbers of the layers in a layer's group."""
        if layer < self.apart:
            return range(layer, layer + 1)
        start = layer - (layer - self.apart) % self.layers
        return range(start, start + self.layers)


@dataclass(frozen=True)
class Place:
    """The layer that a policy's state is made for. served: all layers of that policy, in order. sharing: groups of layers
    that take one choice, where a wrapper sets them in place of the policy's own. All public."""

    layer: int
    served: tuple[int, ...]
    sharing: Sharing | None = None


@dataclass(frozen=True)
class Batch:
    """A batch of a prompt: `tokens` of `prompt`, behind the first `before`, `behind` of them a registered prefix's; public.

    >>> Batch(prompt=9, before=2, tokens=5).observed(4), Batch(prompt=9, before=7, tokens=2).last
    (2, True)
    """

    prompt: int
    before: int
    tokens: int
    behind: int = 0

    @property
    def last(self) -> bool:
        """Whether the prompt ends with it."""
        return self.before + self.tokens == self.prompt

    def observed(self, queries: int) -> int:
        """Return how many of the prompt's last `queries` queries are in this batch."""
        return max(0, min(min(queries, self.prompt) - (self.prompt - self.before - self.tokens), self.tokens))


@dataclass
class LayerCache:
    """One layer's cached keys and values, secret, [G, S, C] each; None before the prompt.

    window: see `Architecture`. state: the policy's. seen: what the batches so far of an unfinished prompt gave to each
    token. prompt_queries [G, R, T, C]: plaintext, where a run in plaintext notes them for a policy that cannot be computed
    on shares. queries [G, R n, C]: the prompt's last ones, secret, for a policy that asks (`noted_queries`). held: segments
    in front of k and v, which codecs hold. learned: what policies have learned of the layer. rotary: how its keys turn.
    """

    learned: Learned
    window: int | None = None
    state: LayerState = field(default_factory=LayerState)
    k: RowsField[Value | None] = RowsField(None)  # noqa: RUF009
    v: RowsField[Value | None] = RowsField(None)  # noqa: RUF009
    seen: Seen = field(default_factory=Seen)
    prompt_queries: Tensor | None = None
    queries: Value | None = None
    held: RowsField[tuple[Segment, ...]] = RowsField(())  # noqa: RUF009
    rotary: Rotary | None = None

    @property
    def length(self) -> int:
        """Return S, how many tokens k and v cache; public."""
        return rows_in(self.__dict__[slot_of("k")])

    @property
    def segments(self) -> list[Segment]:
        """Return all segments, the exact one last."""
        return [*self.held, Segment(*self.keys_and_values())]

    def keys_and_values(self) -> tuple[Value, Value]:
        """Return both, once something is cached."""
        if self.k is None or self.v is None:
            raise RuntimeError("the cache of this layer is empty: a policy was asked before the prompt was processed")
        return self.k, self.v

    def state_of(self, kind: type[State]) -> State:
        """Return the policy's state, or the one within it, which is of this kind."""
        for one in self.state.parts():
            if isinstance(one, kind):
                return one
        raise RuntimeError(f"the cache was made for another policy: it holds {type(self.state).__name__}")


class KVCache(Paged):
    """All layers' caches of one session. seen: tokens processed so far, cached or not; behind: those of a registered prefix,
    or of chunks, whose prompt has `places`; group: R; prompt_tokens: of a prompt that comes in several batches, else 0;
    append_only: whether a token's step only appends rows; drafted: rows of a step of drafted tokens while it is not known
    how many stay (`seen` is the number before the step), else 0. All public. weights: the session's, where policies have
    learned of the model. coming: says before a prompt what else it reads, and returns tokens that its batch begins with;
    rows_of: puts rows into a layer as a prompt enters it. looking: at batches of a prompt. dropped: choices of an expert
    without a place in the prompt, secret [1], None where none could be. prompt: what an encoder read of it."""

    def __init__(self, a: Architecture, policy: CachePolicy, weights: Mapping[str, Value] | None = None) -> None:
        every = tuple(range(a.layers))
        self.group, self.prompt_tokens, self.looking = a.group, 0, Looking()
        found = ((Learned(weights or {}, n, a.activation), a.window(n), policy.new_state(Place(n, every))) for n in every)
        self.layers = [LayerCache(*parts, rotary=a.rotary_of(n)) for n, parts in enumerate(found)]
        self.append_only = policy.append_only and all(entry.window is None for entry in self.layers)
        self.seen = self.behind = self.drafted = 0
        self.places: Places | None = None
        self.coming: Callable[[KVCache], Awaitable[Value | None]] | None = None
        self.rows_of: Callable[[int], Coroutine[Any, Any, None]] | None = None
        self.dropped: Value | None = None
        self.prompt = PromptRows()
        self._rows: list[Self] = []
        self._started: list[Future[None]] = []

    def prompt_length(self, layer: int) -> int:
        """Return the tokens of the prompt, cached or not; public. Asked before the first decoded token."""
        return max(self.prompt_tokens, self.layers[layer].length)

    async def append(self, suite: Suite, layer: int, k: Value, v: Value) -> None:
        """Append keys and values [G, T, C] to a layer."""
        entry = self.layers[layer]
        entry.k, entry.v = await suite.together(_appended(suite, entry.k, k), _appended(suite, entry.v, v, "value"))

    def drop_last(self, suite: Suite, layer: int, tokens: int) -> None:
        """Take back the last tokens that were appended to a layer; local."""
        entry = self.layers[layer]
        (k, v), count = entry.keys_and_values(), entry.length - tokens
        entry.k, entry.v = suite.keep_first(k, count, 1), suite.keep_first(v, count, 1)

    async def run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Start work that nothing waits for before the token's end: its openings ride along in other rounds."""
        self._started.append(await later(work, background=True))

    async def settle(self) -> None:
        """Wait for what was started with `run_in_background`; at the end of each token."""
        while self._started:
            await self._started.pop()

    def trim(self, layer: int) -> None:
        """Drop what has left the layer's sliding window for every token to come and for the last one."""
        entry = self.layers[layer]
        if entry.window is not None and entry.length > entry.window:
            entry.k, entry.v = (x[:, -entry.window :] for x in entry.keys_and_values())

    def row(self, number: int, layer: int) -> Self:
        """Return the cache as a drafted token sees it, with this layer up to itself: `seen`, `length` and the policy's state
        are those of a token that is the only one of its step. What the policy notes in it is gone after the step."""
        if not self._rows:
            self._rows = [self.copied() for _ in range(self.drafted)]
            for n, one in enumerate(self._rows):
                one.seen, one.drafted = self.seen + n, 0
        found, entry = self._rows[number], self.layers[layer]
        k, v = entry.keys_and_values()
        stop = entry.length - self.drafted + number + 1
        found.layers[layer].k, found.layers[layer].v = k[:, :stop], v[:, :stop]
        return found

    def keep(self, suite: Suite, rows: int) -> None:
        """Drop all but the first `rows` drafted ones, at every layer; the others' places are free again. Local."""
        self._rows = []
        for entry in (one for one in self.layers if one.length):  # an encoder's layers hold nothing
            (k, v), stay = entry.keys_and_values(), entry.length - self.drafted + rows
            entry.k, entry.v = suite.keep_first(k, stay, 1), suite.keep_first(v, stay, 1)
        self.seen += rows

    def copied(self) -> Self:
        """Return a cache that may grow without this one changing, between two tokens; values are shared."""
        out = copy.copy(self)
        out.layers = [copy.copy(entry) for entry in self.layers]  # rows that are elsewhere stay there
        for one in out.layers:
            one.state = copy.copy(one.state)
        out._started, out._rows = [], []
        return out

    def rewind(self, suite: Suite, after: KVCache) -> None:
        """Take back what a step appended to `after`, a copy of this cache, where the cache is `append_only`.

        So the next step writes its rows where these lie, as in a session, and does not copy the cache to append to it.
        """
        for old, new in zip(self.layers, after.layers, strict=True):
            if old.length:
                k, v = new.keys_and_values()
                old.k, old.v = suite.keep_first(k, old.length, 1), suite.keep_first(v, old.length, 1)


class CachePolicy(ABC):
    """What is kept of a prompt and what a new token attends to. presets: named settings, by `models.policies.registry`."""

    name: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, SettingValue]]] = {}

    @property
    def plaintext_only(self) -> str:
        """Return the setting, as text, that cannot be computed on shares; empty where there is none."""
        return ""

    @property
    def append_only(self) -> bool:
        """Whether a decoded token changes a layer's keys and values by appending its own alone."""
        return False

    def verifies(self, rows: int) -> bool:
        """Whether drafted tokens can be verified: so many rows in one step, of which some are dropped again."""
        return False

    @property
    def one_set_for_all_heads(self) -> bool:
        """Whether what stays after the prompt is, in its order, one set of tokens for all heads of a layer."""
        return False

    @property
    def equal_layers(self) -> bool:
        """Whether all layers that it serves cache equally many tokens, as a choice that they share needs."""
        return True

    @property
    def spec(self) -> str:
        """Return the text that `models.policies.parse` makes this policy of."""
        return self.name

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        """Raise `ConfigurationError` where the policy cannot serve this model or prompt length."""
        return None

    def weight_shapes(self, architecture: Architecture) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the weights that it has learned of the model, by canonical name (`models.learned`)."""
        return {}

    def pattern(self) -> tuple[int, int]:
        """Return (first, period): behind the first layers, groups of `period` layers are alike but for the model's own
        differences. Counting costs traces one group for all that are alike."""
        return 0, 1

    def alternatives(self, prompt_tokens: int, suite: Suite) -> list[tuple[str, CachePolicy]]:
        """Return (description, policy) of each way to do the same at other costs after such a prompt, this one's among
        them; none where there is one way only. `mpcache plan` compares them."""
        return []

    def new_state(self, place: Place) -> LayerState:
        """Return what this policy keeps of a layer, as it is before the prompt."""
        return LayerState()

    @property
    def evicts_within_prompt(self) -> bool:
        """Whether later tokens of a prompt do not see all earlier ones: the full cache's pass tells nothing of them then."""
        return False

    @property
    def probes(self) -> int:
        """How many tokens in front of what a client gives as its prompt are no part of it but look at it; public."""
        return 0

    def prompt_batches(self, tokens: int) -> Sequence[int]:
        """Return the sizes, in order, of the batches in which a prompt of `tokens` tokens is processed; public."""
        return [tokens]

    def looking_ahead(self, batch: Batch) -> int:
        """Return how many of the prompt's last tokens are processed behind a batch before their own, too, for their queries,
        not cached; 0 for the last one. Or all `probes`, by default behind the last one. Public."""
        return self.probes if batch.last else 0

    def observed_in(self, batch: Batch, layer: int) -> Observation:
        """Return what `after_batch` is told of the last queries of a batch, with those that look at it behind; public."""
        asked = self.observation(batch.prompt, layer)
        if self.probes:
            return asked if batch.last else Observation()
        own, late = batch.observed(asked.queries), batch.observed(asked.late)
        return replace(asked, queries=own, late=late, times=max(1, -(-asked.queries // max(own, 1))))

    async def after_batch(self, suite: Suite, cache: KVCache, layer: int, batch: Batch, seen: Seen) -> None:
        """Do the work after a batch of the prompt, which is cached; may shrink the layer's cache. What only the next batch
        needs may be run in the background. seen: as observed_in(batch) asks; what batches tell is added up; local."""
        entry = cache.layers[layer]
        seen, entry.seen = seen.after(suite, entry.seen), Seen()
        if batch.last:  # what is left is for the answer's tokens, so its rounds are beside those of the layers behind
            await cache.run_in_background(in_order(self.prompt_stages(suite, cache, layer, seen)))
        else:
            entry.seen = seen

    def observation(self, tokens: int, layer: int) -> Observation:
        """Return what `prompt_stages` is told of the last queries of a prompt of `tokens` tokens; nothing by default."""
        return Observation()

    def noted_queries(self, tokens: int, layer: int) -> int:
        """Return how many of a prompt's last queries `prompt_stages` finds in `LayerCache.queries`; public."""
        return 0

    def prompt_stages(self, suite: Suite, cache: KVCache, layer: int, seen: Seen) -> list[Stage]:
        """Return the work after a prompt in steps that can be measured one by one. seen: as observation(T) asks."""
        return []

    @final
    async def after_prefill(self, suite: Suite, cache: KVCache, layer: int, seen: Seen) -> None:
        """Run `prompt_stages`."""
        await in_order(self.prompt_stages(suite, cache, layer, seen))

    async def after_append(self, suite: Suite, cache: KVCache, layer: int) -> None:
        """Do the work after one decoded token's key and value were appended (at the end of S). What only later tokens
        need is started with `KVCache.run_in_background`."""
        return None

    async def attend(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        """Return the attention of one token: q [G, R, C] -> [G, R, C], by default to all segments."""
        return (await attention_over(suite, cache.layers[layer].segments, q))[0]

    async def attend_drafted(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        """Return the attention of n = `cache.drafted` tokens, the last ones that are cached: q [G, R n, C] -> [G, R n, C],
        each to what it would attend to as the only one; by default to all that is cached up to itself, in one batch. Only
        where the policy `verifies`."""
        entry = cache.layers[layer]
        k, v = entry.keys_and_values()
        mask = causal_mask(cache.drafted, entry.length, entry.window)
        return await suite.attention(q, k, v, None if mask is None else mask.repeat(cache.group, 1))

    async def after_kept(self, suite: Suite, cache: KVCache, layer: int, rows: int) -> None:
        """Do the work after a step of drafted tokens: the first `rows` stay in the cache, the others are gone."""
        return None


async def in_order(stages: Sequence[Stage]) -> None:
    for _, work in stages:
        await work()


async def _appended(suite: Suite, cache: Value | None, new: Value, kind: str | None = None) -> Value:
    """Return the tokens [G, S, C] of a cache with new ones behind them, all masked for the products to come."""
    return await (suite.mask_for_cache(new, kind) if cache is None else suite.append(cache, new, 1, kind))
