"""Runs a protocol with fixed seeds, parties and dealer in one process, and writes down everything that was dealt and said.

A vector's JSON says nothing that is not deterministic: seeds and inputs come from SHA-256 of the case's name, and where a
protocol asks the operating system for a seed (coefficients of range flags, zero-sharings, noise) it gets one of the case's.
No message and no payload says the seeds of noise, so the vector does.
"""

from __future__ import annotations

import base64
import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from mpc import ring
from mpc.channel import MemoryChannel, memory_channels
from mpc.random import Prg, derive_seed, new_seed
from mpc.tape import DealerTape, PartyTape, chunks
from tests.vectors.independent.formats import BEGINNING, FULL_BYTES

SESSION = hashlib.sha256(b"known-answer vectors 1").digest()
NOISE_SEED = "protocols.gumbel.new_seed"
OWN_SEEDS = (
    "protocols.masked.ranges.new_seed",
    "protocols.masked.histogram.new_seed",
    "protocols.crypten.binding.session.new_seed",
)
_role = threading.local()


@dataclass(frozen=True)
class Output:
    """A party's share of a result; kind "sum" or "xor"."""

    x: Tensor
    bits: int
    frac: int
    kind: str = "sum"


@dataclass(frozen=True)
class Input:
    """A secret: signed ring elements, their ring and fraction bits."""

    x: Tensor
    bits: int
    frac: int


Program = Callable[..., Sequence[Output]]


@dataclass(frozen=True)
class Case:
    """One run. gate: what `independent.gates` calls it. program: called at each role with (role, shares, arguments).

    role: a `Role`; shares: this party's shares of the inputs, None at the dealer.
    """

    name: str
    gate: str
    parties: int
    inputs: Sequence[Input]
    program: Program
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Role:
    """Tape and channel (None at the dealer) of one role."""

    parties: int
    tape: Any
    channel: MemoryChannel | None


# ---- how things are written ------------------------------------------------------------------------------------------
def octets(data: bytes) -> str | dict[str, Any]:
    """Base64, or size, hash and beginning of a long one."""
    if len(data) <= FULL_BYTES:
        return base64.b64encode(data).decode()
    starts = base64.b64encode(data[:BEGINNING]).decode()
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "starts": starts}


def elements(x: Tensor, bits: int) -> dict[str, Any]:
    """Unsigned, hexadecimal, row-major."""
    flat = ring.reduce(x.to(torch.int64), bits).reshape(-1).tolist()
    return {"shape": list(x.shape), "values": " ".join(f"{v % (1 << 64):x}" for v in flat)}


def seed_of(*labels: str | int) -> bytes:
    """A fixed seed for a purpose."""
    return derive_seed(SESSION, *labels)


# ---- what is recorded ------------------------------------------------------------------------------------------------
class _Dealer(DealerTape):
    """Keeps what it deals, entry by entry."""

    def __init__(self, seeds: Sequence[bytes], streams: list[bytearray]) -> None:
        super().__init__(seeds, self._keep)
        self.streams = streams
        self.entries: list[list[Any]] = []

    def _header(self, text: str, size: int, everyone: bool = False) -> None:
        self.entries.append([text])
        super()._header(text, size, everyone)

    def _keep(self, party: int, data: bytes) -> None:
        self.streams[party] += data
        if party == len(self.streams) - 1 and len(data):
            self._last = data

    def dependent(self, *args: Any, **kwargs: Any) -> Tensor:
        out = super().dependent(*args, **kwargs)
        self.entries[-1].append(octets(self._last))
        return out

    def completed(self, *args: Any, **kwargs: Any) -> Tensor:
        out = super().completed(*args, **kwargs)
        self.entries[-1].append(octets(self._last))
        return out

    def dependent_shares(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        out = super().dependent_shares(*args, **kwargs)
        self.entries[-1].append(octets(self._last))
        return out

    def common(self, *args: Any, **kwargs: Any) -> Tensor:
        out = super().common(*args, **kwargs)
        self.entries[-1].append(octets(self._last))
        return out


def _watched(channel: MemoryChannel, said: list[list[dict[int, bytes]]]) -> None:
    """Keep what this party sends, round by round."""
    exchange = channel.exchange

    def watched(outgoing: Any, incoming: Any, shares: Any = None) -> Any:
        said[channel.party].append(dict(outgoing))
        return exchange(outgoing, incoming, shares)

    channel.exchange = watched  # type: ignore[method-assign]


def _rounds(said: Sequence[Sequence[dict[int, bytes]]]) -> list[dict[str, Any]]:
    """Per round: sender -> its message to all others, or "sender>receiver" where they are not the same."""
    out = []
    for parts in zip(*said, strict=True):
        messages: dict[str, Any] = {}
        for sender, outgoing in enumerate(parts):
            if len(outgoing) == len(parts) - 1 and len(set(outgoing.values())) == 1:
                messages[str(sender)] = octets(next(iter(outgoing.values())))
            else:
                messages |= {f"{sender}>{receiver}": octets(sent) for receiver, sent in sorted(outgoing.items())}
        out.append(messages)
    return out


@contextmanager
def _own_seeds(name: str) -> Iterator[list[bytes]]:
    """Protocols' own seeds are the case's: by role, in the order in which they ask. Other threads get real ones. Gives the
    seeds that noise has been drawn from."""
    noise: list[bytes] = []

    def given() -> bytes:
        role = getattr(_role, "name", None)
        if role is None:
            return new_seed()
        _role.asked += 1
        return seed_of(name, "own seed", role, _role.asked - 1)

    def given_to_noise() -> bytes:
        seed = given()
        noise.append(seed)
        return seed

    with ExitStack() as stack:
        stack.enter_context(mock.patch(NOISE_SEED, given_to_noise))
        for target in OWN_SEEDS:
            stack.enter_context(mock.patch(target, given))
        yield noise


def _as(name: str) -> None:
    _role.name, _role.asked = name, 0


def _split(case: Case) -> list[list[Tensor]]:
    """Shares of every input: all but the last party's come from the case's generator."""
    out = []
    for number, given in enumerate(case.inputs):
        prg = Prg(seed_of(case.name, "input", number))
        parts = [prg.ring(given.x.shape, given.bits) for _ in range(case.parties - 1)]
        rest = given.x.clone()
        for part in parts:
            rest -= part
        out.append([*parts, ring.reduce(rest, given.bits)])
    return out


def _run(case: Case, dealer: _Dealer, seeds: Sequence[bytes], shares: list[list[Tensor]]) -> tuple[list[Any], list[Any]]:
    """(every party's outputs, what every party sent)."""
    channels = memory_channels(case.parties)
    said: list[list[dict[int, bytes]]] = [[] for _ in channels]
    results: list[Any] = [None] * case.parties
    errors: list[BaseException] = []
    _as("dealer")
    case.program(Role(case.parties, dealer, None), None, case.arguments)

    def party(i: int) -> None:
        try:
            _as(f"party{i}")
            _watched(channels[i], said)
            tape = PartyTape(seeds[i], i == case.parties - 1, chunks(iter([bytes(dealer.streams[i])])))
            results[i] = case.program(Role(case.parties, tape, channels[i]), [s[i] for s in shares], case.arguments)
        except BaseException as error:
            errors.append(error)
            channels[i].close()

    threads = [threading.Thread(target=party, args=(i,), daemon=True) for i in range(case.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results, said


def record(case: Case, keep: Callable[[str, bytes], None] = lambda name, data: None) -> dict[str, Any]:
    """The case as it stands in its vector. keep: gets every party's whole tape and every whole message, by name."""
    seeds = [seed_of(case.name, "party", i) for i in range(case.parties)]
    streams = [bytearray() for _ in seeds]
    dealer = _Dealer(seeds, streams)
    shares = _split(case)
    with torch.inference_mode(), _own_seeds(case.name) as noise:
        results, said = _run(case, dealer, seeds, shares)
    for party, stream in enumerate(streams):
        keep(f"party{party}.tape", bytes(stream))
        for number, outgoing in enumerate(said[party]):
            for receiver, message in outgoing.items():
                keep(f"round{number:03}.{party}-{receiver}.message", message)
    return {
        "name": case.name,
        "gate": case.gate,
        "parties": case.parties,
        "arguments": case.arguments,
        "seeds": [seed.hex() for seed in seeds],
        **({"noise_seeds": [seed.hex() for seed in noise]} if noise else {}),
        "inputs": [
            {"bits": g.bits, "frac": g.frac, "value": elements(g.x, g.bits), "shares": [elements(s, g.bits) for s in parts]}
            for g, parts in zip(case.inputs, shares, strict=True)
        ],
        "tape": dealer.entries,
        "tape_sha256": [hashlib.sha256(stream).hexdigest() for stream in streams],
        "rounds": _rounds(said),
        "outputs": [_output(parts) for parts in zip(*results, strict=True)],
    }


def _output(parts: Sequence[Output]) -> dict[str, Any]:
    first = parts[0]
    total = torch.zeros_like(first.x)
    for part in parts:
        total = total ^ part.x if first.kind == "xor" else total + part.x
    shares = [elements(part.x, first.bits) for part in parts]
    value = elements(total, first.bits)
    return {"bits": first.bits, "frac": first.frac, "kind": first.kind, "value": value, "shares": shares}


def whole(shape: Sequence[int], name: str, bits: int) -> Tensor:
    """Fixed elements of a ring, signed."""
    return ring.signed(Prg(seed_of(name, "elements", math.prod(shape))).ring(shape, bits), bits)
