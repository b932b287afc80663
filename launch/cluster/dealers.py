"""Many dealers at one deal: sessions' tapes by actors of a Ray cluster, each whole or not there.

A worker writes a tape into a folder that was named for this attempt alone. When it says that the tape is on disk, the files
are renamed into the deal. A worker that is lost takes its attempt along: the folder is removed, seeds included, and another
worker deals that session's tape in a new folder under seeds that it draws itself. One that was only thought lost finds its
folder gone, and what it may still say is not heard.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from launch.cluster.reports import read_report
from launch.cluster.settings import DealerSettings
from launch.cluster.worker import ATTEMPTS, SpecText, TapeWorker, WorkerOrder
from mpc.errors import EnvironmentProblem
from parties.tapes.deal import OpenDeal
from parties.tapes.dealing import Progress
from parties.wire.manifest import new_id, package_version

POLL_SECONDS = 0.5
END_SECONDS = 10.0


@dataclass
class Worker:
    """An actor. node, pid: empty and 0 until it is ready; task: the tape's number, 0 while it gets ready; attempt: the
    folder that it writes to."""

    name: str
    actor: Any
    node: str = ""
    pid: int = 0
    task: int = 0
    attempt: str = ""


Event = Callable[[str, Worker], None]
"""event(what, worker): "ready", "begun", "written", "lost"."""


class RayDealers:
    """Deals the sessions of one deal (`parties.tapes.deal.Sessions`). Actors are started at once, so that they are there
    when the load is; `stop` ends them."""

    def __init__(self, ray: ModuleType, settings: DealerSettings, on_event: Event = lambda what, worker: None) -> None:
        self._ray, self._settings, self._on_event = ray, settings, on_event
        self._kind = ray.remote(num_cpus=settings.cpus, max_restarts=0, max_task_retries=0)(TapeWorker)
        self._named, self._ending = 0, ""
        self._waiting: deque[int] = deque()
        self._losses: Counter[int] = Counter()
        self._running: dict[Any, Worker] = {}
        self._alive: list[Worker] = []
        for _ in range(settings.most_workers):
            self._new()

    def _new(self) -> Worker:
        self._named += 1
        worker = Worker(f"dealer {self._named}", self._kind.remote())
        self._alive.append(worker)
        return worker

    def __call__(self, opened: OpenDeal, on_progress: Progress) -> list[float]:
        """Deal all sessions; return the seconds of each.

        Raises `EnvironmentProblem` when dealers keep ending, and the error that one of them reports.
        """
        opened.weights.clear()  # every worker has its own
        total = opened.order.spec.tapes
        seconds: dict[int, float] = {}
        self._waiting.extend(range(1, total + 1))
        order = self._order(opened)
        (opened.root / ATTEMPTS).mkdir(mode=0o700)
        try:
            for worker in self._alive:
                self._begin(worker, order)
            on_progress("sessions", 0, total)
            while len(seconds) < total:
                for worker, report in self._reports():
                    if report is None:
                        self._lost(worker, opened.root)
                        self._begin(self._new(), order)
                        continue
                    if worker.task:
                        self._take(worker, opened)
                        seconds[worker.task] = report["seconds"]
                        on_progress("sessions", len(seconds), total)
                    else:
                        worker.node, worker.pid = report["node"], report["pid"]
                        self._on_event("ready", worker)
                    self._give(worker)
        finally:
            self.stop()
        shutil.rmtree(opened.root / ATTEMPTS)
        return [seconds[number] for number in range(1, total + 1)]

    def stop(self) -> None:
        """End all actors, and wait until those that were at work are gone, so that nothing is written any more."""
        for worker in self._alive:
            self._ray.kill(worker.actor)
        if self._running:
            self._ray.wait([*self._running], num_returns=len(self._running), timeout=END_SECONDS)
        self._alive, self._running = [], {}

    def _begin(self, worker: Worker, order: str) -> None:
        self._running[worker.actor.begin.remote(order)] = worker

    def _order(self, opened: OpenDeal) -> str:
        order = WorkerOrder(
            version=package_version(),
            config=self._settings.config,
            architecture=opened.order.architecture.to_json(),
            spec=SpecText.of(opened.order.spec),
            load=opened.facts.load,
            created=opened.facts.created,
            root=opened.root.resolve(),
            threads=max(1, math.floor(self._settings.cpus)),
        )
        return order.model_dump_json()

    def _reports(self) -> list[tuple[Worker, dict[str, Any] | None]]:
        """Return the workers that have something to say, each with its report, None where it is lost. Raises the error that
        one reports."""
        ready, _ = self._ray.wait([*self._running], num_returns=1, timeout=POLL_SECONDS)
        found: list[tuple[Worker, dict[str, Any] | None]] = []
        for future in ready:
            worker = self._running.pop(future)
            try:
                report = read_report(self._ray.get(future), worker.name)
            except self._ray.exceptions.RayError as error:
                self._ending = type(error).__name__
                found.append((worker, None))
                continue
            found.append((worker, report))
        return found

    def _give(self, worker: Worker) -> None:
        """Let a worker that is ready begin the next tape, if there is one."""
        if not self._waiting:
            return
        worker.task, worker.attempt = self._waiting.popleft(), new_id()
        self._running[worker.actor.write.remote(worker.task, worker.attempt)] = worker
        self._on_event("begun", worker)

    def _lost(self, worker: Worker, root: Path) -> None:
        """Forget a worker that is gone, with what it wrote. Raises `EnvironmentProblem` when that happened too often."""
        self._alive.remove(worker)
        self._on_event("lost", worker)
        self._losses[worker.task] += 1
        if worker.task:
            shutil.rmtree(root / ATTEMPTS / worker.attempt, ignore_errors=True)
            self._waiting.appendleft(worker.task)
        most = self._settings.attempts * (1 if worker.task else self._settings.workers)
        if self._losses[worker.task] >= most:
            doing = f"while they dealt tape {worker.task}" if worker.task else "before their first tape"
            raise EnvironmentProblem(
                f"{self._losses[worker.task]} dealers ended {doing}, the last one at {worker.node or 'a node'} "
                f"({self._ending}): see Ray's log there (often memory was short), then deal again with fewer 'workers'"
            )

    def _take(self, worker: Worker, opened: OpenDeal) -> None:
        """Move what a worker has finished into the deal."""
        attempt = opened.root / ATTEMPTS / worker.attempt
        for there, folder in zip(opened.facts.folders(attempt), opened.facts.folders(opened.root), strict=True):
            for file in there.iterdir():
                file.rename(folder / file.name)
        shutil.rmtree(attempt)
        self._on_event("written", worker)
