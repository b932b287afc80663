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


def test_one_schema() -> None:
    """Whatever is logged has time, level, event and server: a server's events, the gateway's, a package's warnings."""
    text = (
        "import logging; from launch.terminal import logs; from parties.events import event\n"
        "from launch.serve.gateway.access import told\n"
        "logs.configure('json', 'info', 'party0'); event('draining', 'party0', running=2)\n"
        "told('response', 'GET /health 200, 0.10 s', status=200); logging.getLogger('grpc').warning('odd')\n"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [list(line)[:4] for line in lines] == [["time", "level", "event", "server"]] * 3
    assert [(line["event"], line["server"]) for line in lines] == [
        ("draining", "party0"),
        ("response", "gateway"),
        ("message", "party0"),
    ]
    assert [(line.get("running"), line.get("status"), line.get("message")) for line in lines] == [
        (2, None, None),
        (None, 200, None),
        (None, None, "odd"),
    ]
