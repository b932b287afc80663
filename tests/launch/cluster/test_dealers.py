"""Dealers on Ray: whole tapes, each under seeds of its own, whatever happens to a dealer; a Ray of this process, and Ray."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.cli.commands import ray as ray_command
from launch.cluster.connection import connected
from launch.cluster.dealers import RayDealers, Worker
from launch.cluster.settings import load_cluster
from launch.cluster.worker import ATTEMPTS
from launch.serve.roles import load_role
from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan, generate_plain
from mpc.errors import EnvironmentProblem, ManifestMismatch
from parties.client.client import Client
from parties.client.request import GenerationRequest
from parties.client.sampling_params import SamplingParams
from parties.config.role_config import load_config
from parties.model_owner.model_owner import share_model
from parties.party.compute_party import ComputePartyServer
from parties.tapes.deal import Deal, deal
from tests.launch.cluster.fake_ray import FakeRay
from tests.launch.conftest import Command

PROMPT = [3, 1, 4]
Event = Callable[[str, Worker], None]


@pytest.fixture
def cluster(roles: Path, text_model: Path) -> Path:
    """A cluster file: two dealers for three tapes."""
    path = roles / "cluster.yaml"
    dealers: dict[str, Any] = {"config": "dealer.yaml", "model": str(text_model), "prompts": [len(PROMPT)], "tokens": 2}
    path.write_text(yaml.safe_dump({"dealers": {**dealers, "sessions": 3, "workers": 2, "out": "out"}}))
    return path


def deal_by(ray: Any, cluster: Path, event: Event = lambda what, worker: None) -> Deal:
    """Deal what a cluster file says."""
    dealers = load_cluster(cluster).dealers
    assert dealers is not None
    return deal(ray_command.order_of(dealers), dealers.out, sessions=RayDealers(ray, dealers, event))


def seeds(folder: Path) -> set[bytes]:
    """All seeds below a folder."""
    return {file.read_bytes() for file in folder.rglob("*.seed")}


def check_whole(dealt: Deal, roles: Path, tapes: int = 3) -> None:
    """Both parties take every tape for a good one; nothing else is there, and no seed twice."""
    out = roles / "out"
    assert sorted(entry.name for entry in out.iterdir()) == ["party0", "party1"]
    assert len(seeds(out)) == 2 * (tapes + 1)
    assert len(dealt.session_seconds) == tapes
    for name in ("party0", "party1"):
        shutil.move(out / name, roles / f"tapes-{name}")
        stock = ComputePartyServer(load_config(roles / f"{name}.yaml")).tapes
        assert stock is not None
        assert stock.stock() == [f"{tapes} for a prompt of 3 and up to 2 new tokens (greedy, suite masked)"]
    assert [entry.name for entry in roles.iterdir() if entry.name.startswith(".")] == []


def test_that_parties_answer_with_it(cluster: Path, roles: Path, text_model: Path) -> None:
    """The load's masks are those that every dealer expands: tapes of both answer as the model does."""
    ray = FakeRay()
    check_whole(deal_by(ray, cluster), roles)
    assert (ray.started, ray.killed) == (2, 2)
    servers = [ComputePartyServer(load_config(roles / f"{name}.yaml")) for name in ("party0", "party1")]
    try:
        for server in servers:
            server.start()
        share_model(load_role(roles / "model-owner.yaml", "model-owner"), text_model, "tiny")
        client, request = Client(load_config(roles / "client.yaml")), GenerationRequest(PROMPT, SamplingParams(2))
        expected = generate_plain(load_checkpoint(text_model), PROMPT, GenerationPlan(3, 2))
        assert [list(client.generate(request).tokens) for _ in range(3)] == [expected] * 3
    finally:
        for server in servers:
            server.stop()


def test_that_a_lost_dealers_tape_is_dealt_again_under_new_seeds(cluster: Path, roles: Path) -> None:
    """Lost at the last moment: its tape lies there whole, and is not taken."""
    spoilt: set[bytes] = set()
    events: list[tuple[str, int]] = []

    def loses(method: str, arguments: Any) -> bool:
        if method == "write" and arguments[0] == 2 and not spoilt:
            (root,) = (entry for entry in roles.iterdir() if entry.name.startswith(".out.dealing-"))
            spoilt.update(seeds(root / ATTEMPTS / arguments[1]))
            return True
        return False

    ray = FakeRay(loses)
    dealt = deal_by(ray, cluster, lambda what, worker: events.append((what, worker.task)))
    assert len(spoilt) == 2
    assert not spoilt & seeds(roles / "out")
    assert events.count(("lost", 2)) == 1
    assert events.count(("begun", 2)) == 2
    assert (ray.started, ray.killed) == (3, 2)
    check_whole(dealt, roles)


@pytest.mark.parametrize(
    ("method", "losses", "doing"), [("write", 3, "while they dealt tape"), ("begin", 6, "before their")]
)
def test_that_dealers_which_keep_ending_end_the_deal(cluster: Path, method: str, losses: int, doing: str) -> None:
    ray = FakeRay(lambda name, arguments: name == method)
    with pytest.raises(EnvironmentProblem, match=f"^{losses} dealers ended {doing}"):
        deal_by(ray, cluster)
    assert not [entry for entry in cluster.parent.iterdir() if "out" in entry.name]


def test_that_an_interrupted_deal_leaves_nothing(cluster: Path) -> None:
    def event(what: str, worker: Worker) -> None:
        if what == "written":
            raise KeyboardInterrupt

    ray = FakeRay()
    with pytest.raises(KeyboardInterrupt):
        deal_by(ray, cluster, event)
    assert ray.killed == ray.started
    assert not [entry for entry in cluster.parent.iterdir() if "out" in entry.name]


def test_that_a_dealer_of_another_version_is_named(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.cluster.worker.package_version", lambda: "0.0.1")
    with pytest.raises(ManifestMismatch, match=r"node .* has version 0\.0\.1, version .* asked it: install the same"):
        deal_by(FakeRay(), cluster)


def test_that_a_missing_ray_is_named_before_work_starts(
    command: Command, cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    found = command("ray", "up", "--config", cluster)
    assert found.code == 2
    assert found.err.strip() == "error [environment]: Ray is not installed: pip install 'mpcache[ray]'"


def test_with_ray(cluster: Path, roles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two dealers is killed while it deals."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'mpcache[ray]'")
    monkeypatch.setattr("launch.cluster.connection.signals.install", lambda: None)
    killed: list[Worker] = []

    def event(what: str, worker: Worker) -> None:
        if what == "begun" and not killed:
            killed.append(worker)
            os.kill(worker.pid, signal.SIGKILL)

    with connected("local", 2) as ray:
        dealt = deal_by(ray, cluster, event)
    assert len(killed) == 1
    check_whole(dealt, roles)
