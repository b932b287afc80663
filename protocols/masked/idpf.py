"""Payloads at prefixes of a mask, read at a few public points: incremental point functions; two parties only.

Keys for alpha of D bits and, after each chosen number of leading bits, a vector of payloads: evaluated at a point of so many
bits, both parties' results add up to the payloads where the point is alpha's prefix, and to 0 elsewhere. A key alone says
nothing. The dealer knows lam and takes alpha = lam >> low; the parties read at m >> low less small offsets y, the same for
all elements: that is a table over d = (m >> low) - (lam >> low), entries times what the dealer knows of lam, of which only
the entries that can matter are ever computed. Digits of several precisions (all prefixes) share one tree.

A node is 128 bits: 126 of a seed and, lowest, its control bit. With H(s) = AES(s) ^ s for fixed keys, a node's children are
H(seed, side), and the masks of its payloads H'(seed), a block of 128 bits each, by a further key each. A correction word is
the seed's with the control bits' (left, right) in its two lowest bits. Levels are computed for all nodes and elements at
once; a point that lies below several others shares their nodes.

Rounds and online bytes: none, it is local. Offline, per element and at *each* party: 16 bytes a level, and values * bits / 8
a level that carries payloads. Work: one AES block a node, and a block a point read for each 128 bits of payloads.
Valid range: any; two parties. Error: none. Leaks: nothing to a computationally bounded party; keys are pseudorandom if
G(s) = (H(s, 0), H(s, 1), H'(s), ...) is a pseudorandom generator: with AES as an ideal permutation, for work up to
2^(126 - b) against 2^b nodes of all keys (docs/security.md, "Point functions").
Sources: Boyle, Gilboa, Ishai 2016; Boneh et al. 2021 (Poplar, incremental point functions); Guo, Katz, Wang, Yu 2020 for
fixed-key AES with the child in the hash's input.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from torch import Tensor

from mpc import ring, wide
from mpc.errors import RangeError
from mpc.messages import sent_up
from mpc.packing import packed_size
from mpc.ring import RING_BITS
from mpc.wide import Wide, Words
from protocols.masked.context import Context
from protocols.masked.shares import Masked

Blocks = np.ndarray[Any, np.dtype[np.uint64]]  # [..., 2]: 128-bit words, low half first

CHUNK_NODES = 1 << 12  # nodes of a level that are expanded at once: their indices fit the cache
_BLOCK = 16
_BLOCK_BITS = 128
_ONE = np.uint64(1)
_SEED = np.array([~np.uint64(3), ~np.uint64(0)])  # the bits of a node that are its seed


@dataclass(frozen=True)
class Points:
    """What a tree carries and where it is read.

    levels: after how many leading bits of alpha there are payloads, ascending; the last is alpha's length. first, last: read
    at the points m - y for first <= y <= last, at every such level. values: payloads of a level. bits: their ring, to 128.
    """

    levels: tuple[int, ...]
    first: int
    last: int
    values: int
    bits: int

    @property
    def depth(self) -> int:
        """Levels of the tree."""
        return self.levels[-1]

    @property
    def count(self) -> int:
        """Points that are read at a level."""
        return self.last - self.first + 1

    @property
    def word_bits(self) -> int:
        """Bits of a block that mask a payload."""
        return next(p for p in (8, 16, 32, 64, 128) if p >= self.bits)

    @property
    def blocks(self) -> int:
        """AES blocks of a point's payloads."""
        return -(-self.values * self.word_bits // _BLOCK_BITS)

    @property
    def work(self) -> int:
        """AES blocks of an evaluation, per element."""
        nodes = sum(last - first + 1 for first, last in _windows(self)[1:])
        return nodes + len(self.levels) * self.count * self.blocks

    def key_bytes(self, elements: int) -> int:
        """Return the offline bytes at each party."""
        payloads = len(self.levels) * elements * self.values
        narrow = packed_size(payloads, min(self.bits, RING_BITS))
        high = packed_size(payloads, self.bits - RING_BITS) if self.bits > RING_BITS else 0
        return packed_size(2 * self.depth * elements, RING_BITS) + narrow + high

    def check(self) -> None:
        """Raise `RangeError` where the tree is none."""
        if not (self.levels and list(self.levels) == sorted(set(self.levels)) and self.levels[0] >= 1):
            raise RangeError(f"levels of payloads must be ascending numbers of bits from 1, got {list(self.levels)}")
        if self.depth > RING_BITS or not 1 <= self.bits <= wide.WIDE_BITS:
            raise RangeError(f"points have 1 to 64 bits and payloads 1 to 128, got {self.depth} and {self.bits}")
        if not 1 <= self.count <= 1 << self.levels[0]:
            raise RangeError(
                f"{self.count} points at a level of {self.levels[0]} bits: read between 1 and 2^bits, or carry later"
            )


@cache
def _windows(p: Points) -> tuple[tuple[int, int], ...]:
    """Return (first, last) y of the nodes m - y that are needed after 0, 1, ... depth bits: what is read, and parents."""
    out = []
    first, last = p.first, p.last
    for level in range(p.depth, -1, -1):
        if level in p.levels:
            first, last = min(first, p.first), max(last, p.last)
        if last - first + 1 >= 1 << level:
            first, last = 0, (1 << level) - 1  # all nodes there are
        out.append((first, last))
        first, last = first // 2, -(-last // 2)
    return tuple(reversed(out))


@cache
def _steps(p: Points) -> tuple[Blocks, Blocks, tuple[int, ...]]:
    """Return, for the nodes of levels 1 to depth: the parent's place where m's next bit is 0 and where it is 1 [levels, 2,
    nodes], whether y is odd [levels, nodes] (both filled with zeros), and how many nodes there are."""
    windows = _windows(p)
    counts = tuple(last - first + 1 for first, last in windows)
    parents = np.zeros((p.depth, 2, max(counts)), np.int64)
    odd = np.zeros((p.depth, max(counts)), np.uint64)
    for level in range(1, p.depth + 1):
        first, last = windows[level]
        y = np.arange(first, last + 1)
        odd[level - 1, : counts[level]] = y & 1
        for bit in (0, 1):
            # 2 m' + bit - y lies below m' - ceil((y - bit) / 2)
            parent = -((bit - y) // 2) - windows[level - 1][0]
            parents[level - 1, bit, : counts[level]] = parent & ((1 << (level - 1)) - 1)
    return parents.view(np.uint64), odd, counts


class _Encryptors(threading.local):
    """Ciphers under fixed public keys, one of a use for each thread: blocks are encrypted by themselves, no state stays."""

    def __init__(self) -> None:
        self._made: dict[str, CipherContext] = {}

    def __call__(self, use: str) -> CipherContext:
        if use not in self._made:
            key = hashlib.sha256(f"incremental point function, {use}".encode()).digest()[:_BLOCK]
            self._made[use] = Cipher(algorithms.AES128(key), modes.ECB()).encryptor()
        return self._made[use]


_encryptor = _Encryptors()


def _hash(use: str, blocks: Blocks) -> Blocks:
    """Return AES(x) ^ x of 128-bit blocks."""
    buffer = np.empty(blocks.nbytes + _BLOCK, np.uint8)
    written = _encryptor(use).update_into(blocks.reshape(-1).view(np.uint8).data, buffer.data)
    found = buffer[:written].view(np.uint64).reshape(blocks.shape)
    return np.bitwise_xor(found, blocks, out=found)


def _masks(nodes: Blocks, p: Points) -> Words:
    """Return the payloads' masks of nodes [..., 2]: [..., values], not reduced."""
    seeds = nodes.copy()
    seeds[..., 0] &= _SEED[0]
    blocks = np.empty((*nodes.shape[:-1], p.blocks), np.complex128)  # numpy's word of 128 bits: moved whole, never computed
    for i in range(p.blocks):
        blocks[..., i] = _hash(f"payloads {i}", seeds).view(np.complex128)[..., 0]
    found = blocks.view(np.uint64)
    if p.word_bits == _BLOCK_BITS:
        return Wide(_tensor(found[..., ::2]), _tensor(found[..., 1::2]))
    if p.word_bits == RING_BITS:
        return _tensor(found[..., : p.values])
    return torch.from_numpy(found.view(f"<u{p.word_bits // 8}")[..., : p.values].astype(np.int64))


def _words(x: Tensor) -> Blocks:
    return np.ascontiguousarray(x.numpy()).view(np.uint64)


def _tensor(x: Blocks) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x).view(np.int64))


def _controls(nodes: Blocks) -> Tensor:
    return _tensor(nodes[..., 0] & _ONE)


def generate(alpha: Tensor, roots: list[Tensor], p: Points, payloads: Words) -> tuple[Tensor, Words]:
    """Return the dealer's part: corrections [depth, elements, 2] of 64 bits and the payloads' [levels, elements, values]
    modulo 2^bits.

    alpha: [elements] of p.depth bits. roots: both parties' [elements, 2]. payloads: [levels, elements, values].
    """
    words, kept = _correct(_words(alpha), np.stack([_words(r) for r in roots]), p)
    found = np.stack(kept)  # [levels, party, elements, 2]
    masks = _masks(found, p)
    difference = moved(masks, lambda t: t[:, 1]) - moved(masks, lambda t: t[:, 0])
    output = (difference + payloads) * (1 - 2 * _controls(found[:, 1])[..., None])
    return _tensor(words), wide.reduce(output, p.bits)


def _correct(point: npt.NDArray[np.uint64], roots: Blocks, p: Points) -> tuple[Blocks, list[Blocks]]:
    """Return the correction words [depth, elements, 2] for points [elements] under roots [party, elements, 2], and both
    parties' nodes there [party, elements, 2] at the levels that carry payloads. As in `_walk`, operands have one shape."""
    elements = len(point)
    shifts = np.arange(p.depth - 1, -1, -1, dtype=np.uint64)[:, None]
    bits = (point >> shifts) & _ONE  # [depth, elements]
    right = np.repeat(-bits, 2).reshape(p.depth, 1, elements, 2).repeat(2, 1)  # all ones where the point goes right
    turned = np.stack([bits ^ _ONE, bits], 1)  # what the sides' control bits differ by: 1 on the point's side
    seeds, ones = np.broadcast_to(_SEED, roots.shape).copy(), np.ones((2, elements), np.uint64)
    inputs, kept = np.empty((2, *roots.shape), np.uint64), []
    words, side = np.empty((p.depth, elements, 2), np.uint64), np.zeros_like(roots)
    side[..., 0] = _ONE
    nodes: Blocks = roots & seeds
    nodes[1, :, 0] |= _ONE
    for level in range(p.depth):
        np.bitwise_and(nodes, seeds, out=inputs[0])
        np.bitwise_or(inputs[0], side, out=inputs[1])
        left_child, right_child = _hash("children", inputs)
        child = right_child ^ left_child
        child &= right[level]
        child ^= left_child  # on the point's side
        both = left_child[0] ^ left_child[1], right_child[0] ^ right_child[1]
        word = both[0] ^ both[1]
        word &= right[level, 0]
        word ^= both[1]
        word &= seeds[0]  # of the other side
        turn = np.stack([both[0][:, 0], both[1][:, 0]]) & ones
        turn ^= turned[level]
        words[level] = word
        words[level, :, 0] |= turn[0] | (turn[1] << ones[0])
        word[:, 0] |= turn[0] ^ ((turn[0] ^ turn[1]) & bits[level])
        child ^= (-(nodes[..., 0] & ones)).repeat(2).reshape(nodes.shape) & word
        nodes = child
        if level + 1 in p.levels:
            kept.append(nodes)
    return words, kept


def moved(x: Words, f: Callable[[Tensor], Tensor]) -> Any:
    """Return words whose elements f has moved, as narrow or wide as they were."""
    return x.map(f) if isinstance(x, Wide) else f(x)


def _plan(root: Blocks, words: Blocks, m: Blocks, p: Points) -> tuple[npt.NDArray[np.int64], Blocks, Blocks]:
    """Return, for every level and node: its parent's place [depth, nodes, elements], what is added to the parent's seed
    before it is hashed, and the correction if the parent's control bit is set [depth, nodes, elements, 2]."""
    elements = len(root)
    parents, odd, _ = _steps(p)
    shifts = np.arange(p.depth - 1, -1, -1, dtype=np.uint64)[:, None]
    bit = ((m >> shifts) & _ONE)[:, None]  # [depth, 1, elements]
    places = np.where(bit == _ONE, parents[:, 1, :, None], parents[:, 0, :, None]) * np.uint64(elements)
    places += np.arange(elements, dtype=np.uint64)
    side = np.zeros((*places.shape, 2), np.uint64)
    np.bitwise_xor(odd[..., None], bit, out=side[..., 0])
    correction = np.empty_like(side)
    low = words[:, None, :, 0]
    np.right_shift(low, side[..., 0], out=correction[..., 0])
    correction[..., 0] &= _ONE
    correction[..., 0] |= low & _SEED[0]
    correction[..., 1] = words[:, None, :, 1]
    return places.view(np.int64), side, correction


def _walk(party: int, root: Blocks, words: Blocks, m: Blocks, p: Points) -> Blocks:
    """Return the nodes that are read, [levels, points, elements, 2], for roots [elements, 2] and public m [elements].

    A level is few nodes where elements are few: operands are as long as results, which numpy does without preparations."""
    elements, windows = len(root), _windows(p)
    places, side, correction = _plan(root, words, m, p)
    _, _, counts = _steps(p)
    most = max(counts) * elements
    seeds, ones = np.tile(_SEED, (most, 1)), np.ones(most, np.uint64)
    inputs, buffer = np.empty((most, 2), np.uint64), np.empty((most + 1) * _BLOCK, np.uint8)
    hashed = buffer[: most * _BLOCK].view(np.uint64).reshape(most, 2)
    data, room, encrypt = inputs.reshape(-1).view(np.uint8).data, buffer.data, _encryptor("children").update_into
    nodes = root & _SEED
    if party:
        nodes[:, 0] |= _ONE
    out = np.empty((len(p.levels), p.count, elements, 2), np.uint64)
    slots, size = dict(zip(p.levels, out, strict=True)), 0
    for level, count in enumerate(counts[1:]):
        if count * elements != size:
            size = count * elements
            given, found, kept, one, block = inputs[:size], hashed[:size], seeds[:size], ones[:size], data[: size * _BLOCK]
            lowest = given[:, 0]
        nodes.take(places[level, :count].reshape(-1), 0, given, "clip")
        change = (-(lowest & one)).repeat(2).reshape(size, 2)  # all ones where the control bit is set: no secret is an index
        change &= correction[level, :count].reshape(size, 2)
        given &= kept
        given |= side[level, :count].reshape(size, 2)
        encrypt(block, room)
        found ^= given
        found ^= change
        nodes = found
        read = slots.get(level + 1)
        if read is not None:
            start = p.first - windows[level + 1][0]
            if start >= 0 and start + p.count <= count:
                read[:] = found.reshape(count, elements, 2)[start : start + p.count]
            else:  # all nodes are there, in their order modulo 2^level
                read[:] = found.reshape(count, elements, 2)[[(start + i) % count for i in range(p.count)]]
    return out


def evaluate(
    party: int, root: Tensor, key: tuple[Tensor, Words], m: Tensor, p: Points, combine: Callable[[Words, slice], Words]
) -> Words:
    """Return what `combine` makes of party 0's or 1's shares of the payloads at m - y, [elements, ...], modulo 2^bits.

    root: [elements, 2]; key: the corrections of `generate`; m: public points [elements] of p.depth bits. combine: a linear
    map with public coefficients, shares [levels, points, elements, values] of the elements in a slice -> [elements, ...]."""
    roots, words, public = _words(root), _words(key[0]), _words(m)
    step = max(1, CHUNK_NODES // max(last - first + 1 for first, last in _windows(p)))
    out = []
    for start in range(0, len(roots), step):
        cut = slice(start, start + step)
        nodes = _walk(party, roots[cut], words[:, cut], public[cut], p)
        output = moved(key[1], lambda t, cut=cut: t[:, None, cut])  # type: ignore[misc]
        out.append(combine(output * _controls(nodes)[..., None] + _masks(nodes, p), cut))
    whole = _joined(out)
    return -whole if party else whole


def _joined(parts: list[Words]) -> Words:
    if isinstance(parts[0], Tensor):
        return torch.cat([x for x in parts if isinstance(x, Tensor)])
    pairs = [x for x in parts if isinstance(x, Wide)]
    return Wide(torch.cat([x.low for x in pairs]), torch.cat([x.high for x in pairs]))


Combine = Callable[[Words, Tensor, slice], Words]


def read(c: Context, x: Masked, p: Points, payloads: Callable[[], Words], combine: Combine) -> Words:
    """Return what `combine` makes of shares of payloads at the prefixes of lam, read at those of m less y: [*x.shape, ...]
    modulo 2^bits (not reduced); local, two parties.

    p: read in the p.depth leading bits of x. payloads: what the dealer computes of lam, [levels, elements, values], as wide
    as the ring. combine: a linear map, shares [levels, points, elements, values], m [elements] of x and which of x's
    elements these are -> [elements, ...]. All at the host, which has instructions for the cipher."""
    p.check()
    if c.parties != 2:
        raise RangeError(f"point functions are for two parties, there are {c.parties}; use a dealt table or a comparison")
    low = x.bits - p.depth
    if low < 0:
        raise RangeError(f"points of {p.depth} bits cannot be read from a ring of {x.bits} bits")
    elements = x.shape.numel()
    roots = c.tape.random_shares("point roots", (elements, 2), RING_BITS, host=True)
    found: list[tuple[Tensor, Words]] = []

    def made() -> tuple[Tensor, Words]:
        if not found:
            alpha = ring.shift_right(x.lam, low, x.bits).reshape(-1).cpu()
            found.append(generate(alpha, roots, p, moved(payloads(), lambda t: t.cpu())))
        return found[0]

    words = c.tape.common("point corrections", (p.depth, elements, 2), lambda: made()[0], RING_BITS, True)
    output = _common(c, (len(p.levels), elements, p.values), lambda: made()[1], p.bits)
    if not c.evaluating:
        return c.blank(x.shape)
    m = x.m.reshape(-1).cpu()
    points = ring.shift_right(m, low, x.bits)
    share = evaluate(0 if c.first else 1, roots[0], (words, output), points, p, lambda s, cut: combine(s, m[cut], cut))
    whole: Words = moved(share, lambda t: sent_up(t.reshape(*x.shape, *t.shape[1:]), c.device))
    return whole


def read_narrow(c: Context, x: Masked, p: Points, payloads: Callable[[], Words], combine: Combine) -> Tensor:
    """Return as `read`, for payloads of at most 64 bits."""
    found = read(c, x, p, payloads, combine)
    assert not isinstance(found, Wide)
    return found


def _common(c: Context, shape: tuple[int, ...], value: Callable[[], Words], bits: int) -> Words:
    """Deal the payloads' corrections to both parties: the low words and, in wide rings, the high ones."""

    def half(high: bool) -> Tensor:
        whole = value()
        if isinstance(whole, Wide):
            return whole.high if high else whole.low
        return whole

    low = c.tape.common("point payloads", shape, lambda: half(False), min(bits, RING_BITS), True)
    if bits <= RING_BITS:
        return low
    return Wide(low, c.tape.common("point payloads, high", shape, lambda: half(True), bits - RING_BITS, True))
