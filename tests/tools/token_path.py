"""Which files a decoded token crosses, from the command to the wire and back.

    python -m tests.tools.token_path [--suite masked] [--policy full] [--tokens 8]

A session of a shipped model runs with the dealer and one compute party as processes of their own; the other compute party
and the client's command, `mpcache generate`, run here, and every function call of this process is noted between the first
token and the last but one. A file is on the way when a function of it runs for a decoded token. Printed by role, with the
files that stand on the call stack when bytes are handed to the wire ("wire") and the number of calls for each token.

Listed and counted apart: what the token computes (a suite's gates, the arithmetic of rings), and the way of the tape.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import threading
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any

from launch.cli.main import app
from tests.parties.deployment import Deployment

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "recall" / "gpt2"
PROMPT = "Codes . Kepler : 0 4 5 1 ; Curie : 9 3 2 7 ; Bohr : 5 5 1 8 . ? Curie :"
ROLES = ("client", "party", "streams")
FLOORS = ("launch", "parties", "models", "protocols", "mpc")
WAY = (  # of a suite, what every operation passes; the rest of its folder are operations
    "protocols/schedule.py",
    "protocols/suite.py",
    "protocols/masked/suite.py",
    "protocols/masked/context.py",
    "protocols/crypten/suite.py",
    "protocols/crypten/base.py",
    "protocols/crypten/binding/",
)
ARITHMETIC = tuple(f"mpc/{name}.py" for name in ("ring", "fixed_point", "packing", "byte_matmul", "random", "shape_tensor"))
TAPE = ("mpc/tape.py", "mpc/preprocessing.py", "parties/tapes/", "parties/party/preprocessing.py")
KINDS = ("the way of a token", "the way of its tape", "what it computes")


def kind_of(file: str) -> str:
    """Return which of `KINDS` a file is.

    >>> kind_of("protocols/masked/suite.py"), kind_of("protocols/masked/softmax.py")
    ('the way of a token', 'what it computes')
    """
    if file.startswith(TAPE):
        return KINDS[1]
    computed = file in ARITHMETIC or (file.startswith("protocols/") and not file.startswith(WAY))
    return KINDS[2] if computed else KINDS[0]


class Tracer:
    """Notes calls of the project's functions while a token is decoded. calls: (role, file) -> number of calls; wire: those
    on the call stack when bytes are sent to a peer; tokens: decoded tokens that were traced."""

    def __init__(self, last: int) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.wire: set[tuple[str, str]] = set()
        self.tokens = 0
        self._last = last
        self._active = False
        self._files: dict[str, str] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Be a profile function (`sys.setprofile`)."""
        if event not in ("call", "return"):
            return
        code = frame.f_code
        file = self._files.get(code.co_filename)
        if file is None:
            file = self._files[code.co_filename] = _project_file(code.co_filename)
        if not file:
            return
        if event == "return":
            if code.co_name == "emit" and file.startswith("parties/party/"):
                self._token(int(frame.f_locals["step"]))
        elif self._active and (role := _role()):
            self.calls[role, file] += 1
            if code.co_name == "send" and file.startswith("parties/transport/"):
                self._note_stack(role, frame)

    def _token(self, step: int) -> None:
        self.tokens += self._active
        self._active = step + 1 < self._last

    def _note_stack(self, role: str, frame: FrameType | None) -> None:
        while frame is not None:
            if file := self._files.get(frame.f_code.co_filename, ""):
                self.wire.add((role, file))
            frame = frame.f_back


def _project_file(name: str) -> str:
    """Return the path within the project, empty for a file that is none of its floors."""
    path = Path(name)
    if not path.is_relative_to(ROOT):
        return ""
    inside = path.relative_to(ROOT)
    return str(inside) if inside.parts[0] in FLOORS else ""


def _role() -> str:
    """Return whose thread this is, empty for one that serves no token. Threads of streams serve either end."""
    thread = threading.current_thread()
    if thread is threading.main_thread():
        return "client"
    if thread.name.startswith(("session", "preprocessing")):
        return "party"
    return "streams" if thread.name.startswith(("read", "call")) else ""


def trace(suite: str, policy: str, tokens: int) -> Tracer:
    """Run the session. The tokens themselves go nowhere."""
    tracer = Tracer(tokens - 1)
    with tempfile.TemporaryDirectory() as folder:
        deployment = Deployment(Path(folder), preprocessing="off")
        try:
            for name in ("dealer", "party1"):
                deployment.start_process(name, 0)
            threading.setprofile(tracer)
            sys.setprofile(tracer)
            deployment.start_one("party0")
            deployment.share(MODEL, MODEL.name)
            config = Path(folder) / "client.yaml"
            values = deployment.values("client", "client")
            config.write_text(json.dumps(values, default=str), encoding="utf-8")  # JSON is YAML
            words = ["generate", "--config", config, "--model", MODEL, "--prompt", PROMPT, "--suite", suite]
            words += ["--policy", policy, "--max-new-tokens", tokens, "--fixed-length"]
            with redirect_stdout(io.StringIO()):
                app([str(word) for word in words], standalone_mode=False)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
            deployment.stop()
    return tracer


def main() -> int:
    """Print the way of a decoded token."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", default="masked")
    parser.add_argument("--policy", default="full")
    parser.add_argument("--tokens", type=int, default=8)
    wanted = parser.parse_args()
    found = trace(wanted.suite, wanted.policy, wanted.tokens)
    files, counts = sorted({file for _, file in found.calls}), Counter[str]()
    for kind in KINDS:
        print(f"{kind}:")
        for file in (file for file in files if kind_of(file) == kind):
            roles = [role for role in ROLES if (role, file) in found.calls]
            each = ", ".join(f"{role} {found.calls[role, file] / found.tokens:.0f}" for role in roles)
            mark = "  wire" if any((role, file) in found.wire for role in roles) else ""
            print(f"  {file:44} {each}{mark}")
            counts[kind] += 1
    print("; ".join(f"{kind}: {counts[kind]} files" for kind in KINDS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
