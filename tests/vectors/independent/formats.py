"""Generator, packing, headers and hexadecimal tensors, as docs/vectors.md specifies them."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

U = np.uint64
Words = np.ndarray[Any, np.dtype[np.uint64]]
FULL_BYTES = 96  # longer byte strings are given by size, hash and beginning
BEGINNING = 12


# ---- rings -----------------------------------------------------------------------------------------------------------
def word(value: int) -> np.uint64:
    """An integer modulo 2^64."""
    return U(value % (1 << 64))


def reduce(x: Words, bits: int) -> Words:
    """Canonical in Z_2^bits."""
    return x & U((1 << bits) - 1)


def signed(x: Words, bits: int) -> np.ndarray:
    """Representatives in [-2^(bits - 1), 2^(bits - 1)), int64."""
    return (x << U(64 - bits)).view(np.int64) >> (64 - bits)


def high(x: Words, count: int, bits: int) -> Words:
    """floor(x / 2^count) of the canonical x modulo 2^bits."""
    return np.zeros_like(x) if count >= bits else reduce(x, bits) >> U(count)


def total(shares: Words, bits: int, kind: str = "sum") -> Words:
    """What shares [parties, ...] add up (or XOR) to."""
    joined = np.bitwise_xor.reduce(shares, 0) if kind == "xor" else shares.sum(0, dtype=U)
    return reduce(joined, bits)


def from_real(x: np.ndarray) -> Words:
    """Reals that are whole numbers, modulo 2^64."""
    return np.rint(x).astype(np.int64).view(U)


# ---- generator -------------------------------------------------------------------------------------------------------
class Stream:
    """AES-256 in counter mode over zeros; the counter block starts at 0 and counts as one 128-bit big-endian number."""

    def __init__(self, seed: bytes) -> None:
        self._cipher = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()

    def take(self, count: int) -> bytes:
        """The next bytes."""
        return self._cipher.update(bytes(count))

    def elements(self, shape: Sequence[int], bits: int) -> Words:
        """The next ring elements: 1, 2, 4 or 8 little-endian bytes each, cut to `bits`."""
        width = 1 if bits <= 8 else 2 if bits <= 16 else 4 if bits <= 32 else 8
        raw = np.frombuffer(self.take(width * math.prod(shape)), f"<u{width}")
        return reduce(raw.astype(U), bits).reshape(tuple(shape))


def derived(seed: bytes, *labels: bytes) -> bytes:
    """SHA-256 of the seed and the labels, each behind its length in 8 little-endian bytes."""
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in (seed, *labels))).digest()


# ---- packing ---------------------------------------------------------------------------------------------------------
def packed_size(count: int, bits: int) -> int:
    """Bytes of `count` packed elements."""
    return count * (bits // 8) + -(-count * (bits % 8) // 8)


def pack(x: Words, bits: int) -> bytes:
    """Planes of words of 64, 32, 16 and 8 bits, low bits first, and one plane of the remaining bits."""
    flat = reduce(np.ascontiguousarray(x).reshape(-1), bits)
    out, at = [], 0
    for octets in (8, 4, 2, 1):
        if bits // 8 & octets:
            out.append((flat >> U(8 * at)).astype(f"<u{octets}").tobytes())
            at += octets
    if rest := bits % 8:
        ones = ((flat >> U(8 * at))[:, None] >> np.arange(rest, dtype=U)) & U(1)
        out.append(np.packbits(ones.astype(np.uint8).reshape(-1), bitorder="little").tobytes())
    return b"".join(out)


def unpack(data: bytes, bits: int, shape: Sequence[int]) -> Words:
    """Inverse of `pack`."""
    count = math.prod(shape)
    assert len(data) == packed_size(count, bits)
    out, at, start = np.zeros(count, U), 0, 0
    for octets in (8, 4, 2, 1):
        if bits // 8 & octets:
            out |= np.frombuffer(data, f"<u{octets}", count, start).astype(U) << U(8 * at)
            at, start = at + octets, start + octets * count
    if rest := bits % 8:
        ones = np.unpackbits(np.frombuffer(data[start:], np.uint8), count=count * rest, bitorder="little")
        out |= (ones.reshape(count, rest).astype(U) << np.arange(rest, dtype=U)).sum(1, dtype=U) << U(8 * at)
    return out.reshape(tuple(shape))


# ---- what stands in a vector -----------------------------------------------------------------------------------------
def tensor(given: dict[str, Any]) -> Words:
    """Ring elements: unsigned, hexadecimal, row-major."""
    return np.array([int(v, 16) for v in given["values"].split()], U).reshape(given["shape"])


def octets(given: str | dict[str, Any]) -> bytes | None:
    """Bytes that are given in full; None where they are not."""
    return base64.b64decode(given) if isinstance(given, str) else None


def same(data: bytes, given: str | dict[str, Any]) -> bool:
    """Whether these are the bytes that a vector gives, in full or by hash."""
    if isinstance(given, str):
        return base64.b64decode(given) == data
    whole = (given["size"], given["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    return whole and base64.b64decode(given["starts"]) == data[:BEGINNING]


def entry_header(position: int, text: str, size: int) -> bytes:
    """The 16 bytes before an entry of the tape."""
    return hashlib.sha256(f"{position} {text}".encode()).digest()[:8] + size.to_bytes(8, "little")
