"""The client: shares its prompt, and alone puts the output together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
from torch import Tensor

from models.generation import token_indices
from mpc.errors import ConfigurationError
from mpc.ledger import Cost
from parties.client.cancellation import Cancellation
from parties.client.conversation import Conversation
from parties.client.encoding import EncodingRequest, EncodingResult, EncodingSession, in_place
from parties.client.model_reference import ModelReference, close_all, common_models, connect_all, describe_all, disputes
from parties.client.prefixes import chosen_prefix
from parties.client.request import GenerationRequest
from parties.client.session import AgreedRequest, ClientSession, FinishReason
from parties.config.role_config import RoleConfig
from parties.errors import RangeExceeded
from parties.identity.certificates import Identity
from parties.identity.trust import own_identity
from parties.transport.channel_pool import ChannelPool
from parties.transport.heartbeat import HeartbeatMonitor
from parties.wire.held_prefix import RegisteredPrefix
from parties.wire.manifest import Manifest, PrefixFacts, new_id
from protocols.range_findings import RangeFinding


@dataclass(frozen=True)
class GenerationResult:
    """What a session gave. Tokens and logits are secret, costs are public.

    costs: party name -> its ledger (`Ledger.to_json`). seconds: from opening the session to the last token;
    token_seconds: to each token. logits: float64 [tokens, V] for decoding "logits".

    finish_reason: "stop": an end-of-text token, or the caller, ended it. "length": there are max_tokens tokens. "range": a
    value left its declared range on the way to the next token, which is therefore not here; `findings` has all kinds and
    places, in the order of the computation. Tokens before it are right up to precision.

    own: bytes of this client's messages to and from all parties, as they are serialised.

    dropped_choices: how often a token of the prompt took an expert that had no place for it, over all layers; None where
    every expert was computed for every token. The answer is that of the model without these choices.

    prefix: the registered prefix that the session began behind, None without one.
    """

    tokens: list[int] = field(repr=False)
    costs: dict[str, dict[str, Any]] = field(repr=False)
    seconds: float
    token_seconds: list[float]
    session: str
    finish_reason: FinishReason
    findings: tuple[RangeFinding, ...] = ()
    dropped_choices: int | None = field(default=None, repr=False)
    logits: Tensor | None = field(default=None, repr=False)
    prefix: RegisteredPrefix | None = field(default=None, repr=False)
    own: Cost = field(default_factory=Cost)

    @property
    def stopped(self) -> bool:
        """Whether an end-of-text token, or the caller, ended it."""
        return self.finish_reason == "stop"

    @property
    def first_token_seconds(self) -> float | None:
        """Seconds from opening the session to the first token; None without one."""
        return self.token_seconds[0] if self.token_seconds else None

    def check_range(self, text: str | None = None) -> None:
        """Raise `RangeExceeded`, with this result and the text so far, if a value left its range."""
        if self.findings:
            raise RangeExceeded(self.findings, text, self)


class Client:
    """A client of the compute parties of its configuration.

    keep_connections: channels stay open between sessions until `close`; otherwise each call connects anew. Calls from
    several threads may run at the same time. Raises `ConfigurationError` when role or certificates are wrong, and when the
    configuration says no fingerprint of a party. disputes: what parties said differently of models when they were asked
    last, in words.
    """

    def __init__(self, config: RoleConfig, keep_connections: bool = False) -> None:
        if config.role != "client":
            raise ConfigurationError(f"configuration is for role '{config.role}', not for 'client'")
        self.config = config
        self._credentials = own_identity(config)
        self.disputes: list[str] = []
        self._kept = ChannelPool(config, lambda: self.identity) if keep_connections else None

    def close(self) -> None:
        """Close the connections that were kept."""
        if self._kept is not None:
            self._kept.close()

    @contextmanager
    def _connected(
        self, waiting: Callable[[str], None], check: Callable[[], None] = lambda: None
    ) -> Iterator[list[grpc.Channel]]:
        """Lend channels to all parties for the time of the block."""
        if self._kept is not None:
            with self._kept.lend(waiting, check) as channels:
                yield channels
            return
        channels = connect_all(self.config, self.identity, waiting, check)
        try:
            yield channels
        finally:
            close_all(channels)

    @property
    def identity(self) -> Identity:
        """The identity of the moment: a renewed certificate is used from when it lies in the folder."""
        return self._credentials.current

    def models(self, on_waiting: Callable[[str], None] = lambda reason: None) -> list[ModelReference]:
        """Return the models that all parties hold."""
        with self._connected(on_waiting) as channels:
            said = describe_all(self.config, channels)
        self.disputes = disputes(self.config.party_names, said)
        return common_models(said)

    def check_reached(self, on_waiting: Callable[[str], None] = lambda reason: None) -> None:
        """Raise `PeerLost`, naming it, for a party that is not there, and for a peer that a party does not reach: another
        party, or the dealer where the parties take no tapes from a folder."""
        with self._connected(on_waiting) as channels:
            describe_all(self.config, channels, reach=True)

    def find_model(
        self, model: str | None = None, on_waiting: Callable[[str], None] = lambda reason: None
    ) -> ModelReference:
        """Return the model with this id or name; without one, the only model. on_waiting(reason): for a party that is not
        there yet, and why; more than once.

        Raises `ConfigurationError` listing what there is.
        """
        held = self.models(on_waiting)
        found = [m for m in held if model is None or model in (m.id, m.name)]
        if len(found) == 1:
            return found[0]
        listed = "; ".join(f"{m.name} ({m.id})" for m in found or held) or "none: let the model owner share one first"
        asked = "the request" if model is None else repr(model)
        if not found:
            raise ConfigurationError("; ".join([f"no model fits {asked}; all parties hold: {listed}", *self.disputes]))
        if len({m.name for m in found}) == len(found):
            raise ConfigurationError(f"{len(found)} models fit {asked}: {listed}; ask for one by its name (--name)")
        raise ConfigurationError(
            f"{len(found)} models fit {asked}: {listed}; ask for one by its id (--name ID), or let the owner share it once "
            "more with `mpcache model-owner --replace`, which takes the others of that name away"
        )

    def generate(
        self,
        request: GenerationRequest,
        *,
        on_token: Callable[[int], bool | None] = lambda token: None,
        on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
        on_spent: Callable[[str, Cost], None] = lambda name, cost: None,
        cancellation: Cancellation | None = None,
    ) -> GenerationResult:
        """Generate the tokens that follow a prompt.

        on_token(token): may return False to stop. on_progress(stage, done, total): "prefill" in layers, "tokens" in tokens.
        on_spent(name, cost): what the session has cost a party so far by its ledger, a few times a second, and under this
        client's name the bytes of its own messages; public. cancellation: lets another thread end the generation at once,
        which then raises `Cancelled`. A token on whose way a
        value left its range is neither returned nor given to `on_token`: see `GenerationResult`.

        Raises `ConfigurationError` for a bad request before anything is sent; `PeerError` and what parties report later;
        `WrongOutput` after a session in which shares did not add up to a token.
        """
        agreed = self._agreed(request)
        session = ClientSession(new_id(), self.config, agreed, on_token, on_progress)
        session.on_spent = on_spent
        self._run(session, on_progress, cancellation or Cancellation())
        return GenerationResult(
            tokens=session.tokens,
            costs=session.costs,
            seconds=session.seconds,
            token_seconds=session.token_seconds,
            session=session.id,
            finish_reason=session.finish_reason,
            findings=session.findings,
            dropped_choices=session.dropped_choices,
            logits=session.all_logits(),
            prefix=agreed.prefix,
            own=session.own,
        )

    def encode(
        self,
        request: EncodingRequest,
        *,
        on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
        cancellation: Cancellation | None = None,
    ) -> EncodingResult:
        """Return an encoder's outputs for texts in one session, which this client alone learns. Arguments and errors as in
        `generate`."""
        model = request.model
        reference = model if isinstance(model, ModelReference) else self.find_model(model)
        architecture = reference.encoder
        plan, order = request.plan(architecture), request.order(architecture)
        suite = reference.over_bounds(request.suite)
        manifest = Manifest.of(reference.id, architecture, suite, plan, self.config.generators)
        agreed = architecture, plan, [request.texts[place] for place in order]
        session = EncodingSession(new_id(), self.config, manifest, agreed, on_progress)
        self._run(session, on_progress, cancellation or Cancellation())
        values = None if session.values is None else in_place(order, session.values)
        return EncodingResult(values, plan, session.costs, session.seconds, session.id, session.findings)

    def encode_all(
        self,
        request: EncodingRequest,
        *,
        on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
        cancellation: Cancellation | None = None,
    ) -> list[Tensor]:
        """Return an encoder's output for each text, in as few sessions as take them: none has more tokens than
        this client's own `max_prompt_tokens`. Arguments and errors as in `encode`; raises `RangeExceeded`, too."""
        model = request.model
        reference = model if isinstance(model, ModelReference) else self.find_model(model)
        places: list[int] = []
        values: list[Tensor] = []
        for some in list(request.sessions(reference.encoder, self.config.limits.max_prompt_tokens)):
            part = replace(request, texts=[request.texts[place] for place in some], model=reference)
            values += self.encode(part, on_progress=on_progress, cancellation=cancellation).checked()
            places += some
        return in_place(places, values)

    def _run(self, session: Conversation, on_progress: Callable[[str, int, int], None], cancellation: Cancellation) -> None:
        """Run a session against all parties."""
        with self._connected(lambda reason: on_progress(f"waiting for {reason}", 0, 0), cancellation.check) as channels:
            heartbeats = HeartbeatMonitor(
                self.config.deadline_seconds, self.config.step_seconds, lambda: self.identity.revoked
            )
            try:
                cancellation.watch(session)
                session.run(channels, heartbeats, lambda: self.identity)
            finally:
                heartbeats.stop()

    def _agreed(self, request: GenerationRequest) -> AgreedRequest:
        """Return the request with its model and the manifest that parties get. Raises `ConfigurationError`."""
        if request.params.stop:
            raise ConfigurationError("stop: texts need a tokenizer, which a Client has not; use PrivateModel, or on_token")
        request.plan()  # what is wrong about it is said before anybody is asked
        model = request.model
        reference = model if isinstance(model, ModelReference) else self.find_model(model)
        architecture = reference.architecture
        suite = reference.over_bounds(request.suite)
        prefix, ids = chosen_prefix(reference, suite, request.prefix, request.prompt_ids, request.policy)
        read = request.chunks.of(reference, suite, prefix)
        plan = replace(request, prompt_ids=ids).plan(0 if prefix is None else prefix.tokens, read.plan)
        plan.check(architecture)
        token_indices(ids, architecture.vocabulary)
        if request.draft is not None:
            request.draft.check(architecture)
        manifest = Manifest.of(reference.id, architecture, suite, plan, self.config.generators)
        named = None if prefix is None else PrefixFacts(id=prefix.prefix)
        manifest = manifest.with_prefix(named, [one.prefix for one in read.texts])
        return AgreedRequest(manifest, architecture, ids, request.params, request.draft, prefix, read.places)
