"""What is public about a model: its sizes and kinds, and the names and shapes of its canonical weights.

All parties hold the same `Architecture`; its canonical JSON enters the manifest that they compare. Nothing here depends on
a weight. Canonical weights are what `models.checkpoint` makes of a checkpoint and `models.decoder` computes with: every
normalisation's centring, gain and offset folded into the linear layers behind it (see `protocols.suite.Norm`), the score
scale 1/sqrt(C) in the query weights (with normalised queries in their gain), queries, keys and values in one matrix, every
matrix stored [in, out], the channels of queries and keys in an order in which rotary positions turn channels c and c + C/2.
Gains of norms behind which there is no linear layer are vectors of their own.
The experts of a layer are one feed-forward layer of width E F, expert after expert, with the router beside it.

Axis names as in `protocols.suite`: D width, H query heads, G key/value heads, C head channels, F feed-forward width,
V vocabulary, P positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, Strict

from models.description import Count, Description, Positive, PublicRecord, TokenId
from models.prompt_encoder import PromptEncoder
from mpc.errors import ConfigurationError
from protocols.suite import Norm


class Rotary(PublicRecord):
    """Rotary position embedding in half-split form, frequencies theta^(-2i/R) scaled as `scaling` says.

    channels: R, how many channels of a head turn, in pairs (i, i + C/2) for i < R/2; None: all C.

    scaling "default": as they are; "linear": divided by `factor`; "llama3": divided by `factor` where the wavelength is
    long against `original_positions`, unchanged where it is short, blended between the two; "yarn": the same with another
    blend, linear in the channel between the ones that turn `beta_fast` and `beta_slow` times within `original_positions`
    (rounded outwards to whole channels with `truncate`); "dynamic": theta grows with the sequence once that is longer than
    `original_positions`; "factors": each divided by its own one of `factors` [R / 2]. attention_factor: cosines and sines
    are multiplied by it, scores hence by its square, which is folded into the query weights.
    """

    theta: Positive = 10_000.0
    scaling: Literal["default", "linear", "llama3", "dynamic", "yarn", "factors"] = "default"
    factor: Positive = 1.0
    low_frequency_factor: Positive = 1.0
    high_frequency_factor: Positive = 4.0
    original_positions: Count = 8192
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    truncate: bool = True
    attention_factor: Positive = 1.0
    channels: Count | None = None
    factors: Annotated[tuple[Positive, ...], Strict(False)] = ()

    def turning(self, channels: int) -> int:
        """Return R, the channels that turn of a head with so many."""
        return channels if self.channels is None else self.channels

    def _check(self) -> None:
        if self.channels is not None and self.channels % 2:
            raise ValueError(f"'channels' = {self.channels} must be even: they turn in pairs")
        if (self.scaling == "factors") != bool(self.factors):
            raise ValueError(f"'factors' has {len(self.factors)} entries, which belong to 'scaling' = 'factors' alone")
        if self.scaling == "llama3" and self.high_frequency_factor <= self.low_frequency_factor:
            raise ValueError(
                f"'high_frequency_factor' = {self.high_frequency_factor} must be larger than "
                f"'low_frequency_factor' = {self.low_frequency_factor}"
            )
        if self.scaling == "yarn" and self.theta <= 1:
            raise ValueError(f"'theta' = {self.theta} must be larger than 1 for yarn")


class Experts(PublicRecord):
    """A mixture of experts in place of a feed-forward layer, which each token passes through a few of.

    count: experts E. chosen: of them for each token. feed_forward: width of one. renormalised: whether what the chosen ones
    count is divided by its sum. layers: those that have a mixture, in order; None: all. An expert is gated, without biases.
    """

    count: Count
    chosen: Count
    feed_forward: Count
    renormalised: bool
    layers: Annotated[tuple[Annotated[int, Field(ge=0, lt=1 << 12)], ...] | None, Strict(False)] = None

    def _check(self) -> None:
        if self.chosen > self.count:
            raise ValueError(f"'chosen' = {self.chosen} must be at most 'count' = {self.count}")
        if self.layers is not None and list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"'layers' = {list(self.layers)} must be in order, each of them once")

    def at(self, layer: int) -> bool:
        """Whether a layer has a mixture."""
        return self.layers is None or layer in self.layers

    def of_layers(self, kept: Sequence[int]) -> Experts:
        """Return those of some of the layers, in that order."""
        return self.model_copy(update={"layers": tuple(n for n, layer in enumerate(kept) if self.at(layer))})


class LearnedPart(PublicRecord):
    """A weight that a cache policy has learned of every layer, `policy.layers.N.{name}`. shape: [in, out], or [out]."""

    name: Annotated[str, Field(pattern=r"^[a-z_]+(\.[a-z_]+)*$", max_length=64)]
    shape: Annotated[tuple[Count, ...], Strict(False), Field(min_length=1, max_length=2)]


class Architecture(Description):
    """A decoder, perhaps behind an encoder that reads its prompt, described completely by public numbers.

    rotary: None means learned positions (`embedding.positions`), or with `encoder` relative ones. encoder: the first layers
    of a model of which the others are the decoder; None where the decoder reads its prompt itself. windows: one entry a
    layer, the number of last positions (its own included) that a token attends to, None for all; `windows` None means all
    everywhere. head_bias: the head has a bias once the last norm's offset is folded into it. experts: of the layers that
    are a mixture; `feed_forward` is the width of the others. eos: ids that end a generation.

    norms: whether a layer's two parts normalise what they read ("before"), what they write ("after", with a gain), or
    "both"; the head always reads a normalised stream. query_key_norm: queries and keys are normalised, with gains, before
    they turn: each head by itself, or "all" heads as one row. parallel: attention and feed-forward read the same stream.
    stream_epsilon: of the norms that read the residual stream, where that is held smaller than the checkpoint has it
    (`models.families.folding`); None: `norm`'s.
    score_cap, logit_cap: scores, and logits for whoever reads them, go through c tanh(x / c). sliding_rotary: rotary
    positions of layers with a window, where they differ. rotated: one entry a layer, False where queries and keys have no
    positions. learned: what cache policies have learned of the model (`models.learned`).

    Raises `ConfigurationError` naming the argument and its value.

    >>> from models.shapes import SHAPES
    >>> SHAPES["gpt2"].weight_shapes()["layers.0.attention.qkv.weight"]
    (768, 2304)
    >>> Architecture.from_json(SHAPES["gpt2"].to_json()) == SHAPES["gpt2"]
    True
    """

    kv_heads: Count
    rotary: Rotary | None
    gated: bool
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    norms: Literal["before", "after", "both"] = "before"
    query_key_norm: Literal["head", "all"] | None = None
    parallel: bool = False
    stream_epsilon: Positive | None = None
    score_cap: Positive | None = None
    logit_cap: Positive | None = None
    windows: Annotated[tuple[Count | None, ...] | None, Strict(False)] = None
    experts: Experts | None = None
    sliding_rotary: Rotary | None = None
    rotated: Annotated[tuple[bool, ...] | None, Strict(False)] = None
    learned: Annotated[tuple[LearnedPart, ...], Strict(False), Field(max_length=32)] = ()
    encoder: PromptEncoder | None = None
    bos: TokenId | None = None
    eos: Annotated[tuple[TokenId, ...], Strict(False)] = ()

    def _check(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"'heads' = {self.heads} must be a multiple of 'kv_heads' = {self.kv_heads}")
        for rotary in self.rotaries:
            turning = rotary.turning(self.head_channels)
            if self.head_channels % 2:
                raise ValueError(f"'head_channels' = {self.head_channels} must be even for rotary positions")
            if turning > self.head_channels:
                raise ValueError(f"'channels' = {turning} of rotary positions, a head has {self.head_channels}")
            if rotary.factors and len(rotary.factors) != turning // 2:
                raise ValueError(f"'factors' has {len(rotary.factors)} entries, {turning // 2} pairs of channels turn")
            if rotary.scaling == "dynamic" and turning == 2:
                raise ValueError("'head_channels' = 2 must be larger for dynamic rotary positions")
        if self.rotary is None and (self.sliding_rotary is not None or self.rotated is not None):
            raise ValueError("'rotary' is needed by 'sliding_rotary' and 'rotated'")
        for name, entries in (("windows", self.windows), ("rotated", self.rotated)):
            if entries is not None and len(entries) != self.layers:
                raise ValueError(f"'{name}' has {len(entries)} entries, it needs one for each of {self.layers} layers")
        if self.experts is not None and not self.gated:
            raise ValueError("'experts' need 'gated' = true")
        if self.experts is not None and (self.norms != "before" or self.parallel):
            raise ValueError("'experts' need 'norms' = 'before' and layers that are not 'parallel'")
        if self.experts is not None and self.experts.layers and self.experts.layers[-1] >= self.layers:
            raise ValueError(f"'experts' names layer {self.experts.layers[-1]}, the model has {self.layers} layers")
        if len({part.name for part in self.learned}) < len(self.learned):
            raise ValueError("'learned' names a part twice")
        self._check_encoder()
        for name, ids in (("bos", () if self.bos is None else (self.bos,)), ("eos", self.eos)):
            for token in ids:
                if token >= self.vocabulary:
                    raise ValueError(f"'{name}' = {token} lies outside the vocabulary of {self.vocabulary} tokens")

    def _check_encoder(self) -> None:
        if self.encoder is None:
            return
        if self.encoder.layers >= self.layers:
            raise ValueError(f"'encoder' has {self.encoder.layers} of {self.layers} layers, none is left to the decoder")
        if self.encoder.start >= self.vocabulary:
            raise ValueError(f"'start' = {self.encoder.start} lies outside the vocabulary of {self.vocabulary} tokens")
        for name, usual in (
            ("rotary", None),
            ("windows", None),
            ("norms", "before"),
            ("query_key_norm", None),
            ("parallel", False),
            ("score_cap", None),
            ("experts", None),
        ):
            if getattr(self, name) != usual:
                raise ValueError(f"'{name}' = {getattr(self, name)!r} does not go with an 'encoder'")

    @property
    def stream_norm(self) -> Norm:
        """Return the norm of what reads the residual stream."""
        return self.norm if self.stream_epsilon is None else replace(self.norm, epsilon=self.stream_epsilon)

    @property
    def learned_positions(self) -> bool:
        """Whether tokens have learned positions."""
        return self.rotary is None and self.encoder is None

    @property
    def encoder_layers(self) -> int:
        """Return how many layers read the prompt before the decoder's; 0 without an encoder."""
        return 0 if self.encoder is None else self.encoder.layers

    def reads(self, layer: int) -> bool:
        """Whether a layer is one of the encoder's."""
        return layer < self.encoder_layers

    def cached(self, prompt: int) -> int:
        """Return the tokens that the decoder holds when it chooses the first new one: its prompt, or behind an encoder the
        token that every answer begins behind."""
        return prompt if self.encoder is None else 1

    def continued(self, prompt: list[int]) -> list[int]:
        """Return the tokens that an answer goes on from, as transformers' `generate` has them in front of it: the prompt, or
        behind an encoder the token that every answer begins behind. Secret, as the prompt is."""
        return prompt if self.encoder is None else [self.encoder.start]

    def room(self, prompt: int) -> int:
        """Return the most new tokens that fit the model's positions after a prompt: the last one needs none. Behind an
        encoder prompt and answer have positions of their own. Below 1 where the prompt does not fit."""
        if self.encoder is None:
            return self.positions - prompt + 1
        return self.positions if prompt <= self.positions else 0

    def check_room(self, prompt: int, new: int, behind: int = 0) -> None:
        """Raise `ConfigurationError` unless prompt and new tokens fit the positions, behind so many of registered texts."""
        room, have = self.room(behind + prompt), self.positions
        if new <= room:
            return
        if self.encoder is not None:
            raise ConfigurationError(
                f"prompt_tokens = {prompt} and new_tokens = {new}: the model has {have} positions for each; "
                "lower what is above"
            )
        most, before = have - new + 1 - behind, f" behind {behind} tokens of registered texts" * (behind > 0)
        remedy = f"ask for at most {room}" if room > 0 else f"shorten the prompt to at most {max(1, most)} tokens"
        if behind and most < 1:
            remedy = "register a shorter text, or ask for fewer tokens"
        raise ConfigurationError(
            f"prompt_tokens = {prompt}{before} and new_tokens = {new} need {behind + prompt + new - 1} positions, "
            f"the model has {have}; {remedy}"
        )

    @property
    def group(self) -> int:
        """Return R, the query heads per key/value head."""
        return self.heads // self.kv_heads

    def window(self, layer: int) -> int | None:
        return None if self.windows is None else self.windows[layer]

    def mixture(self, layer: int) -> Experts | None:
        """Return the experts of a layer, None where it has a feed-forward layer."""
        return self.experts if self.experts is not None and self.experts.at(layer) else None

    @property
    def rotaries(self) -> tuple[Rotary, ...]:
        """Return the different rotary positions of all layers."""
        found = (self.rotary, self.sliding_rotary)
        return tuple(dict.fromkeys(rotary for rotary in found if rotary is not None))

    def rotary_of(self, layer: int) -> Rotary | None:
        """Return the rotary positions of a layer, None where queries and keys do not turn."""
        if self.rotated is not None and not self.rotated[layer]:
            return None
        return self.sliding_rotary if self.sliding_rotary and self.window(layer) is not None else self.rotary

    def kind(self, layer: int) -> object:
        """Return what a layer differs in from others: layers of one kind cost the same."""
        behind = layer - self.encoder_layers
        side = "encoder" if behind < 0 else "first" if behind == 0 else "decoder"
        return self.window(layer), self.rotary_of(layer), self.mixture(layer) is not None, side

    def reduced(self, layers: Sequence[int]) -> Self:
        windows = None if self.windows is None else tuple(self.windows[n] for n in layers)
        rotated = None if self.rotated is None else tuple(self.rotated[n] for n in layers)
        experts = None if self.experts is None else self.experts.of_layers(layers)
        encoder = self.encoder
        if encoder is not None:
            encoder = encoder.model_copy(update={"layers": sum(map(self.reads, layers))})
        update = {"layers": len(layers), "windows": windows, "rotated": rotated, "experts": experts, "encoder": encoder}
        return self.model_copy(update=update)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        wide, heads = self.width, self.heads * self.head_channels
        fused = heads + 2 * self.kv_heads * self.head_channels
        shapes: dict[str, tuple[int, ...]] = {"embedding.tokens": (self.vocabulary, wide)}
        if self.learned_positions:
            shapes["embedding.positions"] = (self.positions, wide)
        if self.encoder is not None:
            shapes["embedding.start"] = (wide,)
            shapes["distances.encoder"] = (self.encoder.rows_both_ways, self.heads)
            shapes["distances.decoder"] = (len(self.encoder.back), self.heads)

        def linear(name: str, inputs: int, outputs: int, bias: bool) -> None:
            shapes[f"{name}.weight"] = (inputs, outputs)
            if bias:
                shapes[f"{name}.bias"] = (outputs,)

        for layer in range(self.layers):
            linear(f"layers.{layer}.attention.qkv", wide, fused, self.qkv_bias)
            linear(f"layers.{layer}.attention.out", heads, wide, self.out_bias)
            if self.encoder is not None and not self.reads(layer):
                linear(f"layers.{layer}.cross.q", wide, heads, self.qkv_bias)
                linear(f"layers.{layer}.cross.kv", wide, fused - heads, self.qkv_bias)
                linear(f"layers.{layer}.cross.out", heads, wide, self.out_bias)
            if self.query_key_norm is not None:
                shapes[f"layers.{layer}.attention.queries.gain"] = (heads,)
                shapes[f"layers.{layer}.attention.keys.gain"] = ((fused - heads) // 2,)
            inner, bias, experts = self.feed_forward, self.mlp_bias, self.mixture(layer)
            if experts is not None:
                inner, bias = experts.count * experts.feed_forward, False
                linear(f"layers.{layer}.mlp.router", wide, experts.count, False)
            linear(f"layers.{layer}.mlp.up", wide, inner, bias)
            if self.gated:
                linear(f"layers.{layer}.mlp.gate", wide, inner, bias)
            linear(f"layers.{layer}.mlp.down", inner, wide, bias)
            if self.norms != "before":
                shapes |= {f"layers.{layer}.{part}.gain": (wide,) for part in ("attention.out", "mlp.down")}
        linear("head", wide, self.vocabulary, self.head_bias)
        for layer in range(self.layers):
            shapes |= {f"policy.layers.{layer}.{part.name}": part.shape for part in self.learned}
        return shapes
