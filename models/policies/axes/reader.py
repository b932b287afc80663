"""How a decoded token reads the cache: all that stays, or some of it, chosen in secret or by place.

Leaks: to parties and dealer how many tokens are read, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

from typing import ClassVar

import torch

from models.cache import CachePolicy, KVCache, LayerCache, LayerState, Place, Sharing, Stage
from models.policies.axes.scorers import EvictionState
from protocols.suite import Suite, Value


class Reader:
    """Reads all that stays. reads_all: whether it does; append_only: as in `CachePolicy`.

    What a reader of another kind keeps of a layer lies in `EvictionState.reading`.
    """

    reads_all: ClassVar[bool] = True
    append_only: ClassVar[bool] = True

    def new_state(self, place: Place, sharing: Sharing) -> LayerState:
        """Return what it keeps of a layer, as it is before the prompt. sharing: layers that keep the same tokens."""
        return LayerState()

    def verifies(self, rows: int) -> bool:
        """As in `CachePolicy`."""
        return True

    def dropping(self, suite: Suite, entry: LayerCache) -> list[Stage]:
        """Return the steps of dropping from a prompt what no token reads, where places alone decide on it; else nothing."""
        return []

    def after_prompt(self, suite: Suite, cache: KVCache, layers: tuple[int, ...]) -> list[Stage]:
        """Return the steps behind a prompt, once these layers, which keep the same tokens, have dropped theirs."""
        return []

    async def after_append(self, suite: Suite, cache: KVCache, layer: int) -> None:
        """As in `CachePolicy`."""

    async def after_kept(self, suite: Suite, cache: KVCache, layer: int, rows: int) -> None:
        """As in `CachePolicy`."""

    async def attend(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value | None:
        """Return a token's attention to what it reads; None where that is all that is cached."""
        return None

    async def attend_drafted(self, policy: CachePolicy, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value | None:
        """Return the attention of drafted tokens, see `CachePolicy.attend_drafted`; None where they read all."""
        return None


class Ends(Reader):
    """Reads the first `sinks` tokens and the last ones, as many as stay in all; the others are dropped. By places alone.

    Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024, section 3.2.
    """

    reads_all: ClassVar[bool] = False
    append_only: ClassVar[bool] = False

    def __init__(self, sinks: int) -> None:
        self.sinks = sinks

    def dropping(self, suite: Suite, entry: LayerCache) -> list[Stage]:
        async def cut() -> None:
            self._cut(suite, entry)

        return [("sinks and window", cut)]

    async def after_append(self, suite: Suite, cache: KVCache, layer: int) -> None:
        """Drop the oldest token of the window."""
        self._cut(suite, cache.layers[layer])

    async def after_kept(self, suite: Suite, cache: KVCache, layer: int, rows: int) -> None:
        """Drop what the window has left behind."""
        self._cut(suite, cache.layers[layer])

    async def attend_drafted(self, policy: CachePolicy, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value | None:
        """Attend, with each token, to the sinks and to the window that ends with it."""
        entry, rows = cache.layers[layer], cache.drafted
        k, v = entry.keys_and_values()
        recent = entry.state_of(EvictionState).kept - self.sinks
        query = torch.arange(entry.length - rows, entry.length)[:, None]
        key = torch.arange(entry.length)[None, :]
        mask = (key <= query) & ((key < self.sinks) | (query - key < recent))
        return await suite.attention(q, k, v, mask.repeat(cache.group, 1))

    def _cut(self, suite: Suite, entry: LayerCache) -> None:
        kept = entry.state_of(EvictionState).kept
        if entry.length <= kept:
            return
        start = entry.length - (kept - self.sinks)
        for name, x in zip("kv", entry.keys_and_values(), strict=True):
            cut = suite.concat([x[:, : self.sinks], x[:, start:]], 1) if self.sinks else x[:, start:]
            setattr(entry, name, cut)
