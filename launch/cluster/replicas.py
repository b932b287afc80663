"""Replicas of a whole deployment: as many as asked for, each an actor; one that fails is replaced by a new one."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from launch.cluster.replica import DeploymentReplica, ReplicaOrder
from launch.cluster.reports import Report, read_report
from launch.cluster.router import Router
from launch.cluster.settings import ReplicaSettings
from mpc.errors import EnvironmentProblem, MpcacheError

POLL_SECONDS = 1.0
END_SECONDS = 20.0


@dataclass
class Replica:
    """An actor. address: of its gateway, "" until it serves; scratch: its folder."""

    name: str
    actor: Any
    scratch: Path
    node: str = ""
    pid: int = 0
    address: str = ""


Event = Callable[[str, Replica], None]
"""event(what, replica): "ready" or "lost"."""


class RayReplicas:
    """Keeps replicas, and tells the router of them. `stop` ends them all."""

    def __init__(
        self, ray: ModuleType, settings: ReplicaSettings, router: Router, on_event: Event = lambda what, replica: None
    ) -> None:
        self._ray, self._settings, self._router, self._on_event = ray, settings, router, on_event
        self._kind = ray.remote(num_cpus=settings.cpus, max_restarts=0, max_task_retries=0)(DeploymentReplica)
        self._running: dict[Any, Replica] = {}
        self._named = self._failures = 0
        self._place = tempfile.gettempdir()
        for _ in range(settings.count):
            self._begin()

    def _begin(self) -> None:
        settings = self._settings
        self._named += 1
        scratch = Path(tempfile.mkdtemp(prefix="mpcache-replica-", dir=self._place))
        order = ReplicaOrder(
            model=settings.model,
            name=settings.name,
            parties=settings.parties,
            keys=settings.keys,
            host=socket.gethostname(),
            scratch=scratch,
        )
        replica = Replica(f"replica {self._named}", self._kind.remote(), scratch)
        self._running[replica.actor.begin.remote(order.model_dump_json())] = replica

    def watch(self) -> None:
        """Look after the replicas once: route to those that are ready, replace those that failed.

        Raises the error of a replica that never served, when there were several of them in turn.
        """
        ready, _ = self._ray.wait([*self._running], num_returns=len(self._running), timeout=POLL_SECONDS)
        for future in ready:
            replica = self._running.pop(future)
            try:
                report = read_report(self._ray.get(future), replica.name)
            except (MpcacheError, self._ray.exceptions.RayError) as error:
                self._lost(replica, error)
                continue
            if not replica.address:
                self._ready(replica, report)
            self._running[replica.actor.check.remote()] = replica

    def _ready(self, replica: Replica, report: Report) -> None:
        replica.node, replica.pid, replica.address = report["node"], report["pid"], report["address"]
        self._failures = 0
        self._router.add(replica.address)
        self._on_event("ready", replica)

    def _lost(self, replica: Replica, error: Exception) -> None:
        self._on_event("lost", replica)
        if replica.address:
            self._router.remove(replica.address)
        else:
            self._failures += 1
        self._end([replica])
        if self._failures >= self._settings.attempts:
            if isinstance(error, MpcacheError):
                raise error
            raise EnvironmentProblem(
                f"{self._failures} replicas ended in turn before they served ({type(error).__name__}): see Ray's log "
                "there (often memory was short), then start fewer"
            )
        self._begin()

    def stop(self) -> None:
        """End all replicas with their processes."""
        replicas, self._running = [*self._running.values()], {}
        if replicas:
            self._end(replicas)

    def _end(self, replicas: Sequence[Replica]) -> None:
        """End these with their processes and files; one that does not answer takes its processes along when it is killed."""
        ends = [replica.actor.end.remote() for replica in replicas]
        self._ray.wait(ends, num_returns=len(ends), timeout=END_SECONDS)
        for replica in replicas:
            self._ray.kill(replica.actor)
            shutil.rmtree(replica.scratch, ignore_errors=True)
