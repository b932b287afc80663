"""What a role learns of its peers by asking: who they are, how far and how fast, what is wrong, and what to do about it.

Nothing here waits for a peer to come up: a peer answers within seconds, or the reason why not is the answer.
"""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from queue import SimpleQueue
from typing import Any

import grpc

from mpc.errors import ConfigurationError, MpcacheError, PermissionRefused
from parties.config.role_config import RoleConfig
from parties.events import clean
from parties.identity.certificate_watcher import ends_soon
from parties.identity.certificates import Identity
from parties.identity.trust import INSECURE, Peer, dealer_of, parties_of
from parties.names import Role
from parties.status.probing import PIECE_BYTES, PROBE_BYTES
from parties.status.settings import Settings
from parties.transport.connection import Unreachable, look, open_channel, probe
from parties.wire import wire_pb2 as wire
from parties.wire import wire_pb2_grpc as services
from parties.wire.error_codec import from_rpc
from parties.wire.manifest import PROTOCOL_VERSION, package_version

ANSWER_SECONDS = 5.0
REACH_SECONDS = 15.0  # of a peer that looks for its own peers first
PROBE_SECONDS = 30.0
PINGS = 7
PIN = "run `mpcache certs fingerprint` there, and `mpcache certs pin --config {here}.yaml {name}=FINGERPRINT` here"
SKEW_SECONDS = 60.0  # certificates begin five minutes before they are made
WARM_UP_BYTES = 1 << 18
RATE_SECONDS = 5.0  # how long measuring one direction may take


@dataclass(frozen=True)
class Trouble:
    """Something wrong, and what to do about it. minor: worth knowing, but sessions can work."""

    reason: str
    remedy: str
    minor: bool = False

    def __str__(self) -> str:
        return f"{self.reason}: {self.remedy}"


@dataclass
class PeerStatus:
    """What a peer said and what was measured; None where it is not known. Rates in bytes a second, times in seconds.

    calibrated: whether the owner gave bounds with a model. skew: how far its clock is ahead. upload: from here to the peer.
    """

    name: str
    role: Role
    address: str
    version: str | None = None
    protocol: int | None = None
    models: dict[str, str] = field(default_factory=dict)
    calibrated: dict[str, bool] = field(default_factory=dict)
    settings: Settings | None = None
    expires: datetime | None = None
    skew: float | None = None
    round_trip: float | None = None
    upload: float | None = None
    download: float | None = None
    troubles: list[Trouble] = field(default_factory=list)

    @property
    def answers(self) -> bool:
        """Whether it said who it is."""
        return self.version is not None


def asked(config: RoleConfig) -> list[Peer]:
    """Return all other roles that this one has an address of. A party with tapes of its own needs no running dealer."""
    found = [peer for peer in parties_of(config) if peer.name != config.name]
    dealer = dealer_of(config)
    if dealer is not None and dealer.name != config.name and config.tapes is None:
        found.append(dealer)
    return found


def ask(config: RoleConfig, identity: Identity, probe_bytes: int = 4 << 20) -> list[PeerStatus]:
    """Ask every peer of `config`; probe_bytes: how many bytes to send each, and have back, to measure (0: none).

    Raises `ConfigurationError` when `probe_bytes` is more than servers accept. What is wrong with a peer is in the answer.
    """
    most = PROBE_BYTES - WARM_UP_BYTES
    if not 0 <= probe_bytes <= most:
        raise ConfigurationError(f"a probe may send 0 to {most} bytes, got {probe_bytes}")
    peers = asked(config)
    with ThreadPoolExecutor(max(1, len(peers))) as pool:
        found = list(pool.map(lambda peer: ask_one(config, identity, peer, reach=True), peers))
    for peer, status in zip(peers, found, strict=True):  # one after the other: they would take bandwidth from each other
        if status.answers and not any(isinstance(t, _Refused) for t in status.troubles):
            _measure(identity, peer, status, probe_bytes)
    _compare_models(found)
    return found


def doubts(config: RoleConfig, identity: Identity) -> Iterator[Trouble]:
    """Yield what makes this role itself doubtful."""
    if config.insecure_trust_authority:
        reason, _, remedy = INSECURE.partition("; ")
        yield Trouble(f"{config.name}: {reason}", remedy, minor=True)
    if identity.fingerprint in identity.revoked:
        yield Trouble(f"the key of {config.name} itself is revoked", "make a new one: `mpcache certs renew`")
    listed = next((peer for peer in config.parties if peer.name == config.name), None)
    if listed is not None and listed.fingerprint and identity.fingerprint not in listed.fingerprint:
        reason = f"the fingerprint of {config.name} in its own file is not the one of its key"
        yield Trouble(reason, f"others may have the wrong one too: `mpcache certs fingerprint --config {config.name}.yaml`")


class _Refused(Trouble):
    """The peer answers, but not to this role."""


def ask_one(config: RoleConfig, identity: Identity, peer: Peer, reach: bool = False) -> PeerStatus:
    """Return who is at a peer's address, and does it fit; measures nothing. reach: a party says whom it does not reach."""
    status = PeerStatus(peer.name, peer.role, peer.address)
    certificate = look(identity, peer)
    if isinstance(certificate, Unreachable):
        status.troubles.append(Trouble(certificate.reason, certificate.remedy))
        return status
    with open_channel(identity, peer) as channel:
        try:
            seconds = REACH_SECONDS if reach else ANSWER_SECONDS
            said = _stub(channel, peer.role).Describe(wire.DescribeRequest(reach=reach), timeout=seconds)
        except grpc.RpcError as error:
            status.troubles.append(_why(identity, peer, error))
            return status
    status.version, status.protocol = clean(said.version)[:40], said.protocol
    status.models = {clean(m.model)[:32]: clean(m.name)[:200] for m in said.models}
    status.calibrated = {clean(m.model)[:32]: bool(m.ranges) for m in said.models}
    status.expires = certificate.not_valid_after_utc
    if ends_soon(certificate.not_valid_before_utc, status.expires):
        reason = f"the certificate of {peer.name} ends on {status.expires:%Y-%m-%d %H:%M} UTC"
        status.troubles.append(Trouble(reason, "renew it there with `mpcache certs renew --keep-key`", minor=True))
    if peer.pins is None:
        reason = f"{peer.name} is taken for whom the authority certifies: {config.name} knows no fingerprint of its key"
        status.troubles.append(Trouble(reason, PIN.format(name=peer.name, here=config.name), minor=True))
    for one in said.missing:
        status.troubles.append(Trouble(f"{peer.name} does not reach {clean(one.name)[:64]}", clean(one.reason)[:400]))
    status.troubles += _judge(config, status, clean(said.role)[:20], said.settings)
    return status


def _stub(channel: grpc.Channel, role: Role) -> Any:
    return services.DealerStub(channel) if role == "dealer" else services.ComputePartyStub(channel)


def _why(identity: Identity, peer: Peer, error: Any) -> Trouble:
    """Return what a failed call means."""
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        found = probe(identity, peer)
        return Trouble(found.reason, found.remedy)
    if error.code() == grpc.StatusCode.UNIMPLEMENTED:
        return Trouble(
            f"{peer.name} does not answer as a {peer.role}", "correct its address, or install the same version everywhere"
        )
    meaning = from_rpc(error, peer.name, "asking who it is")
    if isinstance(meaning, PermissionRefused):
        remedy = (
            f"if it belongs there, write '{identity.name}' and its fingerprint into the file of {peer.name}, and restart it"
        )
        return _Refused(str(meaning), remedy)
    return Trouble(str(meaning), f"see the log of {peer.name}")


def _judge(config: RoleConfig, status: PeerStatus, role: str, settings: str) -> Iterator[Trouble]:
    """Yield what does not fit between this role and the peer."""
    here, there, own = config.name, status.name, package_version()
    if status.protocol != PROTOCOL_VERSION or status.version != own:
        yield Trouble(
            f"{there} runs version {status.version} (protocol {status.protocol}), "
            f"{here} runs version {own} (protocol {PROTOCOL_VERSION})",
            "install the same version everywhere",
        )
    if role != status.role:
        yield Trouble(f"{there} is a {role or 'nobody'}, not a {status.role}", "correct its address in the configuration")
    try:
        status.settings = Settings.parse(settings, there)
    except MpcacheError as error:
        if status.version == own:
            yield Trouble(str(error), "install the same version everywhere")
        return
    for key, (mine, theirs) in Settings.of(config).differences(status.settings).items():
        if key == "dealer" and mine is None:
            continue
        values = f"{here} has {key} {_short(mine)}, {there} has {_short(theirs)}"
        if key in ("parties", "dealer"):
            yield Trouble(values, "write the same in both files, in the same order")
        elif config.role in ("party", "dealer"):
            yield Trouble(values, "write the same in both files, unless it is meant so", minor=True)


def _short(value: object) -> str:
    return ", ".join(clean(str(item)) for item in value) if isinstance(value, list) else clean(str(value))


def _compare_models(found: list[PeerStatus]) -> None:
    """Note the models that some parties hold and others do not."""
    parties = [status for status in found if status.role == "party" and status.answers]
    for id, name in {id: name for status in parties for id, name in status.models.items()}.items():
        for status in parties:
            if id not in status.models:
                reason = f"{status.name} does not hold model '{name}' ({id[:8]}), which another party holds"
                remedy = "its owner must share it again; clients do not see it"
                status.troubles.append(Trouble(reason, remedy, minor=True))


# ---- how far and how fast ------------------------------------------------------------------------------------------------
def _measure(identity: Identity, peer: Peer, status: PeerStatus, size: int) -> None:
    """Fill in clock, round trip and, unless `size` is 0, the rates in both directions."""
    sent: SimpleQueue[wire.ProbeRequest | None] = SimpleQueue()
    with open_channel(identity, peer) as channel:
        try:
            replies = _stub(channel, status.role).Probe(iter(sent.get, None), timeout=PROBE_SECONDS)
            _measure_clock(sent, replies, status)
            if size:
                first = min(size, WARM_UP_BYTES)
                up, down = _send_and_back(sent, replies, first)
                size = min(size, int(RATE_SECONDS * first / max(up, down)))
                if size > first:
                    up, down = _send_and_back(sent, replies, size)
                else:
                    size = first
                pause = status.round_trip or 0.0
                status.upload, status.download = size / max(up - pause, 1e-6), size / max(down, 1e-6)
        except grpc.RpcError as error:
            meaning = from_rpc(error, status.name, "measuring the connection")
            slow = error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            reason = f"{status.name} took more than {PROBE_SECONDS:g} s for {size} bytes" if slow else str(meaning)
            status.troubles.append(Trouble(reason, "ask with a smaller --probe-bytes, or check the network", minor=slow))
        finally:
            sent.put(None)
    if status.skew is not None and abs(status.skew) > SKEW_SECONDS:
        way = "ahead of" if status.skew > 0 else "behind"
        reason = f"the clock of {status.name} is {abs(status.skew):.0f} s {way} the one here"
        status.troubles.append(Trouble(reason, "set both by NTP (`timedatectl set-ntp true`)"))


def _measure_clock(sent: SimpleQueue[wire.ProbeRequest | None], replies: Iterator[Any], status: PeerStatus) -> None:
    trips: list[tuple[float, float]] = []
    for number in range(PINGS + 1):
        begin, wall = time.perf_counter(), time.time()
        sent.put(wire.ProbeRequest(ping=number))
        clock = next(replies).clock
        took = time.perf_counter() - begin
        if number:  # the first one opens the connection
            trips.append((took, clock - (wall + took / 2)))
    status.round_trip = statistics.median(took for took, _ in trips)
    status.skew = min(trips)[1]


def _send_and_back(sent: SimpleQueue[wire.ProbeRequest | None], replies: Iterator[Any], size: int) -> tuple[float, float]:
    """Return seconds until the peer said that it has `size` bytes, and until they were all back."""
    piece = secrets.token_bytes(min(PIECE_BYTES, size))
    begin = time.perf_counter()
    for start in range(0, size, PIECE_BYTES):
        sent.put(wire.ProbeRequest(payload=piece[: min(PIECE_BYTES, size - start)]))
    sent.put(wire.ProbeRequest(back=1))
    next(replies)
    there = time.perf_counter()
    left = size
    while left > 0:
        left -= len(next(replies).payload)
    return there - begin, time.perf_counter() - there
