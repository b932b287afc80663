"""The key/value cache of a session, and what decides which of it a new token attends to.

A *policy* is written once against the suite interface and runs on every suite. The decoder calls it at three points; a
policy overrides those that it needs:

* `after_prefill`: once a layer and prompt batch, after its attention; may shrink the layer's cache;
* `after_append`: once a layer and token, when the token's key and value have joined the cache;
* `attend`: once a layer and token, the attention of that token. By default it asks `select` for the keys and values (and
  a public mask) and attends to them.

What a policy keeps between calls it puts into `LayerCache.state` (one layer) or `KVCache.state` (shared by layers); a
policy object itself is configuration and serves any number of sessions. Which tokens are kept or selected is secret; how
many is public.

Rotary positions are applied before a key is cached, so rows can move without any book-keeping of positions.

Axis names as in `protocols.suite`: G key/value heads, R query heads per key/value head, T tokens, S cached tokens, C.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from models.architecture import Architecture
from protocols.suite import Suite, Value


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
    """All layers' caches of one session. seen: tokens processed so far, cached or not; public."""

    def __init__(self, architecture: Architecture) -> None:
        self.layers = [LayerCache(architecture.window(n)) for n in range(architecture.layers)]
        self.state: dict[str, Any] = {}
        self.seen = 0

    async def append(self, suite: Suite, layer: int, k: Value, v: Value) -> None:
        """Append keys and values [G, T, C] to a layer."""
        entry = self.layers[layer]
        entry.k, entry.v = await suite.together(suite.append(entry.k, k, 1), suite.append(entry.v, v, 1))

    def trim(self, layer: int) -> None:
        """Drop what has left the layer's sliding window for every token to come and for the last one."""
        entry = self.layers[layer]
        if entry.window is not None and entry.length > entry.window:
            k, v = entry.keys_and_values()
            entry.k, entry.v = k[:, -entry.window :], v[:, -entry.window :]


class CachePolicy(ABC):
    """What is kept after the prompt and what a new token attends to."""

    name: ClassVar[str]

    def prompt_queries(self, tokens: int) -> int:
        """How many of the last queries of a prompt batch of `tokens` tokens `after_prefill` wants to see."""
        return 0

    async def after_prefill(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> None:
        """After a prompt batch. q: queries of its last n tokens [G, R n, C], n >= prompt_queries(T) (and n <= T)."""
        return None

    async def after_append(self, suite: Suite, cache: KVCache, layer: int) -> None:
        """After one decoded token's key and value were appended (at the end of S)."""
        return None

    @abstractmethod
    async def select(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> tuple[Value, Value, Tensor | None]:
        """Keys and values [G, S', C] for the token with queries q [G, R, C], and a public mask [G or 1, R or 1, S']."""

    async def attend(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        """Attention of one token: q [G, R, C] -> [G, R, C]."""
        k, v, mask = await self.select(suite, cache, layer, q)
        return await suite.attention(q, k, v, mask)


class FullCache(CachePolicy):
    """Keep everything, attend to everything (to the sliding window, where a layer has one)."""

    name: ClassVar[str] = "full"

    async def select(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> tuple[Value, Value, Tensor | None]:
        """All cached keys and values, no mask."""
        k, v = cache.layers[layer].keys_and_values()
        return k, v, None
