"""The parent's side of local processes: start, wait until ready, notice a death, end, leave nothing behind.

Processes are started from scratch (no fork of a process with threads), in sessions of their own, so that Ctrl-C reaches
the parent only, which then ends them.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from launch.local.supervision import PROGRESS, READY, SCRATCH_VARIABLE, SEEN
from launch.terminal.console import Settings
from mpc.errors import EnvironmentProblem, MpcacheError

T = TypeVar("T")

READY_SECONDS = 90.0
POLL_SECONDS = 0.1


class ProcessEnded(MpcacheError):
    """A local process died. name: its role; exit_code: negative for a signal; last_error: its last line of error."""

    code = "process"

    def __init__(self, name: str, exit_code: int, last_error: str) -> None:
        how = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
        super().__init__(f"{name} {how}: {last_error or 'it printed no error'}")
        self.name = name
        self.exit_code = exit_code
        self.last_error = last_error


class Child:
    """One local process. `ready` holds what it reported when it became ready, `progress` the last (stage, done, total) that
    it reported, `seen` the last that it told of what it sees. before: words in front of the command line."""

    def __init__(
        self, name: str, arguments: Sequence[str], scratch: Path, environment: Mapping[str, str], before: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.ready: dict[str, Any] | None = None
        self.progress: tuple[str, int, int] | None = None
        self.seen: dict[str, Any] | None = None
        self._lines: deque[str] = deque(maxlen=50)
        self._process = subprocess.Popen(
            [*before, sys.executable, "-P", "-m", "launch.cli.main", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, **environment, SCRATCH_VARIABLE: str(scratch)},
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=self._read_output, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(READY):
                self.ready = json.loads(line[len(READY) :])
            elif line.startswith(PROGRESS):
                stage, done, total = json.loads(line[len(PROGRESS) :])
                self.progress = (stage, done, total)
            elif line.startswith(SEEN):
                self.seen = json.loads(line[len(SEEN) :])

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if line.strip():
                self._lines.append(line.strip())
                if Settings.debug:
                    print(f"{self.name}: {line}", end="", file=sys.stderr, flush=True)

    def exit_code(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self._process.poll()

    def last_error(self) -> str:
        """Return its last `error [...]` line, else its last line on standard error."""
        for reader in self._readers:
            reader.join(timeout=1)
        lines = list(self._lines)
        return next((line for line in reversed(lines) if line.startswith("error [")), lines[-1] if lines else "")

    def ended(self) -> ProcessEnded | None:
        """Return the error to raise when it has ended; None while it runs."""
        code = self.exit_code()
        return None if code is None else ProcessEnded(self.name, code, self.last_error())

    def end(self) -> None:
        """Kill it if it still runs, and free its pipes."""
        if self.exit_code() is None:
            self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(timeout=1)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            if pipe is self._process.stdin or not any(reader.is_alive() for reader in self._readers):
                pipe.close()


class Processes:
    """A group of local processes. Leaving the `with` block ends all of them, whatever the reason."""

    def __init__(self, scratch: Path, environment: Mapping[str, str] | None = None) -> None:
        self.children: list[Child] = []
        self._scratch = scratch
        self._environment = dict(environment or {})

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self, name: str, arguments: Sequence[str], before: Sequence[str] = ()) -> Child:
        """Start `mpcache ARGUMENTS` as a supervised process. before: words in front, such as `Lab.command(name, [])`."""
        child = Child(name, arguments, self._scratch, self._environment, before)
        self.children.append(child)
        return child

    def stop(self) -> None:
        """End all processes at once: what they hold is temporary, and others in the run may be stuck."""
        children, self.children = self.children, []
        try:
            for child in children:
                child.end()
        except BaseException:  # a second Ctrl-C
            for child in children:
                child.end()
            raise

    def check(self) -> None:
        """Raise `ProcessEnded` when a process has ended."""
        for child in self.children:
            error = child.ended()
            if error is not None:
                raise error

    def wait_ready(self, children: Sequence[Child], seconds: float = READY_SECONDS) -> None:
        """Wait until all of `children` have reported that they are ready; raises `ProcessEnded` when one dies."""
        limit = time.monotonic() + seconds
        while any(child.ready is None for child in children):
            self.check()
            if time.monotonic() > limit:
                late = ", ".join(child.name for child in children if child.ready is None)
                raise EnvironmentProblem(f"{late}: not ready after {seconds:g} s; is the machine overloaded?")
            time.sleep(POLL_SECONDS / 2)

    def wait_done(
        self, child: Child, on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None
    ) -> None:
        """Wait until a short-lived process has ended with exit code 0; raises `ProcessEnded` for this or another death."""
        while (code := child.exit_code()) is None:
            for other in self.children:
                error = other.ended() if other is not child else None
                if error is not None:
                    raise error
            if child.progress is not None:
                on_progress(*child.progress)
            time.sleep(POLL_SECONDS / 2)
        self.children.remove(child)
        child.end()
        if code != 0:
            raise ProcessEnded(child.name, code, child.last_error())

    def watch(self) -> NoReturn:
        """Wait until this process is told to end; raises `ProcessEnded` when one of them dies."""
        while True:
            self.check()
            time.sleep(POLL_SECONDS)

    def watched(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread and return its result; a process that dies meanwhile ends the wait with `ProcessEnded`.

        An error of `work` that a death explains (a lost peer, say) is reported as that death.
        """
        done: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

        def body() -> None:
            try:
                done.put((work(), None))
            except BaseException as error:
                done.put((None, error))

        threading.Thread(target=body, daemon=True).start()
        while True:
            try:
                result, error = done.get(timeout=POLL_SECONDS)
            except queue.Empty:
                self.check()
                continue
            if error is None:
                return result  # type: ignore[return-value]
            limit = time.monotonic() + 1.0
            while time.monotonic() < limit:
                self.check()
                time.sleep(POLL_SECONDS)
            raise error
