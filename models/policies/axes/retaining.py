"""Scores of heads that have learned what will be asked for: a token's lasting importance, from its own rows alone.

Source: Huang et al., "Locret: Enhancing Eviction in Long-Context LLM Inference with Trained Retaining Heads", 2024, section
3.2, and its code (`locret/train`): s = act(x W1) W2 of the queries, keys and values x of all heads before they turn, act the
model's, without biases, one score a key/value head. A score never changes and moves with its token.

Rounds of a batch: those of two linear layers, an activation and an opening, beside attention's. Sent: width + G numbers a
token and, where positions turn queries and keys, (H + 2G) C more; dealt: width + G of products, and `width` activations.
Leaks: nothing; what follows from scores is opened by no one (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass

from models.architecture import Architecture
from models.learned import Learned
from models.policies.axes.lasting import LastingScores
from protocols.suite import Suite, Value

FIRST, SECOND = "retaining.first", "retaining.second"


@dataclass(frozen=True)
class RetainingHead(LastingScores):
    """width: of the layer between; public."""

    width: int

    @property
    def for_good(self) -> str:
        return f"retaining {self.width}"

    def learned(self, architecture: Architecture) -> dict[str, tuple[int, ...]]:
        a = architecture
        features = (a.heads + 2 * a.kv_heads) * a.head_channels
        return {f"{FIRST}.weight": (features, self.width), f"{SECOND}.weight": (self.width, a.kv_heads)}

    async def scored(self, suite: Suite, features: Value, learned: Learned) -> Value:
        inner = await suite.activation(await suite.linear(features, learned.linear(FIRST)), learned.activation)
        return await suite.linear(inner, learned.linear(SECOND))
