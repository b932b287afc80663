"""GPT-2: learned positions, LayerNorm, fused queries, keys and values, a GELU feed-forward layer, biases throughout."""

from __future__ import annotations

import torch
from torch import Tensor

from models.architecture import Architecture
from models.families.family import Family, Read, split_layer
from models.families.folding import centred_rows, folded_bias, folded_weight
from protocols.suite import Norm


class Gpt2(Family):
    """Reads `GPT2LMHeadModel` checkpoints. Source: Radford et al. 2019. Its matrices are stored [in, out]."""

    prefix = "transformer."
    embedding = "wte.weight"
    buffers = (r"h\.\d+\.attn\.(bias|masked_bias)",)
    tied_by_default = True

    def describe(self) -> Architecture:
        c = self.config
        c.refuse("scale_attn_by_inverse_layer_idx", "scores divided by the layer's number are not supported", False)
        c.refuse("reorder_and_upcast_attn", "reordered attention is not supported; set it to false", False)
        c.refuse("scale_attn_weights", "attention without the 1/sqrt(head size) scale is not supported", True)
        width, heads = c.integer("n_embd", 768), c.integer("n_head", 12)
        if width % heads:
            raise c.error("n_head", f"n_embd = {width} must be a multiple of it")
        vocabulary = c.integer("vocab_size")
        return Architecture(
            family="gpt2",
            layers=c.integer("n_layer", 12),
            width=width,
            heads=heads,
            kv_heads=heads,
            head_channels=width // heads,
            feed_forward=c.integer("n_inner", 4 * width),
            vocabulary=vocabulary,
            positions=c.integer("n_positions", c.integer("n_ctx", 1024)),
            rotary=None,
            norm=Norm("rms", c.number("layer_norm_epsilon", 1e-5)),  # centred already, see models.families.folding
            activation=c.activation("activation_function", "gelu_new"),
            gated=False,
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
            head_bias=True,
            bos=next(iter(c.token_ids("bos_token_id", vocabulary)), None),
            eos=c.token_ids("eos_token_id", vocabulary),
        )

    def tensors(self) -> dict[str, tuple[int, ...]]:
        a = self.architecture
        wide, forward = a.width, a.feed_forward
        shapes: dict[str, tuple[int, ...]] = {"wte.weight": (a.vocabulary, wide), "wpe.weight": (a.positions, wide)}
        for n in range(a.layers):
            for norm in ("ln_1", "ln_2"):
                shapes |= {f"h.{n}.{norm}.weight": (wide,), f"h.{n}.{norm}.bias": (wide,)}
            for part, inputs, outputs in (
                ("attn.c_attn", wide, 3 * wide),
                ("attn.c_proj", wide, wide),
                ("mlp.c_fc", wide, forward),
                ("mlp.c_proj", forward, wide),
            ):
                shapes |= {f"h.{n}.{part}.weight": (inputs, outputs), f"h.{n}.{part}.bias": (outputs,)}
        shapes |= {"ln_f.weight": (wide,), "ln_f.bias": (wide,)}
        if not self.tied:
            shapes["lm_head.weight"] = (a.vocabulary, wide)
        return shapes

    def weight(self, name: str, read: Read) -> Tensor:
        if name == "embedding.tokens":
            return centred_rows(read("wte.weight"))
        if name == "embedding.positions":
            return centred_rows(read("wpe.weight"))
        if name.startswith("head."):
            head = read("wte.weight" if self.tied else "lm_head.weight").T
            return _folded(name, head, None, "ln_f", read)
        layer, part = split_layer(name)
        h = f"h.{layer}"
        if part.startswith("attention.qkv."):
            weight, bias = read(f"{h}.attn.c_attn.weight"), read(f"{h}.attn.c_attn.bias")
            scale = torch.ones(weight.shape[1], dtype=torch.float64)
            scale[: self.architecture.width] = self.architecture.head_channels**-0.5
            return _folded(name, weight * scale, bias * scale, f"{h}.ln_1", read)
        if part.startswith("mlp.up."):
            return _folded(name, read(f"{h}.mlp.c_fc.weight"), read(f"{h}.mlp.c_fc.bias"), f"{h}.ln_2", read)
        block, _, kind = part.rpartition(".")
        return centred_rows(read(f"{h}.{'attn' if block == 'attention.out' else 'mlp'}.c_proj.{kind}"))


def _folded(name: str, weight: Tensor, bias: Tensor | None, norm: str, read: Read) -> Tensor:
    """Return the weight or the bias of a linear layer behind a LayerNorm."""
    if name.endswith(".weight"):
        return folded_weight(weight, read(f"{norm}.weight"), centred=True)
    return folded_bias(weight, read(f"{norm}.bias"), bias)
