"""CSKV: rows that have left a window of recent ones are held as products of low rank with learned weights.

Source: Wang et al., "CSKV: Training-Efficient Channel Shrinking for KV Cache in Long-Context Scenarios", 2024, and its code:
of all heads together c = x A, from which x' = c B is made; recent rows stay whole. A and B are learned of the model
(`mpcache fit`). What is different here: c is made of a token's keys or values themselves, not of what the layer reads, as
of all c the one that makes them best is linear in them. Keys need not be made again where positions do not turn them:
queries meet c in its own channels. Where they do, keys stay whole, or are made and turned anew for each token.

Leaks: to parties and dealer how many rows are held so, ranks, names and shapes of the learned weights (docs/security.md,
"Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.architecture import Architecture
from models.cache import KVCache, LayerCache
from models.learned import check_learned, in_every_layer
from models.policies.axes.codecs import DOWN, KEYS, UP, VALUES, hold_low_rank
from models.policies.full import FullCache
from models.policies.holding import Holding
from models.policies.settings import budget_tokens, one_of, ratio, whole
from mpc.errors import ConfigurationError
from protocols.suite import Suite, Value


@dataclass(frozen=True)
class CSKV(Holding):
    """rank: of what is held, as a share of the channels of all key/value heads; 1 holds all rows as they are. window: last
    rows that stay whole. turning: what becomes of keys that positions turn, `whole` or `low`. Text form:
    `cskv:rank=0.2|full`."""

    rank: float = 0.2
    window: int = 32
    turning: str = "whole"
    name: ClassVar[str] = "cskv"
    usual: ClassVar[str] = "full or compresskv"

    def __post_init__(self) -> None:
        super().__post_init__()
        ratio(self.name, "rank", self.rank)
        whole(self.name, "window", self.window, 1)
        one_of(self.name, "turning", self.turning, ("whole", "low"))
        if not isinstance(self.inner, FullCache) and not self.inner.one_set_for_all_heads:
            raise ConfigurationError(
                f"policy {self.name}: '{self.inner.spec}' keeps other tokens for each head, and rows of low rank are one "
                f"token's, of all heads together; use {self.usual} inside"
            )
        if self.turning == "low" and not isinstance(self.inner, FullCache):
            raise ConfigurationError(
                f"policy {self.name}: turning=low needs keys at public positions, which '{self.inner.spec}' moves in "
                "secret; use full inside, or turning=whole"
            )

    @property
    def spec(self) -> str:
        settings = [f"rank={self.rank}"]
        settings += [f"window={self.window}"] if self.window != CSKV.window else []
        settings += [f"turning={self.turning}"] if self.turning != CSKV.turning else []
        return f"{self.name}:{','.join(settings)}|{self.inner.spec}"

    @property
    def whole(self) -> bool:
        return self.rank == 1

    @property
    def append_only(self) -> bool:
        return self.whole and self.inner.append_only

    def learned(self, architecture: Architecture) -> dict[str, tuple[int, ...]]:
        """Return the shapes of what it has learned of each layer, by part."""
        a = architecture
        channels = a.kv_heads * a.head_channels
        low_keys = self.turning == "low" or any(a.rotary_of(n) is None for n in range(a.layers))
        parts = [KEYS, VALUES] if low_keys else [VALUES]
        shape = channels, budget_tokens(self.rank, channels)
        return {f"{part}.{way}.weight": shape for part in parts for way in (DOWN, UP)}

    def weight_shapes(self, architecture: Architecture) -> dict[str, tuple[int, ...]]:
        own = {} if self.whole else in_every_layer(architecture, self.learned(architecture))
        return {**super().weight_shapes(architecture), **own}

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        """Refuse a model without its weights, and keys whose turns depend on a text's length where these are made anew."""
        super().check(architecture, prompt_tokens)
        check_learned(self.spec, self.weight_shapes(architecture), architecture)
        every = {architecture.rotary_of(n) for n in range(architecture.layers)}
        if self.turning == "low" and any(one is not None and one.scaling == "dynamic" for one in every):
            raise ConfigurationError(
                f"policy {self.name}: turning=low cannot turn keys again whose angles depend on the length of the text "
                "(scaling 'dynamic'); use turning=whole"
            )

    async def hold(self, suite: Suite, entry: LayerCache) -> None:
        if entry.length > self.window:
            await hold_low_rank(suite, entry, self.window, self.turning == "low" or entry.rotary is None)

    async def attend(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        """Attend to all segments; then the row that leaves the window is held, in rounds of the layers behind."""
        found = await super().attend(suite, cache, layer, q)
        if not self.whole:
            await cache.run_in_background(self.hold(suite, cache.layers[layer]))
        return found
