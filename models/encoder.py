"""The transformer encoder, written once against `protocols.suite.Suite`: one pass over a text, no cache, no policy.

Compute parties, dealer and the plain reference run this very code. A text is padded to a public length; which of its tokens
are padding is secret: the client shares a mask, of which a secret bias on the scores is made. Token types and the place (or
the weights of the places) that an output is taken from are secret as well.

Axis names as in `protocols.suite`: T tokens, padding included, D width, H heads, C head channels, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from models.encoder_architecture import EncoderArchitecture
from models.loaded import check_weights
from models.outputs import Output
from mpc.errors import ConfigurationError
from protocols.suite import Linear, Norm, Suite, Value

Probe = Callable[[str, Value], None]
"""Sees intermediate values by name: "embedding", "layer N/attention", "layer N/mlp" (normalised rows after each, to which
gain and offset are still to come), and the output's own name."""

PADDING_BIAS = 40
"""What is taken from the scores of padding: its probability is below e^-30 unless its score lies 10 above all others. What
attention it gets is checked (`Suite.unattended`)."""
ROWS = ("tokens", "mask", "types", "places")
"""What a client shares of a text, one row of T numbers each."""


@dataclass(frozen=True)
class Text:
    """A text as secret values. tokens: `Suite.indices` [T]. mask: 1 at tokens and 0 at padding [T]. types: `Suite.indices`
    [T], None where the model has but one. places: 1 at the tokens of which an output of one row is the sum [1, T]."""

    tokens: Value
    mask: Value
    types: Value | None
    places: Value

    @classmethod
    def shared(cls, suite: Suite, architecture: EncoderArchitecture, tokens: int, share: Tensor | None) -> Text:
        """Return the text of a role's share, int64 [4, T] in Z_2^64 with the rows `ROWS` (for `plain` the numbers
        themselves); None where there is none."""
        ids, mask, kinds, places = (None,) * 4 if share is None else share.unbind(0)
        return cls(
            tokens=suite.indices(tokens, ids, architecture.vocabulary),
            mask=suite.input((tokens,), mask, 0),
            types=suite.indices(tokens, kinds, architecture.types) if architecture.types > 1 else None,
            places=suite.input((1, tokens), None if places is None else places.reshape(1, -1), 0),
        )


class Encoder:
    """A model in a session. weights: from `load_weights`. probe: sees intermediate values; in suites that compute on shares
    it must be given to all parties and the dealer alike."""

    def __init__(
        self,
        suite: Suite,
        architecture: EncoderArchitecture,
        weights: Mapping[str, Value],
        probe: Probe | None = None,
    ) -> None:
        check_weights(architecture, weights)
        self.suite = suite
        suite.begin(architecture.layers + 1)
        self.architecture = architecture
        self._weights = weights
        self._probe: Probe = probe if probe is not None else lambda name, value: None

    async def forward(self, text: Text, progress: Callable[[int, int], None] = lambda done, total: None) -> Value:
        """Return the normalised rows after the last layer, [T, D]; the last norm's gain and offset are still to come.

        progress(done, total): called after each layer. Raises `ConfigurationError` for a text that does not fit.
        """
        layers = self.architecture.layers
        rows = await self.embedded(text)
        for layer in range(layers):
            rows = await self.layer(rows, text.mask, layer)
            progress(layer + 1, layers)
        return rows

    async def embedded(self, text: Text) -> Value:
        """Return the normalised rows before the first layer, [T, D]."""
        suite, tokens = self.suite, text.tokens.shape[0]
        if tokens > self.architecture.positions:
            raise ConfigurationError(
                f"a text of {tokens} tokens does not fit the model's {self.architecture.positions} positions; shorten it"
            )
        suite.at(0)
        with suite.ledger.timed("embedding"):
            found = [suite.look_up(text.tokens, self._weights["embedding.tokens"])]
            if text.types is not None:
                found.append(suite.look_up(text.types, self._weights["embedding.types"]))
            rows, *types = await suite.together(*found)
            for more in types:
                rows = rows + more
            normalised = await self._normalised(rows + self._weights["embedding.positions"][:tokens])
        self._probe("embedding", normalised)
        return normalised

    async def layer(self, rows: Value, mask: Value, layer: int) -> Value:
        """Run a layer on normalised rows [T, D]; mask: see `Text`."""
        suite, at = self.suite, f"layers.{layer}"
        suite.at(layer)
        with suite.ledger.timed(f"layer {layer}/attention"):
            residual, fused = await self._read(rows, f"{at}.attention.gain", f"{at}.attention.qkv")
            attended, mass = await self._attention(fused, mask)
            out = suite.linear(attended, self._linear(f"{at}.attention.out"), residual)
            h, _ = await suite.together(out, suite.unattended(mass))
            rows = await self._normalised(h)
        self._probe(f"layer {layer}/attention", rows)
        with suite.ledger.timed(f"layer {layer}/mlp"):
            residual, up = await self._read(rows, f"{at}.mlp.gain", f"{at}.mlp.up")
            active = await suite.activation(up, self.architecture.activation)
            h = await suite.linear(active, self._linear(f"{at}.mlp.down"), residual)
            rows = await self._normalised(h)
        self._probe(f"layer {layer}/mlp", rows)
        return rows

    async def output(self, rows: Value, text: Text, kind: Output) -> Value:
        """Return what the client is to learn, of rows after the last layer [T, D]: `EncoderArchitecture.output_shape`,
        with at most `fraction_bits` fraction bits, cut exactly (`Suite.released`). Of "mean" it is the sum over the tokens
        that `text.places` marks, whose number the client knows."""
        suite, a = self.suite, self.architecture
        suite.at(a.layers)
        with suite.ledger.timed("head"):
            count = text.places.sum(-1, keepdim=True)
            if kind in ("mean", "words"):
                rows = await suite.matmul(text.places, rows)
            elif kind in ("cls", "pooled", "classes"):
                rows = rows[:1]
            if kind == "mean":
                both = ((rows, "final.gain"), (count, "final.offset"))
                total, offset = await suite.together(*(suite.gained(x, self._weights[name]) for x, name in both))
                found = total + offset
            elif kind in ("cls", "hidden"):
                found = await suite.gained(rows, self._weights["final.gain"]) + self._weights["final.offset"]
            elif kind in ("pooled", "classes"):
                found = await self._pooled(rows)
                if kind == "classes":
                    found = await suite.whole_linear(found, self._linear("head"))
            elif kind == "words":
                active = await suite.activation(await suite.linear(rows, self._linear("words")), a.activation)
                (found,) = await suite.norm_linear(active, Norm("layer", a.norm.epsilon), [self._linear("head")], True)
            else:
                found = await suite.whole_linear(rows, self._linear("head"))
            found = await suite.released(found)
        self._probe(kind, found)
        return found

    async def _pooled(self, rows: Value) -> Value:
        """Return the first row [1, D] behind the dense layer and its function."""
        dense = await self.suite.linear(rows, self._linear("pooler"))
        if self.architecture.pooler == "tanh":
            return await self.suite.tanh(dense)
        return await self.suite.activation(dense, "relu")

    def _linear(self, name: str) -> Linear:
        return Linear(self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    async def _normalised(self, h: Value) -> Value:
        return await self.suite.post_norm(h, self.architecture.norm)

    async def _read(self, rows: Value, gain: str, layer: str) -> tuple[Value, Value]:
        """Return the residual path and a linear layer of the same rows."""
        suite = self.suite
        residual, out = await suite.together(
            suite.gained(rows, self._weights[gain]), suite.linear(rows, self._linear(layer))
        )
        return residual, out

    async def _attention(self, fused: Value, mask: Value) -> tuple[Value, Value]:
        """Return the heads' outputs [T, H C], from queries, keys and values [T, 3 H C], and how much attention padding gets,
        [H, T, 1]: a channel more of the values, 1 there. Every token sees every token."""
        suite, a = self.suite, self.architecture
        tokens = fused.shape[0]
        split = fused.reshape(tokens, 3 * a.heads, a.head_channels).permute(1, 0, 2)
        q, k, v = split[: a.heads], split[a.heads : 2 * a.heads], split[2 * a.heads :]
        padding = (mask + -1.0) * -1
        v = suite.concat([v, padding.reshape(1, tokens, 1).expand(a.heads, tokens, 1)], -1)
        q, k, v = await suite.together(suite.mask_queries(q), suite.mask_for_cache(k), suite.mask_for_cache(v, "value"))
        found = await suite.biased_attention(q, k, v, (padding * -PADDING_BIAS).reshape(1, 1, -1))
        attended = found[..., : a.head_channels].permute(1, 0, 2).reshape(tokens, a.heads * a.head_channels)
        return attended, found[..., a.head_channels :]
