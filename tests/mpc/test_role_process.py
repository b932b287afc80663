"""What a role's process asks of its machine."""

from __future__ import annotations

import os

import pytest

from mpc import allocator, role_process


def test_processors_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 4, 6}, raising=False)
    assert role_process.processors() == 3
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert role_process.processors() == 1


@pytest.mark.parametrize(("computes", "calls"), [(True, ["one_arena", "keep_freed"]), (False, ["one_arena"])])
def test_who_computes_keeps_what_is_freed(computes: bool, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    for name in ("one_arena", "keep_freed"):
        monkeypatch.setattr(allocator, name, lambda name=name: found.append(name))
    role_process.set_up(computes)
    assert found == calls
