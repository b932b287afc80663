"""Scores of heads that have learned what will be asked for: a token's lasting importance, from its own rows alone.

Source: Huang et al., "Locret: Enhancing Eviction in Long-Context LLM Inference with Trained Retaining Heads", 2024, section
3.2, and its code (`locret/train`): s = act(x W1) W2 of the queries, keys and values x of all heads before they turn, act the
model's, without biases, one score a key/value head. A score never changes and moves with its token.

Rounds of a batch: those of two linear layers, an activation and an opening, beside attention's. Sent: width + G numbers a
token and, where positions turn queries and keys, (H + 2G) C more; dealt: width + G of products, and `width` activations.
Leaks: nothing; what follows from scores is opened by no one (docs/security.md, "Policies").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from models.architecture import Architecture
from models.cache import Stage
from models.observation import Observation, Seen
from models.policies.axes.scorers import EvictionState, Scorer
from models.policies.eviction import Kept, Scores
from protocols.suite import Suite, Value

FIRST, SECOND = "retaining.first", "retaining.second"
BOUND = 4.0
"""What scores stay below. `mpcache fit` scales them to at most 1 on its prompts, which changes no order."""


@dataclass(frozen=True)
class RetainingHead(Scorer):
    """width: of the layer between; public."""

    width: int
    decodes: ClassVar[bool] = False

    def learned(self, architecture: Architecture) -> dict[str, tuple[int, ...]]:
        a = architecture
        features = (a.heads + 2 * a.kv_heads) * a.head_channels
        return {f"{FIRST}.weight": (features, self.width), f"{SECOND}.weight": (self.width, a.kv_heads)}

    def observation(self, tokens: int, layer: int) -> Observation:
        return Observation(features=True)

    def batch(self, suite: Suite, state: EvictionState, seen: Seen) -> list[Stage]:
        """Score the batch's tokens, behind those of the batches before."""

        async def score() -> None:
            assert seen.features is not None
            assert state.learned is not None
            inner = await suite.linear(seen.features, state.learned.linear(FIRST))
            inner = await suite.activation(inner, state.learned.activation)
            found = (await suite.linear(inner, state.learned.linear(SECOND))).permute(1, 0)
            new = suite.with_bound(await suite.mask_for_cache(found), BOUND)
            state.scores = new if state.scores is None else suite.concat([state.scores, new], 1)

        return [("scores", score)]

    def scores(self, suite: Suite, state: EvictionState, seen: Seen, kept: Kept) -> Scores:
        assert state.scores is not None
        return Scores(state.scores[:, kept.start : kept.stop], BOUND)

    def rows(self, state: EvictionState) -> Sequence[Value]:
        assert state.scores is not None
        return (state.scores,)

    def moved(self, suite: Suite, state: EvictionState, rows: Sequence[Value]) -> None:
        (state.scores,) = rows

    def after(self, suite: Suite, state: EvictionState) -> list[Stage]:
        """Mask the scores for reuse. One round."""

        async def remember() -> None:
            assert state.scores is not None
            state.scores = await suite.mask_for_cache(suite.with_bound(state.scores, BOUND))

        return [("scores", remember)]
