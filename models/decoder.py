"""The transformer decoder, written once against `protocols.suite.Suite`.

Compute parties, dealer and the plain reference run this very code. It looks at public shapes only: every branch depends on
the architecture, on token counts and on the cache policy, never on a value.

Axis names as in `protocols.suite`: T tokens, S cached tokens, D width, H query heads, G key/value heads, R = H / G,
C head channels, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.architecture import Architecture
from models.cache import Batch, CachePolicy, KVCache, causal_mask
from models.description import Description
from models.policies.full import FullCache
from models.rotary import cosines_and_sines
from mpc.errors import ConfigurationError
from protocols.suite import Linear, Suite, Value
from protocols.value import Use

Probe = Callable[[str, Value], None]
"""Sees intermediate values by name: "embedding", "layer N/attention", "layer N/mlp" (hidden state after each), "logits"."""

Angles = tuple[Tensor, Tensor]


LOAD = "model load"


async def load_weights(suite: Suite, architecture: Description, shares: Callable[[str], Tensor | None]) -> dict[str, Value]:
    """Return every canonical weight as a value, recorded under stage `LOAD`; one after the other, the largest first: making
    one ready takes several times its size for a moment.

    shares(name): this party's share of that weight (float tensor for `plain`, None at the dealer and in `estimate`). The
    values serve later sessions too, with a suite instance of the same kind.
    """
    with suite.ledger.timed(LOAD):
        shapes = sorted(architecture.weight_shapes().items(), key=lambda item: -math.prod(item[1]))
        return {name: await suite.weight(name, shape, shares(name)) for name, shape in shapes}


@dataclass(frozen=True)
class _Layer:
    qkv: Linear
    out: Linear
    up: Linear
    gate: Linear | None
    down: Linear


class Decoder:
    """A model in a session.

    weights: from `load_weights`. policy: what the cache keeps, everything by default. probe: sees intermediate values; in
    suites that compute on shares it must be given to all parties and the dealer alike.
    """

    def __init__(
        self,
        suite: Suite,
        architecture: Architecture,
        weights: Mapping[str, Value],
        policy: CachePolicy | None = None,
        probe: Probe | None = None,
    ) -> None:
        self._check_weights(architecture, weights)
        self.suite = suite
        suite.begin(architecture.layers + 1)
        self.architecture = architecture
        self._group = architecture.group
        self.policy: CachePolicy = FullCache() if policy is None else policy
        self._weights = weights
        self._probe: Probe = probe if probe is not None else lambda name, value: None

    def _check_weights(self, architecture: Architecture, weights: Mapping[str, Value]) -> None:
        for name, shape in architecture.weight_shapes().items():
            if name not in weights:
                raise ConfigurationError(f"weight '{name}' {list(shape)} is missing; load the model that the manifest names")
            if tuple(weights[name].shape) != shape:
                raise ConfigurationError(
                    f"weight '{name}' has shape {list(weights[name].shape)}, the architecture needs {list(shape)}"
                )

    def _linear(self, name: str, use: Use = "any") -> Linear:
        return Linear(self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"), use)

    def _weights_of(self, layer: int) -> _Layer:
        at = f"layers.{layer}"
        return _Layer(
            qkv=self._linear(f"{at}.attention.qkv", "heads" if self.architecture.rotary is None else "rotated"),
            out=self._linear(f"{at}.attention.out"),
            up=self._linear(f"{at}.mlp.up", "function"),
            gate=self._linear(f"{at}.mlp.gate", "function") if self.architecture.gated else None,
            down=self._linear(f"{at}.mlp.down"),
        )

    def new_cache(self) -> KVCache:
        """Return an empty cache for a session."""
        return KVCache(self.architecture, self.policy)

    async def forward(
        self,
        inputs: Value,
        cache: KVCache,
        last_only: bool = False,
        progress: Callable[[int, int], None] | None = None,
        whole: bool = False,
    ) -> Value:
        """Return the logits of the next token after each of the tokens, or after the last one only.

        inputs: secret tokens: `Suite.indices` [T], as a client shares them, or one-hot rows [T, V] with 0 fraction bits,
        as an arg-max leaves them. cache: holds what was processed before, grows by T tokens. A batch of several tokens
        (or the first token) is a prompt batch: public causal mask. A single later token attends to what the cache policy
        selects; several of them go through `verify`. progress(done, total): called after each layer. whole: of the logits
        no fraction bit is cut, see `Suite.released`. Returns [T, V], or [1, V] with `last_only`.

        Raises `ConfigurationError` when shapes or positions do not fit the architecture.
        """
        a, position = self.architecture, cache.seen
        tokens = self._checked(inputs, position)
        batch = Batch(max(cache.prompt_tokens, position + tokens), position, tokens)
        angles = self._angles_of(cache, tokens)
        h = await self.embedded(inputs, position)
        cache.ahead = 0 if cache.prompt_end is None else self.policy.looking_ahead(batch)
        if cache.ahead:
            h, angles = self._with_ahead(h, angles, cache, batch)
        for layer in range(a.layers):
            h = await self.layer(h, cache, layer, angles, 1 if last_only and layer == a.layers - 1 else h.shape[0])
            if progress is not None:
                progress(layer + 1, a.layers)
        if not cache.drafted:
            cache.seen += tokens
        return await self.head(h, cache, whole)

    async def verify(self, inputs: Value, cache: KVCache) -> Value:
        """Return the logits [n, V] after each of n drafted tokens behind the cache, `Suite.indices` [n]: those that each of
        them would get as the only one of its step, if the ones before it are right.

        The cache then holds all n; `keep` says how many of them stay, before anything else is computed. For policies that
        verify (`CachePolicy.verifies`). Raises `ConfigurationError` as `forward` does.
        """
        cache.drafted = self._checked(inputs, cache.seen)
        return await self.forward(inputs, cache)

    async def keep(self, cache: KVCache, rows: int) -> None:
        """Let the first `rows` of the tokens that were verified last stay in the cache, public; the others are dropped."""
        cache.keep(self.suite, rows)
        for layer in range(self.architecture.layers):
            cache.trim(layer)
            self.suite.at(layer)
            await self.policy.after_kept(self.suite, cache, layer, rows)
        cache.drafted = 0

    async def embedded(self, inputs: Value, position: int) -> Value:
        """Return the residual stream before the first layer, [T, D]. inputs: as in `forward`."""
        suite = self.suite
        suite.at(0)
        with suite.ledger.timed("embedding"):
            rows = suite.look_up if len(inputs.shape) == 1 else suite.embed
            h = await rows(inputs, self._weights["embedding.tokens"])
            if self.architecture.rotary is None:
                h = h + self._weights["embedding.positions"][position : position + inputs.shape[0]]
        self._probe("embedding", h)
        return h

    async def layer(self, h: Value, cache: KVCache, layer: int, angles: Angles | None, rows: int) -> Value:
        """Run a layer on the residual stream: h [T, D] -> its last `rows` rows, [rows, D]."""
        suite = self.suite
        suite.at(layer)
        with suite.ledger.timed(f"layer {layer}/attention"):
            h = await self._attention(h, cache, layer, angles, rows)
        self._probe(f"layer {layer}/attention", h)
        with suite.ledger.timed(f"layer {layer}/mlp"):
            h = await self._mlp(h, self._weights_of(layer))
        self._probe(f"layer {layer}/mlp", h)
        return h

    async def head(self, h: Value, cache: KVCache, whole: bool = False) -> Value:
        """Return the logits [T, V] of the residual stream after the last layer, [T, D]; `whole` as in `forward`."""
        suite = self.suite
        suite.at(self.architecture.layers)
        with suite.ledger.timed("head"):
            (logits,) = await suite.norm_linear(h, self.architecture.norm, [self._linear("head")], whole)
        await cache.settle()
        self._probe("logits", logits)
        return logits

    def _with_ahead(self, h: Value, angles: Angles | None, cache: KVCache, batch: Batch) -> tuple[Value, Angles | None]:
        """Return rows and angles of a batch, with those of the `cache.ahead` last tokens of the prompt behind them."""
        count, end = cache.ahead, cache.prompt_end
        assert end is not None
        theirs = self.angles(batch.prompt - count, count, batch.prompt)
        if angles is not None and theirs is not None:
            angles = torch.cat([angles[0], theirs[0]]), torch.cat([angles[1], theirs[1]])
        return self.suite.concat([h, end[end.shape[0] - count :]], 0), angles

    def _checked(self, inputs: Value, position: int) -> int:
        """Return T, after checking public shapes and positions."""
        a = self.architecture
        if inputs.shape[:1] == (0,) or tuple(inputs.shape[1:]) not in ((), (a.vocabulary,)):
            raise ConfigurationError(f"inputs must be [tokens] or [tokens, {a.vocabulary}], got {list(inputs.shape)}")
        tokens = inputs.shape[0]
        if position + tokens > a.positions:
            raise ConfigurationError(
                f"token {position + tokens} does not fit the model's {a.positions} positions; shorten prompt or answer"
            )
        return tokens

    def angles(self, position: int, tokens: int, length: int) -> Angles | None:
        """Return the public cosines and sines [T, C] of rotary positions. length: of the sequence, with all of its
        prompt."""
        a = self.architecture
        if a.rotary is None:
            return None
        cos, sin = cosines_and_sines(a.rotary, a.head_channels, position, tokens, length)
        device = self.suite.public_device
        return cos.to(device), sin.to(device)

    def _angles_of(self, cache: KVCache, tokens: int) -> Angles | None:
        """Return `angles` of the next batch. A drafted token's sequence ends with it, as if it came alone."""
        position, prompt = cache.seen, cache.prompt_tokens
        if not cache.drafted:
            return self.angles(position, tokens, max(prompt, position + tokens))
        found = [self.angles(position + n, 1, max(prompt, position + n + 1)) for n in range(tokens)]
        each = [one for one in found if one is not None]
        return (torch.cat([cos for cos, _ in each]), torch.cat([sin for _, sin in each])) if each else None

    async def _attention(self, h: Value, cache: KVCache, layer: int, angles: Angles | None, rows: int) -> Value:
        """Run the attention sub-layer: h [T, D] -> its last `rows` rows, [rows, D]."""
        suite, a, weights, policy = self.suite, self.architecture, self._weights_of(layer), self.policy
        tokens = h.shape[0] - cache.ahead
        prompt = not cache.drafted and (tokens > 1 or cache.seen == 0 or cache.seen < cache.prompt_tokens)
        batch = Batch(max(cache.prompt_tokens, cache.seen + tokens), cache.seen, tokens)
        observed = policy.observed_in(batch, layer) if prompt else 0
        wanted = max(rows, observed)
        (fused,) = await suite.norm_linear(h, a.norm, [weights.qkv])
        q, k, v = await self._heads(fused, angles, wanted)
        q, _ = await suite.together(suite.mask_queries(q), cache.append(suite, layer, k, v))
        residual = h[h.shape[0] - rows :]
        if not prompt:
            attended = await self._token_attention(cache, layer, self._stacked(q))
            return await suite.linear(self._merged(attended, rows), weights.out, residual)
        keys, values = cache.layers[layer].keys_and_values()
        attended, mass = await self._prompt_attention(q, keys, values, cache.layers[layer].window, wanted, observed)
        if cache.ahead:
            cache.drop_last(suite, layer, cache.ahead)
            mass = None if mass is None else mass[:, : cache.layers[layer].length]
        merged = self._merged(attended, wanted)[wanted - rows :]
        out, _ = await suite.together(
            suite.linear(merged, weights.out, residual),
            policy.after_batch(suite, cache, layer, batch, mass),
        )
        cache.trim(layer)
        h_out: Value = out
        return h_out

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
        group, device = self._group, self.suite.public_device
        mask = causal_mask(rows, k.shape[1], window, device)
        if mask is not None:
            mask = mask.repeat(group, 1)
        if not observed:
            return await self.suite.attention(self._stacked(q), k, v, mask), None
        last = (torch.arange(rows, device=device) >= rows - observed).repeat(group)
        return await self.suite.attention_with_mass(self._stacked(q), k, v, mask, last)

    async def _heads(self, fused: Value, angles: Angles | None, rows: int) -> tuple[Value, Value, Value]:
        """Return the queries of the last `rows` tokens [H, rows, C], keys and values of all [G, T, C], from fused [T, (H
        + 2G) C]."""
        suite, a = self.suite, self.architecture
        tokens, channels = fused.shape[0], a.head_channels
        split = fused.reshape(tokens, a.heads + 2 * a.kv_heads, channels).permute(1, 0, 2)
        q, k, v = split[: a.heads, tokens - rows :], split[a.heads : a.heads + a.kv_heads], split[a.heads + a.kv_heads :]
        if angles is None:
            return q, k, v
        cos, sin = angles
        if rows == tokens:
            both = await suite.rotate(split[: a.heads + a.kv_heads], cos, sin)
            return both[: a.heads], both[a.heads :], v
        q, k = await suite.together(suite.rotate(q, cos[-rows:], sin[-rows:]), suite.rotate(k, cos, sin))
        return q, k, v

    def _stacked(self, q: Value) -> Value:
        """Turn [H, n, C] -> [G, R n, C], as `Suite.attention` takes queries."""
        a = self.architecture
        return q.reshape(a.kv_heads, self._group * q.shape[1], a.head_channels)

    def _merged(self, attended: Value, rows: int) -> Value:
        """Turn [G, R n, C] -> [n, H C]."""
        a = self.architecture
        return attended.reshape(a.heads, rows, a.head_channels).permute(1, 0, 2).reshape(rows, a.heads * a.head_channels)

    async def _mlp(self, h: Value, layer: _Layer) -> Value:
        """Run the feed-forward sub-layer: [T, D] -> [T, D]."""
        suite, a = self.suite, self.architecture
        if layer.gate is None:
            (up,) = await suite.norm_linear(h, a.norm, [layer.up])
            active = await suite.activation(up, a.activation)
        else:
            gate, up = await suite.norm_linear(h, a.norm, [layer.gate, layer.up])
            active = await suite.gated_activation(gate, up, a.activation)
        return await suite.linear(active, layer.down, h)


class StreamedDecoder(Decoder):
    """A decoder whose weights come and go: each is looked up when its part (`embedded`, `layer`, `head`) runs, and whoever
    puts it there has checked it."""

    def _check_weights(self, architecture: Architecture, weights: Mapping[str, Value]) -> None:
        pass
