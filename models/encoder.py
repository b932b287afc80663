"""The transformer encoder, written once against `protocols.suite.Suite`: one pass over texts, no cache, no policy.

Compute parties, dealer and the plain reference run this very code. Texts that are read together are padded to one public
length and share every round; each attends to itself alone. Which of their tokens are padding is secret: the client shares a
mask, of which a secret bias on the scores is made. Token types and the place (or the weights of the places) that an output
is taken from are secret as well.

Axis names as in `protocols.suite`: B texts, T tokens of each, padding included, D width, H heads, C head channels, F
feed-forward width.
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
"""What a client shares of texts, one row of a number a token each."""


@dataclass(frozen=True)
class Batch:
    """Texts of one padded length as secret values. count: B, public. tokens: `Suite.indices` [B T]. mask: 1 at tokens and 0
    at padding [B T]. types: `Suite.indices` [B T], None where the model has but one. places: 1 at the tokens of which an
    output of one row a text is the sum [B, 1, T]."""

    count: int
    tokens: Value
    mask: Value
    types: Value | None
    places: Value

    @property
    def length(self) -> int:
        """Return T."""
        return int(self.tokens.shape[0]) // self.count

    @classmethod
    def shared(cls, suite: Suite, architecture: EncoderArchitecture, sizes: tuple[int, int], share: Tensor | None) -> Batch:
        """Return the texts of a role's share, int64 [4, B T] in Z_2^64 with the rows `ROWS` (for `plain` the numbers
        themselves); None where there is none. sizes: B and T."""
        count, length = sizes
        tokens = count * length
        ids, mask, kinds, places = (None,) * 4 if share is None else share.unbind(0)
        shape = (count, 1, length)
        return cls(
            count=count,
            tokens=suite.indices(tokens, ids, architecture.vocabulary),
            mask=suite.input((tokens,), mask, 0),
            types=suite.indices(tokens, kinds, architecture.types) if architecture.types > 1 else None,
            places=suite.input(shape, None if places is None else places.reshape(shape), 0),
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
        self._check_weights(architecture, weights)
        self.suite = suite
        suite.begin(architecture.layers + 1)
        self.architecture = architecture
        self._weights = weights
        self._probe: Probe = probe if probe is not None else lambda name, value: None

    def _check_weights(self, architecture: EncoderArchitecture, weights: Mapping[str, Value]) -> None:
        check_weights(architecture, weights)

    async def forward(self, texts: Batch, progress: Callable[[int, int], None] = lambda done, total: None) -> Value:
        """Return the normalised rows after the last layer, [B T, D]; the last norm's gain and offset are still to come.

        progress(done, total): called after each layer. Raises `ConfigurationError` for texts that do not fit.
        """
        layers = self.architecture.layers
        rows = await self.embedded(texts)
        for layer in range(layers):
            rows = await self.layer(rows, texts, layer)
            progress(layer + 1, layers)
        return rows

    async def embedded(self, texts: Batch) -> Value:
        """Return the normalised rows before the first layer, [B T, D]."""
        suite, a, length = self.suite, self.architecture, texts.length
        if length > a.positions:
            raise ConfigurationError(
                f"a text of {length} tokens does not fit the model's {a.positions} positions; shorten it"
            )
        suite.at(0)
        with suite.ledger.timed("embedding"):
            found = [suite.look_up(texts.tokens, self._weights["embedding.tokens"])]
            if texts.types is not None:
                found.append(suite.look_up(texts.types, self._weights["embedding.types"]))
            rows, *types = await suite.together(*found)
            for more in types:
                rows = rows + more
            places = self._weights["embedding.positions"][:length]
            if texts.count > 1:
                places = suite.concat([places] * texts.count, 0)
            normalised = await self._normalised(rows + places)
        self._probe("embedding", normalised)
        return normalised

    async def layer(self, rows: Value, texts: Batch, layer: int) -> Value:
        """Run a layer on normalised rows [B T, D] of texts."""
        suite, at = self.suite, f"layers.{layer}"
        suite.at(layer)
        with suite.ledger.timed(f"layer {layer}/attention"):
            residual, fused = await self._read(rows, f"{at}.attention.gain", f"{at}.attention.qkv")
            attended, mass = await self._attention(fused, texts)
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

    async def output(self, rows: Value, texts: Batch, kind: Output) -> Value:
        """Return what the client is to learn, of rows after the last layer [B T, D]: the rows of each text as
        `EncoderArchitecture.output_shape` says, one text after the other, with at most `fraction_bits` fraction bits, cut
        exactly (`Suite.released`). Of "mean" it is the sum over the tokens that `texts.places` marks, whose number the
        client knows."""
        suite, a = self.suite, self.architecture
        suite.at(a.layers)
        with suite.ledger.timed("head"):
            count = texts.places.sum(-1, keepdim=True).reshape(texts.count, 1)
            each = rows.reshape(texts.count, texts.length, a.width)
            if kind in ("mean", "words"):
                rows = (await suite.matmul(texts.places, each)).reshape(texts.count, a.width)
            elif kind in ("cls", "pooled", "classes"):
                rows = each[:, :1].reshape(texts.count, a.width)
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
        """Return the first rows [B, D] behind the dense layer and its function."""
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

    async def _attention(self, fused: Value, texts: Batch) -> tuple[Value, Value]:
        """Return the heads' outputs [B T, H C], from queries, keys and values [B T, 3 H C], and how much attention padding
        gets, [B H, T, 1]: a channel more of the values, 1 there. Every token sees every token of its text."""
        suite, a, count, length = self.suite, self.architecture, texts.count, texts.length
        heads, groups = a.heads, count * a.heads
        split = fused.reshape(count, length, 3 * heads, a.head_channels).permute(0, 2, 1, 3)

        def part(first: int) -> Value:
            found: Value = split[:, first * heads : (first + 1) * heads]
            return found.reshape(groups, length, a.head_channels)

        padding = ((texts.mask + -1.0) * -1).reshape(count, 1, 1, length)
        marks = padding.reshape(count, 1, length, 1).expand(count, heads, length, 1).reshape(groups, length, 1)
        v = suite.concat([part(2), marks], -1)
        q, k, v = await suite.together(
            suite.mask_queries(part(0)), suite.mask_for_cache(part(1)), suite.mask_for_cache(v, "value")
        )
        bias = (padding * -PADDING_BIAS).expand(count, heads, 1, length).reshape(groups, 1, length)
        found = await suite.biased_attention(q, k, v, bias)
        attended = found[..., : a.head_channels].reshape(count, heads, length, a.head_channels).permute(0, 2, 1, 3)
        return attended.reshape(count * length, heads * a.head_channels), found[..., a.head_channels :]


class StreamedEncoder(Encoder):
    """An encoder whose weights come and go: each is looked up when its part (`embedded`, `layer`, `output`) runs, and
    whoever puts it there has checked it."""

    def _check_weights(self, architecture: EncoderArchitecture, weights: Mapping[str, Value]) -> None:
        pass
