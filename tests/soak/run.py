"""The soak itself: clients that ask, a killer that kills, and what must be true afterwards."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launch.lab.lab import Lab
from models.checkpoint import Checkpoint, load_checkpoint
from models.generation import GenerationPlan, generate_plain, plain_logits
from mpc.errors import MpcacheError, PeerError
from parties.client.client import Client
from parties.client.request import GenerationRequest
from parties.client.sampling_params import SamplingParams
from parties.errors import Busy
from parties.tapes.journal import Journal
from protocols.registry import SuiteSpec
from tests.soak.deployment import CLIENT, DEALER, MODEL, OWNER, PARTIES, ROLES, SoakDeployment, prepare, save_model
from tests.soak.gauges import Gauge, read_idle
from tests.soak.role import deal_tapes, share

PAGED_LAYERS = 3  # of a model whose sessions' caches lie in pages: one that computes keeps two
LENGTHS = [4, 7, 11, 16, 24]
MOST_NEW = 12
MARGIN = 0.06  # of the chosen token's logit before the next: what 14 fraction bits surely decide in this model
SESSION_SECONDS = 300.0
GROWTH = 0.05
WARM_SHARE = 4  # a process is judged that was there for this part of the sessions before the middle
SLACK = 2  # threads and files that a library may hold more at one idle moment than at another


@dataclass(frozen=True)
class Soak:
    """sessions: how many must succeed; those that fail come on top. victims: roles that are killed, at random.
    paged: parties keep rows in pages of their stores, and run sessions in step."""

    sessions: int = 100
    clients: int = 8
    restarts: int = 10
    network: str = "lan"
    victims: tuple[str, ...] = (DEALER, "party1")
    suite: str = "masked"
    tapes: bool = False
    seed: int = 1
    paged: bool = False


@dataclass
class Outcome:
    """problems: empty when everything is as it should be."""

    problems: list[str] = field(default_factory=list)
    succeeded: int = 0
    sessions: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0


class _Run:
    def __init__(self, soak: Soak, deployment: SoakDeployment, checkpoint: Path) -> None:
        self.soak, self.deployment = soak, deployment
        self.random = random.Random(soak.seed)
        self.outcome = Outcome()
        self.changed = threading.Condition()
        self.since: dict[str, int] = {}  # role -> sessions that had succeeded when it was last started
        self.wanted = 0
        self.asked = 0
        loaded = load_checkpoint(checkpoint)
        self.cases: list[tuple[list[int], int, list[int]]] = []
        for length in LENGTHS:
            for _ in range(3):
                self.cases.append(self._case(loaded, length, self.random.randint(2, MOST_NEW)))
        self.clients = [Client(deployment.config(CLIENT)) for _ in range(soak.clients)]
        self.reference = self.clients[0].find_model(MODEL)

    def _case(self, model: Checkpoint, length: int, new: int) -> tuple[list[int], int, list[int]]:
        """A prompt, how many tokens follow, and which; none of these choices is close."""
        while True:
            prompt = [self.random.randrange(1, model.architecture.vocabulary) for _ in range(length)]
            tokens = generate_plain(model, prompt, GenerationPlan(length, new))
            logits = plain_logits(model, prompt + tokens[:-1])[length - 1 :]
            best = logits.topk(2).values
            if float((best[:, 0] - best[:, 1]).min()) >= MARGIN:
                return prompt, new, tokens

    def half(self, until: int, kills: int) -> None:
        """Clients work until `until` sessions have succeeded; meanwhile the killer kills."""
        start, self.wanted = self.outcome.succeeded, until
        threads = [threading.Thread(target=self._client, args=(client,), daemon=True) for client in self.clients]
        moments = sorted(self.random.randint(start, max(start, until - 2)) for _ in range(kills))
        killer = threading.Thread(target=self._killer, args=(moments,), daemon=True)
        for thread in [*threads, killer]:
            thread.start()
        for thread in [*threads, killer]:
            while thread.is_alive():
                before = self.outcome.succeeded, self.asked
                thread.join(SESSION_SECONDS)
                if thread.is_alive() and before == (self.outcome.succeeded, self.asked):
                    raise RuntimeError(f"no session ended for {SESSION_SECONDS:g} s")

    def _client(self, client: Client) -> None:
        while True:
            with self.changed:
                if self.outcome.succeeded >= self.wanted:
                    return
                prompt, new, expected = self.cases[self.asked % len(self.cases)]
                self.asked += 1
            began = time.monotonic()
            error: BaseException | None = None
            try:
                result = client.generate(
                    GenerationRequest(prompt, SamplingParams(new), SuiteSpec(self.soak.suite), model=self.reference)
                )
            except BaseException as problem:
                error = problem
            with self.changed:
                self.outcome.longest = max(self.outcome.longest, time.monotonic() - began)
                if error is not None:
                    self._failed(error)
                else:
                    self.outcome.succeeded += 1
                    self.outcome.sessions.append(result.session)
                    if result.tokens != expected:
                        self.outcome.problems.append(f"session {result.session}: other tokens than in plaintext")
                self.changed.notify_all()
            if isinstance(error, Busy):
                time.sleep(0.2)

    def _failed(self, error: BaseException) -> None:
        named = isinstance(error, PeerError) and error.peer in ROLES
        self.outcome.errors[f"{type(error).__name__} {error.peer if isinstance(error, PeerError) else ''}".strip()] += 1
        if not named and not isinstance(error, Busy):
            text = str(error) if isinstance(error, MpcacheError) else "not a typed error"
            self.outcome.problems.append(f"an error that names no peer: {type(error).__name__}: {text}")

    def _killer(self, moments: list[int]) -> None:
        for moment in moments:
            with self.changed:
                while self.outcome.succeeded < moment:
                    self.changed.wait(1.0)
            time.sleep(self.random.random())
            victim = self.random.choice(self.soak.victims)
            self.deployment.kill(victim)
            self.outcome.kills[victim] += 1
            time.sleep(self.random.random())
            self.deployment.start(victim)
            self.since[victim] = self.outcome.succeeded


def run(soak: Soak) -> dict[str, Any]:
    """Do it all. "problems" of the result is empty when everything is as it should be."""
    folder = Path(tempfile.mkdtemp(prefix="mpcache-soak-"))
    began = time.monotonic()
    prepare()
    try:
        with Lab(soak.network, ROLES, f"soak-{os.getpid()}") as lab, lab.inside(CLIENT):
            deployment = SoakDeployment(lab, folder, 2 * soak.clients, soak.tapes, soak.paged)
            try:
                outcome, gauges = _work(soak, deployment, save_model(folder / "model", PAGED_LAYERS if soak.paged else 1))
                _check_tapes(soak, deployment, outcome)
                if soak.paged:
                    _check_pages(deployment, outcome)
            finally:
                deployment.stop()
        limit = time.monotonic() + 5
        while left := [pid for pid in deployment.pids if Path(f"/proc/{pid}").exists()]:
            if time.monotonic() > limit:
                break
            time.sleep(0.05)
        if left:
            outcome.problems.append(f"processes are left: {left}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "succeeded": outcome.succeeded,
        "failed": sum(outcome.errors.values()),
        "errors": dict(outcome.errors),
        "kills": dict(outcome.kills),
        "longest_session_seconds": round(outcome.longest, 2),
        "seconds": round(time.monotonic() - began, 1),
        "network": soak.network,
        "suite": soak.suite,
        "clients": soak.clients,
        "tapes": "disk" if soak.tapes else "live",
        "idle": gauges,
        "problems": outcome.problems,
    }


def _work(soak: Soak, deployment: SoakDeployment, checkpoint: Path) -> tuple[Outcome, dict[str, Any]]:
    if soak.tapes:
        most = soak.sessions + (soak.restarts + 1) * soak.clients
        each = -(-most // len(LENGTHS)) + soak.clients
        config, out = deployment.folder / f"{DEALER}.yaml", deployment.folder / "tapes"
        deployment.run(DEALER, deal_tapes, config, checkpoint, out, LENGTHS, MOST_NEW, each)
    deployment.start_all([*PARTIES, *([] if soak.tapes else [DEALER])])
    deployment.run(OWNER, share, deployment.folder / f"{OWNER}.yaml", checkpoint, MODEL)
    work = _Run(soak, deployment, checkpoint)
    work.half(soak.sessions // 2, soak.restarts // 2)
    pids = {CLIENT: os.getpid(), **{name: process.pid for name, process in deployment.running.items()}}
    middle = _idle(deployment, pids)
    warm = {name for name in pids if work.outcome.succeeded - work.since.get(name, 0) >= soak.sessions // WARM_SHARE}
    work.half(soak.sessions, soak.restarts - soak.restarts // 2)
    lived = {name: pid for name, pid in pids.items() if name == CLIENT or deployment.running[name].pid == pid}
    end = _idle(deployment, lived)
    if len(set(work.outcome.sessions)) != len(work.outcome.sessions):
        work.outcome.problems.append("a session's id came twice")
    return work.outcome, {name: _compared(name, middle[name], end[name], name in warm, work.outcome) for name in lived}


def _idle(deployment: SoakDeployment, pids: Mapping[str, int]) -> dict[str, Gauge]:
    """Return what processes hold that have nothing to do; threads without those of the pools that serve calls."""
    found = read_idle(pids)
    return {name: replace(gauge, threads=gauge.threads - deployment.pool(name)) for name, gauge in found.items()}


def _compared(name: str, middle: Gauge, end: Gauge, warm: bool, outcome: Outcome) -> dict[str, Any]:
    """Idle after half the sessions and at the end. What grew is a problem in a process that was warm by then: libraries
    and pools of threads grow during the first sessions after a start."""
    growth = end.rss / middle.rss - 1
    problems = outcome.problems if warm else []
    if growth > GROWTH:
        problems.append(f"{name}: resident memory grew by {growth:.1%} over the second half")
    for what in ("threads", "files"):
        before, after = getattr(middle, what), getattr(end, what)
        if after > before + SLACK:
            problems.append(f"{name}: {before} {what} after half the sessions, {after} at the end")
    return {
        "rss_mb": [round(gauge.rss / 1e6, 1) for gauge in (middle, end)],
        "rss_growth_percent": round(growth * 100, 2),
        "threads": [middle.threads, end.threads],
        "files": [middle.files, end.files],
        "judged": warm,
    }


def _check_tapes(soak: Soak, deployment: SoakDeployment, outcome: Outcome) -> None:
    """No tape served two sessions; journals of tapes on disk agree."""
    for name, notes in deployment.notes().items():
        used = [tape for kind, tape in notes if kind == "session"]
        if len(used) < outcome.succeeded:
            outcome.problems.append(f"{name} noted {len(used)} tapes for {outcome.succeeded} sessions")
        outcome.problems += [f"{name}: a tape was used {n} times" for n in Counter(used).values() if n > 1]
        if {tape for kind, tape in notes if kind == "loading"} & set(used):
            outcome.problems.append(f"{name}: a session used the tape of a load")
        if soak.tapes:
            journal = Journal(deployment.folder / "tapes" / name / "journal", name)
            with journal.locked() as records:
                taken = records._sessions
            if len(set(taken.values())) != len(taken) or not set(outcome.sessions) <= set(taken.values()):
                outcome.problems.append(f"{name}: its journal does not show a tape of its own for each session")
            if len(used) > len(taken):
                outcome.problems.append(f"{name}: used {len(used)} tapes, its journal shows {len(taken)}")


def _check_pages(deployment: SoakDeployment, outcome: Outcome) -> None:
    """Layers were read back from pages, and those of no session are left."""
    for name, notes in deployment.notes().items():
        if not any(kind == "pages" and int(count) for kind, count in notes):
            outcome.problems.append(f"{name}: no session read a layer back from a page")
    outcome.problems += [f"{folder}: pages of a session that is over" for folder in deployment.pages_left()]
