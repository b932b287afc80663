"""The only source of randomness for shares, masks and correlations.

Seeds are 256 bits from the operating system (`secrets`); expansion is AES-256 in counter mode from `cryptography`.
`torch.Generator`, Python's `random` and numpy's generators are never used for anything that protects a secret: CrypTen's
use of a Mersenne Twister with a 32-bit effective seed lets a peer recover the other's weights within seconds.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable, Sequence

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from mpc.bits import check_bits
from mpc.device.deferred import known
from mpc.device.recorded import unpacked
from mpc.ledger import current
from mpc.packing import word_bytes
from mpc.ring import reduce
from mpc.timeline import timed

SEED_BYTES = 32
_BLOCK = 16  # an AES block: what the cipher wants as spare room behind its output
_PIECE = 1 << 16
_ZEROS = memoryview(bytes(_PIECE))
_LEAST_AHEAD, MOST_AHEAD = 1 << 14, 1 << 22  # bytes that are copied to a device at once
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def new_seed() -> bytes:
    """Return 256 fresh bits from the operating system."""
    return secrets.token_bytes(SEED_BYTES)


def derive_seed(seed: bytes, *labels: str | int | bytes) -> bytes:
    """Return an independent 256-bit seed for a purpose: SHA-256 over the seed and the length-prefixed labels."""
    digest = hashlib.sha256()
    for label in (seed, *labels):
        item = label if isinstance(label, bytes) else str(label).encode()
        digest.update(len(item).to_bytes(8, "little") + item)
    return digest.digest()


class _Ahead:
    """A stream that is expanded at the host in pieces, each copied to a device at once, and handed out on either side."""

    def __init__(self, fresh: Callable[[int], np.ndarray], device: torch.device) -> None:
        self._fresh, self._device = fresh, device
        self._left = np.empty(0, np.uint8)
        self._left_there: Tensor | None = None
        self._piece = _LEAST_AHEAD

    def _take(self, count: int) -> tuple[np.ndarray, Tensor]:
        """Return the next `count` bytes, at the host and on the device."""
        if self._left_there is None or count > self._left.size:
            self._left = np.concatenate([self._left, self._fresh(max(count - self._left.size, self._piece))])
            self._piece = min(2 * self._piece, MOST_AHEAD)
            self._left_there = torch.from_numpy(self._left).to(self._device)
        found = self._left[:count], self._left_there[:count]
        self._left, self._left_there = self._left[count:], self._left_there[count:]
        return found

    def at_host(self, count: int) -> np.ndarray:
        """Return the next bytes at the host, writable."""
        return self._take(count)[0].copy()

    def both(self, count: int) -> tuple[np.ndarray, Tensor]:
        """Return the next bytes at the host, to be read only, and on the device, wherever they start."""
        return self._take(count)


class Prg:
    """A stream of pseudorandom bytes and ring elements, expanded from a 256-bit seed with AES-256-CTR.

    Two holders of the same seed who ask for the same sequence of shapes and rings get the same elements, on any device.

    >>> seed = new_seed()
    >>> ours, theirs = Prg(seed).ring((2, 3), 20), Prg(seed).ring((2, 3), 20)
    >>> bool((ours == theirs).all()), bool((ours < 2**20).all())
    (True, True)
    """

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes, got {len(seed)}")
        self._stream = Cipher(algorithms.AES(seed), modes.CTR(b"\0" * 16)).encryptor()
        self._ahead: _Ahead | None = None

    def bytes(self, count: int) -> bytes:
        """Return the next `count` bytes of the stream."""
        return self._expand(count).tobytes()

    def _expand(self, count: int) -> np.ndarray:
        """Return the next `count` bytes as writable uint8 [count]."""
        return self._fresh(count) if self._ahead is None else self._ahead.at_host(count)

    def _expand_on(self, count: int, device: torch.device) -> tuple[np.ndarray, Tensor]:
        """Return the next `count` bytes at the host and on a device, uint8 [count]."""
        if self._ahead is None:
            self._ahead = _Ahead(self._fresh, device)
        return self._ahead.both(count)

    @timed("expand", current)
    def _fresh(self, count: int) -> np.ndarray:
        """Expand `count` bytes: zeros, encrypted piece by piece while they are in the cache."""
        buffer = np.empty(count + _BLOCK, dtype=np.uint8)
        view = buffer.data
        for start in range(0, count, _PIECE):
            size = min(_PIECE, count - start)
            written = self._stream.update_into(_ZEROS[:size], view[start : start + size + _BLOCK])
            assert written == size
        return buffer[:count]

    def words(self, shape: Sequence[int], bits: int = 64, device: torch.device | str = "cpu") -> Tensor:
        """Return the next uniform elements of Z_2^bits of `shape`, as `ring`, in the narrowest signed integers that hold
        them; not canonical: congruent to what `ring` gives modulo 2^bits."""
        check_bits(bits)
        width = word_bytes(bits)
        count = math.prod(shape) * width
        if (device if isinstance(device, str) else device.type) != "cpu":
            host, there = self._expand_on(count, torch.device(device))
            made = known(unpacked(there, 8 * width, shape), lambda: self._read(host, width, shape).to(torch.int64))
            return made.to(_INTEGERS[width])
        return self._read(self._expand(count), width, shape)

    @staticmethod
    def _read(raw: np.ndarray, width: int, shape: Sequence[int]) -> Tensor:
        return torch.from_numpy(raw.view(f"<i{width}").astype(f"i{width}", copy=False)).reshape(tuple(shape))

    def ring(self, shape: Sequence[int], bits: int = 64, device: torch.device | str = "cpu") -> Tensor:
        """Return the next uniform elements of Z_2^bits, int64, of `shape`.

        Each element takes 1, 2, 4 or 8 bytes of the stream (the next size that holds `bits`), cut to `bits`.
        """
        return canonical(self.words(shape, bits, device), bits)

    def __repr__(self) -> str:
        return "Prg(AES-256-CTR)"


def canonical(words: Tensor, bits: int) -> Tensor:
    """Return narrow words, congruent to elements of Z_2^bits, as canonical int64; they are cut in place, while they are
    narrow, and must not be used any more."""
    if bits < 8 * words.element_size():
        words &= (1 << bits) - 1
        return words.to(torch.int64)
    return reduce(words.to(torch.int64), bits)
