"""The cross-attention of a layer: the answer's tokens attend to what an encoder made of the prompt.

Its keys and values are a linear layer of the encoder's last rows. They are made once a layer, beside the first token's
self-attention, whose rounds they share, and masked once; from then on they cost nothing but the products with queries. There
is no mask and no position: every token of the answer sees every token of the prompt.

Axis names as in `protocols.suite`, P tokens of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping

from models.architecture import Architecture
from models.loaded import linear_layer, write
from models.prompt_rows import PromptRows
from protocols.suite import Suite, Value


class CrossAttention:
    """The cross-attention of a model in a session. weights: from `load_weights`, looked up when a layer runs."""

    def __init__(self, suite: Suite, architecture: Architecture, weights: Mapping[str, Value]) -> None:
        self.suite = suite
        self.architecture = architecture
        self._weights = weights

    async def prepare(self, prompt: PromptRows, layer: int) -> None:
        """Make a layer's keys and values of the prompt's rows; nothing where it has them."""
        if layer in prompt.keys_and_values:
            return
        suite, a = self.suite, self.architecture
        assert prompt.rows is not None
        with suite.ledger.timed(f"layer {layer}/cross"):
            fused = await suite.linear(prompt.rows, linear_layer(self._weights, f"layers.{layer}.cross.kv", "heads"))
            split = fused.reshape(fused.shape[0], 2 * a.kv_heads, a.head_channels).permute(1, 0, 2)
            k, v = split[: a.kv_heads], split[a.kv_heads :]
            keys, values = await suite.together(suite.mask_for_cache(k), suite.mask_for_cache(v, "value"))
        prompt.keys_and_values[layer] = keys, values

    async def attend(self, h: Value, prompt: PromptRows, layer: int) -> Value:
        """Return the residual stream [T, D] with each token's attention to the prompt."""
        suite, a = self.suite, self.architecture
        tokens, at = h.shape[0], f"layers.{layer}.cross"
        (q,) = await suite.norm_linear(h, a.stream_norm, [linear_layer(self._weights, f"{at}.q", "heads")])
        heads = q.reshape(tokens, a.heads, a.head_channels).permute(1, 0, 2)
        queries = await suite.mask_queries(heads.reshape(a.kv_heads, a.group * tokens, a.head_channels))
        found = await suite.attention(queries, *prompt.keys_and_values[layer], None)
        merged = found.reshape(a.heads, tokens, a.head_channels).permute(1, 0, 2)
        merged = merged.reshape(tokens, a.heads * a.head_channels)
        return await write(suite, a, self._weights, f"{at}.out", (merged, h))
