"""Sizes drawn at random for a variant of `random_checkpoints`, `random_encoder_decoders` or `random_encoders`: heads,
channels, widths, windows, experts, labels, tied or not; what all of transformers' families build."""

from __future__ import annotations

import random
from typing import Any

WIDTH = ("hidden_size", "n_embd", "d_model", "dim")
HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
GROUPS = ("num_key_value_heads", "num_kv_heads")
CHANNELS = ("head_dim", "d_kv")
FORWARD = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "moe_intermediate_size", "hidden_dim")
LABELS = ("num_labels",)
EXPERTS = ("num_experts", "num_local_experts")
WINDOW = "sliding_window"


def drawn(values: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return a config's values with other sizes; the same ones for the same seed. Where rotary factors are listed by channel
    the sizes of heads stay."""
    draw = random.Random(seed)
    found = dict(values)

    def put(names: tuple[str, ...], value: int) -> None:
        found.update({name: value for name in names if name in values})

    put(LABELS, draw.randrange(1, 9))
    put(FORWARD, draw.randrange(19, 80))
    found["vocab_size"] = draw.randrange(61, 130)
    if "tie_word_embeddings" in values:
        found["tie_word_embeddings"] = draw.random() < 0.5
    if values.get(WINDOW) is not None:
        found[WINDOW] = draw.randrange(2, 9)
    if any(name in values for name in EXPERTS):
        experts = draw.randrange(3, 9)
        put(EXPERTS, experts)
        found["num_experts_per_tok"] = draw.randrange(1, experts)
    if "short_factor" in values.get("rope_parameters", {}):
        return found
    part = values.get("rotary_pct", values.get("partial_rotary_factor", 1.0))
    channels = draw.choice([size for size in range(6, 21, 2) if int(size * part) % 2 == 0 and int(size * part)])
    groups = draw.randrange(1, 5)
    heads = groups * draw.randrange(1, 4) if any(name in values for name in GROUPS) else draw.randrange(1, 8)
    put(HEADS, heads)
    put(GROUPS, groups)
    put(CHANNELS, channels)
    own_channels = any(name in values for name in CHANNELS)
    put(WIDTH, heads * (draw.randrange(5, 12) if own_channels else channels))
    if "rotary_dim" in values:
        found["rotary_dim"] = 2 * draw.randrange(1, channels // 2 + 1)
    return found
