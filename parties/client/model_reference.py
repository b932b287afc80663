"""Models as a client or a model owner knows them: what the compute parties say that they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

import parties.wire.wire_pb2_grpc as services
from models.architecture import Architecture
from models.architectures import AnyArchitecture, decoder_of, encoder_of, parse_description
from models.encoder_architecture import EncoderArchitecture
from models.tokenizer.text import TextTokenizer
from mpc.errors import ConfigurationError, ManifestMismatch, PeerLost
from parties.config.role_config import RoleConfig
from parties.events import clean
from parties.identity.certificates import Identity
from parties.identity.trust import own_identity, parties_of
from parties.transport.connection import connect
from parties.wire import wire_pb2 as wire
from parties.wire.error_codec import from_rpc
from parties.wire.held_prefix import RegisteredPrefix, read_prefix
from parties.wire.manifest import PROTOCOL_VERSION, check_digest, check_id
from parties.wire.model_ranges import Ranges, unpack_ranges
from protocols.registry import SuiteSpec


@dataclass(frozen=True)
class ModelReference:
    """A shared model: its random id, its owner's name for it, and what is public of its architecture.

    ranges: its owner's public bounds by suite, options of every session that does not say otherwise; None for a model that
    was never calibrated. prefixes: registered ones, which all parties hold. tokenizer: the digest of its owner's
    (`models.tokenizer.text.TextTokenizer.digest`), empty for a model that was shared without one.
    """

    id: str
    name: str
    description: AnyArchitecture
    owner: str
    parties: tuple[str, ...]
    ranges: Ranges | None = field(default=None, hash=False)
    prefixes: tuple[RegisteredPrefix, ...] = field(default=(), compare=False)
    tokenizer: str = ""

    @property
    def architecture(self) -> Architecture:
        """Return the description of a decoder. Raises `ConfigurationError` for an encoder."""
        return decoder_of(self.description, f"model '{self.name}'")

    @property
    def encoder(self) -> EncoderArchitecture:
        """Return the description of an encoder. Raises `ConfigurationError` for a decoder."""
        return encoder_of(self.description, f"model '{self.name}'")

    def reads_as(self, words: TextTokenizer) -> bool:
        """Whether a tokenizer gives texts the ids that the model was trained on, as far as its owner has said."""
        return self.tokenizer in ("", words.digest)

    def over_bounds(self, suite: SuiteSpec) -> SuiteSpec:
        """Return a suite over the owner's bounds for it: they hold where the suite itself says nothing."""
        return suite.over((self.ranges or {}).get(suite.name, {}))


def check_folder(folder: Path, architecture: AnyArchitecture, words: TextTokenizer, reference: ModelReference) -> None:
    """Raise `ConfigurationError` unless a folder's config.json describes the shared model, and its tokenizer gives the ids
    that the owner's gives."""
    if reference.description != architecture:
        raise ConfigurationError(
            f"{folder} describes another architecture than the shared model '{reference.name}'; "
            "give the folder whose config.json and tokenizer belong to it"
        )
    if not reference.reads_as(words):
        raise ConfigurationError(
            f"the tokenizer in {folder} gives other ids than the one that the model '{reference.name}' was shared with: "
            "answers would be gibberish; give the folder whose tokenizer belongs to it"
        )


def connect_all(
    config: RoleConfig,
    identity: Identity,
    waiting: Callable[[str], None] = lambda reason: None,
    check: Callable[[], None] = lambda: None,
) -> list[grpc.Channel]:
    """Return channels to all compute parties, in order. Raises `PeerLost` with the reason for the first that fails."""
    channels: list[grpc.Channel] = []
    try:
        for peer in parties_of(config):
            channels.append(connect(identity, peer, config.connect_seconds, check, waiting))
    except BaseException:
        close_all(channels)
        raise
    return channels


def close_all(channels: list[grpc.Channel]) -> None:
    """Close all channels."""
    for channel in channels:
        channel.close()


@contextmanager
def connected(config: RoleConfig) -> Iterator[list[grpc.Channel]]:
    """Give channels to all compute parties, in order, and close them in the end. Raises `PeerLost` as `connect_all`."""
    channels = connect_all(config, own_identity(config).current)
    try:
        yield channels
    finally:
        close_all(channels)


def describe_all(config: RoleConfig, channels: list[grpc.Channel], reach: bool = False) -> list[wire.Description]:
    """Return what every party says of itself. Raises `ManifestMismatch` when one speaks another protocol version, and with
    `reach` `PeerLost` naming a peer that a party does not reach."""
    found = []
    for peer, channel in zip(config.parties, channels, strict=True):
        try:
            request = wire.DescribeRequest(reach=reach)
            said = services.ComputePartyStub(channel).Describe(request, timeout=config.deadline_seconds)
        except grpc.RpcError as error:
            raise from_rpc(error, peer.name, "asking for its description") from None
        if said.protocol != PROTOCOL_VERSION:
            raise ManifestMismatch(
                f"{peer.name} speaks protocol {said.protocol} (version {said.version[:40]}), here is protocol "
                f"{PROTOCOL_VERSION}: install the same version everywhere"
            )
        for lost in said.missing:
            reason = f"{peer.name} does not reach it: {clean(lost.reason)[:400]}"
            raise PeerLost(clean(lost.name)[:64], "asking whom the parties reach", reason)
        found.append(said)
    return found


def common_models(descriptions: list[wire.Description]) -> list[ModelReference]:
    """Return the models that all parties hold, with equal architectures, bounds and tokenizers, and of their prefixes those
    that all hold of one session."""
    held = [{m.model: m for m in said.models} for said in descriptions]
    out = []
    for model, first in held[0].items():
        check_id(model, "model", descriptions[0].name)
        if all(model in other and _facts(other[model]) == _facts(first) for other in held[1:]):
            architecture = parse_description(first.architecture)
            ranges = unpack_ranges(first.ranges, descriptions[0].name)
            prefixes = _common_prefixes({said.name: of[model] for said, of in zip(descriptions, held, strict=True)})
            owned = (first.name, architecture, first.owner, tuple(first.parties))
            digest = check_digest(first.tokenizer, descriptions[0].name)
            out.append(ModelReference(model, *owned, ranges, prefixes, digest))
    return out


FACTS = ("architecture", "bounds", "tokenizer")


def _facts(model: wire.HeldModel) -> tuple[str, str, str]:
    """Return what all parties must say alike of a model, in the order of `FACTS`."""
    return model.architecture, model.ranges, model.tokenizer


def disputes(parties: Sequence[str], descriptions: Sequence[wire.Description]) -> list[str]:
    """Return in words what some party says of a model otherwise than the first one does: such a model is in no list."""
    first, *others = ({m.model: m for m in said.models} for said in descriptions)
    found = []
    for party, held in zip(parties[1:], others, strict=True):
        for one in (one for one in first.values() if one.model in held):
            both = zip(FACTS, _facts(one), _facts(held[one.model]), strict=True)
            if wrong := " and ".join(f"another {name}" for name, mine, other in both if mine != other):
                what = f"{clean(one.name)[:64]} ({clean(one.model)[:32]})"
                found.append(f"{party} says {wrong} of {what} than {parties[0]}: one of them is not as its owner shared it")
    return found


def _common_prefixes(held: dict[str, wire.HeldModel]) -> tuple[RegisteredPrefix, ...]:
    """Return the prefixes of a model that all parties hold, of one session. held: by party."""
    said = [[read_prefix(message, party) for message in model.prefixes] for party, model in held.items()]
    return tuple(one for one in said[0] if all(one in others for others in said[1:]))
