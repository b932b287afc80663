"""The model owner registers prefixes: texts whose keys and values the parties compute once, for clients' sessions to begin
behind. A text is public, and its token ids are known to all parties and clients, or secret, and shared as a prompt is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import grpc
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from models.generation import token_indices
from models.policies import parse
from models.prefix_scores import scores_of
from models.prefixes import PrefixPlan
from models.tokenizer.text import TextTokenizer
from mpc.errors import ConfigurationError, WireError
from parties.client.conversation import Conversation
from parties.client.model_reference import ModelReference, close_all, common_models, connect_all, connected, describe_all
from parties.client.outputs import Incoming
from parties.client.prefixes import AUTO, OFF
from parties.config.role_config import RoleConfig
from parties.errors import RangeExceeded
from parties.identity.trust import own_identity
from parties.transport.heartbeat import HeartbeatMonitor
from parties.transport.peer_stream import PeerStream
from parties.wire import wire_pb2 as wire
from parties.wire import wire_pb2_grpc as services
from parties.wire.draft import kept
from parties.wire.error_codec import from_rpc
from parties.wire.held_prefix import RegisteredPrefix
from parties.wire.manifest import Manifest, PrefixFacts, PrefixName, new_id, packed_ids
from protocols.expert_ways import DENSE
from protocols.range_findings import RangeFinding
from protocols.registry import USUAL, SuiteSpec

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PrefixText:
    """What is registered. ids: the text's tokens. secret: they are shared among the parties, and nobody else learns them;
    else they are public. suite: what computes it, and sessions behind it; its options go over the model's bounds. words:
    the tokenizer that gave the ids, where one did. policy: of sessions that begin with scores (`models.prefix_scores`)."""

    name: str
    ids: Sequence[int] = field(repr=False)
    secret: bool = False
    suite: SuiteSpec = USUAL
    words: TextTokenizer | None = field(default=None, repr=False)
    policy: str = "full"

    def check(self) -> None:
        """Raise `ConfigurationError` for a name that no prefix can have, or an empty text."""
        try:
            TypeAdapter(PrefixName).validate_python(self.name)
        except ValidationError:
            raise ConfigurationError(
                f"name '{self.name[:64]}' is not a prefix's: 1 to 64 letters, digits, '-', '_' or '.', and the first is a "
                "letter or a digit"
            ) from None
        if self.name in (AUTO, OFF):
            meaning = "whichever prefix a prompt begins with" if self.name == AUTO else "no prefix"
            raise ConfigurationError(f"name '{self.name}' means {meaning}; choose another one")
        if not self.ids:
            raise ConfigurationError("the prefix is empty; give at least one token")

    def split(self, tokens: int) -> list[PrefixText]:
        """Return it in chunks of so many tokens each, named NAME.1 and so on: the last one ends where the text does, and
        begins within the one before where that is no multiple. Raises `ConfigurationError` for a text that is shorter.

        >>> [(one.name, list(one.ids)) for one in PrefixText("offer", [5, 6, 7, 8, 9]).split(2)]
        [('offer.1', [5, 6]), ('offer.2', [7, 8]), ('offer.3', [8, 9])]
        """
        last = len(self.ids) - tokens
        if tokens < 1 or last < 0:
            raise ConfigurationError(f"split = {tokens}: a chunk has 1 to {len(self.ids)} tokens, as many as the text")
        starts = [*range(0, last, tokens), last]
        return [
            replace(self, name=f"{self.name}.{number}", ids=self.ids[start : start + tokens])
            for number, start in enumerate(starts, 1)
        ]


def add_prefix(
    config: RoleConfig, model: str | None, text: PrefixText, on_progress: Progress = lambda stage, done, total: None
) -> RegisteredPrefix:
    """Register a prefix of a model of this owner's, by name or id; None: the only one. Returns once all parties have it.

    Raises `ConfigurationError` for what cannot be, `RangeExceeded` where a value left its range: nothing is kept then; what
    parties report otherwise.
    """
    text.check()
    identity = own_identity(config)
    channels = connect_all(config, identity.current, lambda reason: on_progress(f"waiting for {reason}", 0, 0))
    heartbeats = HeartbeatMonitor(config.deadline_seconds, config.step_seconds, lambda: identity.current.revoked)
    try:
        reference = _own(config, common_models(describe_all(config, channels)), model)
        if text.words is not None and not reference.reads_as(text.words):
            raise ConfigurationError(
                f"the prefix's tokenizer gives other ids than the one that the model '{reference.name}' was shared with; "
                "give the model's own"
            )
        session = RegisteringSession(config, reference, text, on_progress)
        session.run(channels, heartbeats, lambda: identity.current)
    finally:
        heartbeats.stop()
        close_all(channels)
    if session.findings:
        raise RangeExceeded(session.findings)
    return session.registered()


def prefixes(config: RoleConfig, model: str | None = None) -> dict[ModelReference, tuple[RegisteredPrefix, ...]]:
    """Return the prefixes that all parties hold, of the models that this role may know of, or of one by name or id."""
    with connected(config) as channels:
        held = common_models(describe_all(config, channels))
    return {one: one.prefixes for one in held if model in (None, one.id, one.name)}


def remove_prefix(config: RoleConfig, model: str | None, name: str) -> list[str]:
    """Take a prefix of a model of this owner's away at all parties that hold one of that name or id; NAME.* stands for all
    chunks of a text. Returns the ids. Raises `ConfigurationError` where none does, `PermissionRefused`, `PeerError`."""

    def asked(one: wire.HeldPrefix) -> bool:
        chunk = one.name.removeprefix(name[:-1]) if name.endswith(".*") and one.name.startswith(name[:-1]) else ""
        return name in (one.name, one.prefix) or chunk.isdecimal()

    reference, removed = _taken_away(config, model, lambda one, reference: asked(one))
    if not removed:
        listed = ", ".join(one.name for one in reference.prefixes) or "none"
        raise ConfigurationError(f"no party holds a prefix '{name}' of model '{reference.name}'; there are: {listed}")
    return list(dict.fromkeys(one.prefix for _, one in removed))


def remove_strays(config: RoleConfig, model: str | None) -> list[tuple[str, str]]:
    """Take away prefixes of a model of this owner's that some parties hold and others do not, as after a crash of one while
    they were stored; returns (party, name) of each. Nobody may be registering one meanwhile. Raises as `remove_prefix`."""
    _, removed = _taken_away(
        config, model, lambda one, reference: one.prefix not in {common.prefix for common in reference.prefixes}
    )
    return [(party, one.name) for party, one in removed]


def _taken_away(
    config: RoleConfig, model: str | None, chosen: Callable[[wire.HeldPrefix, ModelReference], bool]
) -> tuple[ModelReference, list[tuple[str, wire.HeldPrefix]]]:
    """Take the prefixes that are chosen away at all parties that hold them; returns the model, and parties with prefixes."""
    removed: list[tuple[str, wire.HeldPrefix]] = []
    with connected(config) as channels:
        said = describe_all(config, channels)
        reference = _own(config, common_models(said), model)
        for peer, channel, party in zip(config.parties, channels, said, strict=True):
            held = next(one for one in party.models if one.model == reference.id)
            for prefix in (one for one in held.prefixes if chosen(one, reference)):
                request = wire.RemoveRequest(model=reference.id, prefix=prefix.prefix)
                try:
                    services.ComputePartyStub(channel).RemovePrefix(request, timeout=config.deadline_seconds)
                except grpc.RpcError as error:
                    raise from_rpc(error, peer.name, f"removing prefix {prefix.name}") from None
                removed.append((peer.name, prefix))
    return reference, removed


def _own(config: RoleConfig, held: list[ModelReference], model: str | None) -> ModelReference:
    """Return the owner's model of a name or id. Raises `ConfigurationError` listing what all parties hold of its."""
    if config.role != "model-owner":
        raise ConfigurationError(
            f"configuration is for role '{config.role}'; a model's prefixes are its owner's to register"
        )
    own = [one for one in held if one.owner == config.name]
    found = [one for one in own if model in (None, one.id, one.name)]
    if len(found) == 1:
        return found[0]
    listed = "; ".join(f"{one.name} ({one.id})" for one in own) or "none: share one first, `mpcache model-owner`"
    if model is None and found:
        raise ConfigurationError(f"'{config.name}' has several models: {listed}; say which by --model and its name or id")
    asked = "" if model is None else f" fit '{model[:64]}'"
    raise ConfigurationError(f"{len(found)} models of '{config.name}'{asked}; all parties hold: {listed}")


class RegisteringSession(Conversation):
    """Registers a prefix; then it is stored at all parties, or `findings` has what left its range and no party keeps it."""

    def __init__(self, config: RoleConfig, reference: ModelReference, text: PrefixText, on_progress: Progress) -> None:
        architecture, plan = reference.architecture, PrefixPlan(len(text.ids), text.policy)
        plan.check(architecture)
        self._ids = token_indices(text.ids, architecture.vocabulary)
        self._text = b"" if text.secret else packed_ids(text.ids)
        suite = reference.over_bounds(text.suite)
        if architecture.experts is not None:
            suite = replace(suite, options={**suite.options, "experts": DENSE})
        digest = hashlib.sha256(self._text).hexdigest() if self._text else ""
        manifest = Manifest.of(reference.id, architecture, suite, plan, config.generators)
        manifest = manifest.with_prefix(PrefixFacts(id=new_id(), name=text.name, text=digest))
        super().__init__(new_id(), config, manifest, architecture.layers, on_progress)
        self.findings: tuple[RangeFinding, ...] = ()
        self._given = text

    def registered(self) -> RegisteredPrefix:
        """Return what was registered."""
        manifest, prefix = self.manifest, self.manifest.prefix
        assert prefix is not None
        ids = None if self._given.secret else tuple(self._given.ids)
        facts = (manifest.prompt_tokens, manifest.suite, manifest.fraction_bits, manifest.row_options, self.id, ids)
        return RegisteredPrefix(prefix.id, self._given.name, *facts, scores=scores_of(parse(manifest.policy)))

    def _opening(self) -> wire.Open:
        opening = super()._opening()
        opening.text = self._text
        return opening

    def _upload(self) -> None:
        if not self._text:
            super()._upload()

    def _prompt(self) -> Tensor:
        return self._ids.to(torch.int64)

    def _check_due(self, stream: PeerStream, state: Incoming, header: wire.OutputHeader) -> None:
        if state.step:
            raise WireError(f"{stream.peer} sent output {header.step}, one was asked for")

    def _shape_due(self, step: int) -> tuple[int, ...]:
        return (1,)

    def _outputs_over(self, state: Incoming) -> bool:
        return state.step == 1

    def _take(self, step: int, value: Tensor, flags: Sequence[bytes]) -> None:
        """Let the parties keep the rows, unless a value left its range on the way to them."""
        self.findings = self._left_range(step, flags)
        for stream in self._parties:
            said = {"finish": wire.Finish()} if self.findings else {"kept": kept(0, self.manifest.prompt_tokens)}
            stream.send(wire.ClientMessage(**said))
