"""Rotary angles against exact arithmetic and against Hugging Face."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from models.architecture import Rotary
from models.rotary import cosines_and_sines, frequencies
from mpc.trigonometry import cos_sin


def test_cos_and_sin_over_the_whole_range() -> None:
    generator = torch.Generator().manual_seed(0)
    multiples = torch.arange(0, 400, dtype=torch.float64) * math.pi / 4
    angle = torch.cat(
        [multiples, torch.rand(20_000, generator=generator, dtype=torch.float64) * 10.0 ** (torch.arange(20_000) % 7)]
    )
    cos, sin = cos_sin(angle)
    assert max(abs(c - math.cos(a)) for a, c in zip(angle.tolist(), cos.tolist(), strict=True)) < 5e-16
    assert max(abs(s - math.sin(a)) for a, s in zip(angle.tolist(), sin.tolist(), strict=True)) < 5e-16


def test_known_bits() -> None:
    """The same bits on every host: parties multiply shares with these numbers."""
    cos, sin = cosines_and_sines(Rotary(theta=500_000.0), 8, 1000, 2)
    assert cos.dtype == torch.float64
    assert [x.hex() for x in cos[1, :2].tolist()] == ["-0x1.9158d4fc66254p-2", "0x1.ff36610e2e392p-1"]
    assert [x.hex() for x in sin[1, :2].tolist()] == ["0x1.d70901f28580ep-1", "-0x1.c634248fbc9dap-5"]


@pytest.mark.parametrize(
    ("rotary", "parameters"),
    [
        (Rotary(theta=10_000.0), {"rope_type": "default", "rope_theta": 10_000.0}),
        (Rotary(theta=1e6, scaling="linear", factor=2.5), {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.5}),
        (
            Rotary(theta=5e5, scaling="llama3", factor=8.0, original_positions=8192),
            {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        ),
    ],
)
def test_equals_hugging_face(rotary: Rotary, parameters: dict[str, float]) -> None:
    config = LlamaConfig(
        hidden_size=256, num_attention_heads=2, head_dim=128, rope_parameters=parameters, max_position_embeddings=131072
    )
    theirs = LlamaRotaryEmbedding(config)
    torch.testing.assert_close(frequencies(rotary, 128), theirs.inv_freq, rtol=5e-7, atol=0)
    cos, sin = theirs(torch.zeros(1), torch.arange(90, 100)[None])
    ours = cosines_and_sines(rotary, 128, 90, 10)
    torch.testing.assert_close(ours[0].float(), cos[0], atol=5e-5, rtol=0)
    torch.testing.assert_close(ours[1].float(), sin[0], atol=5e-5, rtol=0)
