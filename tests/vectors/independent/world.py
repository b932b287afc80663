"""One run with fixed seeds, evaluated by all parties and the dealer at once: shares are arrays [parties, ...].

Nothing is taken on trust. Every entry of the tape is drawn from the parties' seeds, every dealt value computed from the
masks and compared with the vector, every message made by its sender and compared with the vector, before it is used.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from tests.vectors.independent.formats import (
    Stream,
    U,
    Words,
    entry_header,
    octets,
    pack,
    reduce,
    same,
    signed,
    total,
    unpack,
)

Steps = Generator[Any, Any, Any]


class Mismatch(AssertionError):
    """The vector says something else."""


@dataclass(frozen=True)
class Shared:
    """x [parties, ...]: shares modulo 2^bits."""

    x: Words
    bits: int
    frac: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the value."""
        return self.x.shape[1:]

    def to(self, bits: int) -> Shared:
        """Modulo a smaller power of two."""
        assert bits <= self.bits
        return Shared(reduce(self.x, bits), bits, self.frac)

    def each(self, f: Callable[[Words], Words]) -> Shared:
        """A linear map, applied to every party's share."""
        return Shared(np.stack([f(share) for share in self.x]), self.bits, self.frac)

    def plus(self, other: Shared, sign: int = 1) -> Shared:
        """Sum or difference, in the smaller ring."""
        return Shared(self.x + other.x if sign > 0 else self.x - other.x, min(self.bits, other.bits), self.frac)

    def plus_public(self, value: Words | np.uint64) -> Shared:
        """x plus public ring elements; party 0 adds."""
        x = self.x.copy()
        x[0] += value
        return Shared(x, self.bits, self.frac)


@dataclass(frozen=True)
class Masked:
    """m [...] public, lam [parties, ...]: shares of the mask. counted: whether the dealer notes how often the shares go
    around 2^bits when they are added as integers."""

    m: Words
    lam: Words
    bits: int
    frac: int
    counted: bool = False

    def noted(self, noted: bool) -> Masked:
        """The same, counted where that is so and words hold the sum."""
        return replace(self, counted=noted and self.bits <= 58)

    @property
    def around(self) -> Words:
        """How often shares go around."""
        return np.asarray(sum(share.astype(object) for share in self.lam) >> self.bits).astype(U)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the value."""
        return self.m.shape

    @property
    def mask(self) -> Words:
        """The whole mask, as the dealer knows it."""
        return total(self.lam, self.bits)

    @property
    def shared(self) -> Shared:
        """[x] = (party 0: m) - [lam]."""
        x = -self.lam
        x[0] += self.m
        return Shared(x, self.bits, self.frac)

    def to(self, bits: int) -> Masked:
        """Modulo a smaller power of two."""
        assert bits <= self.bits
        return Masked(reduce(self.m, bits), reduce(self.lam, bits), bits, self.frac)

    def each(self, f: Callable[[Words], Words]) -> Masked:
        """A linear map, applied to m and to every share of lam."""
        lam = np.stack([reduce(f(share), self.bits) for share in self.lam])
        return Masked(reduce(f(self.m), self.bits), lam, self.bits, self.frac)

    def plus_public(self, value: Words | np.uint64) -> Masked:
        """x plus public ring elements."""
        return Masked(reduce(self.m + value, self.bits), self.lam, self.bits, self.frac)

    def plus(self, other: Masked, sign: int = 1) -> Masked:
        """Sum or difference."""
        bits = min(self.bits, other.bits)
        m, lam = (self.m + other.m, self.lam + other.lam) if sign > 0 else (self.m - other.m, self.lam - other.lam)
        return Masked(reduce(m, bits), reduce(lam, bits), bits, self.frac)


def on_parties(f: Callable[..., Words], *arrays: Words) -> Words:
    """f of each party's share of the arrays [parties, ...]."""
    return np.stack([f(*parts) for parts in zip(*arrays, strict=True)])


# ---- requests --------------------------------------------------------------------------------------------------------
@dataclass
class Open:
    """Everybody sends its share to everybody: shares [parties, ...] modulo 2^bits, added up (or XORed)."""

    shares: Words
    bits: int
    kind: str = "sum"

    def bytes_of(self, sender: int, receiver: int) -> bytes:
        """Over one link."""
        return pack(self.shares[sender], self.bits)

    def result(self) -> Words:
        """What everybody knows then."""
        return total(self.shares, self.bits, self.kind)


@dataclass
class Handover:
    """Several tensors, each [parties, ...] modulo its own 2^bits, over some links only."""

    tensors: list[Words]
    bits: list[int]
    links: list[tuple[int, int]]

    def bytes_of(self, sender: int, receiver: int) -> bytes:
        """Over one link."""
        if (sender, receiver) not in self.links:
            return b""
        return b"".join(pack(t[sender], b) for t, b in zip(self.tensors, self.bits, strict=True))

    def result(self) -> None:
        """The receiver's affair."""


class _Later:
    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.waiting: list[tuple[Steps, _Later, Any]] = []


def together(*coroutines: Steps) -> Steps:
    """Side by side: their requests leave in one message."""
    futures = []
    for one in coroutines:
        futures.append((yield ("start", one)))
    results = []
    for future in futures:
        while not future.done:
            yield future
        results.append(future.value)
    return results


# ---- the run ---------------------------------------------------------------------------------------------------------
class World:
    """parties, seeds, tape and rounds of one case of a vector."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.case = case
        self.parties: int = case["parties"]
        self.streams = [Stream(bytes.fromhex(seed)) for seed in case["seeds"]]
        self._entries = iter(case["tape"])
        self._rounds: Iterator[Any] = iter(case["rounds"])
        self._sent = [hashlib.sha256() for _ in range(self.parties)]
        self._position = 0
        self.opened: list[tuple[Words, int]] = []  # what everybody knows, in order, and its bits

    # ---- the tape ----------------------------------------------------------------------------------------------------
    def _entry(self, op: str, what: str, bits: int, shape: Sequence[int]) -> tuple[str, Any]:
        """The next entry's text and what was sent for it."""
        text = f"{op} {what} Z_2^{bits} {list(shape)}"
        found, *sent = next(self._entries, ["nothing"])
        if found != text:
            raise Mismatch(f"tape entry {self._position}: own program needs '{text}', the vector has '{found}'")
        return text, sent[0] if sent else None

    def _emit(self, text: str, payload: bytes, everyone: bool = False) -> None:
        for party in range(self.parties):
            mine = payload if everyone or party == self.parties - 1 else b""
            self._sent[party].update(entry_header(self._position, text, len(mine)) + mine)
        self._position += 1

    def random(self, op: str, shape: Sequence[int], bits: int = 64, kind: str = "sum") -> Words:
        """Shares [parties, ...] of a fresh uniform value: each party's own next elements."""
        text, _ = self._entry(op, f"random {kind}", bits, shape)
        self._emit(text, b"")
        return np.stack([stream.elements(shape, bits) for stream in self.streams])

    def deal(self, op: str, shape: Sequence[int], bits: int, value: Words, kind: str = "sum", slack: int = 0) -> Words:
        """Shares [parties, ...] of a value that the dealer computes; the last party is sent what the others leave of it.

        slack: so many units may an entry differ from ours, for tables of real functions.
        """
        text, sent = self._entry(op, f"dependent {kind}", bits, shape)
        whole = reduce(np.broadcast_to(value, tuple(shape)), bits)
        others = np.stack([stream.elements(shape, bits) for stream in self.streams[:-1]])
        rest = total(others, bits, kind)
        correction = whole ^ rest if kind == "xor" else reduce(whole - rest, bits)
        given = octets(sent)
        if slack and given is not None:
            theirs = unpack(given, bits, shape)
            if np.abs(signed(reduce(theirs - correction, bits), bits)).max(initial=0) <= slack:
                correction = theirs
        payload = pack(correction, bits)
        if not same(payload, sent):
            raise Mismatch(f"tape entry {self._position}, '{text}': the dealt value is another one")
        self._emit(text, payload)
        return np.concatenate([others, correction[None]])

    def around(self, op: str, shape: Sequence[int], value: Words) -> Words:
        """Shares [parties, ...] of numbers modulo 2^L - 1, Python's integers, as L / 64 words each, the lowest first: shape
        [words, ...]. The last party is sent what the others leave."""
        text, sent = self._entry(op, "dependent sum", 64, shape)
        places = (64 * np.arange(shape[0])).astype(object).reshape(-1, *[1] * (len(shape) - 1))
        others = [(stream.elements(shape, 64).astype(object) << places).sum(0) for stream in self.streams[:-1]]
        for other in others:
            value = np.where(value < other, value - other + ((1 << (64 * shape[0])) - 1), value - other)
        payload = pack(((value >> places) & ((1 << 64) - 1)).astype(U), 64)
        if not same(payload, sent):
            raise Mismatch(f"tape entry {self._position}, '{text}': the dealt value is another one")
        self._emit(text, payload)
        return np.stack([*others, value])

    def common(self, op: str, shape: Sequence[int], bits: int, value: Words | None) -> Words:
        """A value that the dealer gives to everybody; None: it is the dealer's choice."""
        text, sent = self._entry(op, "common value", bits, shape)
        if value is None:
            given = octets(sent)
            assert given is not None
            value = unpack(given, bits, shape)
        payload = pack(value, bits)
        if not same(payload, sent):
            raise Mismatch(f"tape entry {self._position}, '{text}': the dealt value is another one")
        self._emit(text, payload, everyone=True)
        return value

    # ---- rounds ------------------------------------------------------------------------------------------------------
    def next_messages(self) -> dict[tuple[int, int], bytes]:
        """What the next round says over each link, for what a party may choose by itself."""
        given = next(self._rounds)
        self._rounds = chain([given], self._rounds)
        said = {link: octets(message) for link, message in self._by_link(given).items()}
        return {link: message for link, message in said.items() if message is not None}

    def _by_link(self, given: dict[str, Any]) -> dict[tuple[int, int], Any]:
        """(sender, receiver) -> message, from "sender>receiver" or, to all others, "sender"."""
        out = {}
        for key, message in given.items():
            sender, _, receiver = key.partition(">")
            for b in [int(receiver)] if receiver else range(self.parties):
                if b != int(sender):
                    out[int(sender), b] = message
        return out

    def exchange(self, requests: Sequence[Open | Handover]) -> list[Any]:
        """One round: every link's message is what the vector says."""
        sent = {}
        for a in range(self.parties):
            for b in range(self.parties):
                if a != b and (message := b"".join(r.bytes_of(a, b) for r in requests)):
                    sent[a, b] = message
        given = next(self._rounds, None)
        if given is None:
            raise Mismatch("the vector has no further round")
        said = self._by_link(given)
        if said.keys() != sent.keys():
            raise Mismatch(f"messages go over links {sorted(said)}, expected {sorted(sent)}")
        for link, message in sent.items():
            if not same(message, said[link]):
                raise Mismatch(f"party {link[0]} sends another message to party {link[1]}")
        results = [r.result() for r in requests]
        for request, result in zip(requests, results, strict=True):
            parts = getattr(request, "parts", [request])
            found = result if hasattr(request, "parts") else [result]
            self.opened += [(x, p.bits) for p, x in zip(parts, found, strict=True) if isinstance(p, Open)]
        return results

    def run(self, main: Steps) -> Any:
        """First in, first out: run what can run, then exchange everything that is asked for in one round."""
        first = _Later()
        ready: deque[tuple[Steps, _Later, Any]] = deque([(main, first, None)])
        asked: list[tuple[Steps, _Later, Any]] = []
        while not first.done:
            while ready and not first.done:
                self._step(*ready.popleft(), ready, asked)
            if first.done:
                break
            waiting, asked = asked, []
            for (task, future, _), value in zip(waiting, self.exchange([r for *_, r in waiting]), strict=True):
                ready.append((task, future, value))
        return first.value

    def _step(self, task: Steps, future: _Later, value: Any, ready: deque[Any], asked: list[Any]) -> None:
        while True:
            try:
                wanted = task.send(value)
            except StopIteration as stop:
                future.done, future.value = True, stop.value
                ready.extend(future.waiting)
                return
            if isinstance(wanted, tuple):
                value = _Later()
                ready.append((wanted[1], value, None))
            elif isinstance(wanted, _Later):
                wanted.waiting.append((task, future, None))
                return
            else:
                asked.append((task, future, wanted))
                return

    def finish(self) -> None:
        """Everything was used, and every party's tape is, byte for byte, the vector's."""
        if next(self._entries, None) is not None or next(self._rounds, None) is not None:
            raise Mismatch("the vector has entries or rounds that our program does not need")
        if [digest.hexdigest() for digest in self._sent] != self.case["tape_sha256"]:
            raise Mismatch("a party's tape has other bytes")

    # ---- openings ----------------------------------------------------------------------------------------------------
    def open(self, x: Shared) -> Steps:
        """[x] -> <x> under a fresh mask."""
        lam = self.random("open", x.shape, x.bits)
        m = yield Open(x.x + lam, x.bits)
        return Masked(m, lam, x.bits, x.frac)

    def sharing(self, value: Words, bits: int, frac: int = 0) -> Shared:
        """A public value as a sharing: party 0 holds it."""
        x = np.zeros((self.parties, *value.shape), U)
        x[0] = value
        return Shared(x, bits, frac)


def elements(shape: Sequence[int]) -> int:
    """Their number."""
    return math.prod(shape)
