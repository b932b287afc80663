"""Replicas: routed to once they serve, replaced when they fail, given up when none ever serves; and one that is real."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from launch.cluster import replica as replicas_body
from launch.cluster.replica import DeploymentReplica, ReplicaOrder
from launch.cluster.replicas import RayReplicas, Replica
from launch.cluster.router import Router
from launch.cluster.settings import ReplicaSettings
from mpc.errors import EnvironmentProblem
from tests.launch.cluster.fake_ray import FakeRay

Loses = Callable[[str, Sequence[Any]], bool]


class Routes(Router):
    """A router that routes nothing."""

    def __init__(self) -> None:
        self.addresses: list[str] = []

    def add(self, address: str) -> None:
        self.addresses.append(address)

    def remove(self, address: str) -> None:
        self.addresses.remove(address)


class NoDeployment:
    """A deployment without processes."""

    started = 0

    def share_model(self, checkpoint: Path, name: str) -> None:
        pass

    def gateway(self, checkpoint: Path, keys: Path) -> str:
        NoDeployment.started += 1
        return f"127.0.0.1:{NoDeployment.started}"

    def check(self) -> None:
        pass

    def __enter__(self) -> NoDeployment:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


def started(tmp_path: Path, ray: Any, events: list[str]) -> tuple[RayReplicas, Routes]:
    """Two replicas that are about to start."""
    settings, routes = ReplicaSettings(model=tmp_path, keys=tmp_path / "keys"), Routes()

    def event(what: str, replica: Replica) -> None:
        events.append(f"{replica.name} {what}")

    return RayReplicas(ray, settings, routes, event), routes


@pytest.fixture(autouse=True)
def _without_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    NoDeployment.started = 0
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(replicas_body, "local_deployment", lambda parties: NoDeployment())


def test_that_a_replica_that_fails_is_replaced(tmp_path: Path) -> None:
    events: list[str] = []
    failing = iter([False, True])
    ray = FakeRay(lambda name, arguments: name == "check" and next(failing, False))
    replicas, routes = started(tmp_path, ray, events)
    replicas.watch()
    assert routes.addresses == ["127.0.0.1:1", "127.0.0.1:2"]
    replicas.watch()
    assert routes.addresses == ["127.0.0.1:1"]
    replicas.watch()
    assert routes.addresses == ["127.0.0.1:1", "127.0.0.1:3"]
    assert events == ["replica 1 ready", "replica 2 ready", "replica 2 lost", "replica 3 ready"]
    replicas.stop()
    assert (ray.started, ray.killed) == (3, 3)
    assert list(tmp_path.iterdir()) == []


def test_that_replicas_which_never_serve_end_it(tmp_path: Path) -> None:
    ray = FakeRay(lambda name, arguments: name == "begin")
    replicas, routes = started(tmp_path, ray, [])
    replicas.watch()
    with pytest.raises(EnvironmentProblem, match=r"^3 replicas ended in turn before they served \(RayError\)"):
        replicas.watch()
    replicas.stop()
    assert routes.addresses == []
    assert ray.killed == ray.started


def test_that_a_replica_elsewhere_is_refused(tmp_path: Path) -> None:
    order = ReplicaOrder(model=tmp_path, name="m", parties=2, keys=tmp_path, scratch=tmp_path, host="elsewhere")
    report = json.loads(DeploymentReplica().begin(order.model_dump_json()))
    assert report["code"] == "environment"
    assert f"a replica was placed on node {socket.gethostname()}" in report["message"]
    assert "its router is on elsewhere: use `address: local`" in report["message"]


def test_that_an_ended_process_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(self: NoDeployment) -> None:
        raise EnvironmentProblem("party0 was killed by signal 9")

    monkeypatch.setattr(NoDeployment, "check", ended)
    body = DeploymentReplica()
    order = ReplicaOrder(model=tmp_path, name="m", parties=2, keys=tmp_path, scratch=tmp_path, host=socket.gethostname())
    assert json.loads(body.check()) == {}
    assert json.loads(body.begin(order.model_dump_json()))["address"] == "127.0.0.1:1"
    assert "party0 was killed" in json.loads(body.check())["message"]
    assert json.loads(body.end()) == {}
