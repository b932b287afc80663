"""Decoders of files that another host, or a person, wrote, and of texts within."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from launch.measure.bench.plan import DEALER
from models.checkpoint import read_architecture
from models.gguf.conversion import GgufModel
from models.policies import parse
from models.policies.registry import POLICIES
from mpc.errors import TapeError
from mpc.random import SEED_BYTES
from parties.config.role_config import load_config
from parties.identity.certificates import check, create_deployment
from parties.identity.trust import Peer
from parties.party.store import StoredFiles, StoredModel
from parties.tapes.file import TapeWriter
from parties.tapes.header import unseal
from parties.tapes.journal import Journal
from parties.wire.manifest import new_id
from parties.wire.model_ranges import unpack_ranges
from protocols.registry import SuiteSpec
from tests.fuzz.samples import SHAPE, Target, configurations, make_manifest, scratch
from tests.models.gguf import gguf_files


@cache
def _deployment() -> Path:
    folder = scratch() / "certificates"
    create_deployment(folder, {"party0": "party", "party1": "party", DEALER: "dealer"}, days=30)
    return folder


@cache
def _header() -> bytes:
    folder, tape = scratch() / "tapes", new_id()
    folder.mkdir()
    facts = {
        "kind": "session",
        "load": new_id(),
        "number": 1,
        "created": 1,
        "program": {key: value for key, value in make_manifest().model_dump().items() if key not in ("model", "prefix")},
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
    folder = scratch() / "journal"
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
        path = scratch() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return read(path)

    return decode


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
    folder = scratch() / "identity"
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


def _suite_options(data: bytes) -> None:
    options = json.loads(data)
    if isinstance(options, dict):
        for suite in ("masked", "crypten"):
            SuiteSpec(suite, options=options)


TARGETS: dict[str, Target] = {
    "tape header": Target(lambda: [_header()], _unseal),
    "tape journal": Target(lambda: [_journal()], _read_journal),
    "policy": Target(
        lambda: [
            *(name.encode() for name in POLICIES),
            b"mpcache:preset=clusters,static=0.5,dynamic=0.2,fine=4",
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
    "role configuration": Target(configurations, _in_file("role.yaml", load_config)),
    "stored model": Target(_stored, lambda data: StoredFiles.model_validate_json(data).facts.shapes(), (ValueError,)),
    "checkpoint": Target(_checkpoints, _in_file("checkpoint/config.json", lambda p: read_architecture(p.parent))),
    "GGUF": Target(_gguf_files, _in_file("checkpoint/m.gguf", _convert)),
    "certificate": Target(lambda: [(_deployment() / f"{n}.crt").read_bytes() for n in ("party0", "party1")], _identity),
}
