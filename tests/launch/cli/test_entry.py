"""Ctrl-C in the first second, and a reader of the output that leaves: quiet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from launch.cli.main import RESULT_ELSEWHERE, app
from launch.local.deployment import LocalDeployment

ROOT = Path(__file__).parents[3]
HEARS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # whatever the tests' own shell says
RUN = "from launch.cli.entry import start; start()"
INTERRUPTED = """
import os, signal, sys

class AtImport:
    def find_spec(self, name, path=None, target=None):
        if name == WHERE:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, AtImport())
"""


def run(code: str, *arguments: str, stdout: int = subprocess.PIPE) -> tuple[int, str]:
    """A command in a process that hears Ctrl-C: exit code and standard error."""
    done = subprocess.run(
        [sys.executable, "-c", HEARS + code, *arguments],
        cwd=ROOT,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("where", ["launch.cli.main", "launch.cli.commands.estimate", "launch.terminal.console"])
def test_an_interrupt_while_modules_are_read(where: str) -> None:
    assert run(INTERRUPTED.replace("WHERE", repr(where)) + RUN, "--version") == (130, "")


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("doctor", "--help")])
def test_a_reader_that_left(arguments: tuple[str, ...]) -> None:
    """As of a program that SIGPIPE ends, whether a console or a plain write meets the closed pipe."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run(RUN, *arguments, stdout=writer) == (141, "")
    finally:
        os.close(writer)


FULL = "error [environment]: what is written: No space left on device; make room there, or write elsewhere\n"


@pytest.mark.parametrize("arguments", [("--version",), ("doctor", "--help")])
def test_a_full_disk(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        assert run(RUN, *arguments, stdout=full.fileno()) == (2, FULL)


def test_closed_streams() -> None:
    """What would be written goes nowhere, and what would be read is empty; no traceback."""
    closed = "import os, sys; os.close(0); os.close(1); sys.stdin = sys.stdout = None\n"
    looked = (
        "from launch.terminal.streams import open_streams; open_streams(); assert sys.stdin.read() == ''; "
        "print(1, flush=True)\n"
    )
    assert run(closed + looked + RUN, "--version") == (0, "")


def test_a_result_that_has_nowhere_to_go() -> None:
    """Commands whose result is printed say so before they work; servers do not mind."""
    closed = "import os, sys; os.close(1); sys.stdout = None\n"
    code, said = run(closed + RUN, "estimate", "--model", "gpt2")
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith(
        "error [configuration]: standard output is closed, and the result of `mpcache estimate` goes there;"
    )
    code, said = run(closed + RUN, "party", "--config", "none.yaml")
    assert (code, said.count("\n"), "none.yaml" in said) == (2, 1, True)
    assert set(typer.main.get_command(app).commands) > RESULT_ELSEWHERE  # type: ignore[attr-defined]


def test_an_answer_on_a_full_disk(running: LocalDeployment, text_model: Path) -> None:
    client = running.folder / "client.yaml"
    asked = ("--config", str(client), "--model", str(text_model), "--prompt", "Codes", "--max-new-tokens", "1")
    with open("/dev/full", "wb") as full:
        assert run(RUN, "generate", *asked, stdout=full.fileno()) == (2, FULL)
