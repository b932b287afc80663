"""Distributed point functions for two parties, plain and slow: one seed at a time."""

from __future__ import annotations

import hashlib

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.vectors.independent.formats import U, Words, reduce

Key = tuple[list[bytes], list[int], Words]
"""Seed and control corrections of every level, the leaf's."""

_CIPHERS = [
    Cipher(
        algorithms.AES128(hashlib.sha256(f"distributed point function, {side} child".encode()).digest()[:16]), modes.ECB()
    )
    for side in ("left", "right")
]


def entry_bits(bits: int) -> int:
    """P: bits of a leaf that make an entry."""
    return next(p for p in (8, 16, 32, 64) if p >= bits)


def depth(width: int, bits: int) -> int:
    """Levels of the tree: a leaf holds 256 / P entries."""
    return width - (256 // entry_bits(bits)).bit_length() + 1


def grow(seed: bytes) -> list[bytes]:
    """G(s) = (AES_L(s) ^ s, AES_R(s) ^ s)."""
    out = []
    for cipher in _CIPHERS:
        hashed = cipher.encryptor().update(seed)
        out.append(bytes(a ^ b for a, b in zip(hashed, seed, strict=True)))
    return out


def _xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def _split(seed: bytes) -> tuple[list[bytes], list[int]]:
    """Child seeds without their lowest bit, and those bits."""
    children = grow(seed)
    return [bytes([c[0] & 0xFE]) + c[1:] for c in children], [c[0] & 1 for c in children]


def leaf(seed: bytes, bits: int) -> Words:
    """256 bits as little-endian entries, not reduced."""
    return np.frombuffer(b"".join(grow(seed)), f"<u{entry_bits(bits) // 8}").astype(U)


def seed_of(words: Words) -> bytes:
    """A seed of two 64-bit words."""
    return bytes(words.astype("<u8").tobytes())


def generate(alpha: int, roots: list[bytes], width: int, bits: int) -> tuple[list[bytes], list[int], Words]:
    """Correction words of one point: a seed and two control bits (left + 2 right) a level, and the leaf's."""
    seeds, control = list(roots), [0, 1]
    seed_words, control_words = [], []
    for level in range(depth(width, bits)):
        keep = alpha >> (width - 1 - level) & 1
        found = [_split(s) for s in seeds]
        correction = _xor(found[0][0][1 - keep], found[1][0][1 - keep])
        both = [found[0][1][side] ^ found[1][1][side] ^ int(side == keep) for side in range(2)]
        seed_words.append(correction)
        control_words.append(both[0] + 2 * both[1])
        for party in range(2):
            children, ones = found[party]
            old = control[party]
            seeds[party] = _xor(children[keep], correction) if old else children[keep]
            control[party] = ones[keep] ^ (old & both[keep])
    output = leaf(seeds[1], bits) - leaf(seeds[0], bits)
    output[alpha % len(output)] += U(1)
    return seed_words, control_words, reduce(-output if control[1] else output, bits)


def evaluate(party: int, root: bytes, seed_words: list[bytes], controls: list[int], output: Words, bits: int) -> Words:
    """A party's share of the one-hot vector."""
    nodes = [(root, party)]
    for correction, both in zip(seed_words, controls, strict=True):
        grown = []
        for seed, control in nodes:
            children, ones = _split(seed)
            for side in range(2):
                child = _xor(children[side], correction) if control else children[side]
                grown.append((child, ones[side] ^ (control & both >> side & 1)))
        nodes = grown
    out = np.concatenate([leaf(seed, bits) + (output if control else U(0)) for seed, control in nodes])
    return reduce(-out if party else out, bits)
