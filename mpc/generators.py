"""The streams that a 256-bit seed is expanded to: AES-256 in counter mode, or ChaCha20 (RFC 8439, all 20 rounds).

Which one is part of the protocol: whoever expands the same seed must use the same. Both are read at any byte, so a role
makes a stretch where it needs it, at the host (here) or on its device (`mpc.device.keystream`), and gets the same bytes.

AES: the seed is the key, the counter block starts as 16 zero bytes and counts as one big-endian number. ChaCha20: the seed
is the key, the nonce the number of the segment (96 bits, little-endian), the block counter starts at 0 and has 32 bits. A
segment has 2^32 blocks of 64 bytes (256 GiB), the next one another nonce, so no block is ever made twice. What is asked for
begins with a block of its own there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from mpc.errors import ConfigurationError

AES, CHACHA = "aes256-ctr", "chacha20"
_PIECE = 1 << 16
_ZEROS = memoryview(bytes(_PIECE))
_SPARE = 64  # room that a cipher wants behind its output: a block


@dataclass(frozen=True)
class Generator:
    """entry: what is asked for begins at a multiple of so many bytes. block: bytes of the cipher's block. segment: bytes of
    one nonce. cipher: of a key, a segment's number and a block's within it."""

    name: str
    entry: int
    block: int
    segment: int
    cipher: Callable[[bytes, int, int], CipherContext]

    def padded(self, count: int) -> int:
        """Return the bytes of the stream that `count` bytes take."""
        return -(-count // self.entry) * self.entry


def _aes(key: bytes, segment: int, block: int) -> CipherContext:
    return Cipher(algorithms.AES(key), modes.CTR(block.to_bytes(16, "big"))).encryptor()


def _chacha(key: bytes, segment: int, block: int) -> CipherContext:
    first = block.to_bytes(4, "little") + segment.to_bytes(12, "little")
    return Cipher(algorithms.ChaCha20(key, first), mode=None).encryptor()


GENERATORS = {
    AES: Generator(AES, 1, 16, 1 << 132, _aes),
    CHACHA: Generator(CHACHA, 64, 64, 1 << 38, _chacha),
}


def generator(name: str) -> Generator:
    """Return a generator by its name. Raises `ConfigurationError` for one that is not known.

    >>> generator("chacha20").block
    64
    """
    if name not in GENERATORS:
        raise ConfigurationError(f"prg '{str(name)[:64]}' is unknown: write {' or '.join(GENERATORS)}")
    return GENERATORS[name]


def suited(device: str) -> str:
    """Return the name of the generator that suits a device: a GPU makes ChaCha20's stream where it is used, at several
    hundred GB/s, and has no instructions for AES; a processor has them.

    >>> suited("cpu"), suited("cuda:1")
    ('aes256-ctr', 'chacha20')
    """
    return CHACHA if device.startswith("cuda") else AES


class Stream:
    """A seed's stream at the host, at any byte. What follows what was read last needs no new cipher."""

    def __init__(self, key: bytes, generator: Generator) -> None:
        self._key, self._generator = key, generator
        self._at = -1  # where the cipher stands; -1: there is none
        self._cipher: CipherContext | None = None

    def read(self, start: int, count: int) -> np.ndarray:
        """Return `count` bytes from byte `start` on, writable uint8 [count]; what follows begins with the next entry."""
        whole = self._generator.padded(count)
        buffer = np.empty(whole + _SPARE, dtype=np.uint8)
        segment = self._generator.segment
        if self._cipher is not None and start == self._at and whole <= _PIECE and start % segment + whole < segment:
            self._cipher.update_into(_ZEROS[:whole], buffer.data)
            self._at += whole
            return buffer[:count]
        view, at = buffer.data, 0
        while at < whole:
            size = min(whole - at, segment - (start + at) % segment)
            self._fill(view[at : at + size + _SPARE], start + at, size)
            at += size
        return buffer[:count]

    def _fill(self, view: memoryview, start: int, size: int) -> None:
        """Write bytes of one segment: zeros, encrypted piece by piece while they are in the cache."""
        if self._cipher is None or self._at != start:
            self._cipher = self._begun(start)
        for first in range(0, size, _PIECE):
            count = min(_PIECE, size - first)
            written = self._cipher.update_into(_ZEROS[:count], view[first : first + count + _SPARE])
            assert written == count
        self._at = start + size
        if self._at % self._generator.segment == 0:
            self._cipher = None  # the next byte is another nonce's

    def _begun(self, start: int) -> CipherContext:
        g = self._generator
        segment, within = divmod(start, g.segment)
        block, behind = divmod(within, g.block)
        cipher = g.cipher(self._key, segment, block)
        cipher.update(bytes(behind))
        return cipher

    def __repr__(self) -> str:
        return f"Stream({self._generator.name})"
