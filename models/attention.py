"""The attention part of a layer: what reads the normalised residual stream, the cache, and what is written back.

Which of the cache is attended to, the policy says. Axis names as in `protocols.suite`: T tokens, S cached tokens, D width,
H query heads, G key/value heads, R = H / G, C head channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.architecture import Architecture, Rotary
from models.cache import Batch, CachePolicy, KVCache
from models.loaded import linear_layer, write
from models.masks import causal_mask
from protocols.suite import Linear, Suite, Value
from protocols.value import Use

Angles = Mapping[Rotary, tuple[Tensor, Tensor]]
"""Public cosines and sines [T, C] of a batch by the rotary positions that a model has; none with learned positions."""


@dataclass(frozen=True)
class Rows:
    """What of a batch an attention layer is asked for; public. wanted: its last rows, whose residual stream is needed
    behind the layer. angles: of all its tokens."""

    wanted: int
    angles: Angles


class Attention:
    """The attention layers of a model in a session. weights: from `load_weights`, looked up when a layer runs."""

    def __init__(self, suite: Suite, architecture: Architecture, weights: Mapping[str, Value], policy: CachePolicy) -> None:
        self.suite = suite
        self.architecture = architecture
        self.policy = policy
        self._weights = weights

    def entering(self, layer: int) -> list[Linear]:
        """Return the linear layers that read the residual stream behind its norm: queries, keys and values in one."""
        use: Use = "heads" if self.architecture.rotary_of(layer) is None else "rotated"
        return [linear_layer(self._weights, f"layers.{layer}.attention.qkv", use)]

    async def leaving(self, entered: Sequence[Value], cache: KVCache, layer: int, rows: Rows, residual: Value) -> Value:
        """Return the residual stream of the last `rows.wanted` rows [n, D] with the attention of the products
        [T, (H + 2G) C] of the layer `entering` it; keys and values join the cache."""
        suite, policy = self.suite, self.policy
        (fused,) = entered
        tokens = fused.shape[0] - cache.ahead
        prompt = not cache.drafted and (tokens > 1 or cache.seen == 0 or cache.seen < cache.prompt_tokens)
        batch = Batch(max(cache.prompt_tokens, cache.seen + tokens), cache.seen, tokens)
        observed = policy.observed_in(batch, layer) if prompt else 0
        noted = batch.observed(policy.noted_queries(batch.prompt, layer)) if prompt else 0
        wanted = max(rows.wanted, observed, noted)
        q, k, v = await self._heads(fused, layer, rows.angles, wanted)
        q, _ = await suite.together(suite.mask_queries(q), cache.append(suite, layer, k, v))
        if not prompt:
            attended = await self._token_attention(cache, layer, self._stacked(q))
            return await self._written(self._merged(attended, rows.wanted), layer, residual)
        if noted:
            self._note(cache, layer, q[:, wanted - noted :])
        keys, values = cache.layers[layer].keys_and_values()
        attended, mass = await self._prompt_attention(q, keys, values, cache.layers[layer].window, wanted, observed)
        if cache.ahead:
            cache.drop_last(suite, layer, cache.ahead)
            mass = None if mass is None else mass[:, : cache.layers[layer].length]
        merged = self._merged(attended, wanted)[wanted - rows.wanted :]
        out, _ = await suite.together(
            self._written(merged, layer, residual),
            policy.after_batch(suite, cache, layer, batch, mass),
        )
        cache.trim(layer)
        h_out: Value = out
        return h_out

    def _note(self, cache: KVCache, layer: int, q: Value) -> None:
        """Leave a batch's last queries [H, n, C], behind those of earlier batches, to the policy; local."""
        a, entry = self.architecture, cache.layers[layer]
        new = q.reshape(a.kv_heads, a.group, q.shape[1], a.head_channels)
        entry.queries = new if entry.queries is None else self.suite.concat([entry.queries, new], 2)

    async def _written(self, merged: Value, layer: int, residual: Value) -> Value:
        """Return the residual stream [n, D] with what all heads found, [n, H C]."""
        return await write(self.suite, self.architecture, self._weights, f"layers.{layer}.attention.out", (merged, residual))

    async def _token_attention(self, cache: KVCache, layer: int, q: Value) -> Value:
        """Return the attention of an answer's token, q [G, R, C], or of drafted ones, [G, R n, C], as the policy says."""
        if cache.drafted:
            return await self.policy.attend_drafted(self.suite, cache, layer, q)
        cache.trim(layer)
        await self.policy.after_append(self.suite, cache, layer)
        return await self.policy.attend(self.suite, cache, layer, q)

    async def _prompt_attention(
        self, q: Value, k: Value, v: Value, window: int | None, rows: int, observed: int
    ) -> tuple[Value, Value | None]:
        """Return the attention of a prompt's last `rows` queries [H, rows, C], and the attention mass [G, S] of the last
        `observed`."""
        group = self.architecture.group
        mask = causal_mask(rows, k.shape[1], window)
        if mask is not None:
            mask = mask.repeat(group, 1)
        if not observed:
            return await self.suite.attention(self._stacked(q), k, v, mask), None
        last = (torch.arange(rows) >= rows - observed).repeat(group)
        return await self.suite.attention_with_mass(self._stacked(q), k, v, mask, last)

    async def _heads(self, fused: Value, layer: int, angles: Angles, rows: int) -> tuple[Value, Value, Value]:
        """Return the queries of the last `rows` tokens [H, rows, C], keys and values of all [G, T, C], from fused [T, (H
        + 2G) C]."""
        suite, a = self.suite, self.architecture
        tokens, channels = fused.shape[0], a.head_channels
        split = fused.reshape(tokens, a.heads + 2 * a.kv_heads, channels).permute(1, 0, 2)
        q, k, v = split[: a.heads, tokens - rows :], split[a.heads : a.heads + a.kv_heads], split[a.heads + a.kv_heads :]
        if a.query_key_norm is not None:
            q, k = await suite.together(self._normalised(q, layer, "queries"), self._normalised(k, layer, "keys"))
        rotary = a.rotary_of(layer)
        if rotary is None:
            return q, k, v
        cos, sin = angles[rotary]
        if rows == tokens and a.query_key_norm is None:
            both = await suite.rotate(split[: a.heads + a.kv_heads], cos, sin)
            return both[: a.heads], both[a.heads :], v
        q, k = await suite.together(suite.rotate(q, cos[-rows:], sin[-rows:]), suite.rotate(k, cos, sin))
        return q, k, v

    async def _normalised(self, x: Value, layer: int, which: str) -> Value:
        """Return queries or keys [heads, T, C] with each head, or all heads of a token, normalised, times the gain."""
        a, (heads, tokens, channels) = self.architecture, x.shape
        gain = self._weights[f"layers.{layer}.attention.{which}.gain"]
        rows = x.permute(1, 0, 2)
        if a.query_key_norm == "all":
            rows = rows.reshape(tokens, heads * channels)
        found = await self.suite.norm_gain(rows, a.norm, gain)
        return found.reshape(tokens, heads, channels).permute(1, 0, 2)

    def _stacked(self, q: Value) -> Value:
        """Turn [H, n, C] -> [G, R n, C], as `Suite.attention` takes queries."""
        a = self.architecture
        return q.reshape(a.kv_heads, a.group * q.shape[1], a.head_channels)

    def _merged(self, attended: Value, rows: int) -> Value:
        """Turn [G, R n, C] -> [n, H C]."""
        a = self.architecture
        return attended.reshape(a.heads, rows, a.head_channels).permute(1, 0, 2).reshape(rows, a.heads * a.head_channels)
