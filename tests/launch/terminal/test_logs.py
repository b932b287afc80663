"""What a server's process writes to standard error: events alone, in the format asked for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import warnings
from launch.terminal import logs

async def protocol():
    pass

logs.configure({format!r}, "info")
protocol()  # dropped before it began
warnings.warn("something is old", FutureWarning)
"""


@pytest.mark.parametrize("format", ["text", "json"])
def test_python_warnings_are_events(format: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(format=format)], capture_output=True, text=True, check=True)
    assert "never awaited" not in done.stderr
    if format == "json":
        (line,) = done.stderr.splitlines()
        event = json.loads(line)
        assert event["level"] == "warning"
        assert "FutureWarning: something is old" in event["message"]
    else:
        assert "WARNING" in done.stderr
        assert "FutureWarning: something is old" in done.stderr
