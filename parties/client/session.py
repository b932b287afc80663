"""One session at the client: shares of its prompt out, output shares of all parties in, opened here and nowhere else."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import grpc
import torch
from torch import Tensor

import parties.wire.wire_pb2_grpc as services
from models.architecture import Architecture
from mpc.errors import ConfigurationError, MpcacheError, PeerError, PeerLost, PeerSilent, WireError
from mpc.fixed_point import decode
from mpc.packing import packed_size, unpack
from mpc.random import new_seed
from mpc.ring import reduce
from parties.client.sampling import choose
from parties.client.sampling_params import SamplingParams
from parties.config.role_config import RoleConfig
from parties.errors import WrongOutput
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
from parties.wire.shares import BITS, LEDGER_BYTES, corrections
from protocols.range_findings import RangeFinding, findings_in, open_flags
from protocols.suite import RANGE_KINDS

BEAT = wire.ClientMessage(heartbeat=wire.Heartbeat())
GRACE_SECONDS = 1.0

FinishReason = Literal["stop", "length", "range"]


@dataclass(frozen=True)
class AgreedRequest:
    """A request with the manifest that all parties get for it. The prompt's token ids are secret."""

    manifest: Manifest
    architecture: Architecture
    prompt_ids: list[int] = field(repr=False)
    params: SamplingParams


@dataclass
class _Incoming:
    """One party's output that is arriving."""

    header: wire.OutputHeader | None = None
    data: bytearray = field(default_factory=bytearray)
    step: int = 0
    ledger_size: int = 0  # announced, once the outputs are over
    summary: bool = False


class ClientSession(Session):
    """Runs one generation against connected channels; then `tokens`, `costs`, why it ended and the times are there.

    An output on whose way a value left its range is not used: generation ends before its token, with what left its range in
    `findings`. The parties are told to finish as after a stop token, by the same message at the same moment: they cannot
    tell the two apart.

    A client that stops early tells the parties the answer's length, and a party that shifts its output shares whether that
    changed it. With `fixed_length` nothing that is sent depends on what is opened: whatever ends the answer (a stop token,
    the caller, a value beyond its range, an `adjust` that leaves no choice) ends it here alone, and the session goes on to
    its full number of tokens with the same messages.

    Shares that do not add up to a token end nothing here: the session goes on as after any token that is no stop token, to
    the next stop token or value beyond its range (with `fixed_length` to its full number), and `run` then raises
    `WrongOutput`. The caller sees no token after it, so that whatever else would have ended the answer no longer does.
    """

    def __init__(
        self,
        id: str,
        config: RoleConfig,
        request: AgreedRequest,
        on_token: Callable[[int], bool | None],
        on_progress: Callable[[str, int, int], None],
    ) -> None:
        super().__init__(id, config.name)
        self.config = config
        self.request = request
        self.stop_ids = request.params.ends(request.architecture.eos)
        self.tokens: list[int] = []
        self.costs: dict[str, dict[str, Any]] = {}
        self.seconds = 0.0
        self.token_seconds: list[float] = []
        self.finish_reason: FinishReason = "length"
        self.findings: tuple[RangeFinding, ...] = ()
        self._answered = False  # the answer is complete: outputs that still come are not looked at
        self._over = False  # and the parties have been told to finish
        self._problem: MpcacheError | None = None  # with the answer, to be raised when the session is over
        self._bounds = request.manifest.spec.settings.bounds
        self._on_token = on_token
        self._on_progress = on_progress
        self._logits: list[Tensor] = []
        self._inbox: Inbox[PeerStream] = Inbox()
        self._parties: list[PeerStream] = []
        self._incoming: dict[PeerStream, _Incoming] = {}
        self._opened: dict[int, dict[PeerStream, tuple[wire.OutputHeader, Tensor]]] = {}
        self._began = 0.0

    def all_logits(self) -> Tensor | None:
        """Return logits of all steps with a token, float64 [tokens, V]; None unless decoding was "logits"."""
        if self.request.manifest.decoding != "logits":
            return None
        none = torch.empty(0, self.request.architecture.vocabulary, dtype=torch.float64)
        return torch.stack(self._logits) if self._logits else none

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
            self._incoming[stream] = _Incoming()
            opening = wire.Open(session=self.id, manifest=self.request.manifest.canonical())
            stream.dial(way, channel, wire.ClientMessage(open=opening))
            heartbeats.add(stream)
        self.step = "sending the prompt's shares"
        threading.Thread(target=self._upload, name="upload", daemon=True).start()
        try:
            while not all(state.summary for state in self._incoming.values()):
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
    def _upload(self) -> None:
        try:
            prompt = self.request.prompt_ids
            self._share("prompt", 0, (len(prompt),), iter([torch.tensor(prompt)]))
        except Exception as error:
            self.fail(public(error, self.role))

    def _share_choice(self, step: int, token: int) -> None:
        """Share, in decoding "logits", the token that follows output `step`, if one more output is to come."""
        if self.request.manifest.decoding == "logits" and step + 1 < self.request.manifest.new_tokens:
            self._share("token", step, (1,), iter([torch.tensor([token])]))

    def _share(self, name: str, step: int, shape: tuple[int, ...], rows: Iterator[Tensor]) -> None:
        """Share a tensor: fresh seeds for all parties but the last, the rest in chunks for the last."""
        seeds = [new_seed() for _ in self._parties[1:]]
        size = packed_size(math.prod(shape), BITS)
        for stream, seed in zip(self._parties, [*seeds, b""], strict=True):
            header = wire.ShareHeader(name=name, step=step, shape=shape, bits=BITS, seed=seed, size=0 if seed else size)
            stream.send(wire.ClientMessage(share=header))
        for chunk in corrections(rows, seeds):
            self._parties[-1].send_bulk(wire.ClientMessage(chunk=wire.Chunk(payload=chunk)))

    # ---- shares in ---------------------------------------------------------------------------------------------------
    def _next(self) -> None:
        self.check()
        stream, message = self._inbox.get()
        self.check()
        state = self._incoming[stream]
        if message is None:
            if not state.summary:
                raise PeerLost(stream.peer, self.step, "left the session early")
            return
        kind = message.WhichOneof("content")
        if kind == "progress":
            if stream is self._parties[0] or message.progress.stage.startswith("waiting for "):
                self.step = message.progress.stage
                self._on_progress(message.progress.stage, message.progress.done, message.progress.total)
        elif kind == "output" and state.header is None:
            self._check_header(stream, state, message.output)
            state.header = message.output
        elif kind == "chunk" and state.header is not None:
            self._chunk(stream, state, state.header, message.chunk.payload)
        elif kind == "chunk" and state.ledger_size:
            self._ledger_chunk(stream, state, message.chunk.payload)
        elif kind == "summary" and (self._over or state.step == self.request.manifest.new_tokens):
            state.header, state.data, state.ledger_size = None, bytearray(), message.summary.ledger_size
            if not 0 < state.ledger_size <= LEDGER_BYTES:
                raise WireError(
                    f"{stream.peer} announced a ledger of {state.ledger_size} bytes, 1 to {LEDGER_BYTES} are due"
                )
        else:
            raise WireError(
                f"{stream.peer} sent '{kind}' where {'more of an output' if state.header else 'an output'} was due"
            )

    def _check_header(self, stream: PeerStream, state: _Incoming, header: wire.OutputHeader) -> None:
        logits = self.request.manifest.decoding == "logits"
        shape = (1, self.request.architecture.vocabulary) if logits else (1,)
        if header.step != state.step or tuple(header.shape) != shape:
            raise WireError(
                f"{stream.peer} sent an output of step {header.step} and shape {list(header.shape)[:8]}, expected step "
                f"{state.step} and shape {list(shape)}"
            )
        if state.step >= self.request.manifest.new_tokens:
            raise WireError(f"{stream.peer} sent output {header.step}, {self.request.manifest.new_tokens} were asked for")
        size = packed_size(shape[-1], header.bits) if 1 <= header.bits <= BITS else -1
        if header.size != size or header.fraction_bits >= header.bits:
            raise WireError(
                f"{stream.peer} announced an output of {header.size} bytes in Z_2^{header.bits} with {header.fraction_bits} "
                f"fraction bits, which does not fit shape {list(shape)}"
            )
        words = list(self._flags_shape)
        if len(header.flags) not in (0, packed_size(words[0] * words[1], BITS)):
            raise WireError(
                f"{stream.peer} sent {len(header.flags)} bytes of range flags with output {header.step}, which are none or "
                f"words of {BITS} bits of shape {words}"
            )

    @property
    def _flags_shape(self) -> tuple[int, int]:
        """Kinds and places (layers and head) of an output's range flags."""
        return len(RANGE_KINDS), self.request.architecture.layers + 1

    def _chunk(self, stream: PeerStream, state: _Incoming, header: wire.OutputHeader, payload: bytes) -> None:
        if not payload or len(state.data) + len(payload) > header.size:
            rest = header.size - len(state.data)
            raise WireError(f"{stream.peer} sent {len(payload)} bytes of an output where 1 to {rest} were expected")
        state.data += payload
        if len(state.data) < header.size:
            return
        share = unpack(memoryview(state.data), header.bits, tuple(header.shape))
        shares = self._opened.setdefault(state.step, {})
        shares[stream] = (header, share)
        state.header, state.data, state.step = None, bytearray(), state.step + 1
        if len(shares) == len(self._parties):
            self._open(header.step, shares)

    def _ledger_chunk(self, stream: PeerStream, state: _Incoming, payload: bytes) -> None:
        rest = state.ledger_size - len(state.data)
        if not 0 < len(payload) <= rest:
            raise WireError(f"{stream.peer} sent {len(payload)} bytes of its ledger where 1 to {rest} were expected")
        state.data += payload
        if len(state.data) == state.ledger_size:
            self.costs[stream.peer] = _ledger(state.data, stream.peer)
            state.summary = True

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
        if self._over:
            return
        bits, fraction_bits = headers[0][1].bits, headers[0][1].fraction_bits
        total = torch.stack([share for _, share in shares.values()]).sum(0)
        value = decode(reduce(total, bits), fraction_bits, bits)
        if self._answered:
            self._choose_idly(value)
        token = None if self._answered else self._token(step, value, [header.flags for _, header in headers])
        if self._over:
            return
        if self._answered or self.request.params.fixed_length:  # when it is sent depends on nothing that the caller does
            self._share_choice(step, token or 0)
        if token is not None and self._problem is None:
            self._accept(step, token)
        elif token in self.stop_ids:
            self._end(step, "stop")

    def _token(self, step: int, value: Tensor, flags: Sequence[bytes]) -> int | None:
        """Return the token of an opened output [1] (or of logits [1, V]); None where the answer ends before it."""
        if findings := self._left_range(step, flags):
            self.findings = findings
            self.seconds = time.perf_counter() - self._began
            self._end(step, "range")
            return None
        if self.request.manifest.decoding == "logits":
            try:
                token = self._choose(value[0])
            except ConfigurationError as error:
                if not self.request.params.fixed_length:
                    raise
                self._problem, self._answered = error, True
                return None
            self._logits.append(value[0])
            return token
        token = round(float(value[0]))
        if not 0 <= token < self.request.architecture.vocabulary or float(value[0]) != token:
            self._problem = self._problem or WrongOutput(step, self.request.manifest.parties, self.tokens)
            return None
        return token

    def _left_range(self, step: int, flags: Sequence[bytes]) -> tuple[RangeFinding, ...]:
        """Return what left its range on the way to an output, from all parties' shares of its flags."""
        if not flags[0]:
            return ()
        opened = open_flags([unpack(share, BITS, self._flags_shape) for share in flags])
        return findings_in(opened, step, self._bounds)

    def _choose_idly(self, value: Tensor) -> None:
        """Work, after the answer, as much as a choice takes, so that what is sent next comes no sooner."""
        if self.request.manifest.decoding == "logits":
            with suppress(Exception):
                self._choose(value[0])

    def _choose(self, logits: Tensor) -> int:
        """Choose a token from opened logits [V]. Raises `ConfigurationError` when `adjust` leaves no choice."""
        params = self.request.params
        tokens = [*self.request.prompt_ids, *self.tokens]
        adjusted = logits if params.adjust is None else params.adjust(logits, tokens)
        if not math.isfinite(float(adjusted.max())):
            raise ConfigurationError(
                f"adjust (or a logits processor) returned logits for token {len(self.tokens) + 1} whose largest is "
                f"{float(adjusted.max())}: it must leave at least one token to choose, and give no NaN"
            )
        return choose(adjusted, params.temperature, params.top_k, params.top_p)

    def _accept(self, step: int, token: int) -> None:
        self.seconds = time.perf_counter() - self._began
        self.tokens.append(token)
        self.token_seconds.append(self.seconds)
        self.step = f"token {step + 1}"
        more = self._on_token(token)
        if more is False or token in self.stop_ids:
            self._end(step, "stop")
        elif not self.request.params.fixed_length:
            self._share_choice(step, token)

    def _end(self, step: int, reason: FinishReason) -> None:
        """End the answer with this output. Whatever the reason, the parties are told the same, if they would go on and the
        length is not fixed."""
        self.finish_reason = reason
        self._answered = True
        if self.request.params.fixed_length:
            return
        self._over = True
        if step + 1 < self.request.manifest.new_tokens:
            for stream in self._parties:
                stream.send(wire.ClientMessage(finish=wire.Finish()))


def _ledger(text: bytearray, sender: str) -> dict[str, Any]:
    try:
        ledger = json.loads(text)
    except ValueError:
        raise WireError(f"{sender} sent a ledger that is not JSON") from None
    if not isinstance(ledger, dict) or "total" not in ledger:
        raise WireError(f"{sender} sent a ledger without totals")
    return ledger
