"""Who may dial for sessions in step, and what becomes of them when a party was started again meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from mpc.errors import PeerLost, WireError
from parties.party.rendezvous import Network
from parties.party.step_groups import StepGroups
from parties.server.metrics import Metrics
from parties.wire import wire_pb2 as wire

NAMES = ["party0", "party1", "party2"]
KEY = ("model",)


class Stream:
    """What a group does with a peer's stream."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.sent: list[Any] = []
        self.session = SimpleNamespace(check=lambda: None)

    def move(self, session: Any) -> None:
        self.session = session

    def share(self, inbox: Any) -> None:
        pass

    def make_room(self, limit: int) -> None:
        pass

    def send(self, message: Any) -> None:
        self.sent.append(message)


def groups(monkeypatch: pytest.MonkeyPatch, index: int) -> StepGroups:
    limits = SimpleNamespace(max_in_step=4)
    config = SimpleNamespace(
        name=NAMES[index], party_names=NAMES, index=index, step_seconds=1.0, deadline_seconds=1.0, limits=limits
    )
    monkeypatch.setattr("parties.party.step_link.StepLink.start", lambda link: None)
    metrics = SimpleNamespace(get=lambda name: SimpleNamespace(inc=lambda count: None))
    return StepGroups(cast(Network, SimpleNamespace(config=config)), cast(Metrics, metrics))


def attach(held: StepGroups, peer: str, group: str) -> Stream:
    stream = Stream(peer)
    held.attach(cast(Any, stream), group)
    return stream


def test_a_party_that_was_started_again_ends_its_group_and_the_next_sessions_have_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = groups(monkeypatch, 0)
    place = held.assign(KEY)
    assert place is not None
    for peer in NAMES[1:]:
        assert attach(held, peer, place.group).sent == [wire.PeerMessage(ready=wire.Ready())]
    again = held.assign(KEY)
    assert again is not None
    assert again.group == place.group
    with pytest.raises(PeerLost, match="started again while sessions ran in step with it") as lost:
        attach(held, "party1", place.group)
    assert lost.value.peer == "party1"
    link = held.find(place.group)
    assert link is not None
    assert link.error is lost.value
    with pytest.raises(PeerLost, match="party1"):
        held.join(again, lambda: None)
    new = held.assign(KEY)
    assert new is not None
    assert new.group != place.group
    attach(held, "party1", new.group)


def test_a_party_of_lower_index_does_not_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    held = groups(monkeypatch, 1)
    held.follow(SimpleNamespace(group="5" * 32, number=1), KEY, "party0")  # type: ignore[arg-type]
    with pytest.raises(WireError, match="party0 dialled for sessions in step, which is not its part"):
        attach(held, "party0", "5" * 32)
