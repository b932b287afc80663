"""All compute parties and the dealer as threads of one process, over in-memory channels and tapes.

INSECURE FOR REAL DATA BY NATURE: one process holds every share, so whoever can read its memory can read every secret. It
is for measuring fidelity and for tests, with shares that this process made itself; roles that keep secrets from each
other run as processes of their own (`launch.local.deployment`, or one `mpcache party` per host).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from mpc.channel import Channel, MemoryChannel, memory_channels
from mpc.errors import PeerError, TapeError
from mpc.generators import suited
from mpc.random import Prg, new_seed
from mpc.tape import DealerTape, PartyTape, Tape, chunks
from protocols.registry import SuiteSpec, secure_suite
from protocols.suite import Suite

P = TypeVar("P")
D = TypeVar("D")

TAPE_SECONDS = 600.0
DEVICE = "cpu"  # where roles compute unless it is said
CHUNK_BYTES = 1 << 20  # of small entries that are handed over at once
UNREAD_BYTES = 1 << 28  # what the dealer may have dealt a party before the party reads it


class _TapeNotTaken(TapeError):
    """A party that failed takes no more of its tape: never the reason, always its consequence."""


class _Stream:
    """A tape's bytes on their way to one party: bounded, so that the dealer does not run ahead of what fits the memory."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._ended = False
        self._changed = threading.Condition()

    def put(self, piece: bytes) -> None:
        """Wait for room. Raises `_TapeNotTaken` when nobody takes anything any more."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._ended or self._waiting < UNREAD_BYTES, TAPE_SECONDS) or self._ended:
                raise _TapeNotTaken("a party takes no more of its tape")
            self._pieces.append(piece)
            self._waiting += len(piece)
            self._changed.notify_all()

    def end(self) -> None:
        """Say that nothing more comes, or that nothing more is taken."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[bytes]:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._pieces or self._ended, TAPE_SECONDS):
                    raise TapeError(f"the dealer dealt nothing for {TAPE_SECONDS:g} s")
                if not self._pieces:
                    return
                taken = [self._pieces.popleft()]
                size = len(taken[0])
                while self._pieces and size + len(self._pieces[0]) <= CHUNK_BYTES:
                    taken.append(self._pieces.popleft())
                    size += len(taken[-1])
                self._waiting -= size
                self._changed.notify_all()
            yield taken[0] if len(taken) == 1 else b"".join(taken)


def run_in_process(
    parties: int,
    party_main: Callable[[MemoryChannel, PartyTape], P],
    dealer_main: Callable[[DealerTape], D],
    dealer_tape: type[DealerTape] = DealerTape,
    devices: Sequence[str] = (),
) -> tuple[list[P], D]:
    """Run a program on all parties and the dealer; the results of the parties in order, and of the dealer.

    dealer_tape: the dealer's end of the tape, such as one that also records what is dealt. devices: of the parties in order,
    and of the dealer.

    The first exception of any of them is raised here; that another party has left is reported only when nothing else
    explains it.
    """
    channels = memory_channels(parties, deadline=TAPE_SECONDS)
    seeds = [new_seed() for _ in range(parties)]
    streams = [_Stream() for _ in range(parties)]
    results: dict[int, P] = {}
    dealt: list[D] = []
    errors: list[BaseException] = []
    places = list(devices) or [DEVICE] * (parties + 1)

    def prg(i: int) -> Prg:
        return Prg(seeds[i], suited(places[i]))

    def party_thread(i: int) -> None:
        try:
            tape = PartyTape(prg(i), i == parties - 1, chunks(iter(streams[i])), channels[i].ledger, places[i])
            with torch.inference_mode():
                results[i] = party_main(channels[i], tape)
        except BaseException as error:
            errors.append(error)
            channels[i].close()
            streams[i].end()

    def dealer_thread() -> None:
        try:
            prgs = [prg(i) for i in range(parties)]
            tape = dealer_tape(prgs, lambda i, piece: streams[i].put(piece), None, places[parties])
            with torch.inference_mode():
                dealt.append(dealer_main(tape))
                tape.flush()
        except BaseException as error:
            errors.append(error)
        finally:
            for stream in streams:
                stream.end()

    threads = [threading.Thread(target=party_thread, args=(i,), name=f"party {i}", daemon=True) for i in range(parties)]
    threads.append(threading.Thread(target=dealer_thread, name="dealer", daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((error for error in errors if not isinstance(error, PeerError | _TapeNotTaken)), errors[0])
    return [results[i] for i in range(parties)], dealt[0]


@dataclass(frozen=True)
class InProcessSuite:
    """A secure suite with all its roles in this process.

    spec: which suite, with which settings. parties: number of compute parties. device: where shares are computed on, or one
    for each party and the dealer; None: `DEVICE`.

    >>> import torch
    >>> from protocols.registry import SuiteSpec
    >>> pair = InProcessSuite(SuiteSpec("masked"), parties=2)
    >>> one = torch.ones(3, dtype=torch.int64)
    >>> outputs = pair.run(lambda suite, party: suite.output(suite.input((3,), None if party is None else one, 0)))
    >>> int(sum(output.share for output in outputs)[0])  # each party gave a share of 1
    2
    """

    spec: SuiteSpec
    parties: int = 2
    device: str | Sequence[str] | None = None

    def make(self, tape: Tape, channel: Channel | None) -> Suite:
        """Return one role's suite; channel: None for the dealer. Raises `ConfigurationError`."""
        return secure_suite(self.spec, parties=self.parties, tape=tape, channel=channel)

    def _devices(self) -> Sequence[str]:
        if isinstance(self.device, str):
            return [self.device] * (self.parties + 1)
        return self.device or []

    def run(self, program: Callable[[Suite, int | None], P]) -> list[P]:
        """Run program(suite, party) at every role, with party None at the dealer, and return the parties' results."""
        outputs, _ = run_in_process(
            self.parties,
            lambda channel, tape: program(self.make(tape, channel), channel.party),
            lambda tape: program(self.make(tape, None), None),
            devices=self._devices(),
        )
        return outputs
