"""A role that is gone: an error within seconds that names it and says when to come again; used again when it is back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from launch.serve.gateway import patience
from launch.serve.gateway.patience import Patience
from mpc.errors import PeerLost
from parties.status.reach import KEPT_SECONDS
from tests.launch.serve.gateway_harness import Running, deployed, serving
from tests.launch.serve.test_gateway_refusals import raw
from tests.parties.conftest import checkpoint  # noqa: F401


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Running]:  # noqa: F811
    """A gateway whose requests wait a second for a role, of a deployment in which everybody else waits a minute."""
    folder = tmp_path_factory.mktemp("patience")
    with deployed(folder, checkpoint, connect_seconds=60) as parts, serving(*parts, party_seconds=1.0) as running:
        yield running


@pytest.mark.parametrize(("role", "stream"), [("party1", False), ("party0", True), ("dealer", False)])
def test_a_role_that_is_gone(gateway: Running, role: str, stream: bool) -> None:
    client = gateway.openai()
    asked: dict[str, Any] = {"model": "tiny", "prompt": "ab", "max_tokens": 1}
    assert client.completions.create(**asked).choices[0].text == "c"
    assert raw(gateway, "GET", "/ready")[1]["status"] == "ready"
    gateway.deployment.servers[role].stop()
    time.sleep(KEPT_SECONDS)
    status, body = raw(gateway, "GET", "/ready")
    assert (status, body["error"]["code"], body["error"]["peer"]) == (503, "peer_lost", role)
    began = time.monotonic()
    with pytest.raises(
        openai.InternalServerError, match=rf"{role}: nothing listens at .*start {role}.*waited 1 s"
    ) as caught:
        client.completions.create(**asked, stream=stream)
    assert time.monotonic() - began < 6
    assert (caught.value.status_code, caught.value.code) == (503, "peer_lost")
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["peer"] == role
    assert caught.value.response.headers["retry-after"] == "5"
    gateway.deployment.start_one(role)
    assert client.completions.create(**asked).choices[0].text == "c"
    time.sleep(KEPT_SECONDS)
    assert raw(gateway, "GET", "/ready")[0] == 200
    assert gateway.gateway.running <= 1


def test_what_patience_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    now, heard = [0.0], list[str]()
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: now[0]))
    one = Patience(5.0, lambda stage, done, total: heard.append(stage))

    def hear(at: float, stage: str) -> None:
        now[0] = at
        one.progress(stage, 0, 0)

    for at, stage in (
        (0, "waiting for party1: not there"),
        (4, "waiting for party0: not there"),
        (4.9, "prefill"),  # it came back
        (6, "waiting for party1: not there"),
        (10, "waiting for party1"),  # its turn
        (99, "waiting for another session to load the model"),
        (999, "waiting for a tape: none is there"),
        (1000, "waiting for dealer: not there"),
        (1004.9, "waiting for dealer: not there"),
    ):
        hear(at, stage)
    assert len(heard) == 9
    with pytest.raises(PeerLost, match=r"dealer: not +\[31m there x+ \(waited 5 s\)") as caught:
        hear(1005, "waiting for dealer: not \x1b[31m there " + "x" * 9999)
    assert (caught.value.peer, len(str(caught.value)) < 400) == ("dealer", True)
