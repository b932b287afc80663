"""What disturbs a measurement, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.local import quiet


def test_what_a_host_takes_away_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks in programs, nice, system, idle, waiting, interrupts, soft ones, stolen: 30 of 100 more."""
    stat = tmp_path / "stat"
    monkeypatch.setattr(quiet, "_STAT", stat)
    stat.write_text("cpu  100 0 0 900 0 0 0 10 0 0\ncpu0 1 2 3\n")
    meanwhile = quiet.Meanwhile()
    assert meanwhile.stolen() == 0.0
    stat.write_text("cpu  150 0 0 920 0 0 0 40 0 0\n")
    assert meanwhile.stolen() == pytest.approx(0.3)
    stat.unlink()
    assert meanwhile.stolen() == 0.0


def test_others_and_the_host_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([(0, 0, 0), (5000, 500, 10_000)])
    monkeypatch.setattr(quiet, "_ticks", lambda: next(ticks))
    found = quiet.disturbance(0.01)
    assert "its host takes 5 % of them away" in found
    assert "other programs use 50 % of its processors" in found


def test_a_quiet_machine_is_not_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "KEPT", 0.0)
    ticks = iter([(0, 0, 0), (100, 10, 10_000)])
    monkeypatch.setattr(quiet, "_ticks", lambda: next(ticks))
    assert quiet.disturbance(0.01) == ""
