"""The model owner: shares a checkpoint among the compute parties, once, and may take it away again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import grpc
import torch
from torch import Tensor

from models.calibration.certainty import beyond_flags
from models.calibration.record import find
from models.checkpoint import Checkpoint, load_checkpoint
from models.weight_limits import check_size
from mpc.errors import CheckpointError, ConfigurationError, RangeError, WireError
from mpc.fixed_point import encode
from mpc.packing import packed_size
from mpc.random import derive_seed, new_seed
from parties.client.model_reference import ModelReference, close_all, connect_all, connected, describe_all
from parties.config.role_config import RoleConfig
from parties.events import log
from parties.identity.trust import Peer, own_identity, parties_of
from parties.transport.connection import key_of
from parties.transport.heartbeat import HeartbeatMonitor
from parties.transport.peer_stream import PeerStream
from parties.transport.session import Session
from parties.wire import wire_pb2 as wire
from parties.wire import wire_pb2_grpc as services
from parties.wire.error_codec import farewell, from_rpc, to_failure
from parties.wire.manifest import check_id, new_id, package_version
from parties.wire.model_ranges import Ranges, pack_ranges
from parties.wire.shares import BITS, WEIGHT_FRACTION_BITS, corrections, pieces

BEAT = wire.ModelMessage(heartbeat=wire.Heartbeat())
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SharingTerms:
    """How a checkpoint is shared. Raises `ConfigurationError` for fraction bits that parties do not store.

    ranges: public bounds by suite, which clients use unless they say otherwise; None: none; "calibration": those of the
    calibration beside the checkpoint, if there is one that fits it.
    """

    fraction_bits: int = 16
    ranges: Ranges | Literal["calibration"] | None = "calibration"

    def __post_init__(self) -> None:
        low, high = WEIGHT_FRACTION_BITS
        if not low <= self.fraction_bits <= high:
            raise ConfigurationError(f"fraction_bits must be between {low} and {high}, got {self.fraction_bits}")


USUAL_TERMS = SharingTerms()


def share_model(
    config: RoleConfig,
    checkpoint_directory: Path | str,
    name: str | None = None,
    terms: SharingTerms = USUAL_TERMS,
    on_progress: Progress = lambda stage, done, total: None,
) -> ModelReference:
    """Share a checkpoint's weights, each as round(w 2^fraction_bits) in Z_2^64, among all parties of `config`.

    All parties but the last receive 256 bits from which they expand their shares, the last the corrections. The model's id
    is random: a hash of the weights would let anybody test a guess at them. Returns once all parties have stored it.

    name: by default the folder's. on_progress: "share model" in bytes of the last party's shares. Raises `CheckpointError`,
    `RangeError` (a weight that is not finite, or too large for the rings: `models.weight_limits`; without bounds, weights
    whose values the usual ones could not flag for certain), `PeerError`, or what a party refuses it with.
    """
    directory = Path(checkpoint_directory)
    checkpoint = load_checkpoint(directory)
    ranges = _ranges(directory, checkpoint, terms)
    credentials = own_identity(config)
    reference = ModelReference(
        new_id(),
        name or directory.resolve().name,
        checkpoint.description,
        config.name,
        tuple(config.party_names),
        ranges,
        tokenizer=_digest(checkpoint),
    )
    channels = connect_all(config, credentials.current, lambda reason: on_progress(f"waiting for {reason}", 0, 0))
    heartbeats = HeartbeatMonitor(config.deadline_seconds, config.step_seconds, lambda: credentials.current.revoked)
    session = Session("", config.name)
    try:
        seeds = [new_seed() for _ in config.parties[1:]]
        for index in [len(channels) - 1, *range(len(channels) - 1)]:
            session.step = f"sharing the model with {config.party_names[index]}"
            stream = _store_call(session, parties_of(config)[index], channels[index])
            heartbeats.add(stream)
            last = index == len(seeds)
            stream.send(wire.ModelMessage(header=_header(reference, terms.fraction_bits, b"" if last else seeds[index])))
            if last:
                _send_weights(stream, checkpoint, seeds, terms.fraction_bits, on_progress)
            _check_receipt(stream, reference)
            stream.close()
    except BaseException as error:
        failure = to_failure(farewell(_without_values(error), config.name, session.step))
        for opened in session.streams:
            opened.close(wire.ModelMessage(failure=failure))
        raise
    finally:
        session.end()
        session.finish_calls()
        heartbeats.stop()
        close_all(channels)
    return reference


def _without_values(error: BaseException) -> BaseException:
    """Return what parties may hear of an error: what a weight reaches is the owner's secret."""
    if isinstance(error, RangeError):
        return RangeError("a weight of the model has no room in the rings; the model owner's own error says which")
    return error


def _ranges(directory: Path, checkpoint: Checkpoint, terms: SharingTerms) -> Ranges | None:
    """Return the bounds to publish. Raises `RangeError` where without any the usual ones leave weights unseen."""
    if terms.ranges == "calibration":
        found = find(directory, checkpoint.description)
        ranges: Ranges | None = None if found is None else found.suites
    else:
        ranges = terms.ranges
    if ranges is None and (text := beyond_flags(checkpoint, {})) is not None:
        raise RangeError(
            f"{directory}: {text}; without a calibration nobody would see it: `mpcache calibrate --model` first"
        )
    return ranges


def _digest(checkpoint: Checkpoint) -> str:
    """Return the digest of the folder's tokenizer, empty where none can be read: clients then bring their own unseen."""
    try:
        return checkpoint.tokenizer.digest
    except CheckpointError as error:
        log.warning("clients' tokenizers are not compared with the model's: %s", error)
        return ""


def _store_call(session: Session, peer: Peer, channel: grpc.Channel) -> PeerStream:
    """Begin to store a model at a party."""
    stream = PeerStream(session, peer.name, BEAT)
    stream.key = partial(key_of, channel)
    call = services.ComputePartyStub(channel).StoreModel(stream.outgoing())
    stream.start(call, call.cancel)
    return stream


def _check_receipt(stream: PeerStream, reference: ModelReference) -> None:
    """Wait for a party's receipt. Raises `WireError` unless it has stored all weights of this model."""
    receipt, weights = stream.receive().receipt, len(reference.description.weight_shapes())
    if receipt.model != reference.id or receipt.weights != weights:
        raise WireError(f"{stream.peer} stored {receipt.weights} weights, expected {weights}")


def owned_models(config: RoleConfig, name: str) -> dict[str, list[str]]:
    """Return ids of this model owner's models of that name, each with the parties that hold it. Raises `PeerError`."""
    with connected(config) as channels:
        return _held(config, channels, name)


def remove_models(config: RoleConfig, models: Sequence[str]) -> None:
    """Take models of this owner away at all parties that hold them, by id. Raises `PermissionRefused`, `PeerError`."""
    with connected(config) as channels:
        holders = _held(config, channels, None)
        for model in models:
            for peer, channel in zip(config.parties, channels, strict=True):
                if peer.name not in holders.get(model, ()):
                    continue
                try:
                    request = wire.RemoveRequest(model=model)
                    services.ComputePartyStub(channel).RemoveModel(request, timeout=config.deadline_seconds)
                except grpc.RpcError as error:
                    raise from_rpc(error, peer.name, f"removing model {model}") from None


def _held(config: RoleConfig, channels: list[grpc.Channel], name: str | None) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for peer, said in zip(config.parties, describe_all(config, channels), strict=True):
        for model in said.models:
            if model.owner == config.name and name in (None, model.name):
                found.setdefault(check_id(model.model, "model", peer.name), []).append(peer.name)
    return found


def _header(reference: ModelReference, fraction_bits: int, seed: bytes) -> wire.ModelHeader:
    return wire.ModelHeader(
        model=reference.id,
        name=reference.name,
        architecture=reference.description.to_json(),
        parties=reference.parties,
        fraction_bits=fraction_bits,
        seed=seed,
        version=package_version(),
        ranges=pack_ranges(reference.ranges),
        tokenizer=reference.tokenizer,
    )


def _send_weights(stream: PeerStream, checkpoint: Checkpoint, seeds: list[bytes], bits: int, on_progress: Progress) -> None:
    shapes = checkpoint.description.weight_shapes()
    done, total = 0, sum(packed_size(math.prod(shape), BITS) for shape in shapes.values())
    for weight, shape in shapes.items():
        on_progress("share model", done, total)
        values = checkpoint.weights[weight]
        if tuple(values.shape) != shape:
            raise CheckpointError(f"weight '{weight}' has shape {list(values.shape)}, expected {list(shape)}")
        check_size(checkpoint.description, weight, values)
        size = packed_size(values.numel(), BITS)
        stream.send(wire.ModelMessage(weight=wire.WeightHeader(name=weight, shape=shape, size=size)))
        own = [derive_seed(seed, "weight", weight) for seed in seeds]
        for chunk in corrections(_encoded(weight, values, bits), own):
            stream.send_bulk(wire.ModelMessage(chunk=wire.Chunk(payload=chunk)))
            done += len(chunk)
            on_progress("share model", done, total)


def _encoded(name: str, values: Tensor, fraction_bits: int) -> Iterator[Tensor]:
    """Yield fixed-point pieces of a weight. Raises `RangeError` naming it for a value that is not finite."""
    for piece in pieces(values):
        try:
            yield encode(piece.to(torch.float64), fraction_bits)
        except RangeError as error:
            raise RangeError(f"weight '{name}': {error}") from None
