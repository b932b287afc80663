"""The only source of randomness for shares, masks and correlations.

Seeds are 256 bits from the operating system (`secrets`); they are expanded by AES-256 in counter mode or by ChaCha20
(`mpc.generators`), from `cryptography` at the host, from `mpc.device.keystream` on a device.
`torch.Generator`, Python's `random` and numpy's generators are never used for anything that protects a secret: CrypTen's
use of a Mersenne Twister with a 32-bit effective seed lets a peer recover the other's weights within seconds.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpc.bits import check_bits
from mpc.device import keystream
from mpc.device.deferred import known
from mpc.device.keystream import Keystream
from mpc.device.recorded import unpacked
from mpc.generators import AES, CHACHA, Stream, generator
from mpc.ledger import current
from mpc.messages import delivered
from mpc.packing import word_bytes
from mpc.ring import reduce
from mpc.timeline import timed

SEED_BYTES = 32
_LEAST_AHEAD, _MOST_AHEAD = 1 << 14, 1 << 22  # bytes that are made for a device at once
_FEW = 1 << 15  # elements that numpy cuts in less time than torch; of more, several of its threads cut some each
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SIGNED = {width: np.dtype(f"<i{width}") for width in _INTEGERS}  # as the stream is read, and as the machine has them
_NATIVE = {width: np.dtype(f"i{width}") for width in _INTEGERS}


@cache
def _cut(bits: int) -> tuple[int, np.dtype[Any], np.generic | None]:
    """Return the bytes of a word of the stream, how it is read so that widening keeps it canonical, and what it is cut with:
    None for nothing."""
    check_bits(bits)
    width = word_bytes(bits)
    word = np.dtype(f"<u{width}") if width < 8 else np.dtype("<i8")
    return width, word, None if bits == 8 * width else word.type((1 << bits) - 1)


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
    """A stream on a device, made some bytes ahead: few kernels, or copies, for many small entries. read: makes it there."""

    def __init__(self, read: Callable[[int, int], Tensor]) -> None:
        self._read = read
        self._first = 0
        self._there: Tensor | None = None
        self._piece = _LEAST_AHEAD

    def take(self, start: int, count: int) -> Tensor:
        """Return `count` bytes from byte `start` on, uint8 [count] on the device."""
        at = start - self._first
        if self._there is None or at + count > self._there.numel():
            self._there = self._read(start, max(count, self._piece))
            self._first, at = start, 0
            self._piece = min(2 * self._piece, _MOST_AHEAD)
        return self._there[at : at + count]


@timed("expand", current)
def _expanded(stream: Stream, start: int, count: int) -> np.ndarray:
    """Return bytes of a stream at the host, writable uint8 [count]."""
    return stream.read(start, count)


def _copied(stream: Stream, device: torch.device) -> Callable[[int, int], Tensor]:
    """Return what makes a stream at the host and copies it to a device."""

    def read(start: int, count: int) -> Tensor:
        found: Tensor = delivered([_expanded(stream, start, count).data], device)[0]  # type: ignore[assignment]
        return found

    return read


class Prg:
    """A stream of pseudorandom bytes and ring elements, expanded from a 256-bit seed. prg: the generator, see `generators`.

    Two holders of the same seed who ask for the same sequence of shapes and rings get the same elements, on any device.

    >>> seed = new_seed()
    >>> ours, theirs = Prg(seed).ring((2, 3), 20), Prg(seed).ring((2, 3), 20)
    >>> bool((ours == theirs).all()), bool((ours < 2**20).all())
    (True, True)
    """

    def __init__(self, seed: bytes, prg: str = AES) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes, got {len(seed)}")
        self._seed, self._generator = seed, generator(prg)
        self._stream = Stream(seed, self._generator)
        self._at = 0  # bytes of the stream that were asked for
        self._ahead: dict[torch.device, _Ahead] = {}

    @classmethod
    def of(cls, seed: bytes | Prg) -> Prg:
        """Return a stream itself, or a seed's by AES-256-CTR."""
        return seed if isinstance(seed, Prg) else cls(seed)

    def bytes(self, count: int) -> bytes:
        """Return the next `count` bytes of the stream."""
        return _expanded(self._stream, self._next(count), count).tobytes()

    def _next(self, count: int) -> int:
        """Return where the next `count` bytes begin; nobody gets them again."""
        start = self._at
        self._at += self._generator.padded(count)
        return start

    def words(self, shape: Sequence[int], bits: int = 64, device: torch.device | str = "cpu") -> Tensor:
        """Return the next uniform elements of Z_2^bits of `shape`, as `ring`, in the narrowest signed integers that hold
        them; not canonical: congruent to what `ring` gives modulo 2^bits."""
        check_bits(bits)
        width = word_bytes(bits)
        count = math.prod(shape) * width
        start = self._next(count)
        if (device if isinstance(device, str) else device.type) != "cpu":
            return self._words_on(torch.device(device), start, width, shape)
        return self._read(_expanded(self._stream, start, count), width, shape)

    def _words_on(self, device: torch.device, start: int, width: int, shape: Sequence[int]) -> Tensor:
        """Return words of the stream from byte `start` on, on a device. The host makes them again where it needs them."""
        count, host = math.prod(shape) * width, Stream(self._seed, self._generator)
        ahead = self._ahead.get(device)
        if ahead is None:
            there = self._generator.name == CHACHA and keystream.works(device)
            ahead = self._ahead[device] = _Ahead(
                Keystream(self._seed, device).read if there else _copied(self._stream, device)
            )
        made = unpacked(ahead.take(start, count), 8 * width, shape)
        known(made, lambda: Prg._read(host.read(start, count), width, shape).to(torch.int64))
        return made.to(_INTEGERS[width])

    @staticmethod
    def _read(raw: np.ndarray, width: int, shape: Sequence[int]) -> Tensor:
        return torch.from_numpy(raw.view(_SIGNED[width]).astype(_NATIVE[width], copy=False)).reshape(tuple(shape))

    def ring(self, shape: Sequence[int], bits: int = 64, device: torch.device | str = "cpu") -> Tensor:
        """Return the next uniform elements of Z_2^bits, int64, of `shape`.

        Each element takes 1, 2, 4 or 8 bytes of the stream (the next size that holds `bits`), cut to `bits`.
        """
        count = math.prod(shape)
        if count > _FEW or (device if isinstance(device, str) else device.type) != "cpu":
            return canonical(self.words(shape, bits, device), bits)
        width, word, kept = _cut(bits)  # as above, in a third of the time that few elements take there
        words = _expanded(self._stream, self._next(count * width), count * width).view(word)
        if kept is not None:
            np.bitwise_and(words, kept, out=words)
        return torch.from_numpy(words.astype(np.int64, copy=False).reshape(shape))

    def __repr__(self) -> str:
        return f"Prg({self._generator.name})"


def canonical(words: Tensor, bits: int) -> Tensor:
    """Return narrow words, congruent to elements of Z_2^bits, as canonical int64; they are cut in place, while they are
    narrow, and must not be used any more."""
    if bits < 8 * words.element_size():
        words &= (1 << bits) - 1
        return words.to(torch.int64)
    return reduce(words.to(torch.int64), bits)
