"""How a session at a party ends where its client is slow, a peer dials twice, or a caller's key is revoked meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import grpc
import pytest

from parties.client.model_reference import ModelReference
from parties.identity.certificates import check
from parties.identity.revocation import REVOKED
from parties.identity.trust import parties_of
from parties.model_owner.model_owner import _header
from parties.party import client_endpoint
from parties.party.compute_party import ComputePartyServer
from parties.transport import peer_stream
from parties.transport.connection import connect
from parties.wire import wire_pb2 as wire
from parties.wire import wire_pb2_grpc as services
from tests.parties.conftest import VOCABULARY, Running, run
from tests.parties.toy import expected

PROMPT = [3, 1, 4]


@pytest.fixture
def own(tmp_path: Path, checkpoint: Path) -> Iterator[Running]:
    yield from run(tmp_path, checkpoint, 2)


def test_a_client_that_stops_while_much_waits_to_be_sent(
    own: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The summary of costs is longer than what may wait, and the session is over: it ends in good order all the same."""
    monkeypatch.setattr(peer_stream, "OUTBOX_LIMIT", 2)
    monkeypatch.setattr(client_endpoint, "CHUNK_BYTES", 8)
    caplog.set_level(logging.INFO, "mpcache")
    seen: list[int] = []

    def second(token: int) -> bool:
        seen.append(token)
        return len(seen) < 2

    result = own.deployment.client().ask(PROMPT, 9, stop_ids=(), on_token=second)
    assert (result.tokens, result.finish_reason) == (expected(PROMPT, 2, VOCABULARY), "stop")
    assert sorted(result.costs) == own.deployment.names
    limit = time.monotonic() + 10
    while any(thread.name.startswith(("read ", "session ")) for thread in threading.enumerate()):
        assert time.monotonic() < limit, "a stream of the session is still read"
        time.sleep(0.02)
    ended = [record.facts for record in caplog.records if getattr(record, "event", "") == "session_ended"]  # type: ignore
    assert [facts["outcome"] for facts in ended] == ["complete"] * 3  # both parties and the dealer


def test_a_peer_that_dials_twice_ends_nothing(own: Running) -> None:
    """The second call is refused by name; the session goes on, and can still be ended."""
    party0, party1 = (own.deployment.servers[name] for name in ("party0", "party1"))
    held, go_on = threading.Event(), threading.Event()

    def wait(party: int, step: int, round: int) -> None:
        if (party, step, round) == (1, 1, 0):
            held.set()
            go_on.wait(20)

    own.toy.before_round = wait
    answers: list[list[int]] = []
    client = own.deployment.client()
    asking = threading.Thread(target=lambda: answers.append(client.ask(PROMPT, 3, stop_ids=()).tokens), daemon=True)
    asking.start()
    assert held.wait(20)
    (session,) = party1.sessions.all()
    hello = session._rendezvous._greetings.own()  # type: ignore[attr-defined]
    config = own.deployment.config("party", "party1")
    channel = connect(check(config.certificates, "party1", "party"), parties_of(config)[0], 5)
    with channel, pytest.raises(grpc.RpcError, match="party1 dialled twice in one session"):
        list(services.ComputePartyStub(channel).Exchange(iter([hello])))
    (here,) = party0.sessions.all()
    assert not here.ended
    assert here.error is None
    go_on.set()
    asking.join(20)
    assert answers == [expected(PROMPT, 3, VOCABULARY)]


def test_a_key_that_is_revoked_before_the_first_message(own: Running) -> None:
    """An owner's call is open when its key is revoked; what it sends afterwards is not stored."""
    deployment, party0 = own.deployment, own.deployment.servers["party0"]
    assert isinstance(party0, ComputePartyServer)
    before = [model.name for model in party0.store.models()]
    config = deployment.config("model-owner", "owner")
    with connect(check(config.certificates, "owner", "model-owner"), parties_of(config)[0], 5) as channel:
        messages: SimpleQueue[wire.ModelMessage | None] = SimpleQueue()
        call = services.ComputePartyStub(channel).StoreModel(iter(messages.get, None))
        time.sleep(0.3)
        (deployment.certificates / REVOKED).write_text(f"{deployment.fingerprints['owner']}\n")
        limit = time.monotonic() + 10
        while not party0.identity.revoked:
            assert time.monotonic() < limit
            time.sleep(0.05)
        model = ModelReference("0" * 32, "late", own.model.architecture, "owner", ("party0", "party1"))
        messages.put(wire.ModelMessage(header=_header(model, 16, b"s" * 32)))
        with pytest.raises(grpc.RpcError, match="the key of 'owner' is revoked"):
            list(call)
        messages.put(None)
    assert [model.name for model in party0.store.models()] == before
