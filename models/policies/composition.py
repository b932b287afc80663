"""A cache system put together of axes: scorer, budget, who always stays, when tokens go.

A system is a short file that names one of each (`models.policies.h2o`, `snapkv`, `tova`); those of `models.policies.changed`
change one axis of another system. How tokens are scored, chosen, moved and dropped stands here once.

Leaks: to parties and dealer how many tokens stay and when some go, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from models.architecture import Architecture
from models.cache import KVCache, LayerCache, Place, Stage
from models.learned import check_learned, in_every_layer
from models.observation import Observation, Seen
from models.policies.axes.budget import Budget
from models.policies.axes.keep import Keep
from models.policies.axes.reader import Reader
from models.policies.axes.schedule import Schedule
from models.policies.axes.scorers import EvictionState, Scorer
from models.policies.eviction import Drop, EvictingPolicy, Eviction, Merge, drop_least
from models.policies.settings import budget_tokens, no_windows, text_of
from models.segments import attention_over
from mpc.errors import ConfigurationError
from protocols.observed import Observed
from protocols.suite import Suite, Value


@dataclass(frozen=True)
class Axes:
    """What a system is made of."""

    scorer: Scorer
    budget: Budget
    keep: Keep = field(default_factory=Keep)
    schedule: Schedule = field(default_factory=Schedule)
    merge: Merge = field(default_factory=Drop)
    reader: Reader = field(default_factory=Reader)


class System(EvictingPolicy):
    """A policy that is a choice of axes."""

    @property
    @abstractmethod
    def axes(self) -> Axes:
        """Return what it is made of."""

    @property
    def spec(self) -> str:
        return text_of(self)

    @property
    def sees_all(self) -> bool:
        return self.axes.scorer.sees_all

    @property
    def probes(self) -> int:
        return self.axes.scorer.probes if self.axes.budget.share < 1 else 0

    @property
    def evicts_within_prompt(self) -> bool:
        """As in `CachePolicy`: what probes ask, the full cache's pass does not tell."""
        return self.probes > 0

    @property
    def append_only(self) -> bool:
        return self._quiet and self.axes.reader.append_only

    @property
    def _quiet(self) -> bool:
        """Whether no score makes a token go while decoding."""
        return not self.axes.schedule.every and not self.axes.schedule.distance

    @property
    def one_set_for_all_heads(self) -> bool:
        return self.axes.keep.sets == "layer"

    @property
    def own_budgets(self) -> int:
        return self.axes.budget.layers

    @property
    def equal_layers(self) -> bool:
        return self.own_budgets == 1

    @property
    def holds(self) -> bool:
        """Whether rows of tokens that go are held in segments of their own."""
        return self.axes.merge.holds

    def pattern(self) -> tuple[int, int]:
        """As in `CachePolicy`; layers with budgets, or heads that are asked, of their own stand for themselves."""
        own, sharing = 0 if self.own_budgets == 1 else self.own_budgets, self.axes.keep.sharing
        return max(own, self.axes.scorer.own_layers, sharing.apart), sharing.layers

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        """Refuse sliding windows, rows of few bits where scores are capped, a model without what the scorer has learned of
        it, and a budget that does not hold what always stays and one token more."""
        no_windows(self.name, architecture, prompt_tokens)
        if self.holds and architecture.score_cap is not None:
            raise ConfigurationError(
                f"policy {self.name}: the model caps scores (score_cap = {architecture.score_cap}), and rows of few "
                "fraction bits have none for a cap; use another policy, such as h2o"
            )
        check_learned(self.name, self.weight_shapes(architecture), architecture)
        axes, tokens = self.axes, prompt_tokens - self.probes
        if tokens < 1:
            raise ConfigurationError(
                f"policy {self.name}: the first {self.probes} tokens, its probes, look at the prompt and are no part of it, "
                f"which leaves none of {prompt_tokens}; give the prompt behind them"
            )
        if self.probes and prompt_tokens > architecture.positions:
            raise ConfigurationError(
                f"policy {self.name}: {self.probes} probes behind a prompt of {tokens} tokens need {prompt_tokens} "
                f"positions, the model has {architecture.positions}; lower probe_tokens, or shorten the prompt"
            )
        kept = budget_tokens(axes.budget.share, tokens)
        if kept < tokens and axes.keep.choice(tokens, kept).count < 1:
            what, _ = self.least_batch()
            raise ConfigurationError(
                f"policy {self.name}: budget = {axes.budget.share} keeps {kept} of {tokens} tokens, which does not "
                f"hold {what}; raise budget, or lower what always stays"
            )

    def weight_shapes(self, architecture: Architecture) -> dict[str, tuple[int, ...]]:
        parts = self.axes.scorer.learned(architecture) if self.axes.budget.share < 1 else {}
        return in_every_layer(architecture, parts)

    def verifies(self, rows: int) -> bool:
        """Whether nothing is evicted by scores while decoding: what a token dropped cannot be taken back; all rows lie in
        one segment, and the reader takes so many tokens."""
        return self.axes.reader.verifies(rows) and ((self._quiet and not self.holds) or self.axes.budget.share == 1)

    def new_state(self, place: Place) -> EvictionState:
        axes, state = self.axes, self.axes.scorer.new_state()
        state.members = tuple(n for n in axes.keep.sharing.group(place.layer) if n in place.served)
        state.reading = axes.reader.new_state(place, axes.keep.sharing)
        return state

    def observation(self, tokens: int, layer: int) -> Observation:
        if self.axes.budget.share == 1:
            return Observation()
        asked = self.axes.scorer.observation(tokens, layer)
        return asked if self.probes else replace(asked, queries=min(asked.queries, tokens), late=min(asked.late, tokens))

    def stays(self, tokens: int, layer: int) -> int:
        return self.axes.budget.kept(tokens, layer, self.axes.keep.always)

    def eviction_stages(self, suite: Suite, cache: KVCache, layer: int, seen: Seen, kept: int) -> list[Stage]:
        """Return the steps: what the batch says is taken in, tokens go, what is kept of scores is masked for reuse. Layers
        that keep the same tokens wait for the last one of them, by the sum of what all are told."""
        entry, scorer = cache.layers[layer], self.axes.scorer
        state = entry.state_of(EvictionState)
        state.kept = kept
        if self.axes.budget.share < 1 and (dropping := self.axes.reader.dropping(suite, entry)):
            return dropping
        if seen.mass is None and seen.features is None:
            return []
        state.learned, state.groups = entry.learned, entry.keys_and_values()[0].shape[0]
        entries = [cache.layers[n] for n in state.members]
        if len(entries) > 1:
            first = entries[0].state_of(EvictionState)
            seen = self._joined(suite, first.votes, seen, state.members.index(layer) + 1)
            first.votes = None if layer == state.members[-1] else seen.mass
            if layer != state.members[-1]:
                return []
        event = self._event(suite, entries, seen)
        return [*scorer.batch(suite, state, seen), *event, *scorer.after(suite, state)]

    def _joined(self, suite: Suite, before: Value | None, seen: Seen, layers: int) -> Seen:
        """Return what is told of so many layers, the last of which is told `seen`; local."""
        assert seen.mass is not None
        heads = seen.heads * layers
        total = seen.mass if before is None else suite.with_bound(before + seen.mass, seen.queries * heads + 1)
        return replace(seen, mass=total, heads=heads)

    def final_stages(self, suite: Suite, cache: KVCache, layer: int) -> list[Stage]:
        """As in `EvictingPolicy`: the reader's; they wait for the last of the layers that keep the same tokens."""
        members = cache.layers[layer].state_of(EvictionState).members
        return self.axes.reader.after_prompt(suite, cache, members) if layer == members[-1] else []

    def _event(self, suite: Suite, entries: Sequence[LayerCache], seen: Seen) -> list[Stage]:
        """Return the steps of dropping all but `kept` tokens, of layers that keep the same; the others in their order."""
        entry = entries[-1]
        axes, state = self.axes, entry.state_of(EvictionState)
        choice = axes.keep.choice(entry.length, state.kept, within=not seen.last)
        groups = entry.keys_and_values()[0].shape[0]
        eviction = Eviction(
            suite,
            entries,
            lambda: axes.keep.of_sets(axes.scorer.scores(suite, state, seen, choice), groups),
            choice,
            lambda: axes.scorer.rows(state),
            lambda rows: axes.scorer.moved(suite, state, rows),
            axes.merge,
        )
        stages = eviction.stages()
        return [*axes.scorer.ready(suite, state, seen), *stages] if stages else []

    async def attend(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        """Attend to all segments; what the token's query says of the exact one, and what goes for it, is for the next token,
        so its rounds are beside those of the layers behind."""
        entry, axes = cache.layers[layer], self.axes
        if (read := await axes.reader.attend(suite, cache, layer, q)) is not None:
            return read
        state = entry.state_of(EvictionState)
        due = axes.schedule.due(entry.length, state.kept)
        if axes.budget.share == 1 or not axes.schedule.every or not (due or axes.scorer.every_token):
            out, _ = await attention_over(suite, entry.segments, q)
            self._leave(suite, entry)
            return out
        everyone = Observed.of_rows(torch.ones(q.shape[1], dtype=torch.bool), q.shape[0])
        out, mass = await attention_over(suite, entry.segments, q, None, everyone)
        assert mass is not None
        seen = Seen(mass[:, mass.shape[1] - entry.length :] if entry.held else mass, 1, cache.group)

        async def take_in() -> None:
            await axes.scorer.token(suite, state, seen)
            if due:
                await self._drop(suite, entry, seen)

        await cache.run_in_background(take_in())
        return out

    async def attend_drafted(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        """As in `CachePolicy`, of what the reader reads."""
        found = await self.axes.reader.attend_drafted(self, suite, cache, layer, q)
        return await super().attend_drafted(suite, cache, layer, q) if found is None else found

    async def after_append(self, suite: Suite, cache: KVCache, layer: int) -> None:
        await self.axes.reader.after_append(suite, cache, layer)

    async def after_kept(self, suite: Suite, cache: KVCache, layer: int, rows: int) -> None:
        await self.axes.reader.after_kept(suite, cache, layer, rows)

    def _leave(self, suite: Suite, entry: LayerCache) -> None:
        """Drop the token at a public place, where one goes at every token; local."""
        place = self.axes.schedule.leaves(entry.state_of(EvictionState).kept, self.axes.keep.sinks)
        if self.axes.budget.share < 1 and place is not None:
            k, v = entry.keys_and_values()
            entry.k, entry.v = (suite.concat([x[:, :place], x[:, place + 1 :]], 1) for x in (k, v))

    async def _drop(self, suite: Suite, entry: LayerCache, seen: Seen) -> None:
        """Drop down to what stays: one token by putting the last one in its place, several by moving those that stay."""
        axes, state = self.axes, entry.state_of(EvictionState)
        if entry.length > state.kept + 1 or axes.keep.sinks or axes.merge.keeps:
            for _, work in [*self._event(suite, [entry], seen), *axes.scorer.after(suite, state)]:
                await work()
            return
        for _, work in axes.scorer.ready(suite, state, seen):
            await work()
        choice = axes.keep.choice(entry.length, state.kept)
        every = replace(choice, stop=entry.length)
        groups = entry.keys_and_values()[0].shape[0]
        scores = axes.keep.of_sets(axes.scorer.scores(suite, state, seen, every), groups)
        axes.scorer.moved(suite, state, await drop_least(suite, entry, scores, choice.stop - 1, axes.scorer.rows(state)))
