"""A prompt in several batches: with the same result, or with tokens dropped after each of them.

With `Batches` a prompt's attention never is T x T: a batch of c tokens meets what is left of the ones before and itself. The
policy inside votes by the batch's own queries, drops down to a public number, and the next batch attends to what stayed, all
of which lies before it. The chosen tokens, their order and their scores stay secret.

Source: eviction between chunks of a prompt, Huang et al., "Locret: Enhancing Eviction in Long-Context LLM Inference with
Trained Retaining Heads", 2024, section 3 (there by trained scores; here by the votes of the policy inside).

Leaks: to parties and dealer sizes of batches and numbers of tokens that stay (docs/security.md, "Policies").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from models.architecture import Architecture
from models.cache import Batch, CachePolicy, KVCache, in_order
from models.observation import Observation, Seen
from models.policies.composition import System
from models.policies.eviction import EvictingPolicy
from models.policies.holding import Holding
from models.policies.settings import whole
from models.policies.wrappers import Around
from mpc.errors import ConfigurationError
from protocols.suite import Suite

EVICTING = (
    "cake",
    "compresskv",
    "d2o",
    "elastic",
    "ems",
    "epicache",
    "h2o",
    "kvmerger",
    "lazyeviction",
    "mpcache",
    "snapkv",
    "streaming-llm",
    "tova",
)


@dataclass(frozen=True)
class InBatches(Around):
    """Around a policy, which it asks for all but how the prompt is cut. tokens: the most tokens of a batch; public."""

    inner: CachePolicy
    tokens: int = 256

    def __post_init__(self) -> None:
        whole(self.name, "tokens", self.tokens, 2)
        for policy in _all_inside(self.inner):
            if isinstance(policy, InBatches):
                raise ConfigurationError(
                    f"policy {self.name}: {policy.name} inside cuts the prompt into batches, too; leave out one of them"
                )

    def of(self, layer: int) -> CachePolicy:
        return self.inner

    def alternatives(self, prompt_tokens: int, suite: Suite) -> list[tuple[str, CachePolicy]]:
        """As in `CachePolicy`, those of the policy inside."""
        return [(what, replace(self, inner=one)) for what, one in self.inner.alternatives(prompt_tokens, suite)]


@dataclass(frozen=True)
class ChunkedPrefill(InBatches):
    """The prompt is processed in batches of `tokens` tokens: less memory at a time, the same result, more rounds.

    Text form: `chunked:tokens=256|mpcache`.
    """

    name: ClassVar[str] = "chunked"

    @property
    def spec(self) -> str:
        return f"chunked:tokens={self.tokens}|{self.inner.spec}"

    def prompt_batches(self, tokens: int) -> Sequence[int]:
        """As in `CachePolicy`; the last one may be smaller."""
        return [min(self.tokens, tokens - start) for start in range(0, tokens, self.tokens)]

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        self.inner.check(architecture, prompt_tokens)


@dataclass(frozen=True)
class Batches(InBatches):
    """The policy inside drops tokens after every batch of the prompt. keep: tokens that a layer keeps between batches; 0
    for the share of the tokens so far that stays of the whole prompt, at least a batch. ahead: of the prompt's last tokens,
    whose queries the policy inside asks, so many (at most a batch) look at every batch after which tokens go; 0 lets the
    batch's own last queries decide. Layers whose policy drops nothing keep everything. All public.

    Batches of `tokens` tokens, but for the first one, which is what is left over: so the last ones are whole. A registered
    prefix is a batch before the first one, after which nothing goes. Text form:
    `batches:tokens=128|snapkv:budget=0.25`, `batches:tokens=512,keep=1024|mpcache`.
    """

    keep: int = 0
    ahead: int = 32
    name: ClassVar[str] = "batches"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self.name, "keep", self.keep, 0)
        whole(self.name, "ahead", self.ahead, 0)
        if not any(isinstance(policy, EvictingPolicy) for policy in _all_inside(self.inner)):
            raise ConfigurationError(
                f"policy {self.name}: '{self.inner.spec}' drops no token of a prompt, so there is nothing to do between "
                f"batches; use one of {', '.join(EVICTING)} inside, or chunked in place of {self.name}"
            )
        for policy in _all_inside(self.inner):
            if isinstance(policy, Holding) or (isinstance(policy, System) and policy.holds):
                raise ConfigurationError(
                    f"policy {self.name}: '{policy.spec}' holds rows in another way once the whole prompt is there, and "
                    f"cannot do so between batches; use chunked in place of {self.name}, or leave out {policy.name}"
                )
        if self.inner.plaintext_only:
            raise ConfigurationError(
                f"policy {self.name}: {self.inner.plaintext_only} inside decides by a whole prompt's queries; leave it out, "
                f"or leave out {self.name}"
            )

    @property
    def spec(self) -> str:
        settings = [f"tokens={self.tokens}"]
        settings += [f"keep={self.keep}"] if self.keep else []
        settings += [f"ahead={self.ahead}"] if self.ahead != type(self).ahead else []
        return f"{self.name}:{','.join(settings)}|{self.inner.spec}"

    @property
    def evicts_within_prompt(self) -> bool:
        return True

    def prompt_batches(self, tokens: int) -> Sequence[int]:
        """As in `CachePolicy`; the first one may be smaller."""
        rest = tokens % self.tokens
        return [rest][: rest > 0] + [self.tokens] * (tokens // self.tokens)

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        """Refuse batches that are larger than the prompt or smaller than what votes, and to keep less between batches than
        after the last one."""
        if self.tokens > (tokens := prompt_tokens - self.probes):
            raise ConfigurationError(
                f"policy {self.name}: tokens = {self.tokens} is more than the {tokens} tokens of the prompt; lower "
                f"it, or leave out {self.name}"
            )
        self.inner.check(architecture, prompt_tokens)
        for policy in _all_inside(self.inner):
            if isinstance(policy, EvictingPolicy):
                self._check_room(policy, prompt_tokens - self.probes)

    def _check_room(self, policy: EvictingPolicy, prompt_tokens: int) -> None:
        what, least = policy.least_batch()
        if self.tokens < least:
            raise ConfigurationError(
                f"policy {self.name}: tokens = {self.tokens} does not hold {what} of '{policy.spec}'; raise tokens to "
                f"{least} or more"
            )
        stays = max(policy.stays(prompt_tokens, layer) for layer in range(policy.own_budgets))
        if 0 < self.keep < stays:
            raise ConfigurationError(
                f"policy {self.name}: keep = {self.keep} between batches is less than the {stays} of {prompt_tokens} tokens "
                f"that '{policy.spec}' keeps after the prompt; raise keep to {stays}, or lower what it keeps"
            )

    def kept(self, policy: EvictingPolicy, layer: int, prompt: int, seen: int) -> int:
        """Return how many tokens a layer caches behind the batch that ends at token `seen` of a prompt; public."""
        stays = policy.stays(prompt, layer)
        if seen == prompt:
            return stays
        return min(seen, self.keep or min(stays, max(policy.stays(seen, layer), self.tokens)))

    def _drops(self, policy: EvictingPolicy, layer: int, batch: Batch) -> bool:
        """Whether tokens of a layer go after a batch."""
        whole = batch.before == batch.behind  # a prefix stays whole until the first batch behind it has voted
        before = batch.before if whole else self.kept(policy, layer, batch.prompt, batch.before)
        return before + batch.tokens > self.kept(policy, layer, batch.prompt, batch.before + batch.tokens)

    def _evicting(self, layer: int) -> EvictingPolicy | None:
        """Return the policy that drops a layer's tokens, if it has one."""
        policy = self.inner
        while isinstance(policy, Around):
            policy = policy.of(layer)
        return policy if isinstance(policy, EvictingPolicy) else None

    def looking_ahead(self, batch: Batch) -> int:
        """As in `CachePolicy`: no more than a policy inside asks for, where it drops tokens."""
        inside = [policy for policy in _all_inside(self.inner) if isinstance(policy, EvictingPolicy)]
        layers = [(policy, layer) for policy in inside for layer in range(policy.own_budgets)]
        if self.probes:
            return self.probes if batch.last or any(self._drops(policy, n, batch) for policy, n in layers) else 0
        asked = [policy.observation(batch.prompt, n).queries for policy, n in layers if self._drops(policy, n, batch)]
        return 0 if batch.last else min(self.ahead, self.tokens, max(asked, default=0))

    def observed_in(self, batch: Batch, layer: int) -> Observation:
        """As in `CachePolicy`: the queries that look ahead, as many as the policy of the layer asks for, or the batch's own;
        none where nothing is dropped and votes do not add up over batches."""
        policy = self._evicting(layer)
        if policy is None or batch.last:
            return self.inner.observed_in(batch, layer)
        asked, ahead = policy.observation(batch.prompt, layer), self.looking_ahead(batch)
        if policy.sees_all:
            queries = batch.tokens + ahead if asked.queries else 0
        elif not self._drops(policy, layer, batch):
            queries = 0
        else:
            queries = min(asked.queries, ahead) or min(batch.tokens, policy.observation(batch.tokens, layer).queries)
        return replace(asked, queries=queries, late=min(asked.late, queries))

    async def after_batch(self, suite: Suite, cache: KVCache, layer: int, batch: Batch, seen: Seen) -> None:
        """Let the policy of the layer drop tokens, down to `kept`; in the rounds of the layers behind it, where the suite
        overlaps rounds."""
        policy = self._evicting(layer)
        if policy is None:
            await self.inner.after_batch(suite, cache, layer, batch, seen)
            return
        kept = self.kept(policy, layer, batch.prompt, batch.before + batch.tokens)
        stages = policy.eviction_stages(suite, cache, layer, seen, kept)
        if batch.last:
            stages = [*stages, *policy.final_stages(suite, cache, layer)]
        await cache.run_in_background(in_order(stages))  # the next batch needs it, and no layer before


def _all_inside(policy: CachePolicy) -> Iterator[CachePolicy]:
    """Yield a policy and all that it is around."""
    yield policy
    if isinstance(policy, Around):
        for one in policy.inside():
            yield from _all_inside(one)
