"""One hash of all public tables that shares are multiplied by: those of the protocols, and a model's rotary positions."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch

from models.architectures import AnyArchitecture
from models.rotary import cosines_and_sines
from protocols.masked import public_tables

POSITIONS = 32  # at both ends of a model's: all others come from the same operations


@lru_cache(maxsize=32)
def digest(architecture: AnyArchitecture) -> str:
    """Return the SHA-256 of the tables that a session with this model uses, as this machine makes them."""
    whole = hashlib.sha256(public_tables.digest().encode())
    for rotary in architecture.rotaries:
        for first in (0, max(0, architecture.positions - POSITIONS)):
            count = min(POSITIONS, architecture.positions - first)
            angles = cosines_and_sines(rotary, architecture.head_channels, first, count)
            whole.update(torch.stack(angles).numpy().tobytes())
    return whole.hexdigest()
