"""The key/value cache of a session, and what decides which of it a new token attends to.

A *policy* is written once against the suite interface and runs on every suite. The decoder calls it at three points; a
policy overrides those that it needs:

* `after_prefill`: once a layer, after the prompt's attention; may shrink the layer's cache. It is given what every cached
  token has received from the prompt's last queries, as many as `observed_queries` asked for;
* `after_append`: once a layer and token, when the token's key and value have joined the cache;
* `attend`: once a layer and token, the attention of that token. By default it asks `select` for the keys and values (and
  a public mask) and attends to them.

What a policy keeps between calls it puts into `LayerCache.state` (one layer) or `KVCache.state` (shared by layers); a
policy object itself is configuration and serves any number of sessions. Which tokens are kept or selected is secret; how
many is public. `docs/policies.md` says how to add one.

Rotary positions are applied before a key is cached, so rows can move without any book-keeping of positions.

Axis names as in `protocols.suite`: G key/value heads, R query heads per key/value head, T tokens, S cached tokens, C.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from models.architecture import Architecture
from protocols.schedule import Future, later
from protocols.suite import Suite, Value

Stage = tuple[str, Callable[[], Awaitable[None]]]
"""A step of what a policy does after the prompt: its name and its work."""


async def run_stages(stages: Sequence[Stage]) -> None:
    """One after the other."""
    for _, work in stages:
        await work()


@dataclass
class LayerCache:
    """One layer's cached keys and values, secret, [G, S, C] each; None before the prompt. window: see `Architecture`."""

    window: int | None = None
    k: Value | None = None
    v: Value | None = None
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """S: cached tokens. Public."""
        return 0 if self.k is None else self.k.shape[1]

    def keys_and_values(self) -> tuple[Value, Value]:
        """Both, once something is cached."""
        if self.k is None or self.v is None:
            raise RuntimeError("the cache of this layer is empty: a policy was asked before the prompt was processed")
        return self.k, self.v


class KVCache:
    """All layers' caches of one session. seen: tokens processed so far, cached or not; group: R; prompt_tokens: of a prompt
    that comes in several batches, 0 otherwise. All public."""

    def __init__(self, architecture: Architecture) -> None:
        self.group = architecture.group
        self.prompt_tokens = 0
        self.layers = [LayerCache(architecture.window(n)) for n in range(architecture.layers)]
        self.state: dict[str, Any] = {}
        self.seen = 0
        self._started: list[Future[Any]] = []

    def policy_of(self, layer: int, text: str) -> str:
        """The text of a layer's policy, which is `text` unless a wrapper gives layers policies of their own."""
        texts: Sequence[str] | None = self.state.get("policies")
        return text if texts is None else texts[layer]

    async def append(self, suite: Suite, layer: int, k: Value, v: Value) -> None:
        """Append keys and values [G, T, C] to a layer."""
        entry = self.layers[layer]
        entry.k, entry.v = await suite.together(_appended(suite, entry.k, k), _appended(suite, entry.v, v, "value"))

    async def run_in_background(self, work: Coroutine[Any, Any, Any]) -> None:
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
            k, v = entry.keys_and_values()
            entry.k, entry.v = k[:, -entry.window :], v[:, -entry.window :]


class CachePolicy(ABC):
    """What is kept after the prompt and what a new token attends to. prefill_chunk: tokens of a prompt batch, None for
    all. presets: named settings, which stand for themselves in a policy's text (`models.policies.registry`)."""

    name: ClassVar[str]
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    prefill_chunk: int | None = None

    @property
    def plaintext_only(self) -> str:
        """The setting, as text, that cannot be computed on shares; empty where there is none."""
        return ""

    @property
    def spec(self) -> str:
        """The text that `models.policies.parse` makes this policy of."""
        return self.name

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        """Raise `ConfigurationError` where the policy cannot serve this model or prompt length."""
        return None

    def pattern(self) -> tuple[int, int]:
        """(first, period): behind the first layers, groups of `period` layers are alike but for the model's own differences.
        Counting costs traces one group for all that are alike."""
        return 0, 1

    def observed_queries(self, tokens: int, layer: int) -> int:
        """How many of the last queries of a prompt of `tokens` tokens `after_prefill` wants to know the attention of."""
        return 0

    async def after_prefill(self, suite: Suite, cache: KVCache, layer: int, received: Value | None) -> None:
        """After a prompt. received: attention that each cached token got from the last n queries, summed over them and the
        R heads, [G, S]; n = min(observed_queries(T), T), None for n = 0."""
        return None

    def prompt_stages(self, suite: Suite, cache: KVCache, layer: int, received: Value | None) -> list[Stage]:
        """`after_prefill` in steps that can be measured one by one, in order."""

        async def whole() -> None:
            await self.after_prefill(suite, cache, layer, received)

        return [("after the prompt", whole)]

    async def after_append(self, suite: Suite, cache: KVCache, layer: int) -> None:
        """After one decoded token's key and value were appended (at the end of S). What only later tokens need is started
        with `KVCache.run_in_background`."""
        return None

    async def select(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> tuple[Value, Value, Tensor | None]:
        """Keys and values [G, S', C] for the token with queries q [G, R, C], and a public mask [G or 1, R or 1, S'].

        All that is cached, if a policy does not say otherwise.
        """
        k, v = cache.layers[layer].keys_and_values()
        return k, v, None

    async def attend(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        """Attention of one token: q [G, R, C] -> [G, R, C]."""
        k, v, mask = await self.select(suite, cache, layer, q)
        return await suite.attention(q, k, v, mask)


async def _appended(suite: Suite, cache: Value | None, new: Value, kind: str | None = None) -> Value:
    """Return the tokens [G, S, C] of a cache with new ones behind them, all masked for the products to come."""
    return await (suite.mask_for_cache(new, kind) if cache is None else suite.append(cache, new, 1, kind))
