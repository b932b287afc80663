"""What every session at the client is: shares of its prompt out, output shares of all parties in, opened here and nowhere
else."""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import grpc
import torch
from torch import Tensor

import parties.wire.wire_pb2_grpc as services
from mpc.errors import MpcacheError, PeerError, PeerLost, PeerSilent, WireError
from mpc.fixed_point import decode
from mpc.ledger import Cost
from mpc.packing import packed_size, unpack
from mpc.random import new_seed
from mpc.ring import reduce
from parties.client.outputs import Incoming
from parties.config.role_config import RoleConfig
from parties.identity.certificates import Identity
from parties.identity.trust import parties_of
from parties.transport.connection import route
from parties.transport.heartbeat import HeartbeatMonitor
from parties.transport.opening import dialled
from parties.transport.peer_stream import PeerStream
from parties.transport.queues import Inbox
from parties.transport.session import Session
from parties.wire import wire_pb2 as wire
from parties.wire.error_codec import farewell, public, to_failure
from parties.wire.manifest import Manifest
from parties.wire.shares import BITS, corrections
from protocols.bounds import RANGE_KINDS
from protocols.range_findings import RangeFinding, findings_in, open_flags

BEAT = wire.ClientMessage(heartbeat=wire.Heartbeat())
GRACE_SECONDS = 1.0


class Conversation(Session, ABC):
    """Runs one session against connected channels; then `costs` and the times are there. What is done with an output is a
    subclass's.

    manifest: public, sent to all parties. layers: of the model. on_progress: as in `Client.generate`. on_spent(name, cost):
    what the session has cost a party so far, or (under this client's own name) `own`: bytes of this client's messages to
    and from all parties, as they are serialised.
    """

    def __init__(
        self,
        id: str,
        config: RoleConfig,
        manifest: Manifest,
        layers: int,
        on_progress: Callable[[str, int, int], None],
    ) -> None:
        super().__init__(id, config.name)
        self.config = config
        self.manifest = manifest
        self.costs: dict[str, dict[str, Any]] = {}
        self.seconds = 0.0
        self._flags_shape = len(RANGE_KINDS), layers + 1  # kinds and places of an output's range flags
        self._problem: MpcacheError | None = None  # with the answer, to be raised when the session is over
        self._bounds = manifest.spec.settings.bounds
        self.own = Cost()
        self.on_spent: Callable[[str, Cost], None] = lambda name, cost: None
        self._on_progress = on_progress
        self._inbox: Inbox[PeerStream] = Inbox()
        self._parties: list[PeerStream] = []
        self._incoming: dict[PeerStream, Incoming] = {}
        self._opened: dict[int, dict[PeerStream, tuple[wire.OutputHeader, Tensor]]] = {}
        self._began = 0.0

    # ---- a subclass's ------------------------------------------------------------------------------------------------
    @abstractmethod
    def _prompt(self) -> Tensor:
        """Return what is shared of the prompt, int64 of the plan's `prompt_shape`."""

    @abstractmethod
    def _check_due(self, stream: PeerStream, state: Incoming, header: wire.OutputHeader) -> None:
        """Raise `WireError` unless an output may come now."""

    @abstractmethod
    def _shape_due(self, step: int) -> tuple[int, ...]:
        """Return the shape of output `step`, which is due."""

    @abstractmethod
    def _outputs_over(self, state: Incoming) -> bool:
        """Whether a party that has sent so much has no further output."""

    @abstractmethod
    def _take(self, step: int, value: Tensor, flags: Sequence[bytes]) -> None:
        """Take an opened output, float64, and all parties' shares of its range flags."""

    def _count_dropped(self, shares: Sequence[bytes]) -> None:
        """Hear of all parties' shares of a count of dropped choices."""

    def _ignores(self) -> bool:
        """Whether outputs that still come are not opened."""
        return False

    # ---- life ------------------------------------------------------------------------------------------------------
    def run(self, channels: Sequence[grpc.Channel], heartbeats: HeartbeatMonitor, identity: Callable[[], Identity]) -> None:
        """Run the whole session. identity(): with which to connect again after a connection was lost.

        Raises the error that explains a failure best, when several parties report one; in the end `WrongOutput`.
        """
        self._began = time.perf_counter()
        for peer, channel in zip(parties_of(self.config), channels, strict=True):
            way = route(identity, peer, lambda channel: services.ComputePartyStub(channel).Generate)
            stream = dialled(self, way, self.config.resume_seconds, BEAT, self._inbox)
            self._parties.append(stream)
            self._incoming[stream] = Incoming(peer.name, self._flags_shape)
            first = wire.ClientMessage(open=self._opening())
            self._count_sent(first)
            stream.dial(way, channel, first)
            heartbeats.add(stream)
        self.step = "sending the prompt's shares"
        threading.Thread(target=self._upload, name="upload", daemon=True).start()
        try:
            while any(state.costs is None for state in self._incoming.values()):
                self._next()
            for stream in self._parties:
                stream.close()
        except BaseException as error:
            problem = self._explain() if error is self.error else error
            failure = to_failure(farewell(problem, self.role, self.step))
            for stream in self._parties:
                stream.close(wire.ClientMessage(failure=failure))
            if problem is error:
                raise
            raise problem from None
        finally:
            self.end()
            self.finish_calls()
        if self._problem is not None:
            raise self._problem

    def _explain(self) -> BaseException:
        """Return the most telling of what the parties report, after a moment for their reports to arrive."""
        if self.error is not None and not isinstance(self.error, PeerError):
            return self.error
        limit = time.monotonic() + min(GRACE_SECONDS, self.config.deadline_seconds / 2)
        for stream in self._parties:
            stream.wait_until_over(max(0.0, limit - time.monotonic()))
        found: list[MpcacheError] = [stream.error for stream in self._parties if stream.error is not None]
        if self.error is not None:
            found.append(self.error)

        def rank(error: MpcacheError) -> int:
            return (not isinstance(error, PeerError)) * -2 + isinstance(error, PeerLost) - isinstance(error, PeerSilent)

        return min(found, key=rank)

    # ---- shares out --------------------------------------------------------------------------------------------------
    def _opening(self) -> wire.Open:
        return wire.Open(session=self.id, manifest=self.manifest.canonical())

    def _upload(self) -> None:
        try:
            prompt = self._prompt()
            self._share("prompt", 0, tuple(prompt.shape), iter([prompt]))
        except Exception as error:
            self.fail(public(error, self.role))

    def _count_sent(self, message: wire.ClientMessage) -> None:
        self.own.bytes_sent += message.ByteSize()  # the thread of uploads adds to this, the receiving one to the other

    def _send(self, stream: PeerStream, message: wire.ClientMessage) -> None:
        """Send a party a message, and count it."""
        self._count_sent(message)
        stream.send(message)

    def _share(self, name: str, step: int, shape: tuple[int, ...], rows: Iterator[Tensor]) -> None:
        """Share a tensor: fresh seeds for all parties but the last, the rest in chunks for the last."""
        seeds = [new_seed() for _ in self._parties[1:]]
        size = packed_size(math.prod(shape), BITS)
        for stream, seed in zip(self._parties, [*seeds, b""], strict=True):
            header = wire.ShareHeader(name=name, step=step, shape=shape, bits=BITS, seed=seed, size=0 if seed else size)
            self._send(stream, wire.ClientMessage(share=header))
        for chunk in corrections(rows, seeds):
            message = wire.ClientMessage(chunk=wire.Chunk(payload=chunk))
            self._count_sent(message)
            self._parties[-1].send_bulk(message)

    # ---- shares in ---------------------------------------------------------------------------------------------------
    def _next(self) -> None:
        self.check()
        stream, message = self._inbox.get()
        self.check()
        state = self._incoming[stream]
        if message is None:
            if state.costs is None:
                raise PeerLost(stream.peer, self.step, "left the session early")
            return
        kind = message.WhichOneof("content")
        self.own.bytes_received += message.ByteSize()
        if kind == "progress":
            self._tell_spent(stream.peer, _cost_of(message.progress.spent))
            if stream is self._parties[0] or message.progress.stage.startswith("waiting for "):
                self.step = message.progress.stage
                self._on_progress(message.progress.stage, message.progress.done, message.progress.total)
        elif kind == "output" and not state.arriving:
            self._check_due(stream, state, message.output)
            state.begin(message.output, self._shape_due(state.step))
        elif kind == "chunk" and state.arriving:
            if (output := state.chunk(message.chunk.payload)) is not None:
                self._add(stream, *output)
        elif kind == "chunk" and state.in_ledger:
            state.ledger_chunk(message.chunk.payload)
            if state.costs is not None:
                self.costs[stream.peer] = state.costs
                self._tell_spent(stream.peer, Cost(**state.costs["total"]))
        elif kind == "summary" and self._outputs_over(state):
            state.summary(message.summary.ledger_size)
        else:
            raise WireError(
                f"{stream.peer} sent '{kind}' where {'more of an output' if state.arriving else 'an output'} was due"
            )

    def _tell_spent(self, peer: str, cost: Cost) -> None:
        """Pass on what the session has cost a party so far, and this client."""
        self.on_spent(peer, cost)
        self.on_spent(self.config.name, replace(self.own))

    def _add(self, stream: PeerStream, header: wire.OutputHeader, share: Tensor) -> None:
        """Keep one party's share of an output; open it once all are here."""
        shares = self._opened.setdefault(header.step, {})
        shares[stream] = (header, share)
        if len(shares) == len(self._parties):
            self._open(header.step, shares)

    def _open(self, step: int, shares: dict[PeerStream, tuple[wire.OutputHeader, Tensor]]) -> None:
        """Add up the shares of one output, and go on as the class says."""
        del self._opened[step]
        headers = [(stream.peer, shares[stream][0]) for stream in self._parties]
        if len({(header.bits, header.fraction_bits) for _, header in headers}) != 1:
            each = ", ".join(f"{peer} Z_2^{header.bits} with {header.fraction_bits}" for peer, header in headers)
            raise WireError(f"the parties sent output {step} in different rings or fraction bits: {each}")
        if len({len(header.flags) for _, header in headers}) != 1:
            each = ", ".join(f"{peer} {len(header.flags)} bytes" for peer, header in headers)
            raise WireError(f"the parties sent output {step} with and without range flags: {each}")
        if len({len(header.dropped) for _, header in headers}) != 1:
            each = ", ".join(f"{peer} {len(header.dropped)} bytes" for peer, header in headers)
            raise WireError(f"the parties sent output {step} with and without a count of dropped choices: {each}")
        if self._ignores():
            return
        if headers[0][1].dropped:
            self._count_dropped([header.dropped for _, header in headers])
        bits, fraction_bits = headers[0][1].bits, headers[0][1].fraction_bits
        total = torch.stack([share for _, share in shares.values()]).sum(0)
        self._take(step, decode(reduce(total, bits), fraction_bits, bits), [header.flags for _, header in headers])

    def _left_range(self, step: int, flags: Sequence[bytes]) -> tuple[RangeFinding, ...]:
        """Return what left its range on the way to an output, from all parties' shares of its flags."""
        if not flags[0]:
            return ()
        opened = open_flags([unpack(share, BITS, self._flags_shape) for share in flags])
        return findings_in(opened, step, self._bounds)


def _cost_of(spent: wire.Spent) -> Cost:
    """Return what a party says that it has spent."""
    sent, received = spent.bytes_sent, spent.bytes_received
    return Cost(bytes_sent=sent, bytes_received=received, rounds=spent.rounds, offline_bytes=spent.offline_bytes)
