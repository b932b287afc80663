"""Learned weights of policies for tests: random ones beside a checkpoint, or exact ones for a single layer."""

from __future__ import annotations

from pathlib import Path

import torch

from models.checkpoint import read_architecture
from models.policies import parse
from models.policy_file import write


def save_random(directory: Path, text: str, seed: int = 0, scale: float = 0.08) -> None:
    """Write policy.safetensors with random weights for a policy beside a checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    shapes = parse(text).weight_shapes(read_architecture(directory))
    write(directory, {name: torch.randn(shape, generator=generator) * scale for name, shape in shapes.items()}, directory)
