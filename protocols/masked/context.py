"""What every gate needs: the role, the tape, and the opening of many values in one message.

Openings and, for a shuffle, masked tensors handed from one party to the next are all that crosses the wire. [x] + [lam] with
a fresh uniform lam is sent, so what is seen is uniform and independent of x. The scheduler collects all openings that are
waiting and sends them as one message: one round.

Leaks: nothing; what is sent is uniform (docs/security.md, "Openings").
"""

from __future__ import annotations

import copy
import functools
import operator
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from mpc import ring, timeline
from mpc.channel import Channel
from mpc.errors import RangeError
from mpc.ledger import Ledger, current
from mpc.messages import Message, at_host, delivered, joined, on_device, packed, size, unpacked
from mpc.packing import packed_size
from mpc.ranks import Ranks
from mpc.shape_tensor import broadcast, shape_tensor
from mpc.tape import CountingTape, Tape
from protocols.masked.shares import Masked, Shared
from protocols.schedule import Request

T = TypeVar("T")
MOST_OF_WRAPS = 58  # bits of shares that are added up in a word, of 16 parties and more


class Opening(Request[Masked]):
    """A request to turn a sharing into a masked value. Cost: 1 round (shared), bits per element per direction.

    wraps: see `Masked`."""

    def __init__(self, value: Shared, lam: Tensor, wraps: Tensor | None = None) -> None:
        self.value = value
        self.lam = lam
        self.wraps = wraps
        self.key = current()
        self.size = packed_size(value.shape.numel(), value.bits)
        self._own: Tensor | None = None  # what this party has sent

    def encode(self) -> Message:
        """Return this party's message: the bit-packed share of x + lam."""
        self._own = self.value.x + self.lam
        return packed(self._own, self.value.bits)

    def decode(self, parts: Sequence[Message], c: Context) -> Masked:
        """Return the masked value from everybody's messages."""
        assert self._own is not None
        total, self._own = self._own, None  # cheaper at the host than to unpack this party's own message
        if c.device.type != "cpu":  # made of messages alone, so that the host can make it as well
            total = unpacked(parts[c.perspective], self.value.bits, self.value.shape)
        for party, part in enumerate(parts):
            if party != c.perspective:
                total += unpacked(part, self.value.bits, self.value.shape)
        if self.value.bits < ring.RING_BITS:
            total &= (1 << self.value.bits) - 1
        m = total
        if c.observer is not None:
            c.observer(m, self.value.bits)
        return self._masked(m)

    def blank(self, c: Context) -> Masked:
        """Return what a role that does not evaluate gets."""
        return self._masked(c.blank(self.value.shape))

    def _masked(self, m: Tensor) -> Masked:
        return Masked(m, self.lam, self.value.bits, self.value.frac, wraps=self.wraps)


class BitOpening(Request[Tensor]):
    """A request to open XOR-shared bits that are masked by dealt random bits. Cost: 1 round, 1 bit per bit."""

    def __init__(self, share: Tensor, dtype: torch.dtype = torch.int64) -> None:
        self.share = share
        self.dtype = dtype
        self.key = current()
        self.size = packed_size(share.shape.numel(), 1)

    def encode(self) -> Message:
        """Return this party's message: its bits, eight a byte."""
        if self.share.device.type != "cpu":
            return packed(self.share.to(torch.int64), 1)
        return np.packbits(self.share.reshape(-1).numpy().astype(np.uint8, copy=False) & 1, bitorder="little").tobytes()

    def decode(self, parts: Sequence[Message], c: Context) -> Tensor:
        """Return the public masked bits, 0 or 1, in the integers asked for. Raises `WireError` where only some messages
        lie on a device."""
        there = on_device(parts)
        if there:
            whole = functools.reduce(operator.xor, there)
            total = unpacked(whole, 1, self.share.shape).to(self.dtype)
        else:
            together = np.frombuffer(parts[0], np.uint8)  # type: ignore[arg-type]
            for part in parts[1:]:
                together = together ^ np.frombuffer(part, np.uint8)  # type: ignore[arg-type]
            bits = np.unpackbits(together, count=self.share.shape.numel(), bitorder="little")
            total = torch.from_numpy(bits).view(torch.int8).reshape(self.share.shape).to(self.dtype)
        if c.observer is not None:
            c.observer(total.to(torch.int64), 1)
        return total

    def blank(self, c: Context) -> Tensor:
        """Return what a role that does not evaluate gets."""
        return c.blank(self.share.shape)


class XorOpening(Request[Masked]):
    """A request to open XOR-shared words under an XOR mask. Cost: 1 round (shared), bits per word per direction."""

    def __init__(self, share: Tensor, lam: Tensor, bits: int) -> None:
        self.share, self.lam, self.bits = share, lam, bits
        self.key = current()
        self.size = packed_size(share.shape.numel(), bits)

    def encode(self) -> Message:
        """Return this party's message: its words XOR its words of the mask."""
        return packed(self.share ^ self.lam, self.bits)

    def decode(self, parts: Sequence[Message], c: Context) -> Masked:
        """Return m = x XOR lam beside the mask: zero and equality are read off them as off a sum."""
        m = unpacked(parts[0], self.bits, self.share.shape)
        for part in parts[1:]:
            m ^= unpacked(part, self.bits, self.share.shape)
        if c.observer is not None:
            c.observer(m, self.bits)
        return Masked(m, self.lam, self.bits, 0)

    def blank(self, c: Context) -> Masked:
        """Return what a role that does not evaluate gets."""
        return Masked(c.blank(self.share.shape), self.lam, self.bits, 0)


class Routed(Request[T]):
    """A message that only some parties send: `links` are its (sender, receiver) pairs, `size` its bytes over each link.

    `encode` is called at the senders, `decode` everywhere, with the messages that this party received, by sender.
    """

    links: tuple[tuple[int, int], ...]
    size: int
    key: tuple[str, str]

    def bytes_of(self, party: int) -> tuple[int, int]:
        """Return the bytes that `party` sends and receives."""
        return self.size * sum(a == party for a, _ in self.links), self.size * sum(b == party for _, b in self.links)


class Context:
    """One role's view of masked evaluation.

    channel: None at the dealer and in estimation. tape: the dealer's, a party's or the estimator's end. perspective: the
    party whose bytes a role without a channel counts (parties differ in routed messages only), by default the last. Shares
    lie on the tape's device.
    """

    def __init__(
        self,
        tape: Tape,
        channel: Channel | None,
        parties: int,
        perspective: int | None = None,
    ) -> None:
        self.tape = tape
        self.channel = channel
        self.parties = parties
        self.device = tape.device
        self.evaluating = channel is not None  # at a compute party: shares and public masked values are real tensors
        self.first = channel is not None and channel.party == 0
        counted = parties - 1 if perspective is None else perspective
        self.perspective = channel.party if channel is not None else counted
        self.ranks: Ranks | None = None  # of this party, which weights are split over when they are loaded
        self.prefer: str = "auto"  # which form of a gate is run, see `protocols.masked.forms`
        self.ledger = channel.ledger if channel is not None else tape.ledger
        self.observer: Callable[[Tensor, int], None] | None = None  # of all that is masked when it arrives
        self.revealed: Callable[[Tensor, int], None] | None = None  # of what is opened in the clear (after a shuffle)

    def local(self) -> Context:
        """Return the same role without tape and channel: for what outlives a session and needs local operations only."""
        out = copy.copy(self)
        out.channel = None
        out.tape = CountingTape()
        out.ledger = Ledger()
        out.observer = out.revealed = None
        return out

    # ---- correlated randomness -----------------------------------------------------------------------------------
    def deal(self, op: str, shape: Sequence[int], bits: int, value: Callable[[], Tensor]) -> Tensor:
        """Return a value computed from masks, shared modulo 2^bits. The dealer gets it whole."""
        return self.tape.dependent(op, tuple(shape), value if self.tape.dealing else None, bits)

    def deal_table(self, op: str, shape: Sequence[int], bits: int, value: Callable[[], Tensor]) -> Tensor:
        """As `deal`, for what is looked up and not computed with: a party gets it in the narrowest signed integers that
        hold `bits`, congruent modulo 2^bits."""
        return self.tape.table(op, tuple(shape), value if self.tape.dealing else None, bits)

    def deal_xor(self, op: str, shape: Sequence[int], value: Callable[[], Tensor], bits: int = 64) -> Tensor:
        """Return words of `bits` bits computed from masks, XOR-shared."""
        return self.tape.dependent(op, tuple(shape), value if self.tape.dealing else None, bits, "xor")

    # ---- local conversions ---------------------------------------------------------------------------------------
    def blank(self, shape: Sequence[int]) -> Tensor:
        """Return a tensor nobody reads: what a role that does not evaluate holds in place of shares and masked values."""
        return shape_tensor(shape)

    def shared(self, x: Masked) -> Shared:
        """Return a masked value as a sharing; local: [x]_i = (i == 0) m - [lam]_i."""
        if not self.evaluating:
            return Shared(self.blank(x.shape), x.bits, x.frac)
        return Shared((x.m - x.lam) if self.first else -x.lam, x.bits, x.frac)

    def add_public(self, x: Shared, value: Tensor | int) -> Shared:
        """Return [x + value] for public ring elements (already scaled); party 0 adds."""
        if not self.evaluating:
            like = self.blank(value.shape if isinstance(value, Tensor) else ())
            return Shared(x.x + like, x.bits, x.frac)
        if self.first:
            return Shared(x.x + value, x.bits, x.frac)
        wide = isinstance(value, Tensor) and broadcast(x.shape, value.shape) != tuple(x.shape)
        return Shared(x.x + torch.zeros_like(cast(Tensor, value)) if wide else x.x, x.bits, x.frac)

    def public(self, value: Tensor, bits: int, frac: int) -> Shared:
        """Return a public tensor of ring elements as a sharing."""
        if not self.evaluating:
            return Shared(self.blank(value.shape), bits, frac)
        return Shared(value if self.first else torch.zeros_like(value), bits, frac)

    # ---- opening -------------------------------------------------------------------------------------------------
    def opening(self, x: Shared, wraps: bool = False) -> Opening:
        """Ask for [x] -> <x> with a fresh mask in x's ring. wraps: let the dealer keep those of its shares (`Masked`)."""
        shape, bits = tuple(x.shape), x.bits
        if not wraps or bits > MOST_OF_WRAPS:
            return Opening(x, self.tape.random("open", shape, bits))
        shares = self.tape.random_shares("open", shape, bits)
        if not self.tape.dealing:
            return Opening(x, shares[0], self.blank(shape))
        total = functools.reduce(operator.add, (ring.reduce(share, bits) for share in shares))
        return Opening(x, ring.reduce(total, bits), total >> bits)

    def flush(self, requests: list[Any]) -> Sequence[Any]:
        """Exchange all waiting openings in one message."""
        if self.channel is None:
            self.count(requests)
            return [r.blank(self) for r in requests]
        if any(isinstance(r, Routed) for r in requests):
            return self._flush_routed(self.channel, requests)
        keys: dict[tuple[str, str], int] = {}
        for request in requests:
            keys[request.key] = keys.get(request.key, 0) + request.size
        first = requests[0].key
        start = time.perf_counter()
        message = joined([r.encode() for r in requests])
        sent = at_host(message)
        if timeline.active is not None:
            timeline.active.add("serialise", first, start)
        arrived = self.channel.exchange_all(sent, keys)
        start = time.perf_counter()
        received = delivered([part for party, part in enumerate(arrived) if party != self.perspective], self.device)
        received.insert(self.perspective, message if isinstance(message, Tensor) else memoryview(message))
        out = []
        offset = 0
        for request in requests:
            end = offset + request.size
            out.append(request.decode([message[offset:end] for message in received], self))
            offset = end
        if timeline.active is not None:
            timeline.active.add("serialise", first, start)
        return out

    def _flush_routed(self, channel: Channel, requests: list[Any]) -> Sequence[Any]:
        """Exchange a round in which not every party sends the same: one message over each link that carries anything."""
        me = channel.party
        outgoing: dict[int, list[Message]] = {peer: [] for peer in channel.peers}
        sizes = dict.fromkeys(channel.peers, 0)
        spans: list[dict[int, tuple[int, int]]] = []  # request -> sender -> its bytes within the sender's message
        keys: dict[tuple[str, str], tuple[int, int]] = {}
        own: list[Message | None] = []
        for request in requests:
            routed = isinstance(request, Routed)
            links = request.links if routed else [(a, b) for a in range(self.parties) for b in range(self.parties) if a != b]
            payload = request.encode() if any(a == me for a, _ in links) else b""
            own.append(None if routed else payload)
            span: dict[int, tuple[int, int]] = {}
            for sender, receiver in links:
                if sender == me:
                    outgoing[receiver].append(payload)
                elif receiver == me:
                    span[sender] = (sizes[sender], sizes[sender] + request.size)
                    sizes[sender] += request.size
            spans.append(span)
            sent, got = keys.get(request.key, (0, 0))
            more = self._bytes(request)
            keys[request.key] = (sent + more[0], got + more[1])
        messages = {peer: at_host(joined(parts)) for peer, parts in outgoing.items() if any(size(part) for part in parts)}
        received = channel.exchange(messages, {peer: count for peer, count in sizes.items() if count}, keys)
        views = dict(zip(received, delivered(list(received.values()), self.device), strict=True))
        out = []
        for request, span, mine in zip(requests, spans, own, strict=True):
            parts = {sender: views[sender][start:end] for sender, (start, end) in span.items() if end > start}
            if mine is not None:
                parts[me] = mine
                out.append(request.decode([parts.get(i, memoryview(b"")) for i in range(self.parties)], self))
            else:
                out.append(request.decode(parts, self))
        return out

    def _bytes(self, request: Any) -> tuple[int, int]:
        """Return the bytes that this party, or the one whose view is taken, sends and receives for a request."""
        if isinstance(request, Routed):
            return request.bytes_of(self.perspective)
        return request.size * (self.parties - 1), request.size * (self.parties - 1)

    def count(self, requests: list[Any]) -> None:
        """Book what a party would send and receive (roles that only predict)."""
        receivers: set[int] = set()
        for request in requests:
            if isinstance(request, Routed):
                receivers |= {b for a, b in request.links if a == self.perspective and request.size}
            else:
                receivers |= set(range(self.parties)) - {self.perspective}
        for index, request in enumerate(requests):
            sent, received = self._bytes(request)
            cost = self.ledger.at(request.key)
            cost.bytes_sent += sent
            cost.bytes_received += received
            cost.rounds += int(index == 0)
            cost.messages += len(receivers) * int(index == 0)


async def open_value(c: Context, x: Shared, wraps: bool = False) -> Masked:
    """Open [x] as <x>. 1 round, x.bits per element to each other party. Leaks nothing: the mask is fresh and uniform.

    wraps: see `Context.opening`."""
    return await c.opening(x, wraps)


def require(condition: bool, op: str, text: str) -> None:
    """Raise `RangeError` at plan time when an operation's public bounds do not fit its ring."""
    if not condition:
        raise RangeError(f"{op}: {text}; lower the fraction bits or the declared magnitudes")
