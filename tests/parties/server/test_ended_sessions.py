"""What a server remembers of sessions that are over: their errors, and nothing that those went through."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from mpc.errors import MpcacheError, PeerLost
from parties.server.sessions import Sessions


class Secret:
    """Stands for a share in a frame."""


class Ended:
    """A session of which only its end is asked."""

    def __init__(self, id: str, error: MpcacheError | None) -> None:
        self.id, self.error, self.finished = id, error, False


def failing() -> tuple[MpcacheError, weakref.ref[Secret]]:
    share = Secret()
    try:
        raise PeerLost("party1", "prefill", "the connection ended")
    except PeerLost as error:
        return error, weakref.ref(share)


def test_a_remembered_error_holds_no_frames() -> None:
    sessions: Sessions[Any] = Sessions("party0")
    error, share = failing()
    session = Ended("a" * 32, error)
    sessions.add(session)
    sessions.remove(session)
    assert sessions.ended_by(error)
    assert not sessions.ended_by(PeerLost("party1", "prefill", "the connection ended"))
    assert share() is not None
    del error, session
    gc.collect()
    assert share() is None
    for _ in range(2):
        with pytest.raises(PeerLost, match=r"^party1: the connection ended \(during prefill\)$") as caught:
            sessions.wait_for("a" * 32, 0)
        assert (caught.value.peer, caught.value.step) == ("party1", "prefill")
        assert sessions.ended_by(caught.value)
    with pytest.raises(PeerLost):
        sessions.add(Ended("a" * 32, None))
