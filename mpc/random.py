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

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from mpc.ring import check_bits, reduce

SEED_BYTES = 32
_BLOCK = 16  # an AES block: what the cipher wants as spare room behind its output


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

    def ring(
        self, shape: Sequence[int], bits: int = 64, device: torch.device | str = "cpu", canonical: bool = True
    ) -> Tensor:
        """The next uniform elements of Z_2^bits, int64, of `shape`.

        Each element takes 1, 2, 4 or 8 bytes of the stream (the next size that holds `bits`), cut to `bits`; not cut with
        `canonical` False, which is enough for a term of a sum modulo 2^bits and saves a pass.
        """
        check_bits(bits)
        count = math.prod(shape)
        width = 1 if bits <= 8 else 2 if bits <= 16 else 4 if bits <= 32 else 8
        buffer = np.empty(count * width + _BLOCK, dtype=np.uint8)
        written = self._stream.update_into(bytes(count * width), buffer.data)
        assert written == count * width
        words = buffer[:written].view(f"<i{width}" if width == 8 else f"<u{width}")
        out = torch.from_numpy(words.astype(np.int64, copy=False)).reshape(tuple(shape))
        out = reduce(out, bits) if canonical and bits not in (8, 16, 32) else out
        return out.to(device)

    def __repr__(self) -> str:
        return "Prg(AES-256-CTR)"
