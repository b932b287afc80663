"""What families do not compute is refused by the option's name, with the value and a remedy; fields fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.architecture import Architecture, Rotary
from models.config import Config
from models.families.registry import family_for
from models.families.rotary_config import channel_order
from models.known_checkpoints import KNOWN
from models.shapes import SHAPES
from mpc.errors import CheckpointError, ConfigurationError


def described(name: str, **changes: Any) -> Any:
    return family_for(Config(KNOWN[name] | changes, Path("config.json"))).architecture


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("opt-125m", {"do_layer_norm_before": False}, r"'do_layer_norm_before' = False: norms of the stream itself"),
        ("opt-125m", {"word_embed_proj_dim": 512}, r"'word_embed_proj_dim' = 512: embeddings of another width"),
        ("falcon-7b", {"alibi": True}, r"'alibi' = True: ALiBi positions are not supported"),
        ("phi-3-mini", {"rope_scaling": {"type": "linear", "factor": 2.0}}, r"supported: default, longrope"),
        ("phi-4-mini", {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 3}}, r"48 pairs of channels turn"),
        ("phi-4-mini", {"rope_scaling": {"type": "longrope"}}, r"'short_factor' is missing: a list of numbers"),
        ("gemma-2-2b", {"use_bidirectional_attention": True}, r"a decoder attends to what came before"),
        ("gemma-3-1b", {"attn_logit_softcapping": 50.0}, r"'attn_logit_softcapping' = 50\.0: soft-capped"),
        ("pythia-160m", {"rotary_pct": 0.01}, r"'rotary_pct' = 0\.01: 0 of 64 channels"),
        ("smollm3-3b", {"no_rope_layers": [1, 0]}, r"a list with 0 or 1 for each of 36 layers"),
        ("qwen3-0.6b", {"attention_multiplier": 0.5}, r"'attention_multiplier' = 0\.5: another score scale"),
        ("llama-3-8b", {"clip_qkv": 8.0}, r"'clip_qkv' = 8\.0: clipped queries"),
    ],
)
def test_options(name: str, changes: dict[str, Any], message: str) -> None:
    described(name)
    with pytest.raises(CheckpointError, match=message):
        described(name, **changes)


def test_what_known_checkpoints_are() -> None:
    gemma, phi = SHAPES["gemma-3-1b"], SHAPES["phi-4-mini"]
    assert [gemma.window(n) for n in range(6)] == [512] * 5 + [None]
    assert (gemma.rotary_of(0), gemma.rotary_of(5)) == (Rotary(theta=1e4), Rotary(theta=1e6))
    assert phi.rotary is not None
    assert (phi.positions, phi.rotary.channels) == (4096, 96)
    assert [SHAPES["smollm3-3b"].rotary_of(n) is None for n in range(4)] == [False] * 3 + [True]
    assert (SHAPES["gemma-2-2b"].score_cap, SHAPES["gemma-2-2b"].logit_cap) == (50.0, 30.0)
    assert (SHAPES["pythia-160m"].parallel, SHAPES["olmo-2-1b"].norms) == (True, "after")


def test_layers_of_a_kind_are_kept() -> None:
    kept = SHAPES["smollm3-3b"].reduced([2, 3])
    assert kept.rotated == (True, False)
    assert SHAPES["gemma-3-1b"].reduced([4, 5]).windows == (512, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotated": (True,)}, r"'rotated' has 1 entries"),
        ({"rotary": Rotary(channels=130)}, r"'channels' = 130 of rotary positions, a head has 128"),
        ({"rotary": None, "sliding_rotary": Rotary()}, r"'rotary' is needed by"),
        ({"score_cap": 0.0}, r"'score_cap' = 0\.0"),
        ({"norms": "none"}, r"'norms' = 'none'"),
    ],
)
def test_fields_fit_together(changes: dict[str, Any], message: str) -> None:
    whole = SHAPES["llama-3-8b"]
    values = {name: getattr(whole, name) for name in type(whole).model_fields}
    with pytest.raises(ConfigurationError, match=message):
        Architecture(**(values | changes))


def test_channels_that_turn_stand_half_a_head_apart() -> None:
    order = channel_order(8, 4, interleaved=False).tolist()
    assert order == [0, 1, 4, 5, 2, 3, 6, 7]
    assert sorted(channel_order(20, 6, interleaved=True).tolist()) == list(range(20))
