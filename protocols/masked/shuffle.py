"""Secret-shared shuffle of rows: n passes, after which nobody knows which row went where.

Party i permutes by its own pi_i, which it and the dealer alone know; the composition is unknown to any n - 1 parties. On a
masked value m = x + lam: party 0 holds z_0 = m, party i computes z_(i+1) = pi_i(z_i) + r_i with its own uniform r_i and
hands it to party i + 1, one message a pass; the last party keeps z = pi(m) + sum_i (pi_(n-2) ... pi_(i+1))(r_i) permuted by
its own pi_(n-1). The dealer, who knows pi, lam and all r, deals [d] with d = z - pi(x), so [pi(x)] = z - [d].

Permutations and r come from each party's own seed: keys of 128 uniform bits a row, sorted. No modulo, hence no bias; two of
C keys are equal with probability below C^2 2^-129, and but for that the order is exactly uniform.

`shuffle`: the same permutation for several tensors with the same leading axes, independent ones for each index of the axes
before `axis`; axes behind it move along.
Rounds: n - 1 for masked inputs, n when one of them is Shared (it is then collected, masked, at party 0).
Online: bits per element from each party to the next, and from each party to party 0 for a sharing; for two parties one
message in one direction per round. Offline: bits per element for the last party. Valid range: any. Error: none.
Leaks: nothing (docs/security.md, "Shuffle").
Party i + 1 sees z_(i+1), uniform by r_i; party 0 sees m, uniform by lam. A coalition that lacks party h knows
neither pi_h nor r_h, so its view is independent of x and of pi_h.
Source: Chase, Ghosh, Poburinnaya 2020 (Secret-shared shuffle), with a dealer in place of oblivious transfer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mpc import ring
from mpc.errors import RangeError
from mpc.ledger import current
from mpc.messages import Message, joined, packed, unpacked
from mpc.packing import packed_size
from protocols.masked.context import Context, Routed
from protocols.masked.shares import Masked, Shared
from protocols.schedule import Request

KEY_WORDS = 2


def permutation(keys: Tensor) -> Tensor:
    """Return the uniform permutations from uniform keys [2, ..., rows]: the order that sorts them, [..., rows]."""
    return torch.from_numpy(np.ascontiguousarray(np.lexsort(tuple(keys.numpy()), axis=-1)))


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Return out[..., j, :] = x[..., index[..., j], :]. x: [batch, rows, ...], index: [batch, rows taken]."""
    trailing = x.shape[index.dim() :]
    index = index.reshape(*index.shape, *(1 for _ in trailing)).expand(*index.shape, *trailing)
    return x.gather(index.dim() - 1 - len(trailing), index)


class Handover(Routed[list[Tensor]]):
    """Several tensors from some parties to others: bits per element over each link. What arrives must be masked already."""

    def __init__(self, tensors: Sequence[Tensor], bits: Sequence[int], links: Sequence[tuple[int, int]]) -> None:
        self.tensors, self.bits, self.links = list(tensors), list(bits), tuple(links)
        self.key = current()
        self.sizes = [packed_size(t.shape.numel(), b) for t, b in zip(tensors, bits, strict=True)]
        self.size = sum(self.sizes)

    def encode(self) -> Message:
        """Return all tensors, bit-packed."""
        return joined([packed(t, b) for t, b in zip(self.tensors, self.bits, strict=True)])

    def decode(self, parts: Mapping[int, Message], c: Context) -> list[Tensor]:
        """Return the sums of what was received; this party's own tensors where nothing was."""
        if not parts:
            return self.tensors
        out = []
        offset = 0
        for own, bits, size in zip(self.tensors, self.bits, self.sizes, strict=True):
            total = torch.zeros(own.shape, dtype=torch.int64, device=c.device)
            for part in parts.values():
                total = total + unpacked(part[offset : offset + size], bits, own.shape)
            offset += size
            out.append(ring.reduce(total, bits))
            if c.observer is not None:
                c.observer(out[-1], bits)
        return out

    def blank(self, c: Context) -> list[Tensor]:
        """Return what a role that does not evaluate gets."""
        return [c.blank(t.shape) for t in self.tensors]


class Reveal(Request[Tensor]):
    """Opens a sharing in the clear, to every compute party. For values that are public by argument only, such as uniformly
    random positions after a shuffle. The sharing must be fresh (its shares uniform but for their sum), as a shuffle's are.
    Cost: 1 round, bits per element."""

    def __init__(self, value: Shared) -> None:
        self.value = value
        self.key = current()
        self.size = packed_size(value.shape.numel(), value.bits)

    def encode(self) -> Message:
        """Return this party's share."""
        return packed(self.value.x, self.value.bits)

    def decode(self, parts: Sequence[Message], c: Context) -> Tensor:
        """Return the value, canonical in Z_2^bits."""
        total = torch.zeros(self.value.shape, dtype=torch.int64, device=c.device)
        for part in parts:
            total = total + unpacked(part, self.value.bits, self.value.shape)
        total = ring.reduce(total, self.value.bits)
        if c.revealed is not None:
            c.revealed(total, self.value.bits)
        return total

    def blank(self, c: Context) -> Tensor:
        """Return what a role that does not evaluate gets."""
        return c.blank(self.value.shape)


def check_rows(op: str, shapes: Sequence[torch.Size], axis: int) -> int:
    """Return the axis counted from the front; all shapes must agree up to and including it."""
    if not shapes:
        raise RangeError(f"{op}: no tensor was given")
    front = axis + len(shapes[0]) if axis < 0 else axis
    if not 0 <= front < len(shapes[0]):
        raise RangeError(f"{op}: axis {axis} does not exist in a tensor of shape {list(shapes[0])}")
    for shape in shapes[1:]:
        if shape[: front + 1] != shapes[0][: front + 1]:
            raise RangeError(f"{op}: shapes {list(shapes[0])} and {list(shape)} differ up to axis {front}")
    return front


def _dealer_difference(lam: Tensor, orders: Sequence[Tensor], masks: Sequence[Tensor], bits: int) -> Tensor:
    """Return d = z - pi(x): the mask and every r but the last party's, carried through the passes."""
    d = lam
    for party, order in enumerate(orders):
        d = take_rows(d, order)
        if party < len(orders) - 1:
            d = d + masks[party]
    return ring.reduce(d, bits)


async def shuffle(c: Context, tensors: Sequence[Shared | Masked], axis: int) -> list[Shared]:
    """Return the rows along `axis` of all tensors in one uniformly random order that nobody knows. n - 1 or n rounds.

    tensors: [batch, rows, ...], `axis` = len(batch) (a negative axis is counted from the end of the first). Each keeps its
    ring and fraction bits.
    """
    axis = check_rows("shuffle", [x.shape for x in tensors], axis)
    n = c.parties
    keys = c.tape.random_shares("shuffle keys", (KEY_WORDS, *tensors[0].shape[: axis + 1]), 64, host=True)
    masks = [c.tape.random_shares("shuffle mask", tuple(x.shape), x.bits) for x in tensors]
    lams = [x.lam if isinstance(x, Masked) else c.tape.random("open", tuple(x.shape), x.bits) for x in tensors]
    real = c.evaluating or c.tape.dealing
    orders = [permutation(k).to(c.device) for k in keys] if real else []
    dealt = [
        c.deal("shuffle", x.shape, x.bits, lambda i=i: _dealer_difference(lams[i], orders, masks[i], tensors[i].bits))  # type: ignore[misc]
        for i, x in enumerate(tensors)
    ]
    bits = [x.bits for x in tensors]
    z = [x.m if isinstance(x, Masked) else x.x for x in tensors]
    sharings = [i for i, x in enumerate(tensors) if isinstance(x, Shared)]
    if sharings:
        own = [ring.reduce(z[i] + lams[i], bits[i]) if c.evaluating else z[i] for i in sharings]
        found = await Handover(own, [bits[i] for i in sharings], [(j, 0) for j in range(1, n)])
        for i, mine, others in zip(sharings, own, found, strict=True):
            z[i] = ring.reduce(mine + others, bits[i]) if c.first else z[i]  # meaningful at party 0 only
    me = c.perspective
    for party in range(n - 1):
        if c.evaluating and me == party:
            z = [ring.reduce(take_rows(t, orders[0]) + r[0], b) for t, r, b in zip(z, masks, bits, strict=True)]
        z = await Handover(z, bits, [(party, party + 1)])
    out = []
    for x, t, d in zip(tensors, z, dealt, strict=True):
        if not c.evaluating:
            share = c.blank(x.shape)
        else:
            share = ring.reduce((take_rows(t, orders[0]) if me == n - 1 else 0) - d, x.bits)
        out.append(Shared(share, x.bits, x.frac))
    return out
