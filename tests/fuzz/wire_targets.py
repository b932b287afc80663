"""Decoders of what peers and clients send."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
import yaml
from google.protobuf.message import DecodeError

from models.architecture import Architecture
from models.shapes import SHAPES
from mpc.ledger import Ledger
from mpc.packing import pack, unpack, unpack_words
from mpc.random import SEED_BYTES
from mpc.tape import DealerTape, PartyTape, chunks
from parties.client.outputs import Incoming
from parties.client.sampling_params import SamplingParams
from parties.client.session import AgreedRequest, ClientSession
from parties.config.role_config import make_config
from parties.transport.channel import GrpcChannel
from parties.transport.line import Line
from parties.transport.pieces import Piece
from parties.transport.records import LineCall
from parties.wire import wire_pb2 as wire
from parties.wire.draft import kept_rows
from parties.wire.error_codec import Refusal, from_failure, to_failure
from parties.wire.manifest import Manifest, check_id, new_id
from parties.wire.shares import collect
from protocols.bounds import RANGE_KINDS
from tests.fuzz.samples import SHAPE, Target, configurations, make_manifest


def _manifests() -> list[bytes]:
    return [
        make_manifest().canonical(),
        make_manifest(options={}, decoding="sample", temperature=0.5, policy="full").canonical(),
    ]


def _architectures() -> list[bytes]:
    return [SHAPES[name].to_json().encode() for name in ("tiny", "gpt2", "llama-2-7b")]


def _architecture(data: bytes) -> None:
    found = Architecture.from_json(data)
    if found.layers <= 64:
        found.weight_shapes()


def _messages(kinds: Sequence[Any]) -> Callable[[], list[bytes]]:
    """One of each message that a stream may carry."""
    return lambda: [message.SerializeToString() for message in kinds]


FAILURE = wire.Failure(code="peer-lost", message="m", peer="party1", step="s", reason="r")
CLIENT_MESSAGES = [
    wire.ClientMessage(open=wire.Open(session=new_id(), manifest=make_manifest().canonical())),
    wire.ClientMessage(share=wire.ShareHeader(name="prompt", shape=[9, 97], bits=64, size=6984)),
    wire.ClientMessage(chunk=wire.Chunk(payload=b"x" * 100)),
    wire.ClientMessage(failure=FAILURE),
]
FLAG_BYTES = 8 * len(RANGE_KINDS) * (SHAPE.layers + 1)
OUTPUT = wire.OutputHeader(step=0, shape=[1], bits=64, fraction_bits=0, size=8, flags=bytes(FLAG_BYTES))
PARTY_MESSAGES = [
    *[wire.PartyMessage(output=OUTPUT)] * 2,
    *[wire.PartyMessage(chunk=wire.Chunk(payload=bytes(8)))] * 2,
    *[wire.PartyMessage(progress=wire.Progress(stage="tokens", done=1, total=3))] * 2,
    *[wire.PartyMessage(output=wire.OutputHeader(step=1, shape=[1], bits=13, size=2, flags=b"x" * FLAG_BYTES))] * 2,
    *[wire.PartyMessage(chunk=wire.Chunk(payload=bytes(2)))] * 2,
]
PEER_MESSAGES = [
    wire.PeerMessage(
        hello=wire.Hello(session=new_id(), name="party1", manifest=b"{}", tapes=[new_id()], client="c", storing=new_id())
    ),
    wire.PeerMessage(frame=wire.Frame(sequence=0, size=12, payload=b"x" * 12)),
    wire.PeerMessage(frame=wire.Frame(sequence=1, size=12, payload=b"x" * 7)),
    wire.PeerMessage(frame=wire.Frame(sequence=2, size=12, payload=b"x" * 5)),
    wire.PeerMessage(frame=wire.Frame(sequence=3, size=1, payload=b"x")),
    wire.PeerMessage(choice=wire.TapeChoice(tape=new_id(), digest=bytes(32))),
    wire.PeerMessage(failure=FAILURE),
]


class _Replies:
    """A stream that brings the messages of a case, whatever they are, and then the end."""

    def __init__(self, messages: Iterator[Any]) -> None:
        self.peer = "party1"
        self._messages = messages

    def receive(self) -> Any:
        """The next message."""
        found = next(self._messages, None)
        if found is None:
            raise DecodeError("the end")
        return found


class _Party:
    """A stream to a party that is told something."""

    def __init__(self, name: str) -> None:
        self.peer = name

    def send(self, message: Any) -> None:
        """The client's share of a token, or that it has enough."""


def _parsed(kind: Any, data: bytes) -> Iterator[Any]:
    """Messages of a case: it is cut where a length byte says, each piece is parsed."""
    while data:
        size, data = data[0], data[1:]
        yield kind.FromString(data[:size])
        data = data[size:]


def _framed(messages: Sequence[Any]) -> bytes:
    return b"".join(bytes([len(raw)]) + raw for raw in (m.SerializeToString() for m in messages))


def _frames(data: bytes) -> None:
    channel = GrpcChannel(0, ["party0", "party1"], {1: _Replies(_parsed(wire.PeerMessage, data))}, Ledger())  # type: ignore
    for size in (12, 0, 12, 1):
        assert len(channel.receive(1, size)) == size


def _outputs(data: bytes) -> None:
    """Messages to a client, in turn from each of two parties: outputs with their range flags, progress, the summary."""
    config = make_config(yaml.safe_load(configurations()[1]))
    request = AgreedRequest(make_manifest(new_tokens=3, options={"score": 8}), SHAPE, [1], SamplingParams(3))
    session = ClientSession(new_id(), config, request, lambda token: None, lambda stage, done, total: None)
    streams: list[Any] = [_Party(name) for name in ("party0", "party1")]
    for stream in streams:
        session._parties.append(stream)
        session._incoming[stream] = Incoming(stream.peer, session._flags_shape)
    for number, message in enumerate(_parsed(wire.PartyMessage, data)):
        session._inbox.put(streams[number % 2], message)
        session._next()
    assert all(0 <= token < SHAPE.vocabulary for token in session.tokens)


def _chunks(data: bytes) -> None:
    messages = _parsed(wire.ClientMessage, data)
    header = next(messages).share
    found = collect("share", (4, 3), 64, header.size, "client", _Replies(messages).receive)
    assert found.shape == (4, 3)


def _failure(data: bytes) -> None:
    error = from_failure(wire.Failure.FromString(data), "party1")
    assert str(error).isprintable()
    to_failure(error)


def _open(data: bytes) -> None:
    message = wire.ClientMessage.FromString(data)
    check_id(message.open.session, "session", "client")
    Manifest.parse(message.open.manifest, "client")


class _Stored(Line):
    """A line whose other end has sent some bytes and gone, and which keeps what is sent to it."""

    way = "local"

    def __init__(self, data: bytes = b"") -> None:
        super().__init__(socket.socket())
        self.data = data

    def send(self, header: bytes, content: bytes | memoryview) -> None:
        self.data += header + bytes(content)

    def read(self, size: int) -> bytes:
        found, self.data = self.data[:size], self.data[size:]
        if len(found) < size:
            raise ConnectionError
        return found


def _recorded() -> list[bytes]:
    """What frames, other messages and a refusal are on a line."""
    found = []
    for messages in ([Piece(0, 12, b"x" * 12, 1), *PEER_MESSAGES[4:]], [Piece(1, 9, b"y" * 9, 2)]):
        line = _Stored()
        call = LineCall(line, "party1", wire.PeerMessage.FromString)
        call.write(iter(messages), lambda: None)
        call.refuse(FAILURE.SerializeToString())
        found.append(line.data)
    return found


def _records(data: bytes) -> None:
    for message in LineCall(_Stored(data), "party1", wire.PeerMessage.FromString):
        message.SerializeToString()


def _packed() -> list[bytes]:
    values = torch.arange(12, dtype=torch.int64)
    return [bytes([bits]) + pack(values, bits) for bits in (1, 3, 8, 13, 26, 52, 64)]


def _unpack(data: bytes) -> None:
    bits, body = data[0], data[1:]
    assert int(unpack(body, bits, (12,)).numel()) == 12
    unpack_words(body, bits, (3, 4))


@cache
def _tape() -> tuple[bytes, bytes]:
    """(seed, what a dealer emits to the last party for a few entries)."""
    seeds = [bytes(SEED_BYTES), bytes([1]) * SEED_BYTES]
    out = bytearray()
    tape = DealerTape(seeds, lambda party, piece: out.extend(piece) if party == 1 else None)
    _draw(tape)
    return seeds[1], bytes(out)


def _draw(tape: Any) -> None:
    tape.random("open", (3,), 20)
    tape.dependent("product", (2, 5), lambda: torch.ones(2, 5, dtype=torch.int64), 52)
    tape.common("key", (4,), lambda: torch.ones(4, dtype=torch.int64), 64)


def _read_tape(data: bytes) -> None:
    pieces = iter([data[:40], data[40:]])
    _draw(PartyTape(_tape()[0], True, chunks(pieces)))


TARGETS: dict[str, Target] = {
    "manifest": Target(_manifests, lambda data: Manifest.parse(data, "client")),
    "architecture": Target(_architectures, _architecture),
    "opening": Target(_messages(CLIENT_MESSAGES), _open, (DecodeError,)),
    "frames": Target(lambda: [_framed(PEER_MESSAGES[1:5]), _framed(PEER_MESSAGES[1:3] * 2)], _frames, (DecodeError,)),
    "records beside gRPC": Target(_recorded, _records, (ConnectionError, Refusal)),
    "outputs": Target(lambda: [_framed(PARTY_MESSAGES), _framed(PARTY_MESSAGES[:6])], _outputs, (DecodeError,)),
    "share chunks": Target(
        lambda: [
            _framed([CLIENT_MESSAGES[1], wire.ClientMessage(chunk=wire.Chunk(payload=bytes(96)))]),
            _framed(
                [
                    wire.ClientMessage(share=wire.ShareHeader(size=96)),
                    *(wire.ClientMessage(chunk=wire.Chunk(payload=bytes(n))) for n in (40, 56)),
                ]
            ),
        ],
        _chunks,
        (DecodeError, StopIteration, RuntimeError),
    ),
    "failure": Target(_messages([FAILURE, wire.Failure(code="busy", message="later")]), _failure, (DecodeError,)),
    "rows that stay": Target(
        _messages([wire.TapeRequest(kept=wire.Kept(step=2, rows=3))]),
        lambda data: kept_rows(wire.TapeRequest.FromString(data), 2, 5, "party0"),
        (DecodeError,),
    ),
    "packed ring elements": Target(_packed, _unpack, (IndexError,)),
    "tape": Target(lambda: [_tape()[1]], _read_tape),
}
