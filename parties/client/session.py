"""One session at the client: shares of its prompt out, output shares of all parties in, opened here and nowhere else."""

from __future__ import annotations

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
from models.generation import capped
from mpc.errors import ConfigurationError, MpcacheError, PeerError, PeerLost, PeerSilent, WireError
from mpc.fixed_point import decode
from mpc.packing import packed_size, unpack
from mpc.random import new_seed
from mpc.ring import reduce
from parties.client.drafting import Draft
from parties.client.outputs import Incoming
from parties.client.sampling import choose
from parties.client.sampling_params import SamplingParams
from parties.client.steps import Steps
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
from parties.wire.draft import kept
from parties.wire.error_codec import farewell, public, to_failure
from parties.wire.manifest import Manifest
from parties.wire.shares import BITS, COUNT_BITS, corrections
from protocols.range_findings import RangeFinding, findings_in, open_flags
from protocols.suite import RANGE_KINDS

BEAT = wire.ClientMessage(heartbeat=wire.Heartbeat())
GRACE_SECONDS = 1.0

FinishReason = Literal["stop", "length", "range"]


@dataclass(frozen=True)
class AgreedRequest:
    """A request with the manifest that all parties get for it. The prompt's token ids are secret. draft: how this client
    guesses, where the manifest has a draft."""

    manifest: Manifest
    architecture: Architecture
    prompt_ids: list[int] = field(repr=False)
    params: SamplingParams
    draft: Draft | None = None


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

    With a draft an output has a choice for each row of its step, and parties are told how many rows stay: as many as choices
    are tokens of the answer. An output on whose way a value left its range ends the answer before all of its tokens.
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
        self.dropped_choices: int | None = None
        self._answered = False  # the answer is complete: outputs that still come are not looked at
        self._over = False  # and the parties have been told to finish
        self._problem: MpcacheError | None = None  # with the answer, to be raised when the session is over
        self._bounds = request.manifest.spec.settings.bounds
        self._on_token = on_token
        self._on_progress = on_progress
        self._logits: list[Tensor] = []
        self._inbox: Inbox[PeerStream] = Inbox()
        self._parties: list[PeerStream] = []
        self._incoming: dict[PeerStream, Incoming] = {}
        self._steps = Steps(request.prompt_ids, request.manifest.new_tokens, request.draft)
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
            self._incoming[stream] = Incoming(peer.name, self._flags_shape)
            opening = wire.Open(session=self.id, manifest=self.request.manifest.canonical())
            stream.dial(way, channel, wire.ClientMessage(open=opening))
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
    def _upload(self) -> None:
        try:
            prompt = self.request.prompt_ids
            self._share("prompt", 0, (len(prompt),), iter([torch.tensor(prompt)]))
        except Exception as error:
            self.fail(public(error, self.role))

    def _go_on(self, step: int, stay: int, token: int) -> None:
        """Send what the parties need for the output after `step`: with a draft how many of its rows stay and the rows of the
        next step, in decoding "logits" the token. Nothing but the former where no more output is to come."""
        rows = len(self._steps.rows)
        if self.request.draft is not None and rows > 1:
            for stream in self._parties:
                stream.send(wire.ClientMessage(kept=kept(step, stay)))
        if not self._steps.left:
            return
        if self.request.draft is not None:
            draft = self._steps.draft()
            self._share("draft", step, (len(draft),), iter([torch.tensor(draft)]))
        elif self.request.manifest.decoding == "logits":
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
            if state.costs is None:
                raise PeerLost(stream.peer, self.step, "left the session early")
            return
        kind = message.WhichOneof("content")
        if kind == "progress":
            if stream is self._parties[0] or message.progress.stage.startswith("waiting for "):
                self.step = message.progress.stage
                self._on_progress(message.progress.stage, message.progress.done, message.progress.total)
        elif kind == "output" and not state.arriving:
            self._check_due(stream, state, message.output)
            state.begin(message.output, self._shape_due())
        elif kind == "chunk" and state.arriving:
            if (output := state.chunk(message.chunk.payload)) is not None:
                self._add(stream, *output)
        elif kind == "chunk" and state.in_ledger:
            state.ledger_chunk(message.chunk.payload)
            if state.costs is not None:
                self.costs[stream.peer] = state.costs
        elif kind == "summary" and (self._over or state.step == self._steps.outputs):
            state.summary(message.summary.ledger_size)
        else:
            raise WireError(
                f"{stream.peer} sent '{kind}' where {'more of an output' if state.arriving else 'an output'} was due"
            )

    def _check_due(self, stream: PeerStream, state: Incoming, header: wire.OutputHeader) -> None:
        if state.step >= self.request.manifest.new_tokens:
            raise WireError(f"{stream.peer} sent output {header.step}, {self.request.manifest.new_tokens} were asked for")
        if self.request.draft is not None and state.step > self._steps.taken:
            raise WireError(f"{stream.peer} sent output {header.step} before it had the draft's rows for it")

    def _shape_due(self) -> tuple[int, ...]:
        """Return the shape of the output that is due: a choice for each row, or logits."""
        if self.request.manifest.decoding == "logits":
            return 1, self.request.architecture.vocabulary
        return (len(self._steps.rows),)

    @property
    def _flags_shape(self) -> tuple[int, int]:
        """Kinds and places (layers and head) of an output's range flags."""
        return len(RANGE_KINDS), self.request.architecture.layers + 1

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
        if self._over:
            return
        if headers[0][1].dropped:
            self.dropped_choices = _count([header.dropped for _, header in headers])
        bits, fraction_bits = headers[0][1].bits, headers[0][1].fraction_bits
        total = torch.stack([share for _, share in shares.values()]).sum(0)
        value = decode(reduce(total, bits), fraction_bits, bits)
        if self.request.manifest.decoding == "logits":
            value = capped(self.request.architecture, value)
        if self._answered:
            self._choose_idly(value)
        elif findings := self._left_range(self._steps.produced, [header.flags for _, header in headers]):
            self.findings = findings
            self.seconds = time.perf_counter() - self._began
            self._end(step, "range")
        if self._over:
            return
        choices = [None] if self._answered and value.dim() == 2 else self._choices(value)
        first = self._steps.produced
        stay = self._steps.take(choices)
        early = self._answered or self.request.params.fixed_length  # when it is sent depends on nothing that the caller does
        if early:
            self._go_on(step, stay, choices[0] or 0)
        self._answer(step, first, choices[:stay])
        if not early and not self._over:
            self._go_on(step, stay, choices[stay - 1] or 0)

    def _answer(self, step: int, first: int, choices: Sequence[int | None]) -> None:
        """Give the caller the tokens of output `step`, up to what ends the answer. first: the number of the first one."""
        for number, token in enumerate(choices, first):
            if self._answered:
                return
            if token is None:
                self._problem = self._problem or WrongOutput(number, self.request.manifest.parties, self.tokens)
            elif self._problem is None:
                self._accept(step, token)
            elif token in self.stop_ids:
                self._end(step, "stop")

    def _choices(self, value: Tensor) -> list[int | None]:
        """Return the tokens of an opened output [n], None for what is none; of logits [1, V] the chosen one."""
        if self.request.manifest.decoding == "logits":
            try:
                token = self._choose(value[0])
            except ConfigurationError as error:
                if not self.request.params.fixed_length:
                    raise
                self._problem, self._answered = error, True
                return [None]
            self._logits.append(value[0])
            return [token]
        found = [round(float(x)) for x in value]
        vocabulary = self.request.architecture.vocabulary
        whole = [0 <= token < vocabulary and float(x) == token for token, x in zip(found, value, strict=True)]
        return [token if fits else None for token, fits in zip(found, whole, strict=True)]

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

    def _end(self, step: int, reason: FinishReason) -> None:
        """End the answer with this output. Whatever the reason, the parties are told the same, if they would go on and the
        length is not fixed."""
        self.finish_reason = reason
        self._answered = True
        if self.request.params.fixed_length:
            return
        self._over = True
        if step + 1 != self._steps.outputs or len(self._steps.rows) > 1:  # else nothing is waited for
            for stream in self._parties:
                stream.send(wire.ClientMessage(finish=wire.Finish()))


def _count(shares: Sequence[bytes]) -> int:
    """Return a number from all parties' shares of it."""
    total = torch.stack([unpack(share, COUNT_BITS, (1,)) for share in shares]).sum(0)
    return int(reduce(total, COUNT_BITS))
