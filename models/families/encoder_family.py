"""What the families of encoders have in common: the same layers under other names.

An encoder's norms stand behind its residual sums, so gain and offset of one norm are read by the layers behind it and by the
residual path beside them; how they fold is said in `models.encoder_architecture`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from models.encoder_architecture import EncoderArchitecture, Head
from models.families.family import CheckpointFamily, Read, split_layer
from models.families.folding import folded_bias, folded_weight
from protocols.suite import Norm

HEADS: dict[str, Head] = {
    "Model": "none",
    "ForSequenceClassification": "classes",
    "ForTokenClassification": "labels",
    "ForMaskedLM": "words",
    "ForPreTraining": "words",
}


EARLIER = {"gamma": "weight", "beta": "bias"}
"""What a norm's gain and offset were called before they were called weight and bias."""


@dataclass(frozen=True)
class LayerNames:
    """Names of a layer's tensors, without ".weight" and ".bias"; "{}" stands for its number."""

    query: str
    key: str
    value: str
    out: str
    attention_norm: str
    up: str
    down: str
    output_norm: str


@dataclass(frozen=True)
class HeadNames:
    """Names of the tensors behind the layers, without ".weight" and ".bias" but for `bias`, of the word head."""

    pooler: str
    head: str
    dense: str = ""
    norm: str = ""
    decoder: str = ""
    bias: str = ""


class EncoderFamily(CheckpointFamily):
    """One encoder's layout. skipped_positions: rows of the position table that no token has."""

    architecture: EncoderArchitecture
    embedding = "embeddings.word_embeddings.weight"
    tied_by_default = True
    layer_names: ClassVar[LayerNames]
    skipped_positions = 0
    pooled_model: ClassVar[bool] = True
    """Whether the model without a head has a pooler."""

    @abstractmethod
    def describe(self) -> EncoderArchitecture:
        """Return the architecture that config.json describes."""

    @property
    @abstractmethod
    def head_names(self) -> HeadNames:
        """Return the names of what stands behind the layers, of the head that config.json names."""

    @property
    def behind(self) -> frozenset[str]:
        of = self.head_names
        return frozenset(name.split(".")[0] for name in (of.head, of.dense, of.norm, of.decoder, of.bias) if name)

    # ---- config.json -------------------------------------------------------------------------------------------------
    @property
    def head_kind(self) -> Head:
        """Return the head, by the class that config.json names."""
        given = self.config.values.get("architectures")
        name = given[0] if isinstance(given, list) and given and isinstance(given[0], str) else ""
        found = [head for end, head in HEADS.items() if name.endswith(end)]
        if not found:
            wanted = ", ".join(f"...{end}" for end in HEADS)
            raise self.config.error("architectures", f"the class of the checkpoint is needed, one of: {wanted}")
        return found[0]

    def heads_of(self, key: str, width: int) -> int:
        """Return the number of heads. Raises `CheckpointError` where the width is no multiple of it."""
        heads = self.config.integer(key)
        if width % heads:
            raise self.config.error(key, f"the width {width} must be a multiple of it")
        return heads

    def common(self) -> dict[str, Any]:
        """Return what all encoders say alike."""
        c, head = self.config, self.head_kind
        c.refuse("is_decoder", "an encoder that reads from left to right is not supported", False)
        vocabulary = c.integer("vocab_size")
        return {
            "vocabulary": vocabulary,
            "head": head,
            "labels": label_count(c.values) if head in ("classes", "labels") else None,
            "pad": next(iter(c.token_ids("pad_token_id", vocabulary)), 0),
        }

    # ---- tensors -----------------------------------------------------------------------------------------------------
    def known_as(self, stored: str) -> str:
        """Return a tensor's name; the first published files, as of `bert-base-uncased`, call gain and offset otherwise."""
        base, _, kind = super().known_as(stored).rpartition(".")
        return f"{base}.{EARLIER.get(kind, kind)}" if base else kind

    def tensors(self) -> dict[str, tuple[int, ...]]:
        a, wide = self.architecture, self.architecture.width
        names: dict[str, tuple[int, ...]] = {
            self.embedding: (a.vocabulary, wide),
            "embeddings.position_embeddings.weight": (a.positions + self.skipped_positions, wide),
            **_vectors("embeddings.LayerNorm", wide),
        }
        if self.type_rows:
            names["embeddings.token_type_embeddings.weight"] = (self.type_rows, wide)
        heads, forward, layer = a.heads * a.head_channels, a.feed_forward, self.layer_names
        for n in range(a.layers):
            for name in (layer.query, layer.key, layer.value):
                names |= _linear(name.format(n), wide, heads)
            names |= _linear(layer.out.format(n), heads, wide) | _vectors(layer.attention_norm.format(n), wide)
            names |= _linear(layer.up.format(n), wide, forward) | _linear(layer.down.format(n), forward, wide)
            names |= _vectors(layer.output_norm.format(n), wide)
        of = self.head_names
        if a.pooler is not None:
            names |= _linear(of.pooler, wide, wide)
        if a.labels is not None:
            names |= _linear(of.head, wide, a.labels)
        if a.head == "words":
            names |= _linear(of.dense, wide, wide) | _vectors(of.norm, wide) | {self._head_bias: (a.vocabulary,)}
            if not self.tied:
                names[f"{of.decoder}.weight"] = (a.vocabulary, wide)
        return names

    @property
    def _head_bias(self) -> str:
        """Return the word head's bias: one of its own where the head is not the embedding."""
        return self.head_names.bias if self.tied else f"{self.head_names.decoder}.bias"

    @property
    def type_rows(self) -> int:
        """Return the rows of the table of token types in the checkpoint; 0 without a table."""
        return self.architecture.types

    # ---- canonical weights -------------------------------------------------------------------------------------------
    def weight(self, name: str, read: Read) -> Tensor:
        if name.startswith("embedding."):
            return self._embedding(name, read)
        if name.startswith("layers."):
            layer, part = split_layer(name)
            return self._layer(layer, part, read)
        last = self._norm_before(self.architecture.layers)
        if name.startswith("final."):
            return read(f"{last}.{'weight' if name == 'final.gain' else 'bias'}")
        of, kind = self.head_names, name.rpartition(".")[2]
        if name.startswith("pooler."):
            return _folded(kind, read, of.pooler, last)
        if name.startswith("words."):
            return _folded(kind, read, of.dense, last)
        if self.architecture.head == "labels":
            return _folded(kind, read, of.head, last)
        if self.architecture.head == "classes":
            return _plain(kind, read, of.head)
        weight = read(self.embedding if self.tied else f"{of.decoder}.weight").T
        if kind == "weight":
            return folded_weight(weight, read(f"{of.norm}.weight"), centred=True)
        return folded_bias(weight, read(f"{of.norm}.bias"), read(self._head_bias))

    def _embedding(self, name: str, read: Read) -> Tensor:
        if name == "embedding.tokens":
            return read(self.embedding)
        types = "embeddings.token_type_embeddings.weight"
        if name == "embedding.types":
            return read(types)
        positions = read("embeddings.position_embeddings.weight")[self.skipped_positions :]
        return positions + read(types)[:1] if self.type_rows == 1 else positions

    def _norm_before(self, layer: int) -> str:
        return self.layer_names.output_norm.format(layer - 1) if layer else "embeddings.LayerNorm"

    def _layer(self, layer: int, part: str, read: Read) -> Tensor:
        names, before = self.layer_names, self._norm_before(layer)
        between = names.attention_norm.format(layer)
        block, _, kind = part.rpartition(".")
        if kind == "gain":
            return read(f"{before if block == 'attention' else between}.weight")
        if block == "attention.qkv":
            scale = self.architecture.head_channels**-0.5
            q, k, v = (_folded(kind, read, base.format(layer), before) for base in (names.query, names.key, names.value))
            return torch.cat([q * scale, k if kind == "weight" else torch.zeros_like(k), v], -1)
        if block == "mlp.up":
            return _folded(kind, read, names.up.format(layer), between)
        name, norm = (names.out, before) if block == "attention.out" else (names.down, between)
        found = _plain(kind, read, name.format(layer))
        return found if kind == "weight" else found + read(f"{norm}.bias")


def label_count(values: Mapping[str, Any]) -> int:
    """Return how many classes or labels config.json says: as many as names, or `num_labels`, or transformers' 2."""
    names = values.get("id2label")
    if isinstance(names, dict) and names:
        return len(names)
    number = values.get("num_labels")
    return number if isinstance(number, int) and number > 0 else 2


def encoder_norm(epsilon: float) -> Norm:
    """Return the norm of an encoder's rows, which have a mean: a gain on the residual path keeps it from being folded."""
    return Norm("layer", epsilon)


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _vectors(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _plain(kind: str, read: Read, name: str) -> Tensor:
    return read(f"{name}.weight").T if kind == "weight" else read(f"{name}.bias")


def _folded(kind: str, read: Read, name: str, norm: str) -> Tensor:
    """Return weight or bias of a linear layer behind a norm. Its rows are centred, so the weight need not be."""
    weight = read(f"{name}.weight").T
    if kind == "weight":
        return folded_weight(weight, read(f"{norm}.weight"), centred=False)
    return folded_bias(weight, read(f"{norm}.bias"), read(f"{name}.bias"))
