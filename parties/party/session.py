"""One session at a compute party: peers and dealer connected, weights loaded, prompt shares in, output shares out."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import torch
from torch import Tensor

from models.architecture import Architecture
from mpc.errors import ConfigurationError, MpcacheError, PeerLost, WireError
from mpc.ledger import Ledger
from mpc.packing import pack
from mpc.ring import reduce
from mpc.tape import PartyTape
from parties.errors import SessionFinished
from parties.identity.trust import Peer, dealer_of, parties_of
from parties.party.greeting import Greetings
from parties.party.preprocessing import Preprocessing, wanted
from parties.party.store import ModelStore, StoredModel
from parties.program import SessionProgram
from parties.server.admission import Ticket
from parties.server.server import RoleServer
from parties.server.sessions import ServedSession
from parties.tapes.agreement import Dealt, Source, TapeAgreement, TapeNeed
from parties.tapes.store import TapeStore
from parties.tapes.stream import tape_reader
from parties.transport.channel import GrpcChannel
from parties.transport.connection import connect, route
from parties.transport.peer_stream import INBOX_LIMIT, Message, PeerStream, finish_calls, settle
from parties.wire import wire_pb2 as wire
from parties.wire import wire_pb2_grpc as services
from parties.wire.error_codec import public, to_failure
from parties.wire.manifest import Manifest, check_id
from parties.wire.shares import BITS, LEDGER_BYTES, chunked, collect, expand
from protocols.suite import OutputShare, Suite

PEER_BEAT = wire.PeerMessage(heartbeat=wire.Heartbeat())
TAPE_BEAT = wire.TapeRequest(heartbeat=wire.Heartbeat())
PROGRESS_SECONDS = 0.05


@dataclass(frozen=True)
class Stores:
    """What a party keeps on disk: its shares of models, and tapes where it takes them from a folder."""

    models: ModelStore
    tapes: TapeStore | None


@dataclass(frozen=True)
class Admitted:
    """A session that may be. session: its id; facts: of the model's shares; ticket: its place at this server."""

    session: str
    manifest: Manifest
    facts: StoredModel
    ticket: Ticket


class PartySession(ServedSession):
    """A session of one client. It is the `Endpoint` of the generation program as well."""

    def __init__(self, server: RoleServer[PartySession], stores: Stores, admitted: Admitted) -> None:
        id, manifest, facts, ticket = admitted.session, admitted.manifest, admitted.facts, admitted.ticket
        super().__init__(id, server.name)
        self.server = server
        self._store = stores.models
        self.ticket = ticket
        self.trace = server.traces.session(
            id, suite=manifest.suite, prompt_tokens=manifest.prompt_tokens, new_tokens=manifest.new_tokens
        )
        self.manifest = manifest
        self.facts = facts
        self._lease = server.weight_cache.lease(manifest.load_key(facts.nonce), ticket.client, self)
        config = server.config
        self._program = SessionProgram.of(
            server.program, manifest, Architecture.from_json(facts.architecture), config.device
        )
        self._patience = config.tape_wait_seconds if config.when_tape_is_out == "wait" else 0.0
        self.tapes: TapeAgreement | None = None
        if stores.tapes is not None:
            need = TapeNeed(manifest, facts.nonce, self._lease)
            self.tapes = TapeAgreement(stores.tapes, self, need, self.progress, self._patience)
        hello = wire.Hello(
            session=id, name=server.name, manifest=manifest.canonical(), client=ticket.client, storing=facts.nonce
        )
        self._greetings = Greetings(hello, manifest, self.tapes)
        self.client: PeerStream
        self.ledger = Ledger()
        self.emitted = 0
        self._peers: dict[int, PeerStream] = {}
        self._tape: PeerStream | None = None
        self._channels: list[grpc.Channel] = []
        self._attached = threading.Condition()
        self._placed = False  # this session has its place here and, at all parties that it dials, there
        self._progress_at = 0.0
        self._channel: GrpcChannel | None = None
        self._emitted_at = 0.0
        self._preprocessing: Preprocessing | None = None

    # ---- life ------------------------------------------------------------------------------------------------------
    def start(self, client: PeerStream) -> None:
        """Begin, with the client's stream."""
        self.client = client
        client.move(self)
        threading.Thread(target=self._main, name=f"session {self.id[:8]}", daemon=True).start()

    def _main(self) -> None:
        began = time.perf_counter()
        try:
            with torch.no_grad():
                self._compute()
        except SessionFinished:
            pass
        except Exception as error:
            self.fail(public(error, self.role))
        if self._preprocessing is not None:
            self._preprocessing.stop()
        try:
            if self.error is None or self.finished:
                self.server.admission.leave(self.ticket)  # a client that knows of the end may ask again at once
                self._summarise(time.perf_counter() - began)
            self._farewell()
            if self.error is None or self.finished:
                settle(self.links)
            self.end()
            finish_calls([link for link in self.links if link is not self.client])
            for channel in self._channels:
                channel.close()
        finally:
            if self._preprocessing is not None:
                self._preprocessing.join()
            if self.tapes is not None:
                self.tapes.release()
            for link in self.links:
                self.server.heartbeats.remove(link)
            self.server.release(self)
        self._report(began)

    def _report(self, began: float) -> None:
        """Log and count what the session was. All of it is public to the parties."""
        total, get, client = self.ledger.total(), self.server.metrics.get, self.client.peer
        get("mpcache_prompt_tokens_total", client=client).inc(self.manifest.prompt_tokens)
        get("mpcache_rounds_total").inc(total.rounds)
        if self._channel is not None:
            for peer, count in self._channel.sent_bytes.items():
                get("mpcache_sent_bytes_total", peer=self.manifest.parties[peer]).inc(count)
            for peer, count in self._channel.received_bytes.items():
                get("mpcache_received_bytes_total", peer=self.manifest.parties[peer]).inc(count)
        self.server.report(
            self,
            began,
            client,
            tokens=self.emitted,
            rounds=total.rounds,
            bytes_sent=total.bytes_sent,
            bytes_received=total.bytes_received,
            tape_bytes=total.offline_bytes,
        )

    def _summarise(self, seconds: float) -> None:
        """Tell the client what the session cost; only totals per operation where the stages would be too many."""
        ledger = self.ledger.to_json()
        data = json.dumps(ledger).encode()
        if len(data) > LEDGER_BYTES:
            data = json.dumps({**ledger, "stages": {}, "seconds": {}}).encode()
        summary = wire.Summary(steps=self.emitted, seconds=seconds, ledger_size=len(data))
        self.client.send(wire.PartyMessage(summary=summary))
        for piece in chunked(data):
            self.client.send(wire.PartyMessage(chunk=wire.Chunk(payload=piece)))

    def on_fail(self) -> None:
        """Tell client, peers and dealer at once, even while this party computes."""
        with self._attached:
            self._attached.notify_all()
        self.server.wake()
        if not self.finished:
            self._farewell()

    def _farewell(self) -> None:
        error = self.error
        finish = wire.Finish() if self.finished else None
        failure = to_failure(error) if error is not None and finish is None else None
        for link in [*self._peers.values()]:
            if finish is not None:
                link.close(wire.PeerMessage(finish=finish))
            else:
                link.close(wire.PeerMessage(failure=failure) if failure is not None else None)
        if self._tape is not None:
            if finish is not None:
                self._tape.close(wire.TapeRequest(finish=finish))
            else:
                self._tape.close(wire.TapeRequest(failure=failure) if failure is not None else None)
        self.client.close()

    # ---- connections -----------------------------------------------------------------------------------------------
    def attach(self, link: PeerStream, hello: wire.Hello) -> None:
        """A peer of higher index has dialled. Raises `ManifestMismatch` (and ends this session) when it must not join."""
        names = self.manifest.parties
        try:
            index = names.index(link.peer) if link.peer in names else -1
            self._greetings.heard(link.peer, hello)
            if index <= self.server.config.index:
                raise WireError(f"{link.peer} introduced itself as party {index}; higher indices dial lower ones")
        except MpcacheError as error:
            self.fail(error)
            raise
        link.move(self)
        link.room = INBOX_LIMIT
        with self._attached:
            if index in self._peers:
                raise WireError(f"{link.peer} dialled twice in one session")
            self._peers[index] = link
            if self._placed:
                link.send(self._greetings.own())
            self._attached.notify_all()

    def _dial(self, peer: Peer, patience: float = 0.0) -> grpc.Channel:
        self.step = f"connecting to {peer.name}"
        config = self.server.config
        channel = connect(
            self.server.identity,
            peer,
            max(config.connect_seconds, patience),
            self.check,
            lambda reason: self.progress(f"waiting for {reason}", 0, 0),
        )
        self._channels.append(channel)
        return channel

    def _link(self, peer: Peer, beat: Message, call: Callable[[grpc.Channel], Any]) -> PeerStream:
        again = route(lambda: self.server.identity, peer, call)
        return PeerStream(self, peer.name, beat, window=self.server.config.resume_seconds, route=again)

    def _connect_peers(self) -> None:
        own = self.server.config.index
        self.trace.stage("connect")
        for index in range(own):
            peer = parties_of(self.server.config)[index]
            channel = self._dial(peer)
            link = self._link(peer, PEER_BEAT, lambda channel: services.ComputePartyStub(channel).Exchange)
            with self._attached:
                self._peers[index] = link
            link.call(channel, self._greetings.own())
            self.server.heartbeats.add(link)
            self.step = f"greeting {peer.name}"
            reply = link.receive(self.server.config.queue_seconds + self._patience)
            if reply.WhichOneof("content") != "hello":
                raise WireError(f"{peer.name} did not answer a greeting with its own")
            self._greetings.heard(peer.name, reply.hello)
        self._take_place()
        self._wait_for_peers()
        self._store.agree(self.facts, self._greetings.storings)

    def _take_place(self) -> None:
        """Wait for this session's turn here, then let the parties before and after it know. See
        `parties.server.admission`."""
        own = self.server.config.index
        self.trace.stage("queue")
        self.server.admission.wait(self.ticket, self.check, lambda ahead: self.progress(f"queued, {ahead} ahead", 0, 0))
        waiting = "waiting for another session to load the model"
        self._lease.claim(self.check, lambda: self.progress(waiting, 0, 0))
        self._emitted_at = time.perf_counter()
        self.trace.stage("agree")
        self.client.room = INBOX_LIMIT  # so far next to nothing of what it sends was read
        if self.tapes is not None and own == 0:
            self.tapes.look_again()
        with self._attached:
            self._placed = True
            for index, link in self._peers.items():
                link.send(self._greetings.own() if index > own else wire.PeerMessage(ready=wire.Ready()))

    def _wait_for_peers(self) -> None:
        own = self.server.config.index
        seconds = self.server.config.connect_seconds + (self._patience if self.tapes is not None else 0.0)
        limit = time.monotonic() + seconds
        with self._attached:
            while len(self._peers) < len(self.manifest.parties) - 1:
                self.check()
                missing = [n for i, n in enumerate(self.manifest.parties) if i != own and i not in self._peers]
                self.step = f"waiting for {', '.join(missing)} to connect"
                if (left := limit - time.monotonic()) <= 0:
                    raise PeerLost(missing[0], "connecting", f"did not connect to {self.role} within {seconds:g} s")
                self._attached.wait(left)
        for index in range(own + 1, len(self.manifest.parties)):
            link = self._peers[index]
            self.progress(f"waiting for {link.peer}", 0, 0)
            message = link.receive(self.server.config.queue_seconds + self._patience)
            if message.WhichOneof("content") != "ready":
                raise WireError(f"{link.peer} sent '{message.WhichOneof('content')}' where 'ready' was expected")

    def _streamed(self) -> Dealt:
        """What the running dealer deals for this session."""
        dealer = dealer_of(self.server.config)
        assert dealer is not None
        channel = self._dial(dealer, self._patience)
        link = self._tape = self._link(dealer, TAPE_BEAT, lambda channel: services.DealerStub(channel).Tape)
        opening = wire.TapeOpen(
            session=self.id,
            manifest=self.manifest.canonical(),
            architecture=self.facts.architecture,
            loads=self._lease.ids(),
            client=self.ticket.client,
        )
        link.call(channel, wire.TapeRequest(open=opening))
        self.server.heartbeats.add(link)
        self.step = f"waiting for {dealer.name} to deal"
        message = link.receive(self.server.config.queue_seconds + self._patience)
        if message.WhichOneof("content") != "start":
            raise WireError(f"{dealer.name} did not start the tape with a seed")
        start = message.start
        check_id(start.load, "load", dealer.name)
        weights = None if start.fresh else self._lease.get(start.load)
        if not start.fresh and weights is None:
            raise WireError(f"the dealer wants load {start.load}, which {self.role} does not hold (any more)")
        return Dealt(Source(start.seed, tape_reader(link)), start.load, weights)

    # ---- the program -------------------------------------------------------------------------------------------------
    def _compute(self) -> None:
        config, manifest = self.server.config, self.manifest
        if self.tapes is not None:
            self.tapes.wait()
        self._connect_peers()
        self.trace.stage("tape")
        dealt = self._streamed() if self.tapes is None else self.tapes.agree(self._peers)
        channel = self._channel = GrpcChannel(config.index, manifest.parties, self._peers, self.ledger)
        last = config.index == channel.parties - 1

        def tape_of(source: Source) -> PartyTape:
            return PartyTape(source.seed, last, source.read, self.ledger, config.device)

        tape, weights = tape_of(dealt.session), dealt.weights
        if weights is not None:
            self._lease.release()
        suite = self._program.suite(tape, channel)
        if weights is None:
            self.trace.stage("load")
            self.server.metrics.get("mpcache_model_loads_total").inc()
            loading = suite
            if dealt.loading is not None:
                loading = self._program.suite(tape_of(dealt.loading), channel)
            weights = self._load(loading, dealt.load)
        if suite.preprocesses and wanted(config):
            self._preprocessing = Preprocessing(self, self._program, tape, weights)
            suite = self._preprocessing.start(channel)
        self.step = "receiving the prompt's shares"
        self.trace.stage("prompt")
        prompt = self._take("prompt", 0, (manifest.prompt_tokens,))
        self.step = "prefill"
        self.trace.stage("prefill")
        self._program.run(suite, weights, prompt, self)

    def _load(self, suite: Suite, load: str) -> dict[str, object]:
        """Load the weights, for this session and later ones."""
        total, done = len(self._program.architecture.weight_shapes()), 0
        needed = suite.weight_fraction_bits
        more = needed - self.facts.fraction_bits
        if more < 0:
            raise ConfigurationError(
                f"suite '{suite.name}' needs weights with {needed} fraction bits, model {self.facts.name} was shared "
                f"with {self.facts.fraction_bits}: use more fraction bits, or share the model with fewer"
            )

        def share(name: str) -> Tensor:
            nonlocal done
            self.check()
            self.step = f"loading weight {name}"
            self.progress("model load", done, total)
            done += 1
            return (self._store.share(self.facts, name) << more).to(self.server.config.device)

        weights = self._program.load(suite, share)
        self.progress("model load", total, total)
        self._lease.put(load, weights)
        return weights

    def _take(self, name: str, step: int, shape: tuple[int, ...]) -> Tensor:
        """This party's int64 share of what the client sends next, which must be `name` of `step` and `shape`."""
        sender = self.client.peer
        message = self.client.receive()
        if message.WhichOneof("content") != "share":
            raise WireError(f"{sender} sent '{message.WhichOneof('content')}' where the share '{name}' was expected")
        header = message.share
        found = (header.name, header.step, tuple(header.shape), header.bits)
        if found != (name, step, shape, BITS):
            raise WireError(
                f"{sender} sent share '{header.name[:32]}' of step {header.step}, shape {list(header.shape)[:8]} in "
                f"Z_2^{header.bits}, expected '{name}' of step {step}, shape {list(shape)} in Z_2^{BITS}"
            )
        last = self.server.config.index == len(self.manifest.parties) - 1
        if not last:
            return expand(header.seed, shape, sender).to(self.server.config.device)
        what = f"share '{name}'"
        return collect(what, shape, BITS, header.size, sender, self.client.receive).to(self.server.config.device)

    # ---- the endpoint ------------------------------------------------------------------------------------------------
    def emit(self, step: int, share: OutputShare) -> bool:
        """Send this party's share of a token or of logits to the client, with its share of the range flags."""
        self.check()
        if self.manifest.decoding != "logits" and (kind := self.client.unasked()):
            decoding = self.manifest.decoding
            raise WireError(
                f"{self.client.peer} sent '{kind}' after its prompt, where decoding '{decoding}' asks for nothing"
            )
        data = pack(reduce(share.share, share.bits), share.bits)
        header = wire.OutputHeader(
            step=step,
            shape=list(share.share.shape),
            bits=share.bits,
            fraction_bits=share.fraction_bits,
            size=len(data),
            flags=b"" if share.flags is None else pack(share.flags, BITS),
        )
        self.client.send(wire.PartyMessage(output=header))
        for piece in chunked(data):
            self.client.send_bulk(wire.PartyMessage(chunk=wire.Chunk(payload=piece)))
        self.emitted = step + 1
        now, metric = time.perf_counter(), "mpcache_token_seconds" if step else "mpcache_first_token_seconds"
        self.server.metrics.get(metric, suite=self.manifest.suite).observe(now - self._emitted_at)
        self.server.metrics.get("mpcache_tokens_total", client=self.client.peer).inc()
        self._emitted_at = now
        if step == 0:
            self.trace.stage("decode")
        return True

    def next_token(self, step: int) -> Tensor:
        """The client's choice, as this party's share of its index."""
        self.step = f"waiting for the client's token {step}"
        return self._take("token", step, (1,))

    def progress(self, stage: str, done: int, total: int) -> None:
        """Tell the client how far the session is."""
        self.step = f"{stage} {done} of {total}" if total else stage
        now = time.monotonic()
        if now - self._progress_at >= PROGRESS_SECONDS or done == total:
            self._progress_at = now
            self.client.send(wire.PartyMessage(progress=wire.Progress(stage=stage, done=done, total=total)))
