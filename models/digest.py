"""Which checkpoint it is: a digest of the files that decide what it computes. For the owner alone, never sent."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mpc.errors import CheckpointError

POLICY_FILE = "policy.safetensors"
"""What policies have learned of the checkpoint beside it; its weights are not the model's own."""


def weight_files(directory: Path) -> list[Path]:
    """Return what the digest covers: config.json and the weights, by name."""
    weights = sorted(file for file in directory.glob("*.safetensors") if file.name != POLICY_FILE)
    return [directory / "config.json", *weights]


def model_digest(directory: Path) -> str:
    """Return the SHA-256 over names, sizes and contents of config.json and every weight file; 0.5 to 2 s a gigabyte."""
    total = hashlib.sha256()
    for file in weight_files(directory):
        try:
            with file.open("rb") as opened:
                inner = hashlib.file_digest(opened, "sha256").digest()
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
        total.update(len(file.name).to_bytes(4, "big") + file.name.encode() + inner)
    return total.hexdigest()
