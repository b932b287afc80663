"""The attention part of a layer: what reads the normalised residual stream, the cache, and what is written back.

Which of the cache is attended to, the policy says. Axis names as in `protocols.suite`: T tokens, S cached tokens, D width,
H query heads, G key/value heads, R = H / G, C head channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.architecture import Architecture, Rotary
from models.cache import Batch, CachePolicy, KVCache, LayerCache
from models.loaded import linear_layer, write
from models.masks import causal_mask
from models.observation import Observation, Seen
from protocols.observed import Attended, Observed
from protocols.suite import Linear, Suite, Value
from protocols.value import Use

Angles = Mapping[Rotary, tuple[Tensor, Tensor]]
"""Public cosines and sines [T, C] of a batch by the rotary positions that a model has; none with learned positions."""


@dataclass(frozen=True)
class Rows:
    """What of a batch an attention layer is asked for. wanted: its last rows, whose residual stream is needed behind the
    layer; angles: of all its tokens; both public. bias: of the scores of all its tokens with all that is cached, secret
    [H, T, S], where a model has relative positions."""

    wanted: int
    angles: Angles
    bias: Value | None = None


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
        tokens = fused.shape[0] - cache.looking.ahead
        prompt = not cache.drafted and (tokens > 1 or cache.seen == 0 or cache.seen < cache.prompt_tokens)
        batch = Batch(max(cache.prompt_tokens, cache.seen + tokens), cache.seen, tokens, cache.behind)
        asked = policy.observed_in(batch, layer) if prompt else Observation()
        noted = batch.observed(policy.noted_queries(batch.prompt, layer)) if prompt else 0
        whole = asked.features and self._features_are_heads(layer)
        count = max(rows.wanted, asked.queries, noted)
        q, k, v = await self._heads(fused, layer, rows.angles, fused.shape[0] if whole else count)
        appending = cache.append(suite, layer, k, v)
        if whole:  # opened for attention in a ring that holds features, too
            q, _ = await suite.together(suite.mask_queries(q, weighed=True), appending)
            fused = self._fused(q, cache.layers[layer])
        apart = asked.queries > rows.wanted  # then what is observed needs no values, nor heads that do not count
        both = [_last(q, rows.wanted), *([self._observed(q, asked)] if apart else [])]
        both += [self._stacked(_last(q, noted))] if noted > rows.wanted else []
        if not whole:
            wide = cache.prompt.padding is not None  # a bias of padding joins the scores
            *both, _ = await suite.together(*(suite.mask_queries(one, weighed=wide) for one in both), appending)
        q = both[0]
        if rows.bias is not None:
            attended = await self._relative_attention(q, cache, layer, rows.bias)
            return await self._written(self._merged(attended, rows.wanted), layer, residual)
        if not prompt:
            attended = await self._token_attention(cache, layer, self._stacked(q))
            return await self._written(self._merged(attended, rows.wanted), layer, residual)
        if noted:
            self._note(cache.layers[layer], both[-1] if noted > rows.wanted else self._stacked(_last(q, noted)))
        if apart:
            seeing = observe(suite, self.architecture, cache.layers[layer], both[1], asked)
            attended, seen = await suite.together(self._attended(q, cache, layer), seeing)
        else:
            attended, seen = await self._attended_and_seen(q, cache, layer, asked)
        seen = replace(seen, features=fused[:tokens] if asked.features else None, last=batch.last)
        if cache.looking.ahead:
            cache.drop_last(suite, layer, cache.looking.ahead)
            seen = seen.first(cache.layers[layer].length)
        out, _ = await suite.together(
            self._written(self._merged(attended, rows.wanted), layer, residual),
            policy.after_batch(suite, cache, layer, batch, seen),
        )
        cache.trim(layer)
        h_out: Value = out
        return h_out

    def _note(self, entry: LayerCache, q: Value) -> None:
        """Leave a batch's last queries [G, R n, C], beside those of earlier batches, to the policy; local."""
        entry.queries = q if entry.queries is None else self.suite.concat([entry.queries, q], 1)

    def _features_are_heads(self, layer: int) -> bool:
        """Whether queries and keys are cached as the layer gives them, neither normalised nor turned."""
        a = self.architecture
        return a.query_key_norm is None and a.rotary_of(layer) is None

    def _fused(self, q: Value, entry: LayerCache) -> Value:
        """Return queries of all tokens of a batch, [H, T, C], with their keys and values as the layer gave them, [T, (H +
        2G) C]; local."""
        count = entry.length - q.shape[1]
        new = self.suite.concat([q, *(x[:, count:] for x in entry.keys_and_values())], 0)
        return new.permute(1, 0, 2).reshape(q.shape[1], new.shape[0] * q.shape[2])

    async def reading(self, entered: Sequence[Value], layer: int, bias: Value, residual: Value) -> Value:
        """Return the residual stream [T, D] with the attention of an encoder's layer, in which every token of the prompt
        sees every other one and nothing is cached. entered: as in `leaving`. bias: of the scores, secret [H, T, T]."""
        suite, (fused,) = self.suite, entered
        tokens = fused.shape[0]
        q, k, v = await self._heads(fused, layer, {}, tokens)
        q, k, v = await suite.together(
            suite.mask_queries(self._stacked(q)), suite.mask_for_cache(k), suite.mask_for_cache(v, "value")
        )
        attended = await suite.relative_attention(q, k, v, self._stacked_bias(bias), None)
        return await self._written(self._merged(attended, tokens), layer, residual)

    async def _relative_attention(self, q: Value, cache: KVCache, layer: int, bias: Value) -> Value:
        """Return the attention [G, R n, C] of the last n tokens, q [H, n, C], to all that is cached up to themselves."""
        rows, (k, v) = q.shape[1], cache.layers[layer].keys_and_values()
        mask = causal_mask(rows, k.shape[1], None)
        bias = self._stacked_bias(bias[:, bias.shape[1] - rows :])
        mask = None if mask is None else mask.repeat(self.architecture.group, 1)
        return await self.suite.relative_attention(self._stacked(q), k, v, bias, mask)

    async def _written(self, merged: Value, layer: int, residual: Value) -> Value:
        """Return the residual stream [n, D] with what all heads found, [n, H C]."""
        return await write(self.suite, self.architecture, self._weights, f"layers.{layer}.attention.out", (merged, residual))

    async def _token_attention(self, cache: KVCache, layer: int, q: Value) -> Value:
        """Return the attention of an answer's token, q [G, R, C], or of drafted ones, [G, R n, C], as the policy says."""
        if cache.drafted:
            return await self.policy.attend_drafted(self.suite, cache, layer, q)
        cache.trim(layer)
        if cache.prompt.padding is not None:
            return await self._padded_attention(q, cache, layer, cache.seen + 1)
        await self.policy.after_append(self.suite, cache, layer)
        return await self.policy.attend(self.suite, cache, layer, q)

    async def _padded_attention(self, q: Value, cache: KVCache, layer: int, seen: int, mask: Tensor | None = None) -> Value:
        """Return the attention [G, R n, C] of the last n of `seen` tokens, q [G, R n, C], to all that is cached but
        padding."""
        suite, padding, (k, v) = self.suite, cache.prompt.padding, cache.layers[layer].keys_and_values()
        assert padding is not None
        bias, v = padding.bias(suite, k.shape[1], seen), padding.marked(suite, v)
        found = await suite.biased_attention(q, k, v, bias, mask)
        channels = self.architecture.head_channels
        wrong = padding.wrong(suite, found[..., channels:], seen, self.architecture.group)
        await cache.run_in_background(suite.unattended(wrong))
        return found[..., :channels]

    async def _attended(self, q: Value, cache: KVCache, layer: int) -> Value:
        """Return the attention [G, R n, C] of a prompt's last queries [H, n, C]."""
        entry, group = cache.layers[layer], self.architecture.group
        k, v = entry.keys_and_values()
        own = None if cache.places is None else cache.places.mask(q.shape[1]).repeat(group, 1)
        mask = _stacked_mask(q.shape[1], group, entry) if own is None else own
        if cache.prompt.padding is not None:
            return await self._padded_attention(self._stacked(q), cache, layer, entry.length, mask)
        return await self.suite.attention(self._stacked(q), k, v, mask)

    async def _attended_and_seen(self, q: Value, cache: KVCache, layer: int, asked: Observation) -> tuple[Value, Seen]:
        """Return the attention [G, R n, C] of a prompt's last queries [H, n, C], and what is asked of it."""
        if not asked.queries:
            return await self._attended(q, cache, layer), Seen()
        a, rows, entry = self.architecture, q.shape[1], cache.layers[layer]
        k, v = entry.keys_and_values()
        heads = asked.of_heads(a.heads)
        if asked.each or asked.alone:
            of = Observed.of_single if asked.alone else Observed.of_queries
            observed = of(a.kv_heads, a.group, (rows, asked.queries))
        elif heads is None:
            observed = Observed.of_rows((torch.arange(rows) >= rows - asked.queries).repeat(a.group), a.kv_heads)
        else:
            observed = Observed.of_heads(heads, a.group, (rows, asked.queries), asked.squares)
        observed = replace(observed.with_late(asked.queries, asked.late), times=asked.times)
        mask = _stacked_mask(rows, a.group, entry)
        found = await self.suite.observed_attention(self._stacked(q), k, v, mask, observed)
        assert found.out is not None
        return found.out, _told(found, a, asked)

    def _observed(self, q: Value, asked: Observation) -> Value:
        """Return the queries that are observed, as `observe` takes them, of a prompt's last ones [H, n', C]."""
        heads = asked.of_heads(self.architecture.heads)
        last = q[:, q.shape[1] - asked.queries :]
        return self._stacked(last) if heads is None else last[list(heads)]

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

    def _stacked_bias(self, bias: Value) -> Value:
        """Turn [H, n, S] -> [G, R n, S]."""
        a = self.architecture
        return bias.reshape(a.kv_heads, a.group * bias.shape[1], bias.shape[2])

    def _merged(self, attended: Value, rows: int) -> Value:
        """Turn [G, R n, C] -> [n, H C]."""
        a = self.architecture
        return attended.reshape(a.heads, rows, a.head_channels).permute(1, 0, 2).reshape(rows, a.heads * a.head_channels)


async def observe(suite: Suite, a: Architecture, entry: LayerCache, q: Value, asked: Observation) -> Seen:
    """Return what is asked of the attention of a prompt's last n queries alone: [G, R n, C], or [M, n, C] of query heads
    that are told by themselves."""
    k, _ = entry.keys_and_values()
    heads = asked.of_heads(a.heads)
    if heads is not None:
        k = k[[head // a.group for head in heads]]
    every = Observed.of_rows(torch.ones(q.shape[1], dtype=torch.bool), q.shape[0])
    if asked.each or asked.alone:
        of = Observed.of_single if asked.alone else Observed.of_queries
        every = of(a.kv_heads, a.group, (asked.queries, asked.queries))
    mask = _stacked_mask(asked.queries, q.shape[1] // asked.queries, entry)
    every = replace(every, squares=asked.squares, times=asked.times).with_late(asked.queries, asked.late)
    found = await suite.observed_attention(q, k, None, mask, every)
    return _told(found, a, asked)


def _stacked_mask(rows: int, heads: int, entry: LayerCache) -> Tensor | None:
    """Return the mask of the last `rows` cached tokens' queries, those of `heads` heads one behind the other."""
    mask = causal_mask(rows, entry.length, entry.window)
    return None if mask is None else mask.repeat(heads, 1)


def _told(found: Attended, a: Architecture, asked: Observation) -> Seen:
    """Return what a policy is told of an observed attention."""
    heads = asked.heads_of_sum(a.heads, a.kv_heads)
    if asked.each:
        each = found.mass.reshape(a.kv_heads, asked.queries, found.mass.shape[1]).sum(0)
        return Seen(each, 1, heads, each=True)
    queries = 1 if asked.alone else asked.queries
    return Seen(found.mass, queries, heads, found.squares, late=found.late, late_queries=asked.late)


def _last(q: Value, count: int) -> Value:
    """Return the last queries [H, count, C] of [H, n, C]."""
    return q if q.shape[1] == count else q[:, q.shape[1] - count :]
