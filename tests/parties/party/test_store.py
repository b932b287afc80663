from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

import parties.party.stored_folder as module
from models.checkpoint import CanonicalWeights, load_checkpoint
from mpc.errors import (
    CheckpointError,
    ConfigurationError,
    EnvironmentProblem,
    ManifestMismatch,
    MpcacheError,
    RangeError,
    WireError,
)
from mpc.random import Prg, new_seed
from parties.model_owner import model_owner
from parties.model_owner.model_owner import SharingTerms, share_model
from parties.party.compute_party import ComputePartyServer
from parties.party.store import ModelStore, StoredModel
from parties.transport.peer_stream import PeerStream
from parties.wire import wire_pb2 as wire
from parties.wire.manifest import new_id
from parties.wire.shares import collect, corrections, expand, pieces
from tests.parties.conftest import Running
from tests.parties.deployment import Deployment
from tests.parties.test_faults import idle, works
from tests.parties.toy import Toy


def stores(deployment: Deployment) -> list[ModelStore]:
    return [ModelStore(deployment.folder / f"store-{name}") for name in deployment.names]


@pytest.mark.parametrize("which", ["two", "three"])
def test_stored_shares_add_up_to_the_weights(which: str, request: pytest.FixtureRequest, checkpoint: Path) -> None:
    running: Running = request.getfixturevalue(which)
    found = stores(running.deployment)
    facts = [next(m for m in store.models() if m.model == running.model.id) for store in found]
    assert [f.seeded for f in facts] == [True] * (len(facts) - 1) + [False]
    weights = load_checkpoint(checkpoint).weights
    for name, shape in running.model.architecture.weight_shapes().items():
        shares = [store.share(fact, name) for store, fact in zip(found, facts, strict=True)]
        assert all(tuple(s.shape) == shape for s in shares)
        total = torch.stack(shares).sum(0)
        assert torch.equal(total, torch.round(weights[name].double() * 2**16).long())
        if total.numel() > 100:  # a share alone looks uniform
            assert shares[-1].double().abs().mean() > 2**61


def test_files_are_private(two: Running) -> None:
    for store in stores(two.deployment):
        assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
        for path in store.root.rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
        assert not list(store.root.glob(".incoming-*"))


def test_sharing_twice_gives_unrelated_models(two: Running, checkpoint: Path) -> None:
    again = share_model(two.deployment.config("model-owner", "owner"), checkpoint, "again", SharingTerms(12))
    assert again.id != two.model.id
    store, ids = stores(two.deployment)[1], [two.model.id, again.id]
    first, second = (store.share(m, "head.weight") for m in store.models() if m.model in ids)
    assert not torch.equal(first, second)
    names = {m.name: m.id for m in two.deployment.client().models()}
    assert [names["tiny"], names["again"]] == ids


def test_pieces_and_corrections() -> None:
    x = Prg(b"\1" * 32).ring((3, 100_003))
    seeds = [new_seed(), new_seed()]
    chunks = list(corrections(pieces(x), seeds))
    assert max(map(len, chunks)) <= 1 << 20
    messages = iter([wire.ClientMessage(chunk=wire.Chunk(payload=c)) for c in chunks])
    last = collect("x", x.shape, 64, x.numel() * 8, "p", lambda: next(messages))
    assert torch.equal(expand(seeds[0], x.shape, "p") + expand(seeds[1], x.shape, "p") + last, x)


def test_interrupted_and_wrong_uploads(two: Running, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = two.deployment.config("model-owner", "owner")
    before = {s.root: len(s.models()) for s in stores(two.deployment)}

    def changed(change: object) -> None:
        send = PeerStream.send

        def replaced(self: PeerStream, message: object) -> None:
            if isinstance(message, wire.ModelMessage):
                change(message)  # type: ignore[operator]
            send(self, message)

        monkeypatch.setattr(PeerStream, "send", replaced)

    def rename(message: wire.ModelMessage) -> None:
        if message.weight.name == "head.weight":
            message.weight.name = "tail.weight"

    def reshape(message: wire.ModelMessage) -> None:
        if message.weight.name == "head.weight":
            message.weight.shape[0] += 1

    def resize(message: wire.ModelMessage) -> None:
        if message.weight.name == "head.weight":
            message.weight.size = 1 << 50

    def seed(message: wire.ModelMessage) -> None:
        if message.WhichOneof("content") == "header":
            message.header.seed = b"short"

    def version(message: wire.ModelMessage) -> None:
        if message.WhichOneof("content") == "header":
            message.header.version = "9"

    for change, text in (
        (rename, "owner sent weight 'tail.weight' .* where weight 'head.weight' .* was expected"),
        (reshape, r"owner sent weight 'head.weight' \[13, 40\] where weight 'head.weight' \[12, 40\]"),
        (resize, r"owner announced 1125899906842624 bytes for weight 'head.weight' \[12, 40\] in Z_2\^64, expected 3840"),
        (seed, "owner sent a seed of 5 bytes, expected 0"),
        (version, "owner runs version 9, party1 runs version"),
    ):
        changed(change)
        with pytest.raises((WireError, ConfigurationError), match=text):
            share_model(config, checkpoint)
        monkeypatch.undo()

    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model_owner, "_encoded", broken)
    with pytest.raises(KeyboardInterrupt):
        share_model(config, checkpoint)
    monkeypatch.undo()
    idle(two.deployment)
    assert {s.root: len(s.models()) for s in stores(two.deployment)} == before
    works(two.deployment)


def test_weights_that_the_rings_have_no_room_for(two: Running, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner is told what a weight reaches, the parties that one does."""
    told: list[str] = []
    to_failure = model_owner.to_failure
    monkeypatch.setattr(model_owner, "to_failure", lambda error: told.append(str(error)) or to_failure(error))
    original = CanonicalWeights.__getitem__
    monkeypatch.setattr(
        CanonicalWeights,
        "__getitem__",
        lambda self, name: original(self, name) * (1e4 if name == "layers.0.mlp.up.weight" else 1.0),
    )
    before = {s.root: len(s.models()) for s in stores(two.deployment)}
    terms = SharingTerms(ranges={})
    with pytest.raises(RangeError, match=r"weight 'layers\.0\.mlp\.up\.weight' reaches .* below 64"):
        share_model(two.deployment.config("model-owner", "owner"), checkpoint, terms=terms)
    assert told == ["a weight of the model has no room in the rings; the model owner's own error says which"]
    idle(two.deployment)
    assert {s.root: len(s.models()) for s in stores(two.deployment)} == before


def test_unusable_weights(two: Running, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = model_owner.encode
    monkeypatch.setattr(model_owner, "encode", lambda x, bits: encode(x * float("nan"), bits))
    with pytest.raises(RangeError, match=r"weight 'embedding\.tokens': a value cannot be encoded"):
        share_model(two.deployment.config("model-owner", "owner"), checkpoint)
    with pytest.raises(ConfigurationError, match="fraction_bits must be between 8 and 24, got 30"):
        share_model(two.deployment.config("model-owner", "owner"), checkpoint, terms=SharingTerms(30))


def test_model_too_large(tmp_path: Path, checkpoint: Path) -> None:
    message = r"take \d+ bytes, party1 stores at most 1000: raise max_model_bytes"
    with (
        Deployment(tmp_path, 2, Toy().program, limits={"max_model_bytes": 1000}) as deployment,
        pytest.raises(ConfigurationError, match=message),
    ):
        deployment.share(checkpoint)


def test_damaged_store(tmp_path: Path, two: Running) -> None:
    facts = stores(two.deployment)[0].get(two.model.id)
    assert facts is not None
    mine = facts.model_copy(update={"seeded": False, "index": 1})
    store = ModelStore(tmp_path / "s")
    incoming = store.begin(mine)
    for shape in mine.shapes().values():
        incoming.weight(torch.zeros(shape, dtype=torch.int64))
    store.complete(incoming)
    with pytest.raises(ConfigurationError, match="is stored already"):
        store.begin(mine)
    folder = store.root / mine.model
    name = next(iter(mine.shapes()))
    (folder / "0000.safetensors").write_bytes(b"garbage")
    with pytest.raises(
        CheckpointError, match=r"0000\.safetensors of the model store is not what was stored .*share the model"
    ):
        store.share(mine, name)
    (folder / "0000.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"0000\.safetensors of the model store cannot be read .*share the model"):
        store.share(mine, name)
    (folder / "0001.safetensors").unlink()
    assert ModelStore(store.root).models() == []
    (folder / "model.json").write_text("{}")
    assert ModelStore(store.root).models() == []


@pytest.fixture
def stored(tmp_path: Path, two: Running) -> tuple[ModelStore, StoredModel]:
    """The last party's shares, all zero."""
    facts = stores(two.deployment)[1].models()[0].model_copy(update={"seeded": False, "nonce": new_id()})
    return put(ModelStore(tmp_path / "store"), facts), facts


def put(store: ModelStore, facts: StoredModel) -> ModelStore:
    incoming = store.begin(facts)
    for shape in facts.shapes().values():
        incoming.weight(torch.zeros(shape, dtype=torch.int64))
    store.complete(incoming)
    return store


@pytest.mark.parametrize("place", [-1, 20, 0])
def test_a_flipped_bit_of_a_share(stored: tuple[ModelStore, StoredModel], place: int) -> None:
    store, facts = stored
    first, *_, last = facts.shapes()
    assert int(store.share(facts, first).abs().sum()) == 0
    path = store.root / facts.model / "0000.safetensors"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    for again in (store, ModelStore(store.root)):
        with pytest.raises(
            CheckpointError, match=rf"^{facts.model}/{path.name} of the model store is not what was .*: check"
        ):
            again.share(facts, first)
        assert int(again.share(facts, last).abs().sum()) == 0


def test_a_changed_fact(stored: tuple[ModelStore, StoredModel]) -> None:
    store, facts = stored
    path = store.root / facts.model / "model.json"
    text = path.read_text()
    path.write_text(text.replace(f'"fraction_bits": {facts.fraction_bits}', '"fraction_bits": 17'))
    assert path.read_text() != text
    assert ModelStore(store.root).models() == []
    path.write_text(text)
    assert ModelStore(store.root).models() == [facts]


def test_shares_are_those_of_the_storing(stored: tuple[ModelStore, StoredModel]) -> None:
    """Whoever has begun with one storing gets nothing of another one under the same id."""
    store, facts = stored
    name = next(iter(facts.shapes()))
    store.remove(facts)
    with pytest.raises(CheckpointError, match=f"model {facts.model} was removed while its weights were loaded: ask again"):
        store.share(facts, name)
    later = facts.model_copy(update={"nonce": new_id()})
    put(store, later)
    with pytest.raises(CheckpointError, match="was removed while its weights were loaded"):
        store.share(facts, name)
    assert store.share(later, name).shape == facts.shapes()[name]


def test_storings_of_the_parties_belong_together(stored: tuple[ModelStore, StoredModel]) -> None:
    store, facts = stored
    nonces = {"party0": new_id(), "party1": facts.nonce}
    store.agree(facts, nonces)
    for again in (store, ModelStore(store.root)):
        again.agree(facts, nonces)
        with pytest.raises(ManifestMismatch, match=f"party0 holds another storing of model {facts.model} than the one that"):
            again.agree(facts, {**nonces, "party0": new_id()})
    for text in ("[1", "{}", "[]", ""):
        (store.root / facts.model / "storing.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"^\w+/storing\.json of the model store is damaged: remove"):
            store.agree(facts, nonces)


def test_all_is_on_disk_before_the_receipt(tmp_path: Path, two: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is flushed, then the folder, then its name in the store, each before the next step."""
    facts = stores(two.deployment)[1].models()[0].model_copy(update={"seeded": False, "nonce": new_id()})
    store, flushed, fsync = ModelStore(tmp_path), list[Path](), os.fsync

    def seen(handle: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{handle}").resolve())
        fsync(handle)

    monkeypatch.setattr(os, "fsync", seen)
    put(store, facts)
    incoming, files = flushed[-2], sorted(path.name for path in (store.root / facts.model).iterdir())
    assert incoming.name.startswith(".incoming-")  # the folder, before it was renamed
    assert sorted(path.name for path in flushed[:-2]) == files
    assert {path.parent for path in flushed[:-2]} == {incoming}
    assert flushed[-1] == tmp_path.resolve()
    flushed.clear()
    store.remove(facts)
    assert flushed == [tmp_path.resolve()]


def test_left_overs_are_removed(tmp_path: Path, two: Running) -> None:
    store = ModelStore(tmp_path)
    facts = stores(two.deployment)[0].models()[0]
    store.begin(facts).seed(bytes(32))
    assert len(list(tmp_path.iterdir())) == 1
    assert ModelStore(tmp_path).models() == []
    assert list(tmp_path.iterdir()) == []


def test_unwritable_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match=r"model store .*file cannot be written .*choose another folder"):
        ModelStore(tmp_path / "file")


def test_facts_are_checked() -> None:
    with pytest.raises(ValueError, match="model"):
        StoredModel(
            model="../x",
            name="",
            architecture="",
            owner="",
            parties=[],
            index=0,
            fraction_bits=16,
            seeded=True,
            nonce=new_id(),
        )
    assert issubclass(CheckpointError, MpcacheError)


@pytest.mark.parametrize("step", ["write_new", "sync_folder"])
def test_a_full_disk(two: Running, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """The owner is told so, and nothing of the model stays, also when the flush behind the renaming failed."""
    server = two.deployment.servers["party1"]
    assert isinstance(server, ComputePartyServer)
    root, done, calls = server.store.root, getattr(module, step), [0]
    before = sorted(root.iterdir())

    def full(path: Path, *rest: Any) -> Any:
        if root in (path, *path.parents):
            calls[0] += 1
            if calls[0] == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return done(path, *rest)

    monkeypatch.setattr(module, step, full)
    with pytest.raises(EnvironmentProblem, match=r"the model store cannot be written \(No space left on device\): free"):
        two.deployment.share(checkpoint, "no-room")
    monkeypatch.undo()
    assert sorted(root.iterdir()) == before
    works(two.deployment)
    assert two.deployment.share(checkpoint, f"room-{step}").name == f"room-{step}"
