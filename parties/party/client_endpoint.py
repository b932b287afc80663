"""The client's side of a session at a compute party: shares of the prompt and of its choices in, output shares out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from mpc.allocator import give_back
from mpc.errors import WireError
from mpc.ledger import Ledger
from mpc.packing import pack
from mpc.ring import reduce
from parties.config.role_config import RoleConfig
from parties.party.kept_rows import KeptRows
from parties.server.metrics import Metrics
from parties.server.sessions import ServedSession
from parties.transport.peer_stream import INBOX_LIMIT, PeerStream
from parties.transport.queues import Message
from parties.wire import wire_pb2 as wire
from parties.wire.draft import kept, kept_rows
from parties.wire.shares import BITS, CHUNK_BYTES, COUNT_BITS, LEDGER_BYTES, collect, expand
from protocols.suite import OutputShare

PROGRESS_SECONDS = 0.05
SPENT_SECONDS = 0.2


class ClientEndpoint:
    """One session's client, as the party's program sees it: the `Endpoint` of the generation program.

    stream: the client's. ledger: the session's. emitted: outputs so far; tokens: of them, as far as is known here.
    kept_rows: of drafted steps.
    tell_dealer(request): passes on what the dealer must know to go on, once there is one. away(): what is held while the
    client is waited for, so that sessions in step with this one go on. between(): called before each token but the first.
    """

    def __init__(
        self, session: ServedSession, stream: PeerStream, config: RoleConfig, metrics: Metrics, ledger: Ledger
    ) -> None:
        self.stream = stream
        self.emitted = self.tokens = 0
        self.ledger = ledger
        self.session = session
        self.kept_rows = KeptRows(session.check)
        self.tell_dealer: Callable[[wire.TapeRequest], None] = lambda request: None
        self.away: Callable[[], AbstractContextManager[None]] = nullcontext
        self.between: Callable[[], None] = lambda: None
        self._manifest = session.manifest
        self._last = config.index == len(session.manifest.parties) - 1
        self._device = config.device
        suite = session.manifest.suite
        self._first_seconds = metrics.get("mpcache_first_token_seconds", suite=suite)
        self._token_seconds = metrics.get("mpcache_token_seconds", suite=suite)
        self._tokens = metrics.get("mpcache_tokens_total", client=stream.peer)
        self._progress = wire.Progress()
        self._progress_at = 0.0
        self._emitted_at = 0.0

    def begin(self) -> None:
        """Time the outputs, and read all that the client sends, from here on: the session has its place."""
        self._emitted_at = time.perf_counter()
        self.stream.make_room(INBOX_LIMIT)  # so far next to nothing of what it sends was read

    # ---- shares in -------------------------------------------------------------------------------------------------
    def prompt(self) -> Tensor:
        """Wait for the prompt; return this party's share of it, int64 `prompt_shape` of the plan in Z_2^64. Secret."""
        self.session.step = "receiving the prompt's shares"
        return self._take("prompt", 0, self._manifest.plan.prompt_shape)

    def next_tokens(self, step: int, count: int) -> Tensor:
        """Wait for the client's choice, or its draft's rows; return this party's share of their indices, int64 [count] in
        Z_2^64. Secret."""
        name = "draft" if self._manifest.draft else "token"
        self.session.step = f"waiting for the client's {name} after output {step}"
        with self.away():
            found = self._take(name, step, (count,))
        self.between()
        return found

    def kept(self, step: int, rows: int) -> int:
        """Wait for how many of the drafted rows of output `step` stay, and let the dealer know. Public."""
        self.session.step = f"waiting for the client's rows of output {step}"
        with self.away():
            count = kept_rows(self.stream.receive(), step, rows, self.stream.peer)
        self.kept_rows.put(step, count)
        self._count(count - 1)
        self.tell_dealer(wire.TapeRequest(kept=kept(step, count)))
        return count

    def _take(self, name: str, step: int, shape: tuple[int, ...]) -> Tensor:
        """Return this party's int64 share of what the client sends next, which must be `name` of `step` and `shape`."""
        stream, sender = self.stream, self.stream.peer
        message = stream.receive()
        if message.WhichOneof("content") != "share":
            raise WireError(f"{sender} sent '{message.WhichOneof('content')}' where the share '{name}' was expected")
        header = message.share
        found = (header.name, header.step, tuple(header.shape), header.bits)
        if found != (name, step, shape, BITS):
            raise WireError(
                f"{sender} sent share '{header.name[:32]}' of step {header.step}, shape {list(header.shape)[:8]} in "
                f"Z_2^{header.bits}, expected '{name}' of step {step}, shape {list(shape)} in Z_2^{BITS}"
            )
        if not self._last:
            return expand(header.seed, shape, sender).to(self._device)
        return collect(f"share '{name}'", shape, BITS, header.size, sender, stream.receive).to(self._device)

    # ---- shares out ------------------------------------------------------------------------------------------------
    def emit(self, step: int, share: OutputShare) -> bool:
        """Send this party's share of an output to the client, with its share of the range flags, and of the choices that
        were dropped."""
        self.session.check()
        decoding = self._manifest.decoding
        asks = decoding == "logits" or self._manifest.draft > 0
        if not asks and (kind := self.stream.unasked()):
            raise WireError(
                f"{self.stream.peer} sent '{kind}' after its prompt, where decoding '{decoding}' asks for nothing"
            )
        data = pack(reduce(share.share, share.bits), share.bits)
        header = wire.OutputHeader(
            step=step,
            shape=list(share.share.shape),
            bits=share.bits,
            fraction_bits=share.fraction_bits,
            size=len(data),
            flags=b"" if share.flags is None else pack(share.flags, BITS),
            dropped=b"" if share.dropped is None else pack(reduce(share.dropped.share, COUNT_BITS), COUNT_BITS),
        )
        self.stream.send(wire.PartyMessage(output=header))
        for message in _chunks(data):
            with self.away() if self.stream.is_full() else nullcontext():
                self.stream.send_bulk(message)
        self.emitted = step + 1
        now = time.perf_counter()
        (self._token_seconds if step else self._first_seconds).observe(now - self._emitted_at)
        self._count(1)
        self._emitted_at = now
        if step == 0:
            self.session.trace.stage("decode")
            give_back()  # a prompt works on more than a token
        if not asks and self.emitted < self._manifest.new_tokens:
            self.between()
        return True

    def _count(self, tokens: int) -> None:
        self.tokens += tokens
        self._tokens.inc(tokens)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Tell the client how far the session is, and what it has cost so far."""
        self.session.step = f"{stage} {done} of {total}" if total else stage
        self._progress = wire.Progress(stage=stage, done=done, total=total)
        if time.monotonic() - self._progress_at >= PROGRESS_SECONDS or done == total:
            self._tell_progress()

    def on_round(self) -> None:
        """Tell the client what the session has cost, now and then: a stage may have many rounds."""
        if self._progress.stage and time.monotonic() - self._progress_at >= SPENT_SECONDS:
            self._tell_progress()

    def _tell_progress(self) -> None:
        self._progress_at = time.monotonic()
        cost, told = self.ledger.total(), wire.Progress()
        told.CopyFrom(self._progress)
        told.spent.rounds, told.spent.offline_bytes = cost.rounds, cost.offline_bytes
        told.spent.bytes_sent, told.spent.bytes_received = cost.bytes_sent, cost.bytes_received
        self.stream.send(wire.PartyMessage(progress=told))

    def summarise(self, seconds: float, shared_rounds: int) -> None:
        """Tell the client what the session cost; only totals per operation where the stages would be too many.
        shared_rounds: of its rounds, those with other sessions' exchanges in the same messages."""
        costs = {**self.ledger.to_json(), "shared_rounds": shared_rounds}
        data = json.dumps(costs).encode()
        if len(data) > LEDGER_BYTES:
            data = json.dumps({**costs, "stages": {}, "seconds": {}}).encode()
        summary = wire.Summary(steps=self.emitted, seconds=seconds, ledger_size=len(data))
        self.stream.send(wire.PartyMessage(summary=summary))
        for message in _chunks(data):  # without waiting for room: that would raise how a finished session ended
            self.stream.send(message)


def _chunks(data: bytes) -> Iterator[Message]:
    for start in range(0, len(data), CHUNK_BYTES):
        yield wire.PartyMessage(chunk=wire.Chunk(payload=data[start : start + CHUNK_BYTES]))
