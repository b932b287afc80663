"""The only source of randomness for shares, masks and correlations.

Seeds are 256 bits from the operating system (`secrets`); expansion is AES-256 in counter mode from `cryptography`.
`torch.Generator`, Python's `random` and numpy's generators are never used for anything that protects a secret: CrypTen's
use of a Mersenne Twister with a 32-bit effective seed lets a peer recover the other's weights within seconds.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Sequence

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from mpc.packing import packed_size, unpack

SEED_BYTES = 32


def new_seed() -> bytes:
    """256 fresh bits from the operating system."""
    return secrets.token_bytes(SEED_BYTES)


def derive_seed(seed: bytes, *labels: str | int | bytes) -> bytes:
    """An independent 256-bit seed for a purpose: SHA-256 over the seed and the length-prefixed labels."""
    digest = hashlib.sha256()
    for label in (seed, *labels):
        item = label if isinstance(label, bytes) else str(label).encode()
        digest.update(len(item).to_bytes(8, "little") + item)
    return digest.digest()


class Prg:
    """A stream of pseudorandom bytes and ring elements, expanded from a 256-bit seed with AES-256-CTR.

    Two holders of the same seed who ask for the same sequence of shapes and rings get the same elements, on any device.
    """

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes, got {len(seed)}")
        self._stream = Cipher(algorithms.AES(seed), modes.CTR(b"\0" * 16)).encryptor()

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes of the stream."""
        return self._stream.update(bytes(count))

    def ring(self, shape: Sequence[int], bits: int = 64, device: torch.device | str = "cpu") -> Tensor:
        """The next uniform elements of Z_2^bits, int64, of `shape`. Uses packed_size(count, bits) stream bytes."""
        count = math.prod(shape)
        return unpack(self.bytes(packed_size(count, bits)), bits, shape).to(device)

    def __repr__(self) -> str:
        return "Prg(AES-256-CTR)"
