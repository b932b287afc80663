"""A client that keeps its channels open, and generations that are given up from another thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
from torch import Tensor

from mpc.errors import ConfigurationError, PeerLost
from parties.client.cancellation import Cancellation
from parties.client.client import Client
from parties.errors import Cancelled
from parties.transport.session import Session
from tests.parties.conftest import VOCABULARY, Running
from tests.parties.relay import Relay
from tests.parties.test_faults import idle, works
from tests.parties.toy import expected, slow

PROMPT = [3, 1]


class Pooled:
    """A client that reaches party0 through a relay and keeps its connections."""

    def __init__(self, running: Running) -> None:
        deployment = running.deployment
        self.relay = Relay(deployment.addresses[0])
        near = deployment.values("client", "client")["parties"]
        near[0] = {"name": "party0", "address": self.relay.address}
        self.client: Client = deployment.client(keep_connections=True, parties=near, connect_seconds=2)
        self.model = running.model

    def works(self) -> None:
        """A session succeeds."""
        result = self.client.ask(PROMPT, 2, model=self.model, stop_ids=())
        assert result.tokens == expected(PROMPT, 2, VOCABULARY)


@pytest.fixture
def pooled(two: Running) -> Iterator[Pooled]:
    made = Pooled(two)
    yield made
    made.client.close()
    made.relay.close()


def test_one_handshake_for_many_sessions_at_once(pooled: Pooled, two: Running) -> None:
    pooled.works()
    assert [m.name for m in pooled.client.models()] == ["tiny"]
    two.toy.before_round = slow(0.01)
    threads = [threading.Thread(target=pooled.works) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    pooled.works()
    assert pooled.relay.connections == 2, "one look at the certificate, and one connection"


def test_proxies_are_for_the_web(two: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens at this one, and no peer is looked for behind it."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    client = two.deployment.client(connect_seconds=5)
    assert client.ask(PROMPT, 2, model=two.model, stop_ids=()).tokens == expected(PROMPT, 2, VOCABULARY)


def test_a_lost_connection_is_made_again(pooled: Pooled) -> None:
    pooled.works()
    pooled.relay.cut()
    pooled.works()
    pooled.works()
    assert pooled.relay.connections == 3


def test_a_restarted_party_is_used_again(pooled: Pooled, two: Running) -> None:
    pooled.works()
    two.deployment.servers["party1"].stop()
    with pytest.raises(PeerLost, match=r"^party1: nothing listens at .*\(waited 2 s\)"):
        pooled.works()
    two.deployment.start_one("party1")
    pooled.works()
    assert pooled.relay.connections == 2, "one look at the certificate, and one connection"


def test_closed_while_in_use(pooled: Pooled, two: Running) -> None:
    closed = pooled.client.ask(PROMPT, 3, model=pooled.model, stop_ids=(), on_token=lambda token: pooled.client.close())
    assert closed.tokens == expected(PROMPT, 3, VOCABULARY)
    pooled.works()
    works(two.deployment)


@pytest.mark.parametrize("keep", [False, True])
def test_cancelled_while_the_parties_compute(two: Running, keep: bool) -> None:
    idle(two.deployment, 10)
    held, began = threading.Event(), threading.Event()
    cancellation = Cancellation()
    sessions: list[Session] = []

    def before_round(party: int, step: int, round: int) -> None:
        if step == 2 and party >= 0:
            began.set()
            held.wait(30)

    def give_up() -> None:
        began.wait(30)
        sessions.extend(s for name in two.deployment.names for s in two.deployment.servers[name].sessions.all())
        cancellation.cancel()

    two.toy.before_round = before_round
    threading.Thread(target=give_up, daemon=True).start()
    client = two.deployment.client(keep_connections=keep)
    with pytest.raises(Cancelled, match="gave the generation up"):
        client.ask(PROMPT, 10, stop_ids=(), cancellation=cancellation)
    assert len(sessions) == 2
    for session in sessions:
        assert isinstance(session.error, PeerLost)
        assert "client: gave the session up" in str(session.error)
    held.set()
    idle(two.deployment)
    works(two.deployment)
    client.close()


def test_cancelled_before_it_begins_or_after_it_ended(two: Running) -> None:
    early = Cancellation()
    early.cancel()
    assert early.cancelled
    with pytest.raises(Cancelled):
        two.deployment.client().ask(PROMPT, 1, cancellation=early)
    late = Cancellation()
    two.deployment.client().ask(PROMPT, 1, stop_ids=(), cancellation=late)
    late.cancel()
    works(two.deployment)
    nobody = two.deployment.client(parties=[{"name": f"party{i}", "address": "127.0.0.1:1"} for i in range(2)])
    waiting = Cancellation()
    with pytest.raises(Cancelled):
        nobody.ask(PROMPT, 1, model=two.model, cancellation=waiting, on_progress=lambda stage, done, total: waiting.cancel())


def test_adjusted_logits(two: Running) -> None:
    seen: list[list[int]] = []

    def reversed_order(logits: Tensor, tokens: Sequence[int]) -> Tensor:
        seen.append(list(tokens))
        return -logits

    client = two.deployment.client()
    plain = client.ask([0, 2], 1, decoding="logits", stop_ids=())
    assert plain.tokens == [VOCABULARY - 1]  # the toy's logits grow with the index
    result = client.ask([0, 2], 2, decoding="logits", stop_ids=(), adjust=reversed_order)
    assert result.tokens == [0, 0]
    assert seen == [[0, 2], [0, 2, 0]]
    with pytest.raises(ConfigurationError, match="adjust needs decoding 'logits'"):
        client.ask([0, 2], 3, adjust=reversed_order)
