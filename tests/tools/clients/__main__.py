"""Thirty requests to a gateway by the package openai, by LangChain's chat model and by curl:

    python -m tests.tools.clients [--environment DIR] [--write]

openai and langchain-openai are installed in an environment of their own (by default mpcache-clients in the folder for
temporary files), which is made where it is missing. The exit code is 1 where a client does not get what it must. --write:
also fill the table of docs/gateway.md, and keep the requests as they came over the wire, which the tests send again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.tools.clients.cases import CASES, Outcome
from tests.tools.clients.raw import outcome
from tests.tools.clients.toy_gateway import RECORDED, Recorder, toy_gateway

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "gateway.md"
BEGIN, END = "<!-- clients -->\n", "<!-- end -->\n"
PACKAGES = ("openai", "langchain-openai")
NAMES = {"openai": "`openai`", "langchain": "LangChain", "curl": "curl"}


def environment(folder: Path) -> Path:
    """Return the interpreter of the clients' environment, which is made if need be."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    installed = subprocess.run([python, "-c", "import langchain_openai"], capture_output=True, check=False)
    if installed.returncode:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def versions(python: Path) -> str:
    """Return which clients were tried."""
    say = "import importlib.metadata as m, sys; print(', '.join(f'{p} {m.version(p)}' for p in sys.argv[1:]))"
    return subprocess.run([python, "-c", say, *PACKAGES], capture_output=True, text=True, check=True).stdout.strip()


def by_package(python: Path, client: str, url: str) -> list[Outcome]:
    """Return what a package of the environment gets."""
    command = [python, "-m", f"tests.tools.clients.by_{client}", url]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return [_read(json.loads(line)) for line in done.stdout.splitlines()]


def _read(values: dict[str, Any]) -> Outcome:
    error = values.pop("error")
    return Outcome(**values, error=None if error is None else (error[0], error[1]))


def by_curl(url: str) -> list[Outcome]:
    """Return what curl gets."""
    found = []
    for case in CASES:
        head = ["curl", "-sS", "-N", "--noproxy", "*", "-w", "\n%{http_code}", "-H", "Content-Type: application/json"]
        command = [*head, f"{url}{case.path}", "-d", json.dumps(case.body)]
        body, _, status = subprocess.run(command, capture_output=True, check=True).stdout.rpartition(b"\n")
        found.append(outcome(int(status), body))
    return found


def table(found: dict[str, list[Outcome]]) -> str:
    """Return what each client got, as a table."""
    lines = [f"| request | {' | '.join(NAMES[client] for client in found)} |", "| --- |" + " --- |" * len(found)]
    for number, case in enumerate(CASES):
        verdicts = ["passes" if case.fits(each[number]) else "**fails**" for each in found.values()]
        lines.append(f"| {case.name} | {' | '.join(verdicts)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, default=Path(tempfile.gettempdir()) / "mpcache-clients")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    python = environment(options.environment)
    recorder, found = Recorder(), dict[str, list[Outcome]]()
    with tempfile.TemporaryDirectory() as folder, toy_gateway(Path(folder), recorder) as url:
        for client in ("openai", "langchain"):
            recorder.client = client
            found[client] = by_package(python, client, url)
        recorder.client = "curl"
        found["curl"] = by_curl(url)
    shown = table(found)
    print(shown)
    for client, outcomes in found.items():
        for case, each in zip(CASES, outcomes, strict=True):
            if not case.fits(each):
                print(f"{client}, {case.name}: {each}", file=sys.stderr)
    if options.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        written = f"{before}{BEGIN}{versions(python)}:\n\n{shown}{END}{rest.partition(END)[2]}"
        PAGE.write_text(written)
        RECORDED.write_text(recorder.text())
    return int("fails" in shown)


if __name__ == "__main__":
    sys.exit(main())
