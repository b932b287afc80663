"""Calls of a server by who makes them: caps, and that no name takes another's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parties.errors import Busy
from parties.server.calls import ALL_CLIENTS, Calls
from parties.server.permissions import Permissions
from tests.parties.deployment import Deployment


def calls(folder: Path, **changes: Any) -> Calls:
    config = Deployment(folder, 2).config("party", "party0", **changes)
    return Calls("party0", Permissions(config))


def fill(made: Calls, name: str) -> int:
    """Open calls until there is no more."""
    for count in range(100_000):
        try:
            made.enter(name)
        except Busy:
            return count
    raise AssertionError


def test_every_name_has_its_own(tmp_path: Path) -> None:
    made = calls(tmp_path, clients=["client", {"name": "alice", "max_sessions": 1, "max_queued": 2}])
    assert fill(made, "client") == 2 * 3 + 8 + 8
    assert fill(made, "alice") == 2 * 1 + 2 + 8
    assert fill(made, "owner") == 2 * 3 + 8 + 8
    assert fill(made, "party1") == fill(made, "dealer") == 2 * (2 * 4 + 32) + 16
    message = (
        r"'client' has 22 calls open at party0, .*\('max_calls_per_client' in the 'limits' of party0\): end some of them"
    )
    with pytest.raises(Busy, match=message):
        made.enter("client")
    with pytest.raises(Busy, match="'party1' has 96 calls open at party0, which is as many as it may: end"):
        made.enter("party1")
    made.leave("client")
    with made.held("client"), pytest.raises(Busy):
        made.enter("client")
    made.enter("client")


def test_a_setting(tmp_path: Path) -> None:
    made = calls(tmp_path, limits={"max_calls_per_client": 5})
    assert (fill(made, "client"), fill(made, "owner")) == (5, 5)
    assert fill(made, "party1") == 96


def test_there_is_a_thread_for_every_call(tmp_path: Path) -> None:
    few = calls(tmp_path / "few")
    assert few.threads >= fill(few, "client") + fill(few, "owner") + fill(few, "party1") + fill(few, "dealer") + 10
    many = calls(tmp_path / "many", clients=[f"c{n}" for n in range(100)])
    assert many.threads <= ALL_CLIENTS + 3 * 96 + 16
    for n in range(100):
        if fill(many, f"c{n}") < 22:
            break
    with pytest.raises(Busy, match=r"clients have 1024 calls open at party0; 'owner' must try again later"):
        many.enter("owner")
    assert fill(many, "party1") == 96
