"""The parent: it starts each part as a process, writes the file after each row, and never touches the GPU itself."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from tests.tools.gpu_check.parts import PARTS

LAST_WORDS = 600  # characters of what a part that failed has said
ROOT = Path(__file__).parents[3]


class Runner:
    """Runs parts and keeps the file. packages: a folder in front of Python's path."""

    def __init__(self, out: Path, device: str, small: bool, packages: Path | None = None) -> None:
        self._out, self._device, self._small, self._packages = out, device, small, packages
        self._found: dict[str, Any] = {"format": 1, "device": device, "small": small, "complete": False, "parts": {}}
        self._child: subprocess.Popen[str] | None = None
        self._stopped = False

    def run(self, names: Sequence[str], seconds: float) -> int:
        """Run the parts in order; return the exit status."""
        signal.signal(signal.SIGTERM, self._stop)
        end = time.monotonic() + seconds
        for name in names:
            left = end - time.monotonic()
            if self._stopped or left < min(5.0, PARTS[name].seconds):
                why = "stopped" if self._stopped else f"{left:.0f} s are left"
                self._note(name, {"state": "skipped", "why": why, "seconds": 0.0, "rows": []})
                continue
            self._part(name, min(left, (8 if self._small else 2) * PARTS[name].seconds))
            if self._found["parts"][name]["why"].startswith("no GPU"):
                self._write()
                return 2
        self._found["complete"] = not self._stopped
        self._write()
        states = {part["state"] for part in self._found["parts"].values()}
        return int(bool(states & {"wrong", "failed", "timeout"}))

    def _stop(self, *_: Any) -> None:
        self._stopped = True
        if self._child is not None:
            self._child.kill()

    def _part(self, name: str, seconds: float) -> None:
        command = [sys.executable, "-m", "tests.tools.gpu_check", "--child", name, "--device", self._device]
        path = os.pathsep.join(str(p) for p in (self._packages, ROOT, os.environ.get("PYTHONPATH")) if p)
        start = time.monotonic()
        part: dict[str, Any] = {"state": "ok", "why": "", "seconds": 0.0, "rows": []}
        self._child = child = subprocess.Popen(
            [*command, *(["--small"] if self._small else [])],
            env={**os.environ, "PYTHONPATH": path},
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        lines: queue.Queue[str | None] = queue.Queue()
        words: list[str] = []
        assert child.stdout is not None
        assert child.stderr is not None
        threading.Thread(target=_pour, args=(child.stdout, lines.put), daemon=True).start()
        threading.Thread(target=_pour, args=(child.stderr, lambda x: words.append(x or "")), daemon=True).start()
        while True:
            part["seconds"] = round(time.monotonic() - start, 2)
            try:
                line = lines.get(timeout=max(0.0, start + seconds - time.monotonic()))
            except queue.Empty:
                part |= {"state": "timeout", "why": f"took more than {seconds:.0f} s", "seconds": round(seconds, 2)}
                break
            if line is None:
                if child.wait() != 0:
                    part |= {"state": "failed", "why": "".join(words)[-LAST_WORDS:] or f"ended with {child.returncode}"}
                break
            row = json.loads(line)
            part["rows"].append(row)
            if not row.get("ok", True):
                part |= {"state": "wrong", "why": part["why"] or f"{row['name']}: {row.get('why', 'a wrong result')}"}
            if "skip" in row:
                part |= {"state": "skipped", "why": row["skip"]}
            self._note(name, part)
        child.kill()
        child.wait()
        self._child = None
        part["seconds"] = round(time.monotonic() - start, 2)
        self._note(name, part)

    def _note(self, name: str, part: dict[str, Any]) -> None:
        self._found["parts"][name] = part
        self._write()

    def _write(self) -> None:
        made = self._out.with_name(f".{self._out.name}.{os.getpid()}")
        made.write_text(json.dumps(self._found, indent=1) + "\n", encoding="utf-8")
        os.replace(made, self._out)


def _pour(stream: IO[str], put: Any) -> None:
    """Hand over a stream's lines, and None at its end."""
    for line in stream:
        put(line)
    put(None)
