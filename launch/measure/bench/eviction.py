"""The program of a static eviction: what a policy does after the prompt, on one layer's cache, stage by stage.

All layers cost the same, so one is run: a cache of `cached` tokens as a prompt leaves it, the attention of the prompt's last
queries (which gives their attention mass), then the policy's own stages, the ones that `CachePolicy.after_prefill` runs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from launch.measure.bench.plan import BenchPlan
from launch.measure.bench.sources import step_name
from models.attention import observe
from models.cache import CachePolicy, KVCache, LayerCache
from models.costs.program import CACHE, WARM_UP, Source, told
from models.observation import Seen
from models.policies import parse
from models.policies.composition import System
from models.policies.holding import Holding
from models.segments import attention_over
from mpc.ledger import stage
from protocols.suite import OutputShare, Suite, Value

IMPORTANCE = "importance"
LAYER = 0


class EvictionProgram:
    """Cut where the tape is: nothing to load, the cache, then the stages of each repetition, what is left.

    asked: whose attention decides. seen: what it is; the warm-up takes it from the source: the attention is long enough
    without. noted: the prompt's last queries, secret, for a policy that asks for them. layer: what is left of the cache.
    probe: a token's queries, secret [G, R, C], where rows do not stay what they were: their attention to what is left tells
    whether it is right.
    """

    def __init__(self, plan: BenchPlan, suite: Suite, source: Source) -> None:
        self.plan = plan
        self.suite = suite
        self.source = source
        self.architecture = plan.shape
        self.policy = parse(plan.policy)
        asked = self.policy.observation(plan.cached, LAYER)
        self.asked = replace(asked, queries=min(plan.cached, asked.queries))
        self.weights: dict[str, Value] = {}
        self.keys: Value
        self.values: Value
        self.queries: Value | None = None
        self.noted: Value | None = None
        self.probe: Value | None = None
        self.seen = Seen()
        self.layer: LayerCache

    def go_on(self, suite: Suite, weights: dict[str, Value]) -> None:
        """Run what follows with another suite of the same role."""
        self.suite = suite

    def segments(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Yield name and work of each segment, in order."""
        yield "weights", lambda: None
        yield CACHE, lambda: self.suite.run(self._fill())
        for name in (WARM_UP, *(step_name(n) for n in range(self.plan.repeat))):
            if self.asked.queries and name != WARM_UP:
                yield f"{name}/{IMPORTANCE}", partial(self._timed, name, IMPORTANCE, self._attend)
            cache = self._cache()
            for title, work in self.policy.prompt_stages(self.suite, cache, LAYER, self.seen):
                yield f"{name}/{title}", partial(self._timed, name, title, work)
            self.layer = cache.layers[LAYER]
        yield "logits", self.output

    def _timed(self, name: str, title: str, work: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            await work()

        with self.suite.ledger.timed(name), self.suite.ledger.timed(title):
            self.suite.run(run())

    def _input(self, name: str, *shape: int) -> Value:
        return self.suite.input(shape, self.source.cached(self.suite, name, shape), self.suite.fraction_bits)

    async def _fill(self) -> None:
        """Make keys, values and queries; what parties do once a session is done here."""
        a, tokens, suite = self.architecture, self.plan.cached, self.suite
        with suite.ledger.timed(CACHE):
            suite.output(self._input("agreement", 1))
            shape = (a.kv_heads, tokens, a.head_channels)
            k, v = self._input("keys", *shape), self._input("values", *shape)
            self.keys, self.values = await suite.together(suite.mask_for_cache(k), suite.mask_for_cache(v))
            if queries := self.asked.queries:
                heads = self.asked.of_heads(a.heads)
                rows = (a.kv_heads, a.group * queries) if heads is None else (len(heads), queries)
                self.queries = self._input("queries", *rows, a.head_channels)
                self.seen = told(a, self.asked, tokens, lambda name, shape: self._input(name, *shape))
            if noted := min(tokens, self.policy.noted_queries(tokens, LAYER)):
                last = self._input("noted queries", a.kv_heads, a.group * noted, a.head_channels)
                self.noted = await suite.mask_queries(last)
            if changes_rows(self.policy):
                self.probe = self._input("probe", a.kv_heads, a.group, a.head_channels)

    def _cache(self) -> KVCache:
        """Return a cache as the prompt leaves it."""
        cache = KVCache(self.architecture, self.policy)
        cache.prompt_tokens = self.plan.cached
        cache.layers[LAYER].k, cache.layers[LAYER].v = self.keys, self.values
        cache.layers[LAYER].queries = self.noted
        return cache

    async def _attend(self) -> None:
        """Compute the attention of the last queries of the prompt, each to the tokens before it and itself."""
        suite = self.suite
        assert self.queries is not None
        q = await suite.mask_queries(self.queries[:])  # a value of its own: what is masked once would be free the next time
        self.seen = await observe(suite, self.architecture, self._cache().layers[LAYER], q, self.asked)
        suite.flags()  # as at a session's output, so that each repetition deals the same

    def output(self) -> OutputShare:
        """Return the share of the keys that stay, [G, S', C], or of the probe's attention, [G, R, C]."""
        with stage("logits"):
            if self.probe is None:
                return self.suite.output(self.layer.keys_and_values()[0])
            return self.suite.output(self.suite.run(self._probed(self.probe)))

    async def _probed(self, probe: Value) -> Value:
        """Return the probe's attention to what is left, [G, R, C]."""
        found, _ = await attention_over(self.suite, self.layer.segments, await self.suite.mask_queries(probe))
        return found


def changes_rows(policy: CachePolicy) -> bool:
    """Whether something of what a policy leaves is not a row that there was: merged, of few bits, or of fewer channels."""
    return isinstance(policy, Holding) or (isinstance(policy, System) and policy.axes.merge.keeps)
