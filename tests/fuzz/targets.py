"""Every decoder of bytes from outside: from peers and clients on the wire, and from files that another host wrote.

A target takes one case. It may raise `MpcacheError` (or what `refusals` names); anything else is a bug.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from google.protobuf.message import DecodeError

from launch.measure.bench.plan import DEALER
from models.architecture import Architecture
from models.checkpoint import read_architecture
from models.gguf.conversion import GgufModel
from models.policies import parse
from models.policies.registry import POLICIES
from models.shapes import SHAPES
from mpc.errors import TapeError
from mpc.ledger import Ledger
from mpc.packing import pack, unpack, unpack_words
from mpc.random import SEED_BYTES
from mpc.tape import DealerTape, PartyTape, chunks
from parties.client.sampling_params import SamplingParams
from parties.client.session import AgreedRequest, ClientSession, _Incoming
from parties.config.role_config import load_config, make_config
from parties.identity.certificates import check, create_deployment
from parties.identity.trust import Peer
from parties.party.store import StoredFiles, StoredModel
from parties.tapes.file import TapeWriter
from parties.tapes.header import unseal
from parties.tapes.journal import Journal
from parties.transport.channel import GrpcChannel
from parties.wire import wire_pb2 as wire
from parties.wire.error_codec import from_failure, to_failure
from parties.wire.manifest import PROTOCOL_VERSION, Manifest, architecture_hash, check_id, new_id, package_version
from parties.wire.model_ranges import unpack_ranges
from parties.wire.shares import collect
from protocols.registry import SuiteSpec
from protocols.suite import RANGE_KINDS
from tests.models.gguf import gguf_files

SHAPE = SHAPES["tiny"]


@dataclass(frozen=True)
class Target:
    """A decoder. samples: valid inputs; decode: what is called with a case; refusals: errors beside `MpcacheError`."""

    samples: Callable[[], Sequence[bytes]]
    decode: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...] = ()


def _manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "protocol": PROTOCOL_VERSION,
        "version": package_version(),
        "model": new_id(),
        "architecture": architecture_hash(SHAPE),
        "suite": "masked",
        "fraction_bits": 14,
        "options": {"score": 8, "crypten_own": True, "x": 0.5},
        "prompt_tokens": 9,
        "new_tokens": 3,
        "decoding": "greedy",
        "temperature": None,
        "policy": "mpcache:static=0.5",
        "parties": ["party0", "party1"],
    }
    return Manifest(**{**values, **changes})


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="mpcache-fuzz-"))


# ---- the wire --------------------------------------------------------------------------------------------------------
def _manifests() -> list[bytes]:
    return [_manifest().canonical(), _manifest(options={}, decoding="sample", temperature=0.5, policy="full").canonical()]


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
    wire.ClientMessage(open=wire.Open(session=new_id(), manifest=_manifest().canonical())),
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
    """A link that brings the messages of a case, whatever they are, and then the end."""

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
    """A link to a party that is told something."""

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
    config = make_config(yaml.safe_load(_configurations()[1]))
    request = AgreedRequest(_manifest(new_tokens=3), SHAPE, [1], SamplingParams(3))
    session = ClientSession(new_id(), config, request, lambda token: None, lambda stage, done, total: None)
    links: list[Any] = [_Party(name) for name in ("party0", "party1")]
    for link in links:
        session._parties.append(link)
        session._incoming[link] = _Incoming()
    for number, message in enumerate(_parsed(wire.PartyMessage, data)):
        session._inbox.put((links[number % 2], message))
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


# ---- files -----------------------------------------------------------------------------------------------------------
@cache
def _deployment() -> Path:
    folder = _folder() / "certificates"
    create_deployment(folder, {"party0": "party", "party1": "party", DEALER: "dealer"}, days=30)
    return folder


@cache
def _header() -> bytes:
    folder, tape = _folder() / "tapes", new_id()
    folder.mkdir()
    facts = {
        "kind": "session",
        "load": new_id(),
        "number": 1,
        "created": 1,
        "program": {key: value for key, value in _manifest().model_dump().items() if key != "model"},
        "party": "party0",
        "index": 0,
    }
    writer = TapeWriter(folder, tape, bytes(SEED_BYTES))
    writer.append(b"x" * 1000)
    writer.finish(check(_deployment(), DEALER), **facts)
    return (folder / f"{tape}.json").read_bytes()


def _unseal(data: bytes) -> None:
    if unseal(data, Peer(DEALER, "dealer"), check(_deployment(), "party0")) is None:
        raise TapeError("damaged")


def _journal_file() -> Path:
    folder = _folder() / "journal"
    folder.mkdir(exist_ok=True)
    return folder / "journal"


@cache
def _journal() -> bytes:
    path = _journal_file()
    path.unlink(missing_ok=True)
    with Journal(path, "party0").locked() as records:
        for _ in range(3):
            records.take(new_id(), new_id(), new_id(), new_id())
    return path.read_bytes()


def _read_journal(data: bytes) -> None:
    path = _journal_file()
    path.write_bytes(data)
    with Journal(path, "party0").locked() as records:
        records.session(new_id())


def _in_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def decode(data: bytes) -> object:
        path = _folder() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return read(path)

    return decode


def _configurations() -> list[bytes]:
    return [
        b"role: party\nname: party0\nlisten: 0.0.0.0:7000\ncertificates: certificates\nstore: shares\nparties:\n"
        b"  - {name: party0, address: 'a:1'}\n  - {name: party1, address: 'b:2'}\ndealer: {name: dealer, address: 'c:3'}\n"
        b"clients: [client]\nmodel_owners: [model-owner]\nlimits: {max_sessions: 3}\n",
        b"role: client\nname: client\ncertificates: x\nparties: [{name: p, address: 'a:1'}, {name: q, address: 'b:2'}]\n",
    ]


def _stored() -> list[bytes]:
    facts = StoredModel(
        model=new_id(),
        name="m",
        architecture=SHAPE.to_json(),
        owner="o",
        parties=["a", "b"],
        index=0,
        fraction_bits=16,
        seeded=True,
        nonce=new_id(),
    )
    return [StoredFiles.of(facts, {"seed": "0" * 64}).model_dump_json().encode()]


def _checkpoints() -> list[bytes]:
    folder = Path(__file__).parents[2] / "models" / "recall"
    return [(folder / family / "config.json").read_bytes() for family in ("gpt2", "llama")]


def _identity(data: bytes) -> None:
    folder = _folder() / "identity"
    folder.mkdir(exist_ok=True)
    for name in ("authority.crt", "party0.key"):
        (folder / name).write_bytes((_deployment() / name).read_bytes())
        (folder / name).chmod(0o600)
    (folder / "party0.crt").write_bytes(data)
    check(folder, "party0")


@cache
def _gguf_files() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for name, words in (("llama", gguf_files.byte_level()), ("gpt2", gguf_files.byte_level(pre=None))):
            model = gguf_files.build(name, len(words["tokens"]), small=True)
            found.append(gguf_files.write(Path(folder) / "m.gguf", model, words, ("Q4_0", "F16")).read_bytes())
        return found


def _convert(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        GgufModel.open(path).write(Path(folder))


TARGETS: dict[str, Target] = {
    "manifest": Target(_manifests, lambda data: Manifest.parse(data, "client")),
    "architecture": Target(_architectures, _architecture),
    "opening": Target(_messages(CLIENT_MESSAGES), _open, (DecodeError,)),
    "frames": Target(lambda: [_framed(PEER_MESSAGES[1:5]), _framed(PEER_MESSAGES[1:3] * 2)], _frames, (DecodeError,)),
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
    "packed ring elements": Target(_packed, _unpack, (IndexError,)),
    "tape": Target(lambda: [_tape()[1]], _read_tape),
    "tape header": Target(lambda: [_header()], _unseal),
    "tape journal": Target(lambda: [_journal()], _read_journal),
    "policy": Target(
        lambda: [
            *(name.encode() for name in POLICIES),
            b"mpcache:static=0.5,dynamic=0.2,fine=4",
            b"full@0-1;h2o:budget=0.2",
            b"shared:layers=2|quest",
        ],
        lambda data: parse(data.decode("utf-8", "replace")),
    ),
    "suite options": Target(
        lambda: [b'{"score": 8}', b'{"crypten_own": true}', b"{}"],
        lambda data: _suite_options(data),
        (ValueError, RecursionError),
    ),
    "model ranges": Target(
        lambda: [b'{"masked":{"residual":"8*4 15","score":8}}', b'{"crypten":{}}', b"{}"],
        lambda data: unpack_ranges(data.decode("utf-8", "replace"), "owner"),
    ),
    "role configuration": Target(_configurations, _in_file("role.yaml", load_config)),
    "stored model": Target(_stored, lambda data: StoredFiles.model_validate_json(data).facts.shapes(), (ValueError,)),
    "checkpoint": Target(_checkpoints, _in_file("checkpoint/config.json", lambda p: read_architecture(p.parent))),
    "GGUF": Target(_gguf_files, _in_file("checkpoint/m.gguf", _convert)),
    "certificate": Target(lambda: [(_deployment() / f"{n}.crt").read_bytes() for n in ("party0", "party1")], _identity),
}


def _suite_options(data: bytes) -> None:
    options = json.loads(data)
    if isinstance(options, dict):
        for suite in ("masked", "crypten"):
            SuiteSpec(suite, options=options)
