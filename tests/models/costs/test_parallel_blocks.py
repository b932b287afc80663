"""Layers whose attention and feed-forward read the same rows take two thirds of the rounds of these in sequence."""

from __future__ import annotations

import pytest
import torch

from models.architecture import Architecture
from models.architectures import decoder_of
from models.costs.tracing import Setting, trace_step
from models.shapes import find_description, with_layers

CACHED = 256


def rounds(architecture: Architecture, parties: int) -> int:
    """Of the last of two layers, for a token behind others."""
    with torch.inference_mode():
        found = trace_step(with_layers(architecture, 2), Setting("masked", parties), CACHED)
    return round(found.layer(1).total("rounds"))


@pytest.mark.parametrize(
    ("name", "parties", "most"),
    [("pythia-160m", 2, 10), ("gpt-j-6b", 2, 10), ("falcon-7b", 2, 11), ("pythia-160m", 3, 15), ("falcon-7b", 3, 16)],
)
def test_rounds(name: str, parties: int, most: int) -> None:
    beside = decoder_of(find_description(name), name)
    assert beside.parallel
    found = rounds(beside, parties)
    assert found <= most
    assert 3 * found <= 2 * rounds(beside.model_copy(update={"parallel": False}), parties)
