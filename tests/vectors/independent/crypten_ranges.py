"""Range flags of the suite `crypten`: sums of squares of 32 neighbours, compared beside a comparison that happens anyway."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from tests.vectors.independent.crypten import Opens, less_than_together, zero_sharing
from tests.vectors.independent.formats import Stream, U, Words, derived, reduce
from tests.vectors.independent.linear import multiply
from tests.vectors.independent.results import Result, exact, flagged
from tests.vectors.independent.rows import KINDS
from tests.vectors.independent.world import Masked, Open, Shared, Steps, World

LEAST = 3403  # of a sum that is beyond


def grouped(x: Words) -> Words:
    """Sums over 32 neighbours of the flattened x."""
    flat = x.reshape(-1)
    padded = np.concatenate([flat, np.zeros(-flat.size % 32, U)])
    return padded.reshape(-1, 32).sum(1, dtype=U)


@dataclass
class Watch:
    """What waits for a comparison, and the bits that have been compared."""

    w: World
    waiting: list[tuple[str, Words]] = field(default_factory=list)
    bits: list[tuple[str, Words]] = field(default_factory=list)

    def see(self, kind: str, opened: Words, mask: Words, frac: int, limit: int) -> None:
        """x = opened + mask against 2^limit; mask: the shares of it."""
        cut = frac + limit - 6
        part = reduce(mask.sum(0, dtype=U) >> U(cut), 32)
        shares = self.w.deal("range part", opened.shape, 32, part)
        squares = grouped(part * part)
        total = self.w.deal("range squares", squares.shape, 32, squares)
        public = (opened >> U(cut)) + U(1)
        total = total + np.stack([grouped(public * own * U(2)) for own in shares])
        total[0] += grouped(public * public)
        self.waiting.append((kind, total))

    def less_than(self, x: Words, threshold: int) -> Steps:
        """[x < threshold], 64 bits, and what waits beside it: within range from 0 to `LEAST`."""
        waiting = np.concatenate([total for _, total in self.waiting], 1)
        found, below = yield from less_than_together(self.w, [(x, [threshold], 64, 0), (waiting, [0, LEAST], 32, 0)])
        beyond, start = below[:, 0] ^ below[:, 1], 0
        beyond[0] ^= U(1)
        for kind, total in self.waiting:
            self.bits.append((kind, beyond[:, start : start + total.shape[1]]))
            start += total.shape[1]
        return found

    def words(self) -> Steps:
        """Every party's words [kinds, 1]: XOR of the words of its bits, under a zero-sharing."""
        digest, known = hashlib.sha256(), 0
        for x, bits in self.w.opened:
            if known < 512:
                digest.update(x.reshape(-1)[:512].astype("<u8").tobytes())
                known += min(x.size, 512) * bits
        stream = Stream(derived(digest.digest(), b"range flags"))
        out = yield from zero_sharing(self.w, (len(KINDS), 1), "xor")
        for kind, bit in self.bits:
            drawn = stream.elements(bit.shape[1:], 64)
            out[:, KINDS.index(kind), 0] ^= np.bitwise_xor.reduce(drawn * bit, 1)
        return out


def program(w: World, x: Shared, y: Shared, limit: int) -> Steps:
    """x y with both factors watched; [x < 0]; the words."""
    watch = Watch(w)
    masks = [w.random("factor mask", v.shape) for v in (x, y)]
    opened = yield Opens([Open(v.x - m, 64) for v, m in zip((x, y), masks, strict=True)])
    factors = []
    for v, m, mask in zip((x, y), opened, masks, strict=True):
        watch.see("activation", m, mask, v.frac, limit)
        factors.append(Masked(m, -mask, 64, v.frac))
    product = multiply(w, factors[0], factors[1])
    negative = yield from watch.less_than(x.x, 0)
    return [product, negative, (yield from watch.words())]


def judge(x: np.ndarray, y: np.ndarray, limit: int) -> list[Result]:
    """Flagged for certain where a norm has reached the limit."""
    return [exact(x * y), exact(-(x < 0).astype(float)[None]), flagged(bool(np.linalg.norm(x) >= 2.0**limit))]
