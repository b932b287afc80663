"""The largest values of every declared kind by layer, of a checkpoint that runs in plaintext, one layer's weights at a time.

All sequences go through a layer while its weights are there, so memory is that of one layer (or of the token table, or of
the head), of the sequences' hidden states and of one layer's keys and values, whatever the number of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.architecture import Architecture
from models.attention import Rows
from models.balancing import provable_bounds
from models.checkpoint import Checkpoint
from models.decoder import StreamedDecoder
from models.weight_limits import check_size
from mpc.errors import ConfigurationError
from protocols.bounds import RANGE_KINDS
from protocols.plain.suite import PlainSuite, PlainValue, tensor_of
from protocols.suite import Activation, Linear, Norm, Value

HEAD_ROWS = 128
Progress = Callable[[int, int], None]

PROVABLE = "provable activation"
TABLE = "token table"
DETAILS = ("|scores|", "queries", "keys", "gate", "up", "activation * up", "router", "smallest norm", PROVABLE, TABLE)
"""What is recorded beside the kinds: for people, parts of the activations and products of gate and up (not limited by a
bound of their own); for the choice of bounds, what no prompt can exceed: outputs of linear layers after a norm (logits at
place L), and norms of rows of the token table with their positions (at places that they enter)."""


@dataclass(frozen=True)
class Extremes:
    """Largest values: kinds[kind][place], 0 where a place has no value of the kind; place L is the final norm and the head.

    residual: largest Euclidean norm of a row of the residual stream, entering either norm of the layer or leaving it.
    score: largest spread (maximum - minimum over what is not masked) of a row of attention scores, or of a router's logits.
    value: |cached value|.
    activation: |output of a linear layer| that does not write to the residual stream, queries and keys after rotation
    included. logits: |logit|. details: see `DETAILS`.
    """

    kinds: dict[str, list[float]]
    details: dict[str, list[float]] = field(default_factory=dict)
    tokens: int = 0

    def worst(self, kind: str) -> tuple[float, int]:
        """Return the largest value of a kind, and where."""
        values = self.kinds[kind]
        place = max(range(len(values)), key=values.__getitem__)
        return values[place], place


class RecordingSuite(PlainSuite):
    """The suite `plain`, which notes extremes of what passes. places: number of layers and one."""

    def __init__(self, places: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(dtype)
        self.places = places
        self.kinds: dict[str, list[float]] = {kind: [0.0] * places for kind in RANGE_KINDS}
        self.details: dict[str, list[float]] = {name: [0.0] * places for name in DETAILS}
        self.details["smallest norm"] = [float("inf")] * places

    def note(self, name: str, x: Tensor) -> None:
        """Note |x| at the place of the moment."""
        known = self.kinds if name in self.kinds else self.details
        known[name][self.place] = max(known[name][self.place], float(x.abs().max()))

    def note_stream(self, h: Value) -> None:
        """Note the norms of the rows of a residual stream [T, D]."""
        norms = tensor_of(h).norm(dim=-1)
        self.note("residual", norms)
        smallest = self.details["smallest norm"]
        smallest[self.place] = min(smallest[self.place], float(norms.min()))

    async def norm_linear(self, x: Value, norm: Norm | None, layers: Sequence[Linear], whole: bool = False) -> list[Value]:
        """As in `plain`; notes the rows that enter and what the layers give."""
        self.note_stream(x)
        outputs = await super().norm_linear(x, norm, layers)
        kind = "logits" if self.place == self.places - 1 else "activation"
        for layer, y in zip(layers, outputs, strict=True):
            self.note(kind, tensor_of(y))
            if norm is None:
                continue
            bound = provable_bounds(tensor_of(layer.weight), None if layer.bias is None else tensor_of(layer.bias))
            self.note(PROVABLE, bound)
        return outputs

    async def norm_gain(self, x: Value, norm: Norm, gain: Value, residual: Value | None = None) -> Value:
        """As in `plain`; notes what enters."""
        self.note("activation", tensor_of(x))
        return await super().norm_gain(x, norm, gain, residual)

    async def linear(self, x: Value, layer: Linear, residual: Value | None = None) -> PlainValue:
        """As in `plain`; notes keys and values of rows that are normalised already."""
        found = await super().linear(x, layer, residual)
        if layer.use == "heads":
            self.note("activation", found.tensor)
            bias = None if layer.bias is None else tensor_of(layer.bias)
            self.note(PROVABLE, provable_bounds(tensor_of(layer.weight), bias))
        return found

    async def attention(self, q: Value, k: Value, v: Value, mask: Tensor | None) -> PlainValue:
        """As in `plain`; notes queries, keys, values and scores."""
        return self._attended(q, k, v, mask)

    async def biased_attention(self, q: Value, k: Value, v: Value, bias: Value, mask: Tensor | None = None) -> PlainValue:
        """As in `plain`; notes the same, scores without a bias that has a bound of its own."""
        return self._attended(q, k, v, mask, aside=tensor_of(bias))

    async def relative_attention(self, q: Value, k: Value, v: Value, bias: Value, mask: Tensor | None) -> PlainValue:
        """As in `plain`; notes the same, scores with their bias."""
        return self._attended(q, k, v, mask, learned=tensor_of(bias))

    def _attended(
        self,
        q: Value,
        k: Value,
        v: Value,
        mask: Tensor | None,
        learned: Tensor | float = 0.0,
        aside: Tensor | float = 0.0,
    ) -> PlainValue:
        queries, keys = tensor_of(q), tensor_of(k)
        for name, x in (("queries", queries), ("keys", keys)):
            self.note(name, x)
            self.note("activation", x)
        self.note("value", tensor_of(v))
        scores = queries @ keys.transpose(1, 2) + learned
        seen = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.expand_as(scores)
        cap = self.score_cap
        if cap is not None:  # what the cap is taken of is bounded itself
            self.note("score", scores.masked_fill(~seen, 0.0))
            self.note("|scores|", scores.masked_fill(~seen, 0.0))
            capped = (torch.tanh(scores / cap) * cap).masked_fill(~seen, -torch.inf)
            return PlainValue(torch.softmax(capped, -1) @ tensor_of(v))
        spread = scores.masked_fill(~seen, -torch.inf).amax(-1) - scores.masked_fill(~seen, torch.inf).amin(-1)
        self.note("score", spread)
        self.note("|scores|", scores.masked_fill(~seen, 0.0))
        probabilities = torch.softmax((scores + aside).masked_fill(~seen, -torch.inf), -1)
        return PlainValue(probabilities @ tensor_of(v))

    async def gated_activation(self, gate: Value, up: Value, kind: Activation) -> PlainValue:
        """As in `plain`; notes gate, up and their product."""
        self.note("gate", tensor_of(gate))
        self.note("up", tensor_of(up))
        product = PlainValue(tensor_of(await self.activation(gate, kind)) * tensor_of(up))
        self.note("activation * up", product.tensor)
        return product

    async def route(self, logits: Value, chosen: int, renormalised: bool) -> tuple[Value, Value]:
        """As in `plain`; notes the spread of a row of logits, as of a row of scores."""
        rows = tensor_of(logits)
        self.note("score", rows.amax(-1) - rows.amin(-1))
        self.note("router", rows)
        return await super().route(logits, chosen, renormalised)


def layer_weights(architecture: Architecture, layer: int) -> list[str]:
    """Return the names of a layer's canonical weights, the biases of its relative positions among them."""
    side = "distances.encoder" if architecture.reads(layer) else "distances.decoder"
    return [name for name in architecture.weight_shapes() if name.startswith((f"layers.{layer}.", side))]


class StreamedModel:
    """A checkpoint in the suite `plain` whose weights are read when they are needed and given up after that.

    sequences: token ids each, run beside each other from layer to layer; a decoder behind an encoder is given, behind its
    first token, so many of the same ids as `answers` says, all by default. note: told the name and the tensor [T, D] or
    [T, V] (rows of several sequences one after the other) that each part gives: "embedding", "layer N/attention",
    "layer N/mlp", "logits" in pieces of rows.
    """

    def __init__(self, checkpoint: Checkpoint, suite: PlainSuite, answers: int | None = None) -> None:
        self.checkpoint = checkpoint
        self.architecture: Architecture = checkpoint.architecture
        self.suite = suite
        self.answers = answers
        self._weights: dict[str, Value] = {}

    def _load(self, names: Sequence[str]) -> None:
        self._weights.clear()
        for name in names:
            shape = self.architecture.weight_shapes()[name]
            values = self.checkpoint.weights[name]
            check_size(self.architecture, name, values)
            self._weights[name] = self.suite.run(self.suite.weight(name, shape, values))

    @torch.inference_mode()
    def run(
        self,
        sequences: Sequence[Sequence[int]],
        note: Callable[[str, Tensor], None] = lambda name, rows: None,
        on_progress: Progress = lambda done, total: None,
    ) -> None:
        """Push all sequences through the model; what comes of it goes to `note` and to what the suite notes."""
        a, suite = self.architecture, self.suite
        decoder = StreamedDecoder(suite, a, self._weights, probe=self._probe(note))
        self._noted: dict[str, list[Tensor]] = {}
        caches = [decoder.new_cache() for _ in sequences]
        streams = self._embedded(sequences)
        note("embedding", torch.cat([tensor_of(h) for h in streams]))
        for layer in range(a.layers):
            on_progress(layer, a.layers + 1)
            if a.encoder is not None and layer == a.encoder.layers:
                for h, cache in zip(streams, caches, strict=True):
                    suite.run(decoder.read(h, cache))
                streams = self._answers(sequences)
                note("start", torch.cat([tensor_of(h)[:1] for h in streams]))
            self._load(layer_weights(a, layer))
            for n, (h, cache) in enumerate(zip(streams, caches, strict=True)):
                count = h.shape[0]
                bias = decoder.reading_bias(count) if a.reads(layer) else decoder.bias(0, count)
                rows = Rows(count, decoder.angles(0, count, count), bias)
                streams[n] = suite.run(decoder.layer(h, cache, layer, rows))
                if isinstance(suite, RecordingSuite):
                    suite.note_stream(streams[n])
                cache.layers[layer].k = cache.layers[layer].v = None
                cache.prompt.keys_and_values.clear()
            self._tell(note)
        on_progress(a.layers, a.layers + 1)
        self._load([name for name in a.weight_shapes() if name.startswith("head.")])
        last = PlainValue(torch.cat([tensor_of(h) for h in streams]))
        for start in range(0, last.shape[0], HEAD_ROWS):
            suite.run(decoder.head(last[start : start + HEAD_ROWS], decoder.new_cache()))
            self._tell(note)
        self._weights.clear()
        on_progress(a.layers + 1, a.layers + 1)

    def _probe(self, note: Callable[[str, Tensor], None]) -> Callable[[str, Value], None]:
        def probe(name: str, value: Value) -> None:
            self._noted.setdefault(name, []).append(tensor_of(value))

        return probe

    def _tell(self, note: Callable[[str, Tensor], None]) -> None:
        for name, rows in self._noted.items():
            note(name, torch.cat(rows))
        self._noted.clear()

    def _embedded(self, sequences: Sequence[Sequence[int]], place: int = 0) -> list[Value]:
        """Return the rows of the token table, and of the positions', which enter the layer at a place."""
        a = self.architecture
        self.suite.at(place)
        table = self.checkpoint.weights["embedding.tokens"]
        rows = [table[torch.tensor(list(ids))] for ids in sequences]
        largest = table.norm(dim=-1).max()
        del table
        if a.learned_positions:
            positions = self.checkpoint.weights["embedding.positions"]
            largest = largest + positions.norm(dim=-1).max()
            rows = [x + positions[: x.shape[0]] for x in rows]
        if isinstance(self.suite, RecordingSuite):
            self.suite.note(TABLE, largest)
        return [PlainValue(x.to(self.suite.device, self.suite.dtype)) for x in rows]

    def _answers(self, sequences: Sequence[Sequence[int]]) -> list[Value]:
        """Return what a decoder behind an encoder reads of its own: rows of the token table behind that of its first
        token."""
        encoder = self.architecture.encoder
        assert encoder is not None
        return self._embedded([[encoder.start, *ids[: self.answers]] for ids in sequences], encoder.layers)


def measure(
    checkpoint: Checkpoint, sequences: Sequence[Sequence[int]], on_progress: Progress = lambda done, total: None
) -> Extremes:
    """Return the extremes of a checkpoint (loaded as float32) on token sequences, each no longer than the model's
    positions."""
    a = checkpoint.architecture
    for ids in sequences:
        if not ids or len(ids) > a.positions or not all(0 <= token < a.vocabulary for token in ids):
            raise ConfigurationError(
                f"a calibration sequence of {len(ids)} tokens does not fit the model's {a.positions} positions and "
                f"{a.vocabulary} tokens; tokenizer and model must belong together"
            )
    suite = RecordingSuite(a.layers + 1)
    StreamedModel(checkpoint, suite).run(sequences, on_progress=on_progress)
    return Extremes(suite.kinds, suite.details, sum(len(ids) for ids in sequences))


def as_json(values: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Return them with four digits, which are enough for people and for a margin of one bit."""
    return {name: [float(f"{x:.4g}") if x != float("inf") else 0.0 for x in places] for name, places in values.items()}
