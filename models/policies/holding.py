"""Policies around policies: what is left of the prompt is held by a codec, in a segment of its own (`models.segments`).

Leaks: to parties and dealer their text, how many rows and channels are held, and what the policy inside leaks
(docs/security.md, "Policies").
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from models.architecture import Architecture
from models.cache import Batch, CachePolicy, KVCache, LayerCache, Stage
from models.observation import Seen
from models.policies.composition import System
from models.policies.full import FullCache
from models.policies.settings import no_windows
from models.policies.wrappers import Around
from mpc.errors import ConfigurationError
from protocols.suite import Suite, Value


@dataclass(frozen=True)
class Holding(Around):
    """Around a policy that changes the cache after the prompt alone; a codec then holds what it leaves."""

    inner: CachePolicy
    usual: ClassVar[str] = "full, snapkv or cake"
    """Policies that can be inside."""

    def __post_init__(self) -> None:
        inside = self.inner
        if isinstance(inside, System) and inside.holds:
            raise ConfigurationError(
                f"policy {self.name}: '{inside.spec}' holds rows in another way already; leave out one of them"
            )
        if inside.probes:
            raise ConfigurationError(
                f"policy {self.name}: '{inside.spec}' has probes look at the prompt, and {self.name} asks its own last "
                f"queries; use {self.usual} inside, or leave out one of them"
            )
        if not isinstance(inside, FullCache) and not (
            isinstance(inside, System) and inside.append_only and inside.axes.reader.reads_all
        ):
            raise ConfigurationError(
                f"policy {self.name}: '{inside.spec}' reads or moves whole keys while decoding, which {self.name} does "
                f"not hold; use {self.usual} inside, or leave out {self.name}"
            )

    @property
    @abstractmethod
    def whole(self) -> bool:
        """Whether rows stay as they are, so that this is the policy inside."""

    @abstractmethod
    async def hold(self, suite: Suite, entry: LayerCache) -> None:
        """Let the codec take what it holds of a layer, behind the prompt and what the policy inside has done."""

    def of(self, layer: int) -> CachePolicy:
        return self.inner

    def verifies(self, rows: int) -> bool:
        return self.whole and self.inner.verifies(rows)

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        no_windows(self.name, architecture, prompt_tokens)
        self.inner.check(architecture, prompt_tokens)

    async def after_batch(self, suite: Suite, cache: KVCache, layer: int, batch: Batch, seen: Seen) -> None:
        await CachePolicy.after_batch(self, suite, cache, layer, batch, seen)

    def prompt_stages(self, suite: Suite, cache: KVCache, layer: int, seen: Seen) -> list[Stage]:
        """As in `CachePolicy`: those of the policy inside, then the codec's."""
        inside = self.inner.prompt_stages(suite, cache, layer, seen)
        return inside if self.whole else [*inside, ("holding", partial(self.hold, suite, cache.layers[layer]))]

    async def attend(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        return await CachePolicy.attend(self, suite, cache, layer, q)
