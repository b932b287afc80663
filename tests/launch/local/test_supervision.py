"""How a server's process begins: with a line for whoever looks on at a terminal, or as the child of another process."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from launch.local import supervision


@pytest.mark.parametrize(("looks_on", "supervised"), [(True, False), (False, False), (True, True)])
def test_who_looks_on_is_told_that_a_server_starts(
    monkeypatch: pytest.MonkeyPatch, looks_on: bool, supervised: bool
) -> None:
    seen, watching = io.StringIO(), []
    monkeypatch.setattr(supervision, "err", Console(file=seen, force_terminal=looks_on, color_system=None))
    monkeypatch.setattr(supervision, "end_with_parent", lambda: watching.append(True))
    supervision.begin("party", supervised)
    told = looks_on and not supervised
    assert seen.getvalue() == ("party starts: reading its modules\n" if told else "")
    assert watching == ([True] if supervised else [])
