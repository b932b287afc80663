"""LLaMA: rotary positions, RMSNorm, grouped-query attention, a gated feed-forward layer. Mistral and Qwen2 build on it."""

from __future__ import annotations

import torch
from torch import Tensor

from models.architecture import Architecture, Experts
from models.families.family import Family, Read, split_layer
from models.families.folding import folded_weight
from models.families.rotary_config import positions, read_rotary
from protocols.suite import Norm


class Llama(Family):
    """Reads `LlamaForCausalLM` checkpoints. Source: Touvron et al., arXiv 2302.13971. Its matrices are stored [out, in]."""

    prefix = "model."
    embedding = "embed_tokens.weight"
    buffers = (r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)

    def biases(self) -> tuple[bool, bool, bool]:
        """Return biases of (queries, keys, values), of the attention's output, of the feed-forward layers."""
        attention = self.config.flag("attention_bias", False)
        return attention, attention, self.config.flag("mlp_bias", False)

    def windows(self, layers: int) -> tuple[int | None, ...] | None:
        """Return the sliding windows, one entry a layer."""
        self.config.refuse("sliding_window", "LLaMA has no sliding window; is model_type 'mistral' meant?")
        return None

    def experts(self, layers: int) -> Experts | None:
        """Return the mixtures of experts; none in LLaMA."""
        return None

    def describe(self) -> Architecture:
        c = self.config
        width, heads, layers = c.integer("hidden_size"), c.integer("num_attention_heads"), c.integer("num_hidden_layers")
        if not c.present("head_dim") and width % heads:
            raise c.error("num_attention_heads", f"hidden_size = {width} must be a multiple of it")
        qkv, out, mlp = self.biases()
        vocabulary, rotary = c.integer("vocab_size"), read_rotary(c)
        return Architecture(
            family=str(c.values["model_type"]),
            layers=layers,
            width=width,
            heads=heads,
            kv_heads=c.integer("num_key_value_heads", heads),
            head_channels=c.integer("head_dim", max(width // heads, 1)),
            feed_forward=c.integer("intermediate_size"),
            vocabulary=vocabulary,
            positions=positions(c, rotary),
            rotary=rotary,
            norm=Norm("rms", c.number("rms_norm_eps", 1e-6)),
            activation=c.activation("hidden_act", "silu"),
            gated=True,
            qkv_bias=qkv,
            out_bias=out,
            mlp_bias=mlp,
            windows=self.windows(layers),
            experts=self.experts(layers),
            bos=next(iter(c.token_ids("bos_token_id", vocabulary)), None),
            eos=c.token_ids("eos_token_id", vocabulary),
        )

    def tensors(self) -> dict[str, tuple[int, ...]]:
        a = self.architecture
        queries, keys = a.heads * a.head_channels, a.kv_heads * a.head_channels
        shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (a.vocabulary, a.width), "norm.weight": (a.width,)}
        for n in range(a.layers):
            shapes |= {f"layers.{n}.{norm}.weight": (a.width,) for norm in ("input_layernorm", "post_attention_layernorm")}
            parts = [
                ("self_attn.q_proj", queries, a.width, a.qkv_bias),
                ("self_attn.k_proj", keys, a.width, a.qkv_bias),
                ("self_attn.v_proj", keys, a.width, a.qkv_bias),
                ("self_attn.o_proj", a.width, queries, a.out_bias),
            ]
            if a.mixture(n) is None:
                parts += [
                    ("mlp.gate_proj", a.feed_forward, a.width, a.mlp_bias),
                    ("mlp.up_proj", a.feed_forward, a.width, a.mlp_bias),
                    ("mlp.down_proj", a.width, a.feed_forward, a.mlp_bias),
                ]
            for part, outputs, inputs, bias in parts:
                shapes[f"layers.{n}.{part}.weight"] = (outputs, inputs)
                if bias:
                    shapes[f"layers.{n}.{part}.bias"] = (outputs,)
        if not self.tied:
            shapes["lm_head.weight"] = (a.vocabulary, a.width)
        return shapes

    def weight(self, name: str, read: Read) -> Tensor:
        if name == "embedding.tokens":
            return read("embed_tokens.weight")
        if name == "head.weight":
            head = read("embed_tokens.weight" if self.tied else "lm_head.weight")
            return folded_weight(head.T, read("norm.weight"), centred=False)
        layer, part = split_layer(name)
        block, _, kind = part.rpartition(".")
        at = f"layers.{layer}"
        if block == "attention.qkv":
            return self._fused(at, kind, read)
        source = {
            "attention.out": "self_attn.o_proj",
            "mlp.up": "mlp.up_proj",
            "mlp.gate": "mlp.gate_proj",
            "mlp.down": "mlp.down_proj",
        }[block]
        tensor = read(f"{at}.{source}.{kind}")
        if kind == "bias":
            return tensor
        if block in ("mlp.up", "mlp.gate"):
            return folded_weight(tensor.T, read(f"{at}.post_attention_layernorm.weight"), centred=False)
        return tensor.T

    def _fused(self, at: str, kind: str, read: Read) -> Tensor:
        """Return queries (times the score scale), keys and values side by side: [D, (H + 2G) C], or their biases."""
        parts = [read(f"{at}.self_attn.{part}_proj.{kind}") for part in "qkv"]
        rotary = self.architecture.rotary
        assert rotary is not None
        parts[0] = parts[0] * (self.architecture.head_channels**-0.5 * rotary.attention_factor**2)
        fused = torch.cat(parts, 0)
        return fused if kind == "bias" else folded_weight(fused.T, read(f"{at}.input_layernorm.weight"), centred=False)
