"""The compute party: keeps shares of models and computes on shares with the other parties."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from models.architectures import decoder_of, parse_description
from models.costs.cached import kept_bytes
from models.costs.prediction import Prediction
from models.generation import token_indices
from mpc.errors import ConfigurationError, EnvironmentProblem, PermissionRefused, WireError
from mpc.random import SEED_BYTES
from mpc.ranks import Ranks
from parties.config.role_config import RoleConfig
from parties.events import event
from parties.identity.trust import dealer_of
from parties.pages.cache_memory import CacheMemory
from parties.pages.page_store import PageStore
from parties.party.prefix_store import PrefixStore, StoredPrefix
from parties.party.rendezvous import PEER_BEAT, Network
from parties.party.session import Admitted, Holdings, PartySession
from parties.party.step_groups import StepGroups
from parties.party.store import Incoming, ModelStore, StoredModel
from parties.program import MODEL, Program, plan_of
from parties.server.admission import Demand
from parties.server.incoming import StreamCall
from parties.server.server import RoleServer
from parties.status.reach import Reach
from parties.tapes.store import TapeStore
from parties.transport.peer_stream import INBOX_LIMIT, PeerStream
from parties.transport.queues import Message
from parties.transport.session import Session
from parties.wire import wire_pb2 as wire
from parties.wire import wire_pb2_grpc as services
from parties.wire.error_codec import public
from parties.wire.held_prefix import held_prefix
from parties.wire.manifest import (
    Manifest,
    architecture_hash,
    check_digest,
    check_id,
    check_tables,
    check_version,
    new_id,
    unpacked_ids,
)
from parties.wire.model_ranges import pack_ranges, unpack_ranges
from parties.wire.shares import BITS, WEIGHT_FRACTION_BITS, collect

CLIENT_BEAT = wire.PartyMessage(heartbeat=wire.Heartbeat())
STORE_BEAT = wire.StoreMessage(heartbeat=wire.Heartbeat())


class ComputePartyServer(RoleServer[PartySession]):
    """A compute party as a server; see `RoleServer`."""

    role = "party"
    service = "mpcache.ComputeParty"

    def __init__(self, config: RoleConfig, program: Program = MODEL, ranks: Ranks | None = None) -> None:
        super().__init__(config, program)
        self._ranks = ranks
        assert config.store is not None
        self.store = ModelStore(config.store)
        limits = config.limits
        self.pages = PageStore(config.store, config.name, config.store_key)
        self.prefixes = PrefixStore(self.pages, limits.max_prefix_bytes)
        self.memory = CacheMemory(self.pages, limits.max_cache_bytes, limits.max_paged_bytes)
        self.reach = Reach(config, lambda: self.identity)
        self.tapes: TapeStore | None = None
        if config.tapes is not None and (dealer := dealer_of(config)) is not None:
            self.tapes = TapeStore(
                config.tapes, config.name, config.index, dealer, lambda: self.identity, limits.max_tape_bytes
            )

        self.groups = StepGroups(Network(config, lambda: self.identity, self.heartbeats, 0.0), self.metrics)
        self.metrics.follow("mpcache_stored_prefixes", lambda: len(self.prefixes.prefixes()))
        self.metrics.follow("mpcache_cache_bytes", lambda: self.memory.used_bytes)
        self.metrics.follow("mpcache_paged_bytes", lambda: self.memory.paged_bytes)
        self.metrics.follow("mpcache_stored_models", lambda: len(self.store.models()))
        self.metrics.follow("mpcache_tapes", self.tapes.count if self.tapes is not None else lambda: 0)

    def start(self) -> None:
        """Listen and serve in the background; logs what tapes there are."""
        super().start()
        for line in self.tapes.stock() if self.tapes is not None else []:
            event("tapes", self.name, stock=line)

    def register(self, server: grpc.Server) -> None:
        """Add the ComputeParty service."""
        services.add_ComputePartyServicer_to_server(_Service(self), server)

    # ---- sessions --------------------------------------------------------------------------------------------------
    def open(self, stream: PeerStream, message: Message) -> tuple[Session, Iterator[Message]]:
        """Open a client's session."""
        if message.WhichOneof("content") != "open":
            raise WireError(f"{stream.peer} sent '{message.WhichOneof('content')}' where 'open' was expected")
        id = check_id(message.open.session, "session", stream.peer)
        manifest = Manifest.parse(message.open.manifest, stream.peer)
        self.check_open()
        facts = self._allowed(manifest, stream.peer)
        predicted = self.costs.check(manifest, parse_description(facts.architecture), stream.peer)
        blocks, text = self._blocks(manifest, facts), _public_text(manifest, message.open.text, stream.peer)
        if text is not None:
            token_indices(text, decoder_of(parse_description(facts.architecture), "a prefix's model").vocabulary)
        demand = self._demand(manifest, facts, stream.peer, predicted)
        ticket = (self.admission.enter if self.config.index == 0 else self.admission.expect)(stream.peer, demand)
        holdings = Holdings(self.store, self.prefixes, self.memory, self.tapes, self.groups, self._ranks)
        admitted = Admitted(id, manifest, facts, ticket, stream, blocks, text)
        session = self.hold(ticket, lambda: PartySession(self, holdings, admitted))
        event(
            "session_opened",
            self.name,
            session=id,
            client=stream.peer,
            model=facts.model,
            suite=manifest.suite,
            prefix_tokens=manifest.prefix_tokens or None,
            prompt_tokens=manifest.prompt_tokens,
            new_tokens=manifest.new_tokens,
            decoding=manifest.decoding,
            place=ticket.state,
        )
        session.start()
        return session, stream.outgoing()

    def _demand(self, manifest: Manifest, facts: StoredModel, client: str, predicted: Prediction) -> Demand:
        """Return what a session asks of this party. Raises `ConfigurationError` for more memory, and pages, than there ever
        are."""
        limits, new = self.config.limits, manifest.new_tokens
        prompt = manifest.read_tokens
        memory, most = kept_bytes(parse_description(facts.architecture), prompt, new, predicted.kept), limits.cached_bytes
        if most is not None and memory > most:
            raise ConfigurationError(
                f"the session of {client} would cache {memory:,} bytes ({prompt} prompt and {new} new tokens), {self.name} "
                f"allows {most:,}: shorten it, choose a policy that keeps less, or raise 'max_cache_bytes' or "
                "'max_paged_bytes' in its 'limits'"
            )
        ratio = new / manifest.prompt_tokens if limits.max_in_step > 1 else 0.0
        return Demand(memory, ratio, predicted.sent_each)

    def foresee(self, stream: PeerStream, message: Message) -> Callable[[], object] | None:
        """Return what a client's session costs, if that takes time to predict."""
        if message.WhichOneof("content") != "open":
            return None
        manifest = Manifest.parse(message.open.manifest, stream.peer)
        self.check_open()
        architecture = parse_description(self._allowed(manifest, stream.peer).architecture)
        if self.costs.known(manifest, architecture):
            return None
        return lambda: self.costs.check(manifest, architecture, stream.peer)

    def _allowed(self, manifest: Manifest, client: str) -> StoredModel:
        """Return the model of a session that may be, whatever it costs. Raises a typed error for one that may not."""
        check_version(manifest, client, self.version, self.name)
        self.check_program(client, manifest)
        self.permissions.check_lengths(manifest, client)
        self.permissions.check_suite(manifest, client)
        self.permissions.check_decoding(manifest, client)
        facts = self.permissions.model(manifest, client, self.store.get(manifest.model))
        if architecture_hash(parse_description(facts.architecture)) != manifest.architecture:
            raise ConfigurationError(f"{client} and {self.name} know model {manifest.model} with different architectures")
        check_tables(manifest, parse_description(facts.architecture), client, self.name)
        plan_of(manifest, parse_description(facts.architecture))
        self.permissions.check_choices(manifest, client, facts)
        if manifest.draft and self.tapes is not None:
            raise ConfigurationError(
                f"{self.name} takes its tapes from a folder ('tapes'): they were dealt before anybody could know how many "
                "drafted rows stay; ask without a draft, or take 'tapes' out of its file, so that a running dealer deals"
            )
        return facts

    def _blocks(self, manifest: Manifest, model: StoredModel) -> dict[int, StoredPrefix]:
        """Return what a session begins behind, by number. Raises `ConfigurationError` where it is not here or unfit."""
        found: dict[int, StoredPrefix] = {}
        for number, (id, tokens) in manifest.blocks.items():
            one = self.prefixes.get(id)
            if one is None:
                raise ConfigurationError(
                    f"{self.name} holds no prefix {id}: `mpcache prefix ls` lists those of a model, its owner registers "
                    "them by `mpcache prefix add`; ask without one"
                )
            if why := one.unfit(manifest, model, tokens):
                raise ConfigurationError(
                    f"prefix {one.name} at {self.name} {why}: ask as it was registered, let the model owner register it for "
                    "this (`mpcache prefix add`), or ask without it"
                )
            found[number] = one
        return found

    def exchange(self, stream: PeerStream, message: Message) -> tuple[Session, Iterator[Message]]:
        """Let a peer join a session, or sessions in step."""
        if message.WhichOneof("content") == "steps":
            return self.groups.attach(stream, message.steps.group), stream.outgoing()
        if message.WhichOneof("content") != "hello":
            raise WireError(f"{stream.peer} sent '{message.WhichOneof('content')}' where 'hello' was expected")
        id = check_id(message.hello.session, "session", stream.peer)
        patience = 0.0 if self.draining else self.config.deadline_seconds * 0.8
        session = self.sessions.wait_for(id, patience, stream.session.check)
        if session is None:
            self.check_open()
            raise WireError(f"{stream.peer} wants to join session {id}, which no client has open at {self.name}")
        session.attach(stream, message.hello)
        return session, stream.outgoing()

    def find(self, id: str) -> Session | None:
        """As in `RoleServer`; groups of sessions in step have streams too."""
        return self.groups.find(id) or super().find(id)

    def stop(self, grace: float = 1.0) -> None:
        """As in `RoleServer`."""
        super().stop(grace)
        self.groups.stop()
        self.pages.close()

    # ---- models ----------------------------------------------------------------------------------------------------
    def receive_model(self, stream: PeerStream, message: Message) -> tuple[Session, Iterator[Message]]:
        """Store this party's shares, which a model owner sends; answer with a receipt once they are on disk."""
        stream.session.step = "storing a model"
        stream.make_room(INBOX_LIMIT)
        if message.WhichOneof("content") != "header":
            raise WireError(f"{stream.peer} sent '{message.WhichOneof('content')}' where 'header' was expected")
        self.check_open()
        facts, seed = self._facts(message.header, stream.peer), message.header.seed
        threading.Thread(target=self._store, args=(stream, facts, seed), name="store model", daemon=True).start()
        return stream.session, stream.outgoing()

    def remove_model(self, owner: str, model: str) -> None:
        """Take away a model of the owner's own."""
        check_id(model, "model", owner)
        self.store.remove(self.permissions.owned(owner, model, self.store.get(model)))
        self.weight_cache.drop(model)
        for prefix in self.prefixes.of_model(model):
            self._remove_prefix(prefix)
        event("model_removed", self.name, owner=owner, model=model)

    def remove_prefix(self, owner: str, request: wire.RemoveRequest) -> None:
        """Take away a prefix of the owner's own model. Raises `PermissionRefused`."""
        check_id(request.model, "model", owner)
        check_id(request.prefix, "prefix", owner)
        model = self.permissions.owned(owner, request.model, self.store.get(request.model))
        found = self.prefixes.get(request.prefix)
        if found is None or found.model != model.model:
            raise PermissionRefused(f"'{owner}' has no prefix {request.prefix} at {self.name} that it may remove")
        self._remove_prefix(found)

    def _remove_prefix(self, prefix: StoredPrefix) -> None:
        self.prefixes.remove(prefix)
        self.rows_cache.drop(prefix.prefix)
        event("prefix_removed", self.name, model=prefix.model, prefix=prefix.prefix, name=prefix.name)

    def _store(self, stream: PeerStream, facts: StoredModel, seed: bytes) -> None:
        session = stream.session
        try:
            incoming = self.store.begin(facts)
            try:
                count = self._store_weights(stream, incoming, seed)
                name = self.permissions.check_model_name  # again: others were stored meanwhile
                self.store.complete(incoming, lambda models: name(facts.owner, facts.name, models))
            except BaseException:
                incoming.discard()
                raise
            session.end()
            event("model_stored", self.name, owner=facts.owner, model=facts.model, name=facts.name, weights=count)
            stream.send(wire.StoreMessage(receipt=wire.ModelReceipt(model=facts.model, weights=count)))
        except OSError as error:
            reason = (error.strerror or "error").lower()
            session.fail(EnvironmentProblem(f"{self.name} cannot store the model ({reason}): free its disk space"))
        except Exception as error:
            session.fail(public(error, self.name))
        finally:
            stream.close()

    def _facts(self, header: wire.ModelHeader, owner: str) -> StoredModel:
        check_id(header.model, "model", owner)
        if header.version != self.version:
            raise ConfigurationError(
                f"{owner} runs version {header.version[:40]}, {self.name} runs version {self.version}: install the same"
            )
        self.check_parties(owner, header.parties)
        low, high = WEIGHT_FRACTION_BITS
        if not low <= header.fraction_bits <= high or not 0 < len(header.name) <= 200:
            raise WireError(
                f"{owner} sent a model with {header.fraction_bits} fraction bits and a name of {len(header.name)} "
                f"characters, expected {low} to {high} and 1 to 200"
            )
        self.permissions.check_model_name(owner, header.name, self.store.models())
        architecture = parse_description(header.architecture)
        size = 8 * sum(math.prod(shape) for shape in architecture.weight_shapes().values())
        if size > self.config.limits.max_model_bytes:
            raise ConfigurationError(
                f"the model's shares take {size} bytes, {self.name} stores at most {self.config.limits.max_model_bytes}: "
                "raise max_model_bytes in its 'limits'"
            )
        seeded = self.config.index < len(self.config.parties) - 1
        if len(header.seed) != (SEED_BYTES if seeded else 0):
            raise WireError(f"{owner} sent a seed of {len(header.seed)} bytes, expected {SEED_BYTES if seeded else 0}")
        return StoredModel(
            model=header.model,
            name=header.name,
            architecture=architecture.to_json(),
            owner=owner,
            parties=self.config.party_names,
            index=self.config.index,
            fraction_bits=header.fraction_bits,
            seeded=seeded,
            ranges=unpack_ranges(header.ranges, owner),
            tokenizer=check_digest(header.tokenizer, owner),
            nonce=new_id(),
        )

    def _store_weights(self, stream: PeerStream, incoming: Incoming, seed: bytes) -> int:
        shapes = incoming.facts.shapes()
        if incoming.facts.seeded:
            incoming.seed(seed)
            return len(shapes)
        for name, shape in shapes.items():
            message = stream.receive()
            kind, weight = message.WhichOneof("content"), message.weight
            if kind != "weight" or weight.name != name or tuple(weight.shape) != shape:
                raise WireError(
                    f"{stream.peer} sent {kind} '{weight.name[:64]}' {list(weight.shape)[:8]} where weight '{name}' "
                    f"{list(shape)} was expected"
                )
            incoming.weight(collect(f"weight '{name}'", shape, BITS, weight.size, stream.peer, stream.receive))
        return len(shapes)


def _public_text(manifest: Manifest, data: bytes, owner: str) -> list[int] | None:
    """Return the token ids of a public text that is registered, None where there is none. Raises `WireError` for another
    text than the manifest's."""
    expected = manifest.prefix.text if manifest.prefix is not None else ""
    if bool(data) != bool(expected) or (data and hashlib.sha256(data).hexdigest() != expected):
        raise WireError(f"{owner} sent a text of {len(data)} bytes, which is not the one of its manifest")
    if not data:
        return None
    ids = unpacked_ids(data, owner)
    if len(ids) != manifest.prompt_tokens:
        raise WireError(f"{owner} sent a text of {len(ids)} tokens, its manifest says {manifest.prompt_tokens}")
    return ids


class _Service(services.ComputePartyServicer):  # type: ignore[misc]
    def __init__(self, party: ComputePartyServer) -> None:
        self._party = party

    def Describe(self, request: wire.DescribeRequest, context: Any) -> wire.Description:
        party = self._party
        name = party.incoming.admit(context, party.permissions.may_ask)
        held = [
            wire.HeldModel(
                model=m.model,
                name=m.name,
                architecture=m.architecture,
                owner=m.owner,
                parties=m.parties,
                ranges=pack_ranges(m.ranges),
                tokenizer=m.tokenizer,
                prefixes=[held_prefix(prefix) for prefix in party.prefixes.of_model(m.model) if prefix.storing == m.nonce],
            )
            for m in party.permissions.visible(name, party.store.models())
        ]
        missing = party.reach.missing() if request.reach else {}
        return party.describe(held, missing)

    def Probe(self, requests: Iterator[Message], context: Any) -> Iterator[Message]:
        return self._party.prober.answer(requests, context, self._party.permissions.may_ask)

    def Generate(self, requests: Iterator[Message], context: Any) -> Iterator[Message]:
        party = self._party
        return party.incoming.serve(
            requests, context, StreamCall(CLIENT_BEAT, party.permissions.may_generate, party.open, party.foresee)
        )

    def Exchange(self, requests: Iterator[Message], context: Any) -> Iterator[Message]:
        party = self._party
        return party.incoming.serve(requests, context, StreamCall(PEER_BEAT, party.permissions.may_exchange, party.exchange))

    def StoreModel(self, requests: Iterator[Message], context: Any) -> Iterator[Message]:
        party = self._party
        return party.incoming.serve(
            requests, context, StreamCall(STORE_BEAT, party.permissions.may_store, party.receive_model)
        )

    def RemoveModel(self, request: wire.RemoveRequest, context: Any) -> wire.RemoveReceipt:
        party = self._party
        party.incoming.admit(context, party.permissions.may_store, lambda name: party.remove_model(name, request.model))
        return wire.RemoveReceipt(model=request.model)

    def RemovePrefix(self, request: wire.RemoveRequest, context: Any) -> wire.RemoveReceipt:
        party = self._party
        party.incoming.admit(context, party.permissions.may_store, lambda name: party.remove_prefix(name, request))
        return wire.RemoveReceipt(model=request.model, prefix=request.prefix)
