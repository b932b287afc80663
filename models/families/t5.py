"""T5: an encoder reads the prompt, a decoder attends to it; relative positions, RMSNorm, scores without a scale."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from models.architecture import Architecture
from models.config import ACTIVATIONS
from models.families.family import Family, Read, split_layer
from models.families.folding import folded_weight
from models.prompt_encoder import PromptEncoder
from mpc.errors import CheckpointError
from protocols.suite import Activation, Norm

MOST_DISTANCE = 1 << 16
POSITIONS = 1 << 15
"""T5 has no positions of its own: a limit of this software, for prompt and answer each."""
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
DISTANCES = "{}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


class T5(Family):
    """Reads `T5ForConditionalGeneration` checkpoints: T5, T5 v1.1, Flan-T5. Source: Raffel et al., JMLR 2020."""

    prefix = ""
    embedding = "shared.weight"
    computes = ("is_encoder_decoder",)
    buffers: ClassVar[tuple[str, ...]] = (
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",  # which nothing reads
    )
    scaled_by_default: ClassVar[bool] = True
    """Whether config.json may say (and says, where it says nothing) that the head's input is divided by sqrt(D)."""
    forward_by_default: ClassVar[str] = "relu"

    _stored: Collection[str] = ()

    # ---- config.json -----------------------------------------------------------------------------------------------------
    def describe(self) -> Architecture:
        c = self.config
        c.refuse("is_encoder_decoder", "the encoder alone is not supported; use the whole model", True)
        c.refuse("is_decoder", "the decoder alone is not supported; use the whole model", False)
        vocabulary, heads = c.integer("vocab_size"), c.integer("num_heads")
        encoder = c.integer("num_layers")
        gated, activation = self._feed_forward()
        starts = c.token_ids("decoder_start_token_id", vocabulary) or c.token_ids("bos_token_id", vocabulary)
        if not starts:
            raise c.error("decoder_start_token_id", "the token that every answer begins behind is needed, 0 for T5")
        return Architecture(
            family=str(c.values["model_type"]),
            layers=encoder + c.integer("num_decoder_layers", encoder),
            width=c.integer("d_model"),
            heads=heads,
            kv_heads=heads,
            head_channels=c.integer("d_kv"),
            feed_forward=c.integer("d_ff"),
            vocabulary=vocabulary,
            positions=POSITIONS,
            rotary=None,
            norm=Norm("rms", c.number("layer_norm_epsilon", 1e-6)),
            activation=activation,
            gated=gated,
            encoder=PromptEncoder(layers=encoder, start=starts[0], **self._distances()),
            eos=c.token_ids("eos_token_id", vocabulary),
        )

    def _feed_forward(self) -> tuple[bool, Activation]:
        """Return whether the feed-forward layer has a gate, and its function. T5's "gated-gelu" means the tanh form."""
        said = self.config.values.get("feed_forward_proj", self.forward_by_default)
        kind, _, name = str(said).rpartition("-")
        if kind not in ("", "gated") or name not in ACTIVATIONS:
            known = ", ".join([*ACTIVATIONS, "gated- and one of these"])
            raise self.config.error("feed_forward_proj", f"this feed-forward layer is not supported; supported: {known}")
        return kind == "gated", ACTIVATIONS["gelu_new" if said == "gated-gelu" else name]

    def _distances(self) -> dict[str, tuple[int, ...]]:
        """Return the smallest distance of each bucket, as transformers' float32 logarithms have them."""
        c = self.config
        buckets = c.integer("relative_attention_num_buckets", 32)
        most = c.integer("relative_attention_max_distance", 128)
        if not 4 <= buckets <= 1 << 12:
            raise c.error("relative_attention_num_buckets", "4 to 4096 buckets are supported")
        if not buckets // 2 < most <= MOST_DISTANCE:
            raise c.error(
                "relative_attention_max_distance",
                f"more than half of the {buckets} buckets, at most {MOST_DISTANCE}, is needed",
            )
        return {"both_ways": _starts(buckets // 2, most), "back": _starts(buckets, most)}

    # ---- tensors ---------------------------------------------------------------------------------------------------------
    def stored_as(self, names: Collection[str]) -> None:
        self._stored = names

    @property
    def tied(self) -> bool:
        """Whether there is no head beside the token embedding; config.json is not asked, as transformers does not."""
        return self.head not in self._stored

    @property
    def scaled(self) -> bool:
        """Whether the head's input is divided by sqrt(D)."""
        said = self.config.flag("scale_decoder_outputs", self.config.flag("tie_word_embeddings", True))
        return self.scaled_by_default and said

    def tensors(self) -> dict[str, tuple[int, ...]]:
        a, c = self.architecture, self.config
        table = (a.vocabulary, a.width)
        names = [self.embedding, *(name for name in (*COPIES, self.head) if name in self._stored)]
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(names, table)
        for stack in ("encoder", "decoder"):
            shapes[DISTANCES.format(stack)] = (c.integer("relative_attention_num_buckets", 32), a.heads)
            shapes[f"{stack}.final_layer_norm.weight"] = (a.width,)
        wide, inner, forward = a.width, a.heads * a.head_channels, a.feed_forward
        for layer in range(a.layers):
            for part, name in self._parts(layer).items():
                sizes: dict[str, tuple[int, ...]] = {"norm": (wide,), "o": (wide, inner), "wo": (wide, forward)}
                usual = (forward, wide) if part.startswith("wi") else (inner, wide)
                shapes[f"{name}.weight"] = sizes.get(part.rpartition(".")[2], usual)
        return shapes

    def _parts(self, layer: int) -> Mapping[str, str]:
        """Return the names of a layer's tensors, without ".weight", by part: "attention.q", "cross.norm", "wi_0" ..."""
        a = self.architecture
        reads = a.reads(layer)
        at = f"encoder.block.{layer}" if reads else f"decoder.block.{layer - a.encoder_layers}"
        parts = {"attention": "SelfAttention"} if reads else {"attention": "SelfAttention", "cross": "EncDecAttention"}
        names = {}
        for place, (part, name) in enumerate(parts.items()):
            names[f"{part}.norm"] = f"{at}.layer.{place}.layer_norm"
            names |= {f"{part}.{x}": f"{at}.layer.{place}.{name}.{x}" for x in "qkvo"}
        last = f"{at}.layer.{len(parts)}"
        names["mlp.norm"] = f"{last}.layer_norm"
        inner = ("wi_0", "wi_1", "wo") if a.gated else ("wi", "wo")
        return names | {x: f"{last}.DenseReluDense.{x}" for x in inner}

    # ---- canonical weights -----------------------------------------------------------------------------------------------
    def weight(self, name: str, read: Read) -> Tensor:
        if name == "embedding.tokens":
            return self._table(read)
        if name == "embedding.start":
            encoder = self.architecture.encoder
            assert encoder is not None
            return read(self.embedding)[encoder.start]
        if name.startswith("distances."):
            rows = self.architecture.weight_shapes()[name][0]
            return read(DISTANCES.format(name.partition(".")[2]))[:rows]
        if name == "head.weight":
            head = read(self.embedding if self.tied else self.head).T
            scale = self.architecture.width**-0.5 if self.scaled else 1.0
            return folded_weight(head * scale, read("decoder.final_layer_norm.weight"), centred=False)
        layer, part = split_layer(name)
        parts = self._parts(layer)
        block, _, kind = part.removesuffix(".weight").partition(".")

        def stored(which: str) -> Tensor:
            return read(f"{parts[which]}.weight").T

        if kind in ("out", "down"):
            return stored("wo" if block == "mlp" else f"{block}.o")
        if block == "mlp":
            gated = {"gate": "wi_0", "up": "wi_1"}
            weight, norm = stored(gated[kind] if self.architecture.gated else "wi"), parts["mlp.norm"]
        else:
            weight, norm = torch.cat([stored(f"{block}.{x}") for x in kind], -1), parts[f"{block}.norm"]
            if kind == "kv":  # what they read is the encoder's last norm
                norm = "encoder.final_layer_norm"
        return folded_weight(weight, read(f"{norm}.weight"), centred=False)

    def _table(self, read: Read) -> Tensor:
        """Return the token table, which encoder and decoder share."""
        table = read(self.embedding)
        for name in COPIES:
            if name in self._stored and not torch.equal(table, read(name)):
                raise CheckpointError(
                    f"{self.config.path.parent}: tensor '{name}' differs from '{self.embedding}'; an encoder and a decoder "
                    "with token tables of their own are not supported"
                )
        return table


class MT5(T5):
    """Reads `MT5ForConditionalGeneration` checkpoints. Source: Xue et al., NAACL 2021."""

    scaled_by_default = False
    forward_by_default = "gated-gelu"


def _starts(buckets: int, most: int) -> tuple[int, ...]:
    """Return the smallest distance of each of so many buckets for one direction; those that stay empty begin where the next
    one does. Half of them hold one distance each, the others grow up to the distance `most`."""
    exact = buckets // 2
    distances = torch.arange(exact, most + 1)
    grown = torch.log(distances.float() / exact) / math.log(most / exact) * (buckets - exact)
    found = torch.clamp(exact + grown.to(torch.long), max=buckets - 1)
    first = torch.searchsorted(found, torch.arange(exact, buckets))
    return (*range(exact), *distances[first.clamp(max=len(distances) - 1)].tolist())
