"""Several clients at once: turns, full queues, waiting times, orders of arrival, cold models, and shutting down."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from mpc.errors import MpcacheError, PeerLost
from parties.client.model_reference import ModelReference
from parties.errors import Busy
from parties.party.session import PartySession
from parties.program import Program
from tests.parties.conftest import VOCABULARY
from tests.parties.deployment import Deployment
from tests.parties.test_faults import idle
from tests.parties.toy import Toy, expected

LIMITS = {"max_sessions": 1, "max_queued": 40, "max_queued_per_client": 40}
CLIENTS = ["client", "alice"]
PATIENT = {"deadline_seconds": 60, "connect_seconds": 120, "step_seconds": 200}


def deploy(folder: Path, parties: int, program: Program, limits: dict[str, dict[str, int]], **settings: Any) -> Deployment:
    """A running deployment of two clients; limits: by name, "" for the others."""
    deployment = Deployment(folder, parties, program, clients=CLIENTS, **{**PATIENT, **settings})
    deployment.add("alice", "client")
    for name in ["dealer", *deployment.names]:
        deployment.start_one(name, limits=limits.get(name, limits.get("", LIMITS)))
    return deployment


class Calls:
    """Sessions in threads. done: the tags of those that have ended, in order; results: their tokens or errors."""

    def __init__(self, deployment: Deployment, model: ModelReference) -> None:
        self.deployment, self.model = deployment, model
        self.done: list[str] = []
        self.results: dict[str, list[int] | MpcacheError] = {}
        self.stages: dict[str, list[str]] = {}
        self._threads: list[threading.Thread] = []

    def start(self, tag: str, client: str, prompt: list[int] = [1], tokens: int = 1) -> None:  # noqa: B006
        self.stages[tag] = []
        thread = threading.Thread(target=self._one, args=(tag, client, prompt, tokens), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _one(self, tag: str, client: str, prompt: list[int], tokens: int) -> None:
        def progress(stage: str, done: int, total: int) -> None:
            self.stages[tag].append(stage)

        try:
            result = self.deployment.client(client).ask(prompt, tokens, model=self.model, stop_ids=(), on_progress=progress)
            self.results[tag] = result.tokens
        except MpcacheError as error:
            self.results[tag] = error
        self.done.append(tag)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(250)
            assert not thread.is_alive(), "a session hangs"


def until(true: Callable[[], Any], seconds: float = 200) -> None:
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.01)


class Gate:
    """Holds party 0 in its first round until opened."""

    def __init__(self, toy: Toy) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        toy.before_round = self._pass

    def _pass(self, party: int, step: int, round: int) -> None:
        if party == 0:
            self.reached.set()
            assert self.open.wait(300)


def waiting(deployment: Deployment) -> int:
    return deployment.servers["party0"].admission.count("waiting")


def test_one_client_cannot_starve_another(tmp_path: Path, checkpoint: Path) -> None:
    toy = Toy(rounds=1)
    gate = Gate(toy)
    deployment = deploy(tmp_path, 2, toy.program, {})
    try:
        calls = Calls(deployment, deployment.share(checkpoint))
        calls.start("a0", "client")
        assert gate.reached.wait(200)
        for i in range(1, 20):
            calls.start(f"a{i}", "client")
        until(lambda: waiting(deployment) == 19)
        calls.start("b", "alice")
        until(lambda: waiting(deployment) == 20)
        until(lambda: "queued, 1 ahead" in calls.stages["b"])
        gate.open.set()
        until(lambda: "b" in calls.done)
        assert calls.done.index("b") <= 3
        assert calls.results["b"] == [1]
        deployment.stop()  # the others are not worth waiting for
        calls.join()
        assert all(result == [1] or isinstance(result, MpcacheError) for result in calls.results.values())
    finally:
        gate.open.set()
        deployment.stop()


def test_full_queue_and_longest_waiting_time(tmp_path: Path, checkpoint: Path) -> None:
    toy = Toy(rounds=1)
    gate = Gate(toy)
    limits = {"": {"max_sessions": 1, "max_queued": 1}}
    deployment = deploy(tmp_path, 2, toy.program, limits, queue_seconds=3)
    try:
        calls = Calls(deployment, deployment.share(checkpoint))
        calls.start("runs", "client")
        assert gate.reached.wait(200)
        calls.start("waits", "client")
        until(lambda: waiting(deployment) == 1)
        with pytest.raises(Busy, match=r"party0 is busy: it serves 1 sessions at a time, and 1 wait; try again later"):
            deployment.client("alice").ask([1], 1, model=calls.model)
        until(lambda: "waits" in calls.done)
        late = calls.results["waits"]
        assert isinstance(late, Busy)
        assert "party0 is busy: the session waited 3 s for its turn, with 0 still ahead of it" in str(late)
        gate.open.set()
        calls.join()
        assert calls.results["runs"] == [1]
        idle(deployment, 60)
        assert [server.admission.count("running") for server in deployment.servers.values()] == [0, 0, 0]
    finally:
        gate.open.set()
        deployment.stop()


@pytest.mark.parametrize(
    ("parties", "sessions"),
    [
        (2, {"party0": 1, "party1": 1, "dealer": 1}),
        (2, {"party0": 2, "party1": 1, "dealer": 2}),
        (3, {"party0": 3, "party1": 2, "party2": 1, "dealer": 1}),
    ],
)
def test_no_lock_up(tmp_path: Path, checkpoint: Path, parties: int, sessions: dict[str, int]) -> None:
    toy = Toy(rounds=1)
    limits = {name: {**LIMITS, "max_sessions": count} for name, count in sessions.items()}
    deployment = deploy(tmp_path, parties, toy.program, limits)
    try:
        calls = Calls(deployment, deployment.share(checkpoint))
        for i in range(6):
            calls.start(str(i), CLIENTS[i % 2], [i], 2)
        calls.join()
        assert calls.results == {str(i): expected([i], 2, VOCABULARY) for i in range(6)}
        assert toy.loads <= 2  # one a client at most
        idle(deployment, 60)
    finally:
        deployment.stop()


def test_a_cold_model_is_loaded_once_and_a_failed_load_again(tmp_path: Path, checkpoint: Path) -> None:
    toy = Toy(rounds=1)
    began, go, failures = threading.Event(), threading.Event(), [True]

    def load(suite: Any, architecture: Any, shares: Any) -> dict[str, Any]:
        weights = toy.program.load(suite, architecture, shares)
        session = getattr(suite, "session", None) or suite.context
        if session.channel is not None and session.channel.party == 0 and failures and failures.pop():
            began.set()
            assert go.wait(200)
            raise RuntimeError("the first load fails")
        return weights

    deployment = deploy(tmp_path, 2, Program(load, toy.program.run), {"": {"max_sessions": 4}})
    try:
        calls = Calls(deployment, deployment.share(checkpoint))
        calls.start("first", "client")
        assert began.wait(200)
        calls.start("second", "client")
        calls.start("third", "client")
        calls.start("other", "alice")  # does not wait for what another client does
        stage = "waiting for another session to load the model"
        until(lambda: stage in calls.stages["second"] and stage in calls.stages["third"])
        until(lambda: calls.results.get("other") == [1])
        assert toy.loads == 2
        go.set()
        calls.join()
        assert isinstance(calls.results.pop("first"), MpcacheError)
        assert calls.results == {"second": [1], "third": [1], "other": [1]}
        assert toy.loads == 2  # the load of the other client serves
    finally:
        go.set()
        deployment.stop()


def test_a_waiting_session_keeps_next_to_nothing_of_its_upload(tmp_path: Path, checkpoint: Path) -> None:
    toy = Toy(rounds=1)
    gate = Gate(toy)
    deployment = deploy(tmp_path, 2, toy.program, {})
    try:
        calls = Calls(deployment, deployment.share(checkpoint))
        calls.start("runs", "client")
        assert gate.reached.wait(200)
        calls.start("waits", "client", [0] * 20, 1)
        until(lambda: waiting(deployment) == 1)
        party, found = deployment.servers["party1"], cast("list[Any]", [])
        until(lambda: found.extend(s for s in party.sessions.all() if s.ticket.state != "running") or found)
        (session,) = found
        until(lambda: session.client.stalled and session.client.inbox.qsize() == 1)
        gate.open.set()
        calls.join()
        assert calls.results == {"runs": [1], "waits": [0]}
    finally:
        gate.open.set()
        deployment.stop()


# ---- shutting down -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["party0", "party1", "dealer"])
def test_draining(tmp_path: Path, checkpoint: Path, name: str) -> None:
    toy = Toy(rounds=1)
    gate = Gate(toy)
    deployment = deploy(tmp_path, 2, toy.program, {"dealer": {"max_sessions": 2}})
    try:
        calls = Calls(deployment, deployment.share(checkpoint))
        calls.start("runs", "client", [1], 3)
        assert gate.reached.wait(200)
        if name != "dealer":
            calls.start("waits", "client")
            until(lambda: waiting(deployment) == 1)
            until(lambda: len(deployment.servers["party1"].sessions.all()) == 2)
        ended: list[bool] = []
        thread = threading.Thread(target=lambda: ended.append(deployment.servers[name].drain(200)))
        thread.start()
        until(lambda: deployment.servers[name].draining)
        if name != "dealer":
            until(lambda: "waits" in calls.done)
            assert f"{name}: is shutting down" in str(calls.results["waits"])
            with pytest.raises(PeerLost, match=f"{name}: is shutting down"):
                deployment.client("alice").ask([1], 1, model=calls.model)
            assert not ended  # the dealer is done long before the parties
        gate.open.set()
        calls.join()
        thread.join(200)
        assert ended == [True]
        assert calls.results["runs"] == expected([1], 3, VOCABULARY)
    finally:
        gate.open.set()
        deployment.stop()


def test_the_grace_period_ends(tmp_path: Path, checkpoint: Path) -> None:
    toy = Toy(rounds=1)
    gate = Gate(toy)
    deployment = deploy(tmp_path, 2, toy.program, {})
    try:
        calls = Calls(deployment, deployment.share(checkpoint))
        calls.start("runs", "client")
        assert gate.reached.wait(200)
        session = deployment.servers["party1"].sessions.all()[0]
        assert isinstance(session, PartySession)
        assert not deployment.servers["party1"].drain(0.1)
        gate.open.set()
        deployment.servers["party1"].stop()
        calls.join()
        result = calls.results["runs"]
        assert result == [1] or "party1: is shutting down" in str(result)
    finally:
        gate.open.set()
        deployment.stop()


def test_that_a_server_stops_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of two threads that stop a server, as a lost rank's and the main thread do, both return when it has stopped."""
    caplog.set_level("INFO")
    deployment = deploy(tmp_path, 2, Toy(rounds=1).program, {})
    try:
        server = deployment.servers["party0"]
        within, go_on, close = threading.Event(), threading.Event(), server.lines.stop
        server.lines.stop = lambda: (within.set(), go_on.wait(60), close())  # type: ignore[assignment, func-returns-value]
        threads = [threading.Thread(target=server.stop, daemon=True) for _ in range(2)]
        threads[0].start()
        assert within.wait(60)
        threads[1].start()
        threads[1].join(1)
        assert threads[1].is_alive()
        go_on.set()
        for thread in threads:
            thread.join(60)
        said = [record.getMessage().strip() for record in caplog.records]
        assert said.count("party0: stopped") == 1
    finally:
        deployment.stop()
