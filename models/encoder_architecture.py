"""What is public about an encoder: its sizes, what its head gives, and the names and shapes of its canonical weights.

Canonical weights are what the families of `models.families` make of a checkpoint and `models.encoder` computes with. An
encoder normalises *behind* each residual sum, so a row that enters a layer is gain * n + offset with a normalised n. The
rows that are carried on are the n: gain and offset of a norm are folded into whatever linear layer reads its rows (exact),
its offset also into the bias of the layer that is added to them (exact). What cannot be folded is the gain on the residual
path, one vector a norm: `layers.N.attention.gain`, `layers.N.mlp.gain`. A bias of the keys adds the same to all scores of a
query, which a softmax does not see: it is zero. The score scale 1/sqrt(C) is in the query weights.

Axis names as in `protocols.suite`: D width, H heads, C head channels, F feed-forward width, V vocabulary, P positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field

from models.architecture import Rotary
from models.description import Count, Description, TokenId
from models.outputs import OUTPUTS, Output
from mpc.errors import ConfigurationError

Head = Literal["none", "classes", "labels", "words"]


class EncoderArchitecture(Description):
    """A transformer encoder with normalisation behind the residual sums, described completely by public numbers.

    types: token types, 1 where there is no choice (they are then in the positions). pooler: the function behind the dense
    layer of the first row, None without one. head: what the checkpoint was trained to give; labels: of how many classes or
    labels. pad: the token that texts are padded with; pad_counts: whether it takes a position where it stands within a text,
    as any other token does. Where it does not, a text that holds it is refused: positions are public.

    >>> from models.shapes import ENCODER_SHAPES
    >>> ENCODER_SHAPES["bert-base"].weight_shapes()["layers.0.attention.gain"]
    (768,)
    >>> EncoderArchitecture.from_json(ENCODER_SHAPES["bert-base"].to_json()) == ENCODER_SHAPES["bert-base"]
    True
    """

    model: Literal["encoder"] = "encoder"
    types: Annotated[int, Field(ge=1, le=64)] = 1
    pooler: Literal["tanh", "relu"] | None = None
    head: Head = "none"
    labels: Count | None = None
    pad: TokenId = 0
    pad_counts: bool = True

    def _check(self) -> None:
        if (self.labels is None) != (self.head not in ("classes", "labels")):
            raise ValueError(f"'labels' = {self.labels} does not go with 'head' = {self.head!r}")
        if self.head == "classes" and self.pooler is None:
            raise ValueError("'pooler' = None: a head of classes reads the first row behind a pooler")
        if self.pad >= self.vocabulary:
            raise ValueError(f"'pad' = {self.pad} lies outside the vocabulary of {self.vocabulary} tokens")

    # as balancing and calibration ask of any model: every head has keys and values of its own, all layers have biases
    @property
    def kv_heads(self) -> int:
        """Return the key/value heads: as many as query heads."""
        return self.heads

    @property
    def group(self) -> int:
        """Return the query heads of a key/value head."""
        return 1

    @property
    def rotary(self) -> None:
        """Positions are learned."""
        return None

    @property
    def rotaries(self) -> tuple[Rotary, ...]:
        """No layer has rotary positions."""
        return ()

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer has a gate."""
        return False

    @property
    def query_key_norm(self) -> None:
        """Queries and keys are not normalised."""
        return None

    @property
    def experts(self) -> None:
        """No layer has experts."""
        return None

    def mixture(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return False

    @property
    def qkv_bias(self) -> bool:
        """Whether queries, keys and values have a bias."""
        return True

    @property
    def mlp_bias(self) -> bool:
        """Whether the feed-forward layer has biases."""
        return True

    @property
    def bos(self) -> None:
        """The tokenizer puts first what a text begins with."""
        return None

    @property
    def eos(self) -> tuple[int, ...]:
        """No token ends anything."""
        return ()

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Return what a session with this model may give its client."""
        pooled: tuple[Output, ...] = ("pooled",) if self.pooler is not None else ()
        head: tuple[Output, ...] = () if self.head == "none" else (self.head,)
        return ("mean", "cls", "hidden", *pooled, *head)

    @property
    def usual_output(self) -> Output:
        """Return the output that the checkpoint was trained for: its head's, or the mean."""
        return "mean" if self.head == "none" else self.head

    def check_output(self, output: str) -> None:
        """Raise `ConfigurationError` for an output that this model does not have."""
        if output not in self.outputs:
            known = "; ".join(f"{name}: {OUTPUTS[name]}" for name in self.outputs)
            raise ConfigurationError(f"output = {output!r}: this checkpoint has no such output; it has {known}")

    def check_text(self, ids: Sequence[int]) -> None:
        """Raise `ConfigurationError` for a text whose tokens this model does not count one by one."""
        if not self.pad_counts and self.pad in ids:
            raise ConfigurationError(
                f"the text holds the padding token (id {self.pad}), to which a '{self.family}' model gives no position; "
                "take it out of the text"
            )

    def output_shape(self, output: Output, tokens: int) -> tuple[int, int]:
        """Return the shape of an output of a text of `tokens` tokens, padding included: [rows, columns]."""
        rows = tokens if output in ("hidden", "labels") else 1
        columns = {"words": self.vocabulary, "classes": self.labels or 0, "labels": self.labels or 0}.get(output, self.width)
        return rows, columns

    def reduced(self, layers: Sequence[int]) -> Self:
        return self.model_copy(update={"layers": len(layers)})

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        wide, heads = self.width, self.heads * self.head_channels
        shapes: dict[str, tuple[int, ...]] = {
            "embedding.tokens": (self.vocabulary, wide),
            "embedding.positions": (self.positions, wide),
        }
        if self.types > 1:
            shapes["embedding.types"] = (self.types, wide)

        def linear(name: str, inputs: int, outputs: int) -> None:
            shapes[f"{name}.weight"] = (inputs, outputs)
            shapes[f"{name}.bias"] = (outputs,)

        for layer in range(self.layers):
            shapes[f"layers.{layer}.attention.gain"] = (wide,)
            linear(f"layers.{layer}.attention.qkv", wide, 3 * heads)
            linear(f"layers.{layer}.attention.out", heads, wide)
            shapes[f"layers.{layer}.mlp.gain"] = (wide,)
            linear(f"layers.{layer}.mlp.up", wide, self.feed_forward)
            linear(f"layers.{layer}.mlp.down", self.feed_forward, wide)
        shapes |= {"final.gain": (wide,), "final.offset": (wide,)}
        if self.pooler is not None:
            linear("pooler", wide, wide)
        if self.head == "words":
            linear("words", wide, wide)
            linear("head", wide, self.vocabulary)
        elif self.labels is not None:
            linear("head", wide, self.labels)
        return shapes
