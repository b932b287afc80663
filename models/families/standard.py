"""A decoder with the parts that all families here have, under names of their own: what a family's file leaves to be said.

Parts, in `Standard.names`: `tokens`, `positions` (learned ones), `norm` (the last one), `head`; and behind `layer` and the
layer's number `attention.norm` and `mlp.norm` (what the two parts of a layer read), `out.norm` and `down.norm` (what they
write), `q`, `k`, `v` or all three as `qkv`, `q.norm`, `k.norm`, `out`, `up` and `gate` or both as `gate_up`, `down`. A part
that a family does not have is not in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from models.architecture import Architecture, Rotary
from models.families.family import Family, Read, split_layer
from models.families.folding import centred_heads, centred_rows, folded_bias, folded_weight
from models.families.rotary_config import channel_order, positions, read_rotary
from protocols.suite import Norm

NAMES: Mapping[str, str] = {
    "tokens": "embed_tokens",
    "norm": "norm",
    "head": "lm_head",
    "layer": "layers",
    "attention.norm": "input_layernorm",
    "mlp.norm": "post_attention_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
KEYS: Mapping[str, str] = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_channels": "head_dim",
    "feed_forward": "intermediate_size",
    "positions": "max_position_embeddings",
    "epsilon": "rms_norm_eps",
    "activation": "hidden_act",
}
STREAM = ("tokens", "positions", "out", "down")  # what writes to the residual stream
NORMS = ("attention.norm", "mlp.norm", "out.norm", "down.norm")


def renamed(parts: Mapping[str, str], without: tuple[str, ...] = (), base: Mapping[str, str] = NAMES) -> dict[str, str]:
    """Return `base` without some parts, and with others' names.

    >>> renamed({"qkv": "self_attn.qkv_proj"}, without=("q", "k", "v"))["qkv"]
    'self_attn.qkv_proj'
    """
    return {part: name for part, name in (dict(base) | dict(parts)).items() if part not in without}


class Standard(Family):
    """Reads a checkpoint by the names of its parts and of its options.

    names: see the module. keys: what config.json calls sizes, over `KEYS`; a family whose heads are always width / heads has
    no `head_channels`. layer_norm: LayerNorm, centred and with an offset, in place of RMSNorm. gain_offset: what is added to
    a stored gain. stored_transposed: matrices are stored [in, out]. activation, epsilon: where config.json has none.
    """

    names: Mapping[str, str] = NAMES
    keys: ClassVar[Mapping[str, str]] = {}
    layer_norm: ClassVar[bool] = False
    gain_offset: ClassVar[float] = 0.0
    stored_transposed: ClassVar[bool] = False
    activation: ClassVar[str] = "silu"
    epsilon: ClassVar[float] = 1e-6

    def __init_subclass__(cls) -> None:
        cls.embedding, cls.head = f"{cls.names['tokens']}.weight", f"{cls.names['head']}.weight"

    # ---- what a family may say otherwise ---------------------------------------------------------------------------------
    def options(self) -> dict[str, Any]:
        """Return fields of the architecture that config.json sets in this family; refuse what is not computed."""
        return {}

    def biases(self) -> tuple[bool, bool, bool]:
        """Return stored biases of (queries, keys, values), of the attention's output, of the feed-forward layers."""
        return False, False, False

    def rotary(self, head: int) -> Rotary | None:
        """Return the rotary positions of heads with so many channels, None for learned positions."""
        return read_rotary(self.config)

    def score_scale(self) -> float:
        """Return what scores are multiplied by, the attention factor of rotary positions aside."""
        return float(self.architecture.head_channels**-0.5)

    def factors(self) -> Mapping[str, float]:
        """Return what canonical weights are multiplied by, by part: `tokens`, `out`, `down`, `head`."""
        return {}

    def stream_scale(self) -> float:
        """Return what the residual stream is held smaller by (see `folding`), a power of two; 1: as it is stored."""
        return 1.0

    def factor(self, part: str) -> float:
        """Return what a part's canonical weights are multiplied by, with what the residual stream is held smaller by."""
        return self.factors().get(part, 1.0) * (self.stream_scale() if part in STREAM else 1.0)

    def fused_rows(self) -> Tensor | None:
        """Return the stored place of each output of `qkv` in the order queries, keys, values by head; None: as stored."""
        return None

    interleaved: ClassVar[bool] = False
    """Whether rotary positions turn neighbouring channels 2c and 2c + 1."""
    first_position: ClassVar[int] = 0
    """The row of the table of learned positions that the first token takes."""

    # ---- config.json ------------------------------------------------------------------------------------------------------
    def key(self, name: str) -> str:
        """Return what config.json calls a size."""
        return self.keys.get(name, KEYS[name])

    def describe(self) -> Architecture:
        c = self.config
        width, heads = c.integer(self.key("width")), c.integer(self.key("heads"))
        head = c.integer(self.key("head_channels"), max(width // heads, 1)) if self.key("head_channels") else width // heads
        if not (self.key("head_channels") and c.present(self.key("head_channels"))) and width % heads:
            raise c.error(self.key("heads"), f"{self.key('width')} = {width} must be a multiple of it")
        epsilon = c.number(self.key("epsilon"), self.epsilon) if self.key("epsilon") else self.epsilon
        qkv, out, mlp = self.biases()
        vocabulary, rotary = c.integer("vocab_size"), self.rotary(head)
        fields: dict[str, Any] = {
            "family": str(c.values["model_type"]),
            "layers": c.integer(self.key("layers")),
            "width": width,
            "heads": heads,
            "kv_heads": c.integer(self.key("kv_heads"), heads) if self.key("kv_heads") else heads,
            "head_channels": head,
            "feed_forward": c.integer(self.key("feed_forward"), 4 * width if self.layer_norm else None),
            "vocabulary": vocabulary,
            "positions": positions(c, rotary, self.key("positions")),
            "rotary": rotary,
            "norm": Norm("rms", epsilon),  # centred already, see `folding`
            "activation": c.activation(self.key("activation"), self.activation),
            "gated": "gate" in self.names or "gate_up" in self.names,
            "qkv_bias": qkv or self.layer_norm,
            "out_bias": out,
            "mlp_bias": mlp or self.layer_norm,
            "head_bias": self.layer_norm,
            "bos": next(iter(c.token_ids("bos_token_id", vocabulary)), None),
            "eos": c.token_ids("eos_token_id", vocabulary),
        }
        if (scale := self.stream_scale()) != 1:
            fields["stream_epsilon"] = epsilon * scale**2
        return Architecture(**(fields | self.options()))

    # ---- tensors ----------------------------------------------------------------------------------------------------------
    def tensors(self) -> dict[str, tuple[int, ...]]:
        a, names = self.architecture, self.names
        shapes: dict[str, tuple[int, ...]] = {f"{names['tokens']}.weight": (a.vocabulary, a.width)}
        if a.rotary is None:
            shapes[f"{names['positions']}.weight"] = (a.positions + self.first_position, a.width)
        for n in range(a.layers):
            shapes |= self.layer_tensors(f"{names['layer']}.{n}.")
        shapes |= self.norm_tensors(names["norm"])
        if not self.tied:
            shapes[f"{names['head']}.weight"] = (a.vocabulary, a.width)
        if self.head_bias:
            shapes[f"{names['head']}.bias"] = (a.vocabulary,)
        return shapes

    head_bias: ClassVar[bool] = False
    """Whether the head has a bias, also where its matrix is the embedding."""

    def layer_tensors(self, at: str) -> dict[str, tuple[int, ...]]:
        """Return a layer's tensors; their names begin with `at`."""
        a, names, shapes = self.architecture, self.names, dict[str, tuple[int, ...]]()
        queries, keys = a.heads * a.head_channels, a.kv_heads * a.head_channels
        qkv, out, mlp = self.biases()
        sizes = {
            "q": (a.width, queries, qkv),
            "k": (a.width, keys, qkv),
            "v": (a.width, keys, qkv),
            "qkv": (a.width, queries + 2 * keys, qkv),
            "out": (queries, a.width, out),
            "gate": (a.width, a.feed_forward, mlp),
            "up": (a.width, a.feed_forward, mlp),
            "gate_up": (a.width, 2 * a.feed_forward, mlp),
            "down": (a.feed_forward, a.width, mlp),
        }
        for part in NORMS:
            if part in names:
                shapes |= self.norm_tensors(f"{at}{names[part]}")
        for part, (inputs, outputs, bias) in sizes.items():
            if part in names:
                shapes[f"{at}{names[part]}.weight"] = (inputs, outputs) if self.stored_transposed else (outputs, inputs)
                if bias:
                    shapes[f"{at}{names[part]}.bias"] = (outputs,)
        return shapes | self.head_norm_tensors(at)

    def norm_tensors(self, name: str) -> dict[str, tuple[int, ...]]:
        """Return the tensors of a norm."""
        kinds = ("weight", "bias") if self.layer_norm else ("weight",)
        return {f"{name}.{kind}": (self.architecture.width,) for kind in kinds}

    def head_norm_tensors(self, at: str) -> dict[str, tuple[int, ...]]:
        """Return the gains of normalised queries and keys."""
        a = self.architecture
        if a.query_key_norm is None:
            return {}
        count = (1, 1) if a.query_key_norm == "head" else (a.heads, a.kv_heads)
        return {f"{at}{self.names[f'{x}.norm']}.weight": (n * a.head_channels,) for x, n in zip("qk", count, strict=True)}

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.tensors())

    # ---- canonical weights ------------------------------------------------------------------------------------------------
    def weight(self, name: str, read: Read) -> Tensor:
        if name == "embedding.tokens":
            return self._written(read(f"{self.names['tokens']}.weight") * self.factor("tokens"))
        if name == "embedding.positions":
            rows = read(f"{self.names['positions']}.weight")[self.first_position :]
            return self._written(rows * self.factor("positions"))
        if name.startswith("head."):
            return self._head(name, read)
        layer, part = split_layer(name)
        block, _, kind = part.rpartition(".")
        at = f"{self.names['layer']}.{layer}."
        if kind == "gain":
            return self._gain(at, block, read)
        if block in ("attention.out", "mlp.down"):
            source = block.partition(".")[2]
            stored = self._stored(f"{at}{self.names[source]}", read, kind)
            if stored is None:
                return torch.zeros(self.architecture.width, dtype=torch.float64)
            last = self.architecture.norms == "before"  # else a gain follows, which takes the factor
            return self._written(stored * self.factor(source) if last else stored)
        if block == "attention.qkv":
            return self._folded(kind, (at, "attention.norm"), read, lambda k: self._qkv(at, k, read))
        return self._folded(kind, (at, "mlp.norm"), read, lambda k: self._entering(at, block, k, read))

    def _stored(self, name: str, read: Read, kind: str) -> Tensor | None:
        """Return a stored matrix as [in, out], or a stored bias; None where there is none."""
        if f"{name}.{kind}" not in self._names:
            return None
        tensor = read(f"{name}.{kind}")
        return tensor.T if kind == "weight" and not self.stored_transposed else tensor

    def _written(self, tensor: Tensor) -> Tensor:
        """Return what is added to the residual stream, which a family with LayerNorm keeps centred."""
        return centred_rows(tensor) if self.layer_norm else tensor

    def _norm_gain(self, name: str, read: Read) -> Tensor:
        return read(f"{name}.weight") + self.gain_offset

    def _folded(self, kind: str, norm: tuple[str, str], read: Read, stored: Callable[[str], Tensor | None]) -> Tensor:
        """Return the weight or the bias of a linear layer behind a norm (where it begins, and its part), or behind none.

        stored(kind): its weight [D, out] and its bias.
        """
        at, part = norm
        name = f"{at}{self.names[part]}" if part in self.names else None
        bias = None if kind == "weight" else stored("bias")
        if kind == "bias" and not self.layer_norm:
            assert bias is not None
            return bias
        weight = stored("weight")
        assert weight is not None
        if kind == "bias":
            return folded_bias(weight, read(f"{name}.bias"), bias)
        return weight if name is None else folded_weight(weight, self._norm_gain(name, read), self.layer_norm)

    def _head(self, name: str, read: Read) -> Tensor:
        factor = self.factor("head")
        source = self.embedding if self.tied else self.head

        def stored(kind: str) -> Tensor | None:
            if kind == "weight":
                return read(source).T * factor
            return read(f"{self.names['head']}.bias") if self.head_bias else None

        return self._folded(name.partition(".")[2], ("", "norm"), read, stored)

    def _entering(self, at: str, block: str, kind: str, read: Read) -> Tensor | None:
        """Return `mlp.up` or `mlp.gate` as stored."""
        part = block.partition(".")[2]
        if part in self.names:
            return self._stored(f"{at}{self.names[part]}", read, kind)
        both = self._stored(f"{at}{self.names['gate_up']}", read, kind)
        return None if both is None else both.chunk(2, -1)[0 if part == "gate" else 1]

    def _qkv(self, at: str, kind: str, read: Read) -> Tensor | None:
        """Return queries, keys and values side by side as canonical weights have them, norm aside: [D, (H + 2G) C]."""
        a, names = self.architecture, self.names
        parts = [self._stored(f"{at}{names[x]}", read, kind) for x in (["qkv"] if "qkv" in names else "qkv")]
        stored = [part for part in parts if part is not None]
        if not stored:
            return None
        fused, rows = torch.cat(stored, -1), self.fused_rows()
        if rows is not None:
            fused = fused[..., rows]
        heads = fused.reshape(*fused.shape[:-1], a.heads + 2 * a.kv_heads, a.head_channels).clone()
        turned = a.heads + a.kv_heads
        heads[..., :turned, :] = heads[..., :turned, self._order()]
        if a.query_key_norm is None:
            heads[..., : a.heads, :] *= self._scale()
        elif self.layer_norm:
            heads[..., :turned, :] = centred_heads(heads[..., :turned, :])
        return heads.reshape(*fused.shape)

    def _order(self) -> Tensor:
        a = self.architecture
        if a.rotary is None:
            return torch.arange(a.head_channels)
        return channel_order(a.head_channels, a.rotary.turning(a.head_channels), self.interleaved)

    def _scale(self) -> Tensor:
        """Return what queries are multiplied by, [C] in the canonical order: channels that turn take the attention factor of
        both cosines and sines."""
        a = self.architecture
        scale = torch.full((a.head_channels,), self.score_scale(), dtype=torch.float64)
        if a.rotary is not None:
            scale[self._order() < a.rotary.turning(a.head_channels)] *= a.rotary.attention_factor**2
        return scale

    def _gain(self, at: str, block: str, read: Read) -> Tensor:
        """Return a gain behind which there is no linear layer: of a norm after a part, or of queries or keys."""
        a = self.architecture
        if block in ("attention.out", "mlp.down"):
            part = block.partition(".")[2]
            return self._norm_gain(f"{at}{self.names[f'{part}.norm']}", read) * self.factor(part)
        queries = block == "attention.queries"
        gain = self.head_gain(at, "q" if queries else "k", read).reshape(-1, a.head_channels)
        whole = gain.expand(a.heads if queries else a.kv_heads, a.head_channels)[:, self._order()]
        return (whole * self._scale() if queries else whole).reshape(-1)

    def head_gain(self, at: str, part: str, read: Read) -> Tensor:
        """Return the stored gain of normalised queries ("q") or keys ("k"): [C], or of all heads."""
        return self._norm_gain(f"{at}{self.names[f'{part}.norm']}", read)
