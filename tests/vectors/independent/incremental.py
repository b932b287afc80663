"""Incremental point functions for two parties, plain and slow: one node at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.vectors.independent.formats import U, Words, high, reduce
from tests.vectors.independent.world import Masked, World, elements


@cache
def _cipher(use: str) -> Cipher[modes.ECB]:
    key = hashlib.sha256(f"incremental point function, {use}".encode()).digest()[:16]
    return Cipher(algorithms.AES128(key), modes.ECB())


def _xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def hashed(use: str, block: bytes) -> bytes:
    """AES(x) XOR x."""
    return _xor(_cipher(use).encryptor().update(block), block)


def seed(node: bytes) -> bytes:
    """A node without its two lowest bits."""
    return bytes([node[0] & 0xFC]) + node[1:]


def child(node: bytes, side: int) -> bytes:
    """Before its correction."""
    own = seed(node)
    return hashed("children", bytes([own[0] | side]) + own[1:])


def masks(node: bytes, values: int, bits: int) -> Words:
    """What hides a node's payloads, in entries of 8, 16, 32 or 64 bits."""
    width = next(p for p in (8, 16, 32, 64) if p >= bits) // 8
    blocks = b"".join(hashed(f"payloads {i}", seed(node)) for i in range(-(-values * width // 16)))
    return np.frombuffer(blocks, f"<u{width}")[:values].astype(U)


def corrected(node: bytes, word: bytes, parent: bytes, side: int) -> bytes:
    """A child, with the word if the parent's control bit is set; of its two lowest bits the one of this side."""
    if not parent[0] & 1:
        return node
    return _xor(node, bytes([(word[0] & 0xFC) | (word[0] >> side & 1)]) + word[1:])


@dataclass(frozen=True)
class Key:
    """Corrections of one element: a word a level, payloads [levels, values] modulo 2^bits."""

    words: list[bytes]
    levels: Sequence[int]
    payloads: Words
    bits: int


def generate(alpha: int, roots: Sequence[bytes], levels: Sequence[int], payloads: Words, bits: int) -> Key:
    """payloads [levels, values] at alpha's prefixes of so many bits; alpha has levels[-1] bits."""
    nodes = [bytes([seed(root)[0] | party]) + root[1:] for party, root in enumerate(roots)]
    words, outputs = [], []
    for level in range(levels[-1]):
        keep = alpha >> (levels[-1] - 1 - level) & 1
        grown = [[child(node, side) for side in range(2)] for node in nodes]
        lost = seed(_xor(grown[0][1 - keep], grown[1][1 - keep]))
        turn = [(grown[0][side][0] ^ grown[1][side][0] ^ int(side == keep)) & 1 for side in range(2)]
        words.append(bytes([lost[0] | turn[0] | turn[1] << 1]) + lost[1:])
        nodes = [corrected(grown[p][keep], words[-1], nodes[p], keep) for p in range(2)]
        if level + 1 in levels:
            given = payloads[list(levels).index(level + 1)]
            rest = given - masks(nodes[0], len(given), bits) + masks(nodes[1], len(given), bits)
            outputs.append(reduce(-rest if nodes[1][0] & 1 else rest, bits))
    return Key(words, levels, np.stack(outputs), bits)


def share(party: int, root: bytes, key: Key, point: int, level: int) -> Words:
    """A party's shares of the payloads at a point of `level` bits, not reduced."""
    node = bytes([seed(root)[0] | party]) + root[1:]
    for i, word in enumerate(key.words[:level]):
        side = point >> (level - 1 - i) & 1
        node = corrected(child(node, side), word, node, side)
    output = key.payloads[list(key.levels).index(level)]
    found = masks(node, len(output), key.bits) + (output if node[0] & 1 else U(0))
    return -found if party else found


@dataclass(frozen=True)
class Tree:
    """levels: after how many leading bits there are payloads. values of each, modulo 2^bits; read at m less `offsets`."""

    levels: Sequence[int]
    offsets: Sequence[int]
    values: int
    bits: int


def read(w: World, x: Masked, tree: Tree, payloads: Words) -> Words:
    """[parties, levels, elements, offsets, values]: shares of payloads [levels, elements, values] at m's prefixes less y."""
    count, depth = elements(x.shape), tree.levels[-1]
    m, alpha = (high(t.reshape(-1), x.bits - depth, x.bits) for t in (x.m, x.mask))
    drawn = w.random("point roots", (count, 2), 64)
    roots = [[bytes(drawn[p, i].astype("<u8").tobytes()) for i in range(count)] for p in range(2)]
    keys = [
        generate(int(alpha[i]), [roots[p][i] for p in range(2)], tree.levels, payloads[:, i], tree.bits)
        for i in range(count)
    ]
    words = np.array([[np.frombuffer(key.words[level], "<u8") for key in keys] for level in range(depth)], U)
    w.common("point corrections", (depth, count, 2), 64, words)
    shape = (len(tree.levels), count, tree.values)
    w.common("point payloads", shape, tree.bits, np.stack([key.payloads for key in keys], 1))
    out = np.empty((2, len(tree.levels), count, len(tree.offsets), tree.values), U)
    for p in range(2):
        for j, level in enumerate(tree.levels):
            for i in range(count):
                for k, y in enumerate(tree.offsets):
                    point = ((int(m[i]) >> (depth - level)) - y) % (1 << level)
                    out[p, j, i, k] = share(p, roots[p][i], keys[i], point, level)
    return out
