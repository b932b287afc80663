"""Shares that one process makes, hands to all parties of a run in this process, and puts together again.

INSECURE FOR REAL DATA BY NATURE, as `launch.local.in_process`: one process makes and holds all shares.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.checkpoint import Checkpoint
from mpc.fixed_point import decode, encode
from mpc.random import Prg, new_seed
from mpc.ring import reduce
from protocols.suite import OutputShare, Suite

Part = tuple[Any, ...] | None
SHARED_BITS = 16
"""Fraction bits that a model owner shares weights with by default; a suite that wants more gets zeros appended."""


def additive_shares(x: Tensor, parties: int, bits: int = 64) -> list[Tensor]:
    """Return additive shares of ring elements, int64, each canonical in Z_2^bits and of the shape of `x`.

    >>> a, b = additive_shares(torch.tensor([5, -1]), parties=2)
    >>> (a + b).tolist()
    [5, -1]
    """
    prg = Prg(new_seed())
    shares = [prg.ring(x.shape, bits) for _ in range(parties - 1)]
    rest = x.clone()
    for share in shares:
        rest -= share
    return [*shares, reduce(rest, bits)]


def encoded_shares(x: Tensor, fraction_bits: int, parties: int) -> list[Tensor]:
    """Return additive shares in Z_2^64 of a float tensor, in fixed point."""
    return additive_shares(encode(x, fraction_bits), parties)


def opened(shares: Sequence[OutputShare]) -> Tensor:
    """Return the float64 value of all parties' shares of one output."""
    first, total = shares[0], torch.stack([share.share.cpu() for share in shares]).sum(0)
    return decode(reduce(total, first.bits), first.fraction_bits, first.bits)


class WeightShares:
    """Shares of a checkpoint's weights: each is made when the first party asks for it, as real parties would hold it, and
    freed when the last one has it."""

    def __init__(self, checkpoint: Checkpoint, parties: int) -> None:
        self._checkpoint = checkpoint
        self._parties = parties
        self._made: dict[str, dict[int, Tensor]] = {}
        self._whole: tuple[str, Tensor] | None = None
        self._lock = threading.Lock()

    def share(self, suite: Suite, name: str, party: int | None, part: Part = None) -> Tensor | None:
        """Return a party's share, int64 in Z_2^64 with the fraction bits that the suite wants; None at the dealer.

        part: an index of a part of the weight, None for all of it.
        """
        if party is None:
            return None
        wanted = suite.weight_fraction_bits
        shared = min(wanted, SHARED_BITS)
        with self._lock:
            key = f"{name} {part}"
            if key not in self._made:
                self._made[key] = dict(enumerate(encoded_shares(self._values(name, part), shared, self._parties)))
            share = self._made[key].pop(party)
            if not self._made[key]:
                del self._made[key]
        return share << (wanted - shared) if wanted > shared else share

    def _values(self, name: str, part: Part) -> Tensor:
        """Return a weight or a part of it; the whole of one that comes in parts is kept until the next weight."""
        if part is None:
            self._whole = None
            return self._checkpoint.weights[name]
        if self._whole is None or self._whole[0] != name:
            self._whole = None
            self._whole = (name, self._checkpoint.weights[name])
        return self._whole[1][part]


@dataclass
class KeptShares:
    """The endpoint of a generation in one process: it keeps this party's share of every output, in order.

    chosen: this party's share of every token that a client of decoding "logits" chooses.
    """

    shares: list[OutputShare] = field(default_factory=list)
    chosen: Tensor | None = None

    def emit(self, step: int, share: OutputShare) -> bool:
        self.shares.append(share)
        return True

    def next_tokens(self, step: int, count: int) -> Tensor | None:
        return self.chosen

    def kept(self, step: int, rows: int) -> int:
        return rows

    def progress(self, stage: str, done: int, total: int) -> None:
        pass
