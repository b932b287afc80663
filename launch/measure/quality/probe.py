"""What a policy attends to, and how much of the full cache's attention that is.

The run that is probed is the full cache's: at every step and layer the policy is asked, with the full cache's own query,
what it attends to; then the full cache's attention is what the layer goes on with. So all policies are asked at the same
queries and after the same tokens, and a share is a share of the same probabilities.

To know which tokens a policy attends to, whatever it drops, moves and gathers, every cached key carries the token's number
in one more channel, where the query is zero: scores and choices are the same with it. The suite's attentions read the
numbers off the keys that reach them. Plaintext only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from models.architecture import Architecture
from models.cache import CachePolicy, KVCache, LayerState, Place, Stage
from models.observation import Observation, Seen
from models.policies.selecting import PENALTY
from protocols.observed import Attended, Observed
from protocols.plain.suite import PlainSuite, PlainValue, tensor_of
from protocols.suite import Suite, Value


@dataclass
class Reached:
    """One step of one layer. numbers [G, S']: tokens whose keys were used; counts [G, R, S']: whether each one counts."""

    numbers: Tensor
    counts: Tensor

    def places(self, tokens: int) -> Tensor:
        """Return a bool [G, R, tokens]: which tokens are attended to."""
        groups, heads, _ = self.counts.shape
        places = torch.zeros(groups, heads, tokens, device=self.counts.device)
        index = self.numbers[:, None, :].expand_as(self.counts)
        return places.scatter_add_(2, index, self.counts.to(places.dtype)) > 0


class ProbingSuite(PlainSuite):
    """The suite `plain`; `last` is what the latest attention over numbered keys attended to."""

    last: Reached | None = None
    probing = False

    def _note(self, q: Value, k: Value, counts: Tensor | None) -> None:
        if not self.probing:
            return
        numbers = tensor_of(k)[..., -1].round().to(torch.int64)
        shape = (*q.shape[:2], numbers.shape[1])
        whole = torch.ones(shape, dtype=torch.bool, device=numbers.device)
        self.last = Reached(numbers, whole if counts is None else counts.to(numbers.device).expand(shape))

    async def attention(self, q: Value, k: Value, v: Value, mask: Tensor | None) -> Value:
        """Note all keys, or those that the public mask leaves."""
        self._note(q, k, mask)
        return await super().attention(q, k, v, mask)

    async def observed_attention(
        self, q: Value, k: Value, v: Value | None, mask: Tensor | None, observed: Observed
    ) -> Attended:
        if v is not None:
            self._note(q, k, mask)
        return await super().observed_attention(q, k, v, mask, observed)

    async def biased_attention(self, q: Value, k: Value, v: Value, bias: Value, mask: Tensor | None = None) -> Value:
        """Note the keys whose scores are not lowered by `PENALTY`, of those that the public mask leaves."""
        seen = tensor_of(bias) > -PENALTY / 2
        self._note(q, k, seen if mask is None else seen & mask)
        return await super().biased_attention(q, k, v, bias, mask)


class ProbedCache(KVCache):
    """Beside what the policy keeps, each layer's keys and values of all tokens, from its first prompt batch's end on."""

    def __init__(self, architecture: Architecture, policy: CachePolicy) -> None:
        super().__init__(architecture, policy)
        self.whole: dict[int, tuple[Tensor, Tensor]] = {}

    async def append(self, suite: Suite, layer: int, k: Value, v: Value) -> None:
        """Append, with the token's number once the layer is numbered."""
        if layer in self.whole:
            keys, values = self.whole[layer]
            self.whole[layer] = torch.cat([keys, tensor_of(k)], 1), torch.cat([values, tensor_of(v)], 1)
            k, v = _numbered(tensor_of(k), self.seen), _numbered(tensor_of(v), None)
        await super().append(suite, layer, k, v)


@dataclass
class AttentionProbe(CachePolicy):
    """Asks `inner` what it attends to, goes on with the full cache's attention.

    mass: by layer the attention kept, one mean over heads a step; attended, kept: tokens attended to (mean over heads) and
    cached, one number a step and layer.
    """

    inner: CachePolicy
    mass: dict[int, list[float]] = field(default_factory=dict)
    attended: list[float] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    name: ClassVar[str] = "probe"

    def new_state(self, place: Place) -> LayerState:
        return self.inner.new_state(place)

    def prompt_batches(self, tokens: int) -> Sequence[int]:
        return self.inner.prompt_batches(tokens)

    def observation(self, tokens: int, layer: int) -> Observation:
        return self.inner.observation(tokens, layer)

    def prompt_stages(self, suite: Suite, cache: KVCache, layer: int, seen: Seen) -> list[Stage]:
        """Number the cached tokens, then as the inner policy."""
        assert isinstance(cache, ProbedCache)
        entry = cache.layers[layer]
        keys, values = map(tensor_of, entry.keys_and_values())
        cache.whole[layer] = keys, values
        last = max(cache.prompt_tokens, keys.shape[1])  # a sliding window has dropped the first ones
        entry.k, entry.v = _numbered(keys, last - keys.shape[1]), _numbered(values, None)
        return self.inner.prompt_stages(suite, cache, layer, seen)

    async def after_append(self, suite: Suite, cache: KVCache, layer: int) -> None:
        await self.inner.after_append(suite, cache, layer)

    async def attend(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        """Return the full cache's attention, and note what the inner policy attends to."""
        assert isinstance(suite, ProbingSuite)
        assert isinstance(cache, ProbedCache)
        query = tensor_of(q)
        keys, values = cache.whole[layer]
        self.kept.append(cache.layers[layer].length)
        suite.last, suite.probing = None, True
        await self.inner.attend(suite, cache, layer, PlainValue(functional.pad(query, (0, 1))))
        suite.probing = False
        assert suite.last is not None
        places = suite.last.places(cache.seen + 1)
        scores = query @ keys.transpose(1, 2)
        numbers = torch.arange(cache.seen + 1 - keys.shape[1], cache.seen + 1, device=query.device)
        window = cache.layers[layer].window
        if window is not None:
            scores = scores.masked_fill(numbers <= cache.seen - window, float("-inf"))
        probabilities = torch.softmax(scores, -1)
        share = (probabilities * places[:, :, numbers]).sum(-1).mean().item()
        self.mass.setdefault(layer, []).append(share)
        self.attended.append(places.sum(-1).to(torch.float64).mean().item())
        return PlainValue(probabilities @ values)


def _numbered(x: Tensor, first: int | None) -> PlainValue:
    """Return x [G, S, C] with one more channel: numbers from `first` on, or zero."""
    groups, tokens, _ = x.shape
    start = 0 if first is None else first
    numbers = torch.arange(start, start + tokens, device=x.device, dtype=x.dtype) * (first is not None)
    return PlainValue(torch.cat([x, numbers.reshape(1, tokens, 1).expand(groups, tokens, 1)], 2))
