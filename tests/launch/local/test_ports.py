"""Free ports."""

import subprocess
import sys
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


@pytest.mark.skipif(not ports.RANGE.exists(), reason="the range of outgoing connections is not known")
def test_two_processes_are_given_different_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither process has started a server yet when the other one asks."""
    few = ports.FIRST + ports.ENOUGH  # as few as are still drawn from
    (tmp_path / "range").write_text(f"{few} 65535")
    monkeypatch.setattr(ports, "RANGE", tmp_path / "range")
    monkeypatch.setattr(ports, "CLAIMS", 300)
    ours = ports.free_ports(300)
    program = (
        "import pathlib, sys; from launch.local import ports; "
        "ports.RANGE = pathlib.Path(sys.argv[1]); print(*ports.free_ports(300))"
    )
    asked = subprocess.run([sys.executable, "-c", program, tmp_path / "range"], capture_output=True, text=True, check=True)
    assert not set(ours) & {int(port) for port in asked.stdout.split()}


def test_a_process_holds_a_bounded_number() -> None:
    for _ in range(3):
        ports.free_ports(100)
    assert len(ports._claims) == ports.CLAIMS
