"""Processes that are forked from one with connections: they and its sessions do each other no harm."""

from __future__ import annotations

import multiprocessing
import subprocess
import threading
import time
from multiprocessing.connection import Connection

import pytest

from mpc.errors import EnvironmentProblem
from parties.client.client import Client
from parties.transport import connection
from tests.parties.conftest import VOCABULARY, Running
from tests.parties.toy import expected, slow

PROMPT = [3, 1]
FORKS, SECONDS = 60, 30.0


def test_forks_beside_sessions(two: Running) -> None:
    """With gRPC's own handlers one in ten children was aborted, and the session stood still for a minute."""
    client, answers = two.deployment.client(), []
    two.toy.before_round = slow(0.002)
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            answers.append(client.ask(PROMPT, 2, model=two.model, stop_ids=()).tokens)

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    began = time.monotonic()
    try:
        for _ in range(FORKS):
            assert subprocess.run(["true"], preexec_fn=lambda: None, timeout=SECONDS).returncode == 0
    finally:
        ended.set()
        for thread in asking:
            thread.join(2 * SECONDS)
    assert time.monotonic() - began < SECONDS
    assert answers
    assert all(tokens == expected(PROMPT, 2, VOCABULARY) for tokens in answers)


def use(client: Client, end: Connection) -> None:
    try:
        end.send([model.name for model in client.models()])
    except EnvironmentProblem as error:
        end.send(str(error))


@pytest.mark.parametrize("kept", [False, True])
def test_a_forked_process_is_refused_connections(two: Running, kept: bool) -> None:
    client = two.deployment.client(keep_connections=kept)
    assert [model.name for model in client.models()] == ["tiny"]
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=use, args=(client, there))
    child.start()
    child.join(SECONDS)
    assert child.exitcode == 0
    assert here.poll()
    assert "forked from process" in (said := here.recv()), said
    assert "'spawn' or 'forkserver'" in said
    assert [model.name for model in client.models()] == ["tiny"]
    client.close()


def test_the_process_that_began_is_the_one_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_began", [])
    connection.begun()
    connection.begun()
    monkeypatch.setattr("os.getpid", lambda: 0)
    with pytest.raises(EnvironmentProblem, match="forked from process"):
        connection.begun()
