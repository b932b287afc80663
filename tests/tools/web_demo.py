"""`python -m tests.tools.web_demo [--picture docs/page.png]`: `mpcache demo --web` as a process, driven in a real Chromium.

A whole chat by keyboard alone at 1 280 and 390 pixels; every number of the page against the parties' ledgers; what a party
opens is uniform; the map of kept tokens; and after Ctrl-C no process and no file is left. Takes about a minute. The suite
has the same on a toy deployment (`tests/launch/serve/test_page_in_chromium.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from mpc.ledger import Cost
from tests.launch.conftest import processes_of
from tests.launch.serve.browser import Browser, browser, chromium
from tests.launch.serve.page_numbers import check_numbers

PICTURE_BYTES = 200_000
READY_SECONDS = 180.0
SENT = "!document.getElementById('send').disabled"
DEVIATIONS = 6.0  # of a count from its mean, at most


def live(page: Browser) -> dict[str, Any]:
    """What the gateway says of the newest generation."""
    asked = "fetch('/live', {headers: headers()}).then(answer => answer.text())"
    found: dict[str, Any] = json.loads(page.value(asked))
    return found


def check_chat(page: Browser) -> None:
    """Ask what the page proposes, by Enter alone, then another question, and compare all numbers."""
    page.wait(SENT, READY_SECONDS)
    assert page.value("document.activeElement.id") == "text"
    name = page.value("document.activeElement.value")
    page.press("Enter")
    page.wait("document.getElementById('log').children.length === 2")
    page.wait(SENT, READY_SECONDS)
    document = page.value("document.getElementById('system').value").split()
    code = " ".join(document[document.index(name) + 2 :][:4])
    said = page.value("document.getElementById('log').innerText")
    assert said.split() == f"you: {name} answer: {code}".split(), said
    check_ledgers(page)
    other = document[document.index(";") + 1]
    page.type(other)
    page.press("Enter")
    page.wait(f"document.getElementById('log').children.length === 4 && {SENT}", READY_SECONDS)
    said = page.value("document.getElementById('log').lastChild.innerText")
    assert said.split()[1:] == document[document.index(other) + 2 :][:4], said
    check_ledgers(page)


def check_ledgers(page: Browser) -> None:
    """Compare every number with the ledgers that the parties gave in the end."""
    now = live(page)
    own = now["spent"]["client"]
    for party, ledger in now["costs"].items():
        assert now["spent"][party] == {key: ledger["total"][key] for key in now["spent"][party]}
    check_numbers(page, now["costs"], Cost(bytes_sent=own["bytes_sent"], bytes_received=own["bytes_received"]))
    for bar in ("shared", "load", "prefill", "tokens"):
        assert page.value(f"document.getElementById('{bar}').position") == 1, bar


def check_noise(page: Browser, parties: Sequence[str]) -> None:
    """Look at each party's histogram: much was opened, and no digit stands out."""
    for name in parties:
        counts = [int(n) for n in page.value(f"document.querySelector('[data-role={name}] div').dataset.digits").split()]
        total = sum(counts)
        assert total > 100_000
        for count in counts:
            assert abs(count - total / 16) < DEVIATIONS * (total * 15) ** 0.5 / 16, counts


def check_map(page: Browser) -> None:
    """The map shows every token of the prompt once."""
    shown = page.value("[...document.getElementById('map').children].map(word => word.textContent)")
    system = page.value("document.getElementById('system').value").split()
    assert shown[: len(system)] == system
    assert page.value("document.getElementById('map').querySelector('.gone, .part') !== null")


def save(page: Browser, target: Path) -> None:
    """Save the window, with few colours."""
    from PIL import Image

    page.value("window.scrollTo(0, 0)")
    Image.open(BytesIO(page.picture())).convert("P", palette=Image.Palette.ADAPTIVE, colors=48).save(target, optimize=True)
    assert target.stat().st_size <= PICTURE_BYTES, f"{target}: {target.stat().st_size} bytes"


def _drive(address: str, profile: Path, picture: Path | None) -> None:
    program = chromium()
    assert program is not None, "no Chromium on this machine"
    with browser(program, profile) as page:
        page.size(1280, 1100)
        page.open(address)
        assert page.value("location.hash") == "", "the key stays in the address"
        check_chat(page)
        check_noise(page, [name for name in live(page)["costs"]])
        check_map(page)
        if picture is not None:
            save(page, picture)
        for width in (1280, 390):
            page.size(width, 844)
            assert page.value("document.documentElement.scrollWidth") <= width
        assert page.problems == []
        assert {one.split("/")[2] for one in page.requests} == {address.split("/")[2]}


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path)
    picture = parser.parse_args().picture
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "scratch"
        scratch.mkdir()
        command = [sys.executable, "-m", "launch.cli.main", "demo", "--web", "--tokens", "128"]
        command += ["--policy", "mpcache:preset=clusters,sharing=1,static=0.5,dynamic=0.5,observed=8,following=6"]
        environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"}
        demo = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            assert demo.stdout is not None
            address = next(line.strip() for line in demo.stdout if line.startswith("http"))
            _drive(address, Path(folder) / "profile", picture)
        finally:
            demo.send_signal(signal.SIGINT)
            code = demo.wait(60)
        assert code == 130, code
        limit = time.monotonic() + 10
        while processes_of(scratch) and time.monotonic() < limit:
            time.sleep(0.1)
        assert not processes_of(scratch)
        assert not list(scratch.iterdir())
    print("every number is the ledgers'; nothing is left")


if __name__ == "__main__":
    main()
