"""One-hot vectors of a mask's digit from distributed point functions: short keys instead of a dealt table; two parties only.

A distributed point function for (alpha, 1) is a pair of keys whose full-domain evaluations add up to the one-hot vector of
alpha modulo 2^bits, while each key alone says nothing of alpha. A key is a 128-bit root seed, different for each party and
taken from its own stream, and correction words that are the same for both (`Tape.common`). A seed s with its control bit
grows into two, G(s) = (AES_L(s) ^ s, AES_R(s) ^ s) with fixed keys L and R, whole levels of all elements in two calls of the
cipher. The tree ends early: a leaf's G(s) is 256 bits, which are 256 / P entries of P = 8, 16, 32 or 64 >= bits bits.

Rounds and online bytes: none (local, as `one_hot_table`).
Offline bytes per element, at *each* party: D (16 + 1/4) + (256 / P) bits / 8 with D = width - log2(256 / P) levels, for
2^width bits / 8 of the dealt table, which the last party alone receives. Work: 2 (2^(D+1) - 1) AES blocks.
Valid range: two parties, D >= 1. Error: none. Leaks: nothing to a computationally bounded party; keys are
pseudorandom if G is a pseudorandom generator: with AES as an ideal permutation, for work up to 2^(127 - b) against 2^b
levels of all keys, since the control bit is taken from the 128 of a seed (docs/security.md, "Point functions").
Sources: Boyle, Gilboa, Ishai 2016 (function secret sharing: improvements and extensions), early termination included; Guo,
Katz, Wang, Yu 2020 for fixed-key AES.

`protocols.masked.dealing` chooses between keys and tables. `one_hot_below` computes of a vector only the entries below a
prefix that is public.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from mpc import ring
from mpc.errors import RangeError
from mpc.messages import sent_up
from mpc.packing import packed_size
from protocols.masked.context import Context
from protocols.masked.one_hot import digit, rotate
from protocols.masked.shares import Masked, Shared

Words = np.ndarray[Any, np.dtype[np.uint64]]
Entries = npt.NDArray[Any]

LEAF_BITS = 256
CHUNK_SEEDS = 1 << 16  # seeds of a level that are expanded at once: fits the cache
_BLOCK = 16
_ONE = np.uint64(1)


@dataclass(frozen=True)
class Shape:
    """What a domain of 2^width entries of `bits` bits needs."""

    width: int
    bits: int

    @property
    def entry_bits(self) -> int:
        """P: bits of a leaf that make an entry."""
        return next(p for p in (8, 16, 32, 64) if p >= self.bits)

    @property
    def integers(self) -> Any:
        """What entries are computed in: octets where an entry is one, 64 bits otherwise."""
        return np.uint8 if self.entry_bits == 8 else np.int64

    @property
    def leaf(self) -> int:
        """Entries of a leaf."""
        return LEAF_BITS // self.entry_bits

    @property
    def depth(self) -> int:
        """Levels of the tree; 0 or less: a leaf covers the domain, and a table is as small."""
        return self.width - (self.leaf.bit_length() - 1)

    @property
    def blocks(self) -> int:
        """AES blocks of a full evaluation, per element."""
        return 2 * ((1 << (self.depth + 1)) - 1)

    def key_bytes(self, elements: int) -> int:
        """Return the offline bytes at each party."""
        return (
            packed_size(elements * 2 * self.depth, 64)
            + packed_size(elements * self.depth, 2)
            + packed_size(elements * self.leaf, self.bits)
        )

    def table_bytes(self, elements: int) -> int:
        """Return the offline bytes of the dealt table, at the last party."""
        return packed_size(elements << self.width, self.bits)


@cache
def _cipher(side: str) -> Cipher[modes.ECB]:
    key = hashlib.sha256(f"distributed point function, {side} child".encode()).digest()[:_BLOCK]
    return Cipher(algorithms.AES128(key), modes.ECB())


def _grow(seeds: Words) -> Words:
    """Return G of every seed: [2 words, nodes, elements] -> [2 words, nodes, 2 children, elements]."""
    blocks = np.stack([seeds[0].reshape(-1), seeds[1].reshape(-1)], -1)
    out = np.empty((2, seeds.shape[1], 2, seeds.shape[2]), dtype=np.uint64)
    buffer = np.empty(blocks.nbytes + _BLOCK, dtype=np.uint8)
    for child, side in enumerate(("left", "right")):
        written = _cipher(side).encryptor().update_into(blocks.reshape(-1).view(np.uint8).data, buffer.data)
        hashed = buffer[:written].view(np.uint64).reshape(*seeds.shape[1:], 2)
        for word in range(2):
            np.bitwise_xor(hashed[..., word], seeds[word], out=out[word, :, child])
    return out


def _children(seeds: Words) -> tuple[Words, Words]:
    """Return the child seeds [2, nodes, 2, elements] with their lowest bit cleared; that bit, the control bit [nodes, 2,
    elements]."""
    grown = _grow(seeds)
    control = grown[0] & _ONE
    grown[0] ^= control
    return grown, control


def _entries(seeds: Words, shape: Shape) -> Entries:
    """Return the leaf seeds [2, leaves, elements] -> [elements, leaves, leaf] ring elements (not reduced)."""
    turned = np.ascontiguousarray(seeds.transpose(0, 2, 1))  # AES then writes the order of the result
    raw = _grow(turned)  # [word, elements, child, leaves]
    out = np.empty((*turned.shape[1:], 2, 2), dtype=np.uint64)
    for child in range(2):
        for word in range(2):
            out[..., child, word] = raw[word, :, child]
    kind = "<i8" if shape.entry_bits == 64 else f"<u{shape.entry_bits // 8}"
    return out.reshape(*turned.shape[1:], 4).view(kind).astype(shape.integers, copy=False)


def _words(x: Tensor) -> Words:
    return np.ascontiguousarray(x.numpy()).view(np.uint64)


def _tensor(x: npt.NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x).view(np.int64) if x.dtype == np.uint64 else np.ascontiguousarray(x))


def generate(alpha: Tensor, roots: list[Tensor], shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Return the dealer's part: correction words for the points alpha [elements] under both parties' root seeds [elements,
    2].

    Returns seed corrections [depth, elements, 2] of 64 bits, control corrections [depth, elements] of 2 bits (left first)
    and the output correction [elements, leaf] modulo 2^bits.
    """
    point = alpha.numpy()
    seeds: Words = np.stack([_words(r) for r in roots]).transpose(
        2, 0, 1
    )  # [word, party, elements]: parties in place of nodes
    control = np.stack([np.zeros(len(point), np.uint64), np.ones(len(point), np.uint64)])  # [party, elements]
    seed_words = np.empty((shape.depth, len(point), 2), np.uint64)
    control_words = np.empty((shape.depth, len(point)), np.int64)
    each = np.arange(len(point))
    for level in range(shape.depth):
        keep = (point >> (shape.width - 1 - level)) & 1
        grown, bits = _children(seeds)  # [word, party, child, elements], [party, child, elements]
        correction = grown[:, 0, 1 - keep, each] ^ grown[:, 1, 1 - keep, each]  # [word, elements]
        both = bits[0] ^ bits[1]
        both[0] ^= (keep ^ 1).astype(np.uint64)
        both[1] ^= keep.astype(np.uint64)
        seed_words[level] = correction.T
        control_words[level] = (both[0] | (both[1] << _ONE)).astype(np.int64)
        seeds = np.stack([grown[:, p, keep, each] ^ (control[p] * correction) for p in range(2)], 1)
        control = np.stack([bits[p, keep, each] ^ (control[p] * both[keep, each]) for p in range(2)])
    own = _entries(seeds, shape).astype(np.int64)  # [elements, party, leaf]
    output = own[:, 1] - own[:, 0]
    output[each, point & (shape.leaf - 1)] += 1
    output = np.where(control[1][:, None] == 1, -output, output)
    return _tensor(seed_words), _tensor(control_words), ring.reduce(_tensor(output), shape.bits)


Key = tuple[Tensor, Tensor, Tensor]
"""Seed, control and output corrections, as `generate` makes them."""


def evaluate(party: int, root: Tensor, key: Key, shape: Shape, path: Tensor | None = None, steps: int = 0) -> Tensor:
    """Return party 0's or 1's part: its share of all one-hot vectors, [elements, 2^width] modulo 2^bits, in octets where
    bits <= 8.

    path: public [elements]; of each vector only the 2^(width - steps) entries are computed whose places begin with these
    `steps` bits, at most `depth`."""
    elements = len(root)
    step = max(1, CHUNK_SEEDS >> (shape.depth - steps))
    out = np.empty((elements, (1 << (shape.width - steps)) // shape.leaf, shape.leaf), shape.integers)
    seed_words, control_words, output = key
    roots, words, controls = _words(root), _words(seed_words), control_words.numpy()
    last = output.numpy().astype(shape.integers)
    taken = None if path is None else path.numpy()
    for start in range(0, elements, step):
        cut = slice(start, start + step)
        seeds: Words = np.ascontiguousarray(roots[cut].T)[:, None]  # [word, nodes, elements]
        control = np.full(seeds.shape[1:], party, np.uint64)
        for level in range(shape.depth):
            grown, bits = _children(seeds)
            lower, pair = np.ascontiguousarray(words[level, cut].T), controls[level, cut].astype(np.uint64)
            for child in range(2):
                bits[:, child] ^= control & (pair >> np.uint64(child))
                for word in range(2):
                    grown[word, :, child] ^= control * lower[word]
            if taken is not None and level < steps:  # one node of each, and of its children that on the path
                side, each = (taken[cut] >> (steps - 1 - level)) & 1, np.arange(bits.shape[-1])
                control, seeds = bits[:, side, each], np.ascontiguousarray(grown[:, :, side, each])
                continue
            control = bits.reshape(-1, bits.shape[-1])
            seeds = grown.reshape(2, *control.shape)
        correction = np.ascontiguousarray(control.T).astype(shape.integers)[..., None] * last[cut][:, None]
        np.add(_entries(seeds, shape), correction, out=out[cut])
    if party:
        np.negative(out, out=out)
    whole = torch.from_numpy(out.reshape(elements, -1))
    return ring.reduce(whole, shape.bits) if shape.bits < shape.entry_bits else whole


def one_hot_dpf(c: Context, x: Masked, low: int, width: int, bits: int) -> Shared:
    """Return a one-hot sharing [..., 2^width] modulo 2^bits of a digit of x: as `one_hot_table`, dealt as keys. Two
    parties."""
    return Shared(one_hot_words(c, x, low, width, bits).to(torch.int64), bits, 0)


def one_hot_words(c: Context, x: Masked, low: int, width: int, bits: int) -> Tensor:
    """Return what `one_hot_dpf` shares in integers that need not be wider than `bits` bits."""
    shape = Shape(width, bits)
    if shape.depth < 1:
        raise RangeError(f"a domain of 2^{width} entries of {bits} bits fits one leaf; use one_hot_table")
    m_digit, lam_digit = digit(c, x, low, width)
    root, key = _deal(c, lam_digit.reshape(-1), x.shape.numel(), shape)
    if not c.evaluating:
        return c.blank((*x.shape, 1 << width))
    share = sent_up(evaluate(0 if c.first else 1, root, key, shape), c.device)
    return rotate(share.reshape(*x.shape, 1 << width), m_digit)


def reads_below(first: int, width: int, bits: int) -> bool:
    """Whether `one_hot_below` can read one-hot vectors of `width` bits below `first` bits, modulo 2^bits."""
    return 0 < first <= Shape(first + width, bits).depth


def one_hot_below(c: Context, of: Masked, x: Masked, bits: int) -> Shared:
    """Return [of = 0] times the one-hot vector of x, [..., 2^x.bits] modulo 2^bits, local; two parties.

    One point function of the mask of `of`, followed by x's: read at m of `of`, and all entries below it."""
    shape = Shape(of.bits + x.bits, bits)
    if not reads_below(of.bits, x.bits, bits):
        raise RangeError(f"2^{x.bits} entries of {bits} bits below {of.bits} bits lie within one leaf; use tables")
    root, key = _deal(c, ((of.lam << x.bits) | x.lam).reshape(-1), x.shape.numel(), shape)
    if not c.evaluating:
        return Shared(c.blank((*x.shape, 1 << x.bits)), bits, 0)
    share = sent_up(evaluate(0 if c.first else 1, root, key, shape, of.m.reshape(-1).cpu(), of.bits), c.device)
    return Shared(rotate(share.reshape(*x.shape, 1 << x.bits), x.m).to(torch.int64), bits, 0)


def _deal(c: Context, alpha: Tensor, elements: int, shape: Shape) -> tuple[Tensor, Key]:
    """Return this party's root seeds and the common corrections of keys for the points alpha [elements]."""
    if c.parties != 2:
        raise RangeError(f"distributed point functions are for two parties, there are {c.parties}; use one_hot_table")
    roots = c.tape.random_shares("point function roots", (elements, 2), 64, host=True)
    found: list[Tensor] = []

    def part(index: int) -> Tensor:
        if not found:
            found.extend(generate(alpha.cpu(), roots, shape))
        return found[index]

    def deal(op: str, index: int, of: tuple[int, ...], ring_bits: int) -> Tensor:
        return c.tape.common(op, of, (lambda: part(index)) if c.tape.dealing else None, ring_bits, True)

    seed_words = deal("point function seeds", 0, (shape.depth, elements, 2), 64)
    control_words = deal("point function controls", 1, (shape.depth, elements), 2)
    output = deal("point function output", 2, (elements, shape.leaf), shape.bits)
    return roots[0], (seed_words, control_words, output)
