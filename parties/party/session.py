"""One session at a compute party: its life, from its opening to its report. What it does is in the files beside this one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from models.architectures import parse_description
from mpc.in_step import StepMember
from mpc.joint_products import joined
from mpc.ledger import Ledger
from mpc.random import Prg
from mpc.ranks import Ranks
from mpc.tape import PartyTape
from mpc.turns import SESSIONS, leave
from parties.errors import SessionFinished
from parties.pages.cache_memory import CacheMemory, SessionPager
from parties.party.client_endpoint import ClientEndpoint
from parties.party.greeting import Greetings
from parties.party.prefix_store import PrefixStore, StoredPrefix
from parties.party.preprocessing import Preprocessing, wanted
from parties.party.registering import Registering
from parties.party.rendezvous import Network, Rendezvous
from parties.party.step_groups import StepGroups
from parties.party.store import ModelStore, StoredModel
from parties.party.weight_loader import RowsLoader, WeightLoader
from parties.program import SessionProgram
from parties.server.admission import Ticket
from parties.server.server import RoleServer
from parties.server.sessions import ServedSession
from parties.server.weight_cache import WeightLease
from parties.tapes.agreement import Dealt, Source, TapeAgreement, TapeNeed, WithoutTape
from parties.tapes.store import TapeStore
from parties.transport.channel import GrpcChannel
from parties.transport.peer_stream import PeerStream
from parties.wire import wire_pb2 as wire
from parties.wire.error_codec import public
from parties.wire.manifest import Manifest, new_id
from protocols.suite import Suite


@dataclass(frozen=True)
class Holdings:
    """What a party has for all its sessions: shares of models and tapes on disk, the latter where it takes them from a
    folder, memory for what they cache, which sessions run in step, and the party's ranks, where it is more than one
    process."""

    models: ModelStore
    prefixes: PrefixStore
    memory: CacheMemory
    tapes: TapeStore | None
    groups: StepGroups
    ranks: Ranks | None = None


@dataclass(frozen=True)
class Admitted:
    """A session that may be. session: its id; facts: of the model's shares; ticket: its place; client: its stream. prefix:
    what it begins behind, by number (`Manifest.blocks`); text: of a prefix that it registers, where that is public."""

    session: str
    manifest: Manifest
    facts: StoredModel
    ticket: Ticket
    client: PeerStream
    blocks: Mapping[int, StoredPrefix] = field(default_factory=dict)
    text: list[int] | None = None


class PartySession(ServedSession):
    """A session of one client."""

    def __init__(self, server: RoleServer[PartySession], holdings: Holdings, admitted: Admitted) -> None:
        super().__init__(admitted.session, server.name)
        self.server = server
        self.manifest, self.facts, self.ticket = admitted.manifest, admitted.facts, admitted.ticket
        self.client = admitted.client
        manifest, config = self.manifest, server.config
        self.trace = server.traces.session(
            self.id, suite=manifest.suite, prompt_tokens=manifest.prompt_tokens, new_tokens=manifest.new_tokens
        )
        self.ledger = Ledger()
        self.endpoint = ClientEndpoint(self, self.client, config, server.metrics, self.ledger)
        self._store, self._prefixes = holdings.models, holdings.prefixes
        self._blocks, self._text = admitted.blocks, admitted.text
        self._rows: WeightLease | None = None
        nonces = [one.nonce for one in self._blocks.values()]
        if self._blocks:
            self._rows = server.rows_cache.lease(manifest.rows_key(nonces), self.ticket.client, self)
        self._registering: Registering | None = None
        self._lease = server.weight_cache.lease(manifest.load_key(self.facts.nonce), self.ticket.client, self)
        architecture = parse_description(self.facts.architecture)
        self._program = SessionProgram.of(server.program, manifest, architecture, config.device)
        patience = config.tape_wait_seconds if config.when_tape_is_out == "wait" else 0.0
        self._tapes: TapeAgreement | None = None
        if holdings.tapes is not None:
            need = TapeNeed(manifest, manifest.masked_with(self.facts.nonce, nonces), self._lease, self._rows)
            without = WithoutTape(patience, config.when_tape_is_out == "dealer")
            self._tapes = TapeAgreement(holdings.tapes, self, need, self.endpoint.progress, without)
        hello = wire.Hello(
            session=self.id,
            name=server.name,
            manifest=manifest.canonical(),
            client=self.ticket.client,
            storing=self.facts.nonce,
            rows=" ".join(one.session for one in self._blocks.values()),
        )
        self._greetings = Greetings(hello, manifest, self._tapes)
        network = Network(config, lambda: server.identity, server.heartbeats, patience)
        self._rendezvous = Rendezvous(self, network, self._greetings, self.endpoint.progress)
        self.endpoint.tell_dealer = self._rendezvous.tell_dealer
        self._channel: GrpcChannel | None = None
        self._groups, self._ranks = holdings.groups, holdings.ranks
        self._member: StepMember | None = None
        self._preprocessing: Preprocessing | None = None
        self._memory = holdings.memory
        self._pager: SessionPager | None = None

    # ---- life ------------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Begin."""
        self.client.move(self)
        threading.Thread(target=self._main, name=f"session {self.id[:8]}", daemon=True).start()

    def attach(self, stream: PeerStream, hello: wire.Hello) -> None:
        """Let a peer that has dialled join; see `Rendezvous.attach`."""
        self._rendezvous.attach(stream, hello)

    def _main(self) -> None:
        began = time.perf_counter()
        try:
            with torch.inference_mode():
                self._compute()
        except SessionFinished:
            pass
        except Exception as error:
            self.fail(public(error, self.role))
        if self._registering is not None:
            self._registering.discard()
        if self._member is not None:
            self._member.leave()
        if self._pager is not None:
            self._pager.close()
        if self._preprocessing is not None:
            self._preprocessing.stop()
        try:
            self._end(began)
        except Exception as error:
            self.fail(public(error, self.role))
        finally:
            if self._preprocessing is not None:
                self._preprocessing.join()
            if self._tapes is not None:
                self._tapes.release()
            if self._greetings.place is not None:
                self._groups.release(self._greetings.place)
            for stream in self.streams:
                self.server.heartbeats.remove(stream)
            try:
                self._report(began)  # before its place is free: whoever sees no session sees all of them counted
            finally:
                self.server.release(self)

    def _end(self, began: float) -> None:
        """Tell everybody how the session ended, and wait until they know."""
        try:
            if self.error is None or self.finished:
                self.server.admission.leave(self.ticket)  # a client that knows of the end may ask again at once
                self.endpoint.summarise(time.perf_counter() - began, self._shared_rounds)
        finally:
            self._farewell()
            if self.error is None or self.finished:
                self.settle()
            self.end()
            self.finish_calls(but=(self.client,))
            self._rendezvous.close()

    def on_fail(self) -> None:
        """Tell client, peers and dealer at once, even while this party computes."""
        self._rendezvous.wake()
        self.server.wake()
        if self._member is not None:
            self._member.rouse()
        if not self.finished:
            self._farewell()

    def _farewell(self) -> None:
        self._rendezvous.farewell()
        self.client.close()

    # ---- the program -----------------------------------------------------------------------------------------------
    def _compute(self) -> None:
        config, manifest = self.server.config, self.manifest
        if self._tapes is not None:
            self._tapes.wait()
        if manifest.registers:
            facts = StoredPrefix.of(manifest, self.facts, self.id, self._text, new_id())
            self._registering = Registering(self._prefixes, facts)
        self.trace.stage("connect")
        peers = self._rendezvous.meet(self._take_place)
        self._store.agree(self.facts, self._greetings.storings)
        self.trace.stage("tape")
        dealt = (None if self._tapes is None else self._tapes.agree(peers)) or self._dealt()
        channel = self._channel = GrpcChannel(config.index, manifest.parties, peers, self.ledger)
        channel.on_round = self.endpoint.on_round
        tape = self._tape(dealt.session)
        if dealt.weights is not None:
            self._lease.release()
        suite = loading = self._program.suite(tape, channel)
        weights = dealt.weights
        if weights is None:
            self.trace.stage("load")
            self.server.metrics.get("mpcache_model_loads_total").inc()
            loading = suite if dealt.loading is None else self._program.suite(self._tape(dealt.loading), channel)
            if self._ranks is not None:
                loading.split_weights(self._ranks)
            loader = WeightLoader(self, self._store, self.facts, self._program, self.endpoint.progress)
            weights = loader.load(loading, dealt.load, self._lease)
        if self._blocks:
            weights = {**weights, **self._loaded_rows(loading, dealt)}
        if suite.preprocesses and wanted(config):
            self._preprocessing = Preprocessing(self, self._program, tape, weights, self.endpoint.kept_rows)
            suite = self._preprocessing.start(channel)
        self.trace.stage("prompt")
        prompt = self._prompt()
        self.step = "prefill"
        self.trace.stage("prefill")
        if (member := self._member) is not None:
            member.enter()
            channel.member = member
            kind = (self.manifest.policy, self.manifest.decoding, self.manifest.draft)
            self.endpoint.between = partial(member.align, kind)
        self._pager = suite.pager = self._memory.pager(self.id)
        self.endpoint.away = self._away
        with self._turns(member), joined(member):
            if self._registering is None:
                self._program.run(suite, weights, prompt, self.endpoint)
                return
            self._program.run(suite, weights, prompt, self.endpoint, self._registering.keep)
        self._registering.finish(self.endpoint, self.role, prompt)

    @contextmanager
    def _turns(self, member: StepMember | None) -> Iterator[None]:
        """Let this session take turns with others from its prompt on; in a group those of the group."""
        if member is None:
            self.endpoint.between = partial(SESSIONS.take, self)
        try:
            yield
        finally:
            leave()
            SESSIONS.give(self)

    @contextmanager
    def _away(self) -> Iterator[None]:
        """Let the others go on, and have this session's memory, while it waits for its client."""
        with (
            nullcontext() if self._pager is None else self._pager.waits(),
            nullcontext() if self._member is None else self._member.away(),
        ):
            yield

    def _prompt(self) -> torch.Tensor:
        """Return this party's share of the prompt: what the client sends, behind the tokens of chunks that are computed
        again; of a public text that is registered what all know."""
        known = None if self._registering is None else self._registering.public_prompt(self.server.config.device)
        sent, again = self.endpoint.prompt() if known is None else known, self.manifest.chunk_again
        before = [self._prefixes.ids(one)[:again] for number, one in self._blocks.items() if number]
        return torch.cat([*(ids.to(sent.device) for ids in before), sent]) if before else sent

    def _loaded_rows(self, suite: Suite, dealt: Dealt) -> dict[str, Any]:
        """Return the masked rows of prefix and chunks: those of the load that the dealer has named, or loaded now."""
        assert self._rows is not None
        if dealt.rows is not None:
            return dealt.rows
        loader = RowsLoader(self, self._prefixes, self._blocks, self._program, self.endpoint.progress)
        return loader.load(suite, dealt.rows_load, self._rows)

    def _take_place(self) -> None:
        """Wait for this session's turn here, and until no other one loads the same weights."""
        progress = self.endpoint.progress
        self.trace.stage("queue")
        self.server.admission.wait(self.ticket, self.check, lambda ahead: progress(f"queued, {ahead} ahead", 0, 0))
        self._lease.claim(self.check, lambda: progress("waiting for another session to load the model", 0, 0))
        self.endpoint.begin()
        self.trace.stage("agree")
        if self._tapes is not None and self.server.config.index == 0:
            self._tapes.look_again()
        self._join_group()

    def _join_group(self) -> None:
        """Take a place among sessions in step, if party 0 lets this one have one."""
        key = self.manifest.load_key()
        if self.server.config.index == 0:
            self._greetings.place = self._groups.assign(key)
        elif self._greetings.place is not None:
            self._groups.follow(self._greetings.place, key, self.manifest.parties[0])
        if self._greetings.place is not None:
            self._member = self._groups.join(self._greetings.place, self.check)

    @property
    def _shared_rounds(self) -> int:
        return 0 if self._member is None else self._member.shared_rounds

    def _dealt(self) -> Dealt:
        """Return what the running dealer deals for this session."""
        opening = wire.TapeOpen(
            session=self.id,
            manifest=self.manifest.canonical(),
            architecture=self.facts.architecture,
            loads=self._lease.ids(),
            client=self.ticket.client,
            rows_loads=[] if self._rows is None else self._rows.ids(),
        )
        return self._rendezvous.dealt(opening, self._lease, self._rows)

    def _tape(self, source: Source) -> PartyTape:
        config = self.server.config
        last = config.index == len(self.manifest.parties) - 1
        prg = Prg(source.seed, self.manifest.generator(config.name))
        return PartyTape(prg, last, source.read, self.ledger, config.device)

    # ---- the report ------------------------------------------------------------------------------------------------
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
            tokens=self.endpoint.tokens,
            rounds=total.rounds,
            bytes_sent=total.bytes_sent,
            bytes_received=total.bytes_received,
            tape_bytes=total.offline_bytes,
            shared_rounds=self._shared_rounds,
        )
