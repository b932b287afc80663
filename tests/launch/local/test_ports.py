"""Free ports."""

from pathlib import Path

import pytest

from launch.local import ports


def test_they_are_different_and_below_those_of_outgoing_connections() -> None:
    found = ports.free_ports(50)
    assert len(set(found)) == 50
    end = int(ports.RANGE.read_text().split()[0]) if ports.RANGE.exists() else 49152
    assert all(ports.FIRST <= port < end for port in found)


@pytest.mark.parametrize("range_", ["1024 65535", "10999 20000"])
def test_a_system_that_leaves_none_chooses(range_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "range").write_text(range_)
    monkeypatch.setattr(ports, "RANGE", tmp_path / "range")
    assert len(set(ports.free_ports(5))) == 5
