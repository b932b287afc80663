"""Scores of gates: a small attention of its own over the batch says of each token whether a head will need it.

Source: Zeng et al., "In-context KV-Cache Eviction for LLMs via Attention-Gate", 2024, section 3: g = sigmoid(MHA'(X) W + b)
of a head and a token, which is dropped where g <= 1/2. The parts (a reduced multi-head attention, flags of heads and tokens,
an eviction loss, straight-through thresholds) are those of its abstract and summary; the equations are recalled. Here:
* the flags are the highest g of each head, so that how many there are is public; sigmoid and b then change nothing;
* MHA' is causal, and reads the layer's queries, keys and values before they turn, which are linear in X;
* within `batches` a gate sees its own batch.

Rounds of a batch: those of two linear layers and an attention, beside the model's. Bytes: an attention of `heads` heads.
Leaks: nothing; what follows from scores is opened by no one (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass

from models.architecture import Architecture
from models.learned import Learned
from models.masks import causal_mask
from models.policies.axes.lasting import LastingScores
from protocols.suite import Suite, Value

READ, WRITE = "gate.read", "gate.write"


@dataclass(frozen=True)
class Gate(LastingScores):
    """heads: of the small attention, of `channels` each; public."""

    heads: int
    channels: int

    def learned(self, architecture: Architecture) -> dict[str, tuple[int, ...]]:
        a, inner = architecture, self.heads * self.channels
        features = (a.heads + 2 * a.kv_heads) * a.head_channels
        return {f"{READ}.weight": (features, 3 * inner), f"{WRITE}.weight": (inner, a.kv_heads)}

    async def scored(self, suite: Suite, features: Value, learned: Learned) -> Value:
        """As in `LastingScores`; the scale of the small attention's scores is in its queries' weights."""
        tokens, h, c = features.shape[0], self.heads, self.channels
        fused = (await suite.linear(features, learned.linear(READ))).reshape(tokens, 3 * h, c).permute(1, 0, 2)
        q, k, v = await suite.together(
            suite.mask_queries(fused[:h]),
            suite.mask_for_cache(fused[h : 2 * h]),
            suite.mask_for_cache(fused[2 * h :], "value"),
        )
        found = await suite.attention(q, k, v, causal_mask(tokens, tokens, None))
        return await suite.linear(found.permute(1, 0, 2).reshape(tokens, h * c), learned.linear(WRITE))
