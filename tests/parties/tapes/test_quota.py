"""`max_tape_bytes`: what a deal takes is known to the byte before it starts, and a party uses no more than it allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.checkpoint import read_architecture
from models.chunks import ChunkPlan
from mpc.errors import ConfigurationError, EnvironmentProblem, TapeError
from parties.config.role_config import make_config
from parties.tapes import deal as dealing
from parties.tapes.deal import DealOrder, DealSpec, deal
from protocols.registry import SuiteSpec
from tests.models import random_checkpoints
from tests.parties import tape_folders as tapes
from tests.parties.deployment import Deployment

SPECS = {
    "plain": DealSpec([5, 3], 3, 2),
    "sampled, crypten": DealSpec([4], 2, suite=SuiteSpec("crypten", 15), decoding="sample", temperature=0.5),
    "behind": DealSpec([5], 3, policy="snapkv:budget=0.5,window=4", behind=9),
    "chunks": DealSpec([5], 2, behind=3, chunks=ChunkPlan((4, 4), 1, among=3)),
    "registering": DealSpec([7], 1, decoding="rows"),
    "registering with scores": DealSpec([9], 1, decoding="rows", policy="h2o:budget=0.5"),
    "behind scores": DealSpec([5], 3, policy="h2o:budget=0.5", behind=9),
    "padded": DealSpec([8], 2, padded=True),
}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return Deployment(tmp_path_factory.mktemp("deployment"), 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    random_checkpoints.save("llama-grouped", folder, layers=1)
    return folder


def limited(deployment: Deployment, most: int) -> Any:
    return make_config({**deployment.values("dealer", "dealer"), "limits": {"max_tape_bytes": most}})


@pytest.mark.covering(1)
@pytest.mark.parametrize("name", SPECS)
def test_a_deal_is_as_large_as_predicted_or_refused_before_it_starts(
    deployment: Deployment, model: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = DealOrder(deployment.config("dealer", "dealer"), read_architecture(model), SPECS[name])
    size = order.size()
    exactly = DealOrder(limited(deployment, size), order.architecture, order.spec)
    out = deal(exactly, tmp_path / "out").folders["party2"]
    assert sum(file.stat().st_size for file in out.rglob("*.tape")) == size
    less = DealOrder(limited(deployment, size - 1), order.architecture, order.spec)
    message = f"load take {size:,} bytes of one party, dealer deals at most {size - 1:,} at a time: give fewer --sessions"
    with pytest.raises(ConfigurationError, match=message):
        deal(less, tmp_path / "less")
    monkeypatch.setattr(dealing.shutil, "disk_usage", lambda path: type("Usage", (), {"free": size - 1}))
    with pytest.raises(EnvironmentProblem, match=rf"has {size - 1:,} free: free space there, or choose another --out"):
        deal(exactly, tmp_path / "full")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_party_uses_the_oldest_tapes_within_its_quota(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = Deployment(tmp_path)
    root = tmp_path / "party1"
    deals = []
    for number in (1, 2):
        monkeypatch.setattr(dealing.time, "time", lambda number=number: 1000 * number)
        deals.append(tapes.deal_toy(deployment, checkpoint, tmp_path / f"out {number}").load)
        for folder in (tmp_path / f"out {number}" / "party1").iterdir():
            root.mkdir(exist_ok=True)
            folder.rename(root / folder.name)
    files = {file.stem: file.stat().st_size for file in root.rglob("*.tape")}
    first = sum(file.stat().st_size for file in (root / deals[0]).glob("*.tape"))
    second = files[deals[1]] + files[tapes.session_tapes(root / deals[1])[0]]
    for most, offered in ((first - 1, 1), (first, 2), (first + second - 1, 2), (first + second, 3), (2 * first, 4)):
        store = tapes.store(deployment, root)
        store._most = most
        found = store.offers(tapes.manifest(checkpoint), tapes.STORING)
        assert [header.load for header in found.values()] == [*[deals[0]] * 2, *[deals[1]] * 2][:offered]
        beyond = rf"refused: the newest {4 - offered} of 4 tapes: all together are more than the {most:,} bytes of"
        assert any(line.startswith(beyond) for line in store.stock()) == (offered < 4)
    store._most = 1
    with pytest.raises(
        TapeError, match=r"it has 1 refused \(the newest 4 of 4 tapes.*'max_tape_bytes' in the 'limits' of pa"
    ):
        store.offers(tapes.manifest(checkpoint), tapes.STORING)
