"""How the parties of a session agree on a tape that was dealt beforehand, before anything is sent that it masks.

Every greeting lists the unused tapes that would serve the session. Party 0 takes one that all have, names it to the others,
who take it too, and gives the word when all have: 3 messages per pair with party 0. A party that cannot take it ends the
session. Where no tape is at all of them, and all are configured so, the running dealer deals for the session instead.
Nobody can open anything before the word, since party 0 sends no share before it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from mpc.errors import ManifestMismatch, TapeError, WireError
from mpc.tape import Chunks
from parties.events import log
from parties.tapes.header import TapeHeader
from parties.tapes.store import OFFERED, Taken, TapeStore, describe
from parties.transport.peer_stream import PeerStream
from parties.transport.session import Session
from parties.wire import wire_pb2 as wire
from parties.wire.error_codec import public
from parties.wire.manifest import Manifest, check_id

LOOK_SECONDS = 0.5
FROM_DEALER = ""  # what party 0 names in place of a tape where all ask the running dealer
Weights = dict[str, Any]
Held = tuple[Weights, Weights | None]


@dataclass(frozen=True)
class Source:
    """Where a `PartyTape` comes from. seed: secret."""

    seed: bytes = field(repr=False)
    read: Chunks


@dataclass(frozen=True)
class Dealt:
    """What a session computes with. load: its id. weights: those of the load, None to load them in this session.

    loading: the tape for that, None when it is the first part of `session`. rows_load, rows: the same of the rows of the
    registered texts that the session begins behind, whose tape is the next part of the one that weights are loaded with.
    """

    session: Source
    load: str
    weights: Weights | None = field(repr=False)
    loading: Source | None = None
    rows_load: str = ""
    rows: Weights | None = field(default=None, repr=False)


class HeldWeights(Protocol):
    """The loads of weights that a party holds for a session (`parties.server.weight_cache.WeightLease`)."""

    def ids(self) -> list[str]: ...

    def get(self, load: str) -> Weights | None: ...


@dataclass(frozen=True)
class TapeNeed:
    """What a session needs its tape for. storing: what the load's masks serve (`Manifest.masked_with`). weights: the loads
    that this party holds; rows: those of the registered texts that the session begins behind, None without any."""

    manifest: Manifest
    storing: str
    weights: HeldWeights
    rows: HeldWeights | None = None

    def held(self, load: str) -> Held | None:
        """Return what is held of a load: weights, and rows where the session needs some; None unless all of it is."""
        weights, rows = self.weights.get(load), None if self.rows is None else self.rows.get(load)
        if weights is None or (self.rows is not None and rows is None):
            return None
        return weights, rows


@dataclass(frozen=True)
class WithoutTape:
    """What a party does where no tape serves. patience: seconds to wait for one to be put into the folder, 0: none. live:
    ask the running dealer; else, in the end, a `TapeError`."""

    patience: float = 0.0
    live: bool = False


class TapeAgreement:
    """One party's part in the agreement. progress(stage, done, total) tells the client."""

    def __init__(
        self,
        store: TapeStore,
        session: Session,
        need: TapeNeed,
        progress: Callable[[str, int, int], None],
        without: WithoutTape = WithoutTape(),
    ) -> None:
        self._store = store
        self._session = session
        self._need = need
        self._held = need.weights.ids()
        self._progress = progress
        self._patience, self._live = without.patience, without.live
        self._offers: dict[str, TapeHeader] = {}
        self._ready = threading.Event()
        if not self._patience:
            self._look()
        self._theirs: dict[str, set[str]] = {}
        self._taken: Taken | None = None

    def _look(self) -> None:
        try:
            self._offers = self._store.offers(self._need.manifest, self._need.storing, self._held)
        except TapeError:
            if not self._live:
                raise
            self._offers = {}
        self._ready.set()

    def wait(self) -> None:
        """Wait until there is a tape that serves the session, and tell the client. Raises the last `TapeError`, or the
        session's error."""
        limit = time.monotonic() + self._patience
        while not self._ready.is_set():
            self._session.check()
            try:
                self._look()
            except TapeError as error:
                if time.monotonic() >= limit:
                    raise TapeError(f"{error} (waited {self._patience:g} s)") from None
                self._progress(f"waiting for a tape: {error}", 0, 0)
                self._ready.wait(LOOK_SECONDS)

    def look_again(self) -> None:
        """Look once more, since other sessions may have used tapes meanwhile. Waits, or raises `TapeError`, as before."""
        self._ready.clear()
        if self._patience:
            self.wait()
        else:
            self._look()

    def greet(self, hello: wire.Hello) -> None:
        """Put what this party has into a greeting, once it has something."""
        while not self._ready.wait(0.1):
            self._session.check()
        hello.tape_files = True
        hello.tapes.extend(self._offers)

    def heard(self, peer: str, hello: wire.Hello) -> None:
        """Take in a peer's greeting."""
        if len(hello.tapes) > OFFERED:
            raise WireError(f"{peer} lists {len(hello.tapes)} tapes, expected {OFFERED} or fewer")
        self._theirs[peer] = {check_id(tape, "tape", peer) for tape in hello.tapes}

    def agree(self, peers: dict[int, PeerStream]) -> Dealt | None:
        """Return the tape that all parties have taken for this session; None where all ask the running dealer instead.
        Raises `TapeError` naming party, tape and remedy."""
        return self._lead(peers) if 0 not in peers else self._follow(peers[0])

    def _lead(self, peers: dict[int, PeerStream]) -> Dealt | None:
        session = self._session
        session.step = "choosing a tape"
        common = [tape for tape in self._offers if all(tape in theirs for theirs in self._theirs.values())]
        if not common and not self._live:
            raise self._nothing_in_common()
        if not common:
            for stream in peers.values():
                stream.send(wire.PeerMessage(choice=wire.TapeChoice(tape=FROM_DEALER)))
            return None
        taken = self._take(common)
        choice = wire.TapeChoice(tape=taken.header.tape, digest=taken.header.common())
        for stream in peers.values():
            stream.send(wire.PeerMessage(choice=choice))
        held = self._need.held(taken.header.load)
        session.step = f"waiting for the others to take tape {taken.header.tape}"
        fresh = held is None
        for stream in peers.values():
            fresh |= not _receive(stream, "taken").held
        for stream in peers.values():
            stream.send(wire.PeerMessage(go=wire.TapeGo(fresh=fresh)))
        return self._dealt(taken, None if fresh else held)

    def _follow(self, leader: PeerStream) -> Dealt | None:
        session = self._session
        session.step = f"waiting for {leader.peer} to choose a tape"
        choice = _receive(leader, "choice")
        if choice.tape == FROM_DEALER:
            if self._live:
                return None
            raise TapeError(
                f"{leader.peer} found no tape that all parties have and asks the running dealer, which {session.role} does "
                "not: give all parties tapes for this session, or 'when_tape_is_out: dealer'"
            )
        tape = check_id(choice.tape, "tape", leader.peer)
        if tape not in self._offers:
            raise WireError(f"{leader.peer} chose tape {tape}, which {session.role} did not offer")
        if self._offers[tape].common() != choice.digest:
            raise TapeError(
                f"{leader.peer} and {session.role} have different tapes of id {tape}: copy all folders of one deal again"
            )
        taken = self._take([tape])
        held = self._need.held(taken.header.load)
        leader.send(wire.PeerMessage(taken=wire.TapeTaken(held=held is not None)))
        session.step = f"waiting for all parties to take tape {tape}"
        if _receive(leader, "go").fresh:
            held = None
        elif held is None:
            raise WireError(f"{leader.peer} wants load {taken.header.load}, which {session.role} does not hold (any more)")
        return self._dealt(taken, held)

    def _nothing_in_common(self) -> TapeError:
        own = next(iter(self._offers.values()))
        without = [peer for peer, theirs in self._theirs.items() if own.tape not in theirs]
        counts = ", ".join(f"{peer} {len(theirs)}" for peer, theirs in self._theirs.items())
        return TapeError(
            f"no unused tape for {describe(own.program)} is at all parties ({self._session.role} has {len(self._offers)}, "
            f"{counts}): {own.tape} is not at {', '.join(without) or 'all of them'}, or was used or refused there (its log "
            "says which); give every party its folder of the same `mpcache deal`"
        )

    def _take(self, tapes: list[str]) -> Taken:
        wanted = [(self._offers[tape].load, tape) for tape in tapes]
        self._taken = self._store.take(wanted, self._session.id, self._need.storing)
        return self._taken

    def _dealt(self, taken: Taken, held: Held | None) -> Dealt:
        session, loading = (Source(tape.seed, tape.read) for tape in (taken.session, taken.load))
        (weights, rows), load = held or (None, None), taken.header.load
        return Dealt(session, load, weights, loading, load, rows)

    def release(self) -> None:
        """Give up the tape of a session that is over, in whatever way."""
        if self._taken is not None:
            try:
                self._store.release(self._taken)
            except Exception as error:
                log.warning("%s: %s", self._session.role, public(error, self._session.role))


def check_source(role: str, from_files: bool, peer: str, hello: wire.Hello) -> None:
    """Raise `ManifestMismatch` unless both parties take their tapes from the same kind of place."""
    if from_files != hello.tape_files:
        first, second = (role, peer) if from_files else (peer, role)
        raise ManifestMismatch(
            f"{first} takes its tapes from a folder, {second} from the running dealer: configure 'tapes' at all parties or "
            "at none"
        )


def _receive(stream: PeerStream, kind: str) -> Any:
    message = stream.receive()
    if (found := message.WhichOneof("content")) != kind:
        raise WireError(f"{stream.peer} sent '{found}' where '{kind}' of a tape was expected")
    return getattr(message, kind)
