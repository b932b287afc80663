"""Processes of tests without their first seconds: forked from one that has imported everything, and has begun nothing.

A process of `mpcache` reads modules for two seconds before its own work begins, and the tests start some hundred of them.
`Forked` stands for `subprocess.Popen` where a Python module is run, and does for it what that would: its own session,
folder, environment and streams. What differs from a start from scratch is only how the modules came there, and that the
kernel shows the environment of the first process. The pages of deployments, and what happens when the command itself is
ended, are tested with processes that start from scratch.
"""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import ModuleType
from typing import IO, Any
from unittest import mock

import torch

from launch.cli.main import entry
from launch.lab.lab import enter

PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL
# What the first process imports; in its environment, as in `launch.cli.main`, before it does so.
MODULES = (
    "launch.cli.main",
    "launch.measure.bench.worker",
    "launch.serve.gateway.app",
    "parties.client.client",
    "parties.dealer.dealer",
    "parties.model_owner.model_owner",
    "parties.party.compute_party",
    "protocols.crypten.suite",
    "protocols.masked.suite",
    "tests.begun",
)
ENVIRONMENT = {"GRPC_VERBOSITY": "NONE", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
_CONTEXT = multiprocessing.get_context("forkserver")
_STARTING = threading.Lock()
_STARTED: weakref.WeakSet[Forked] = weakref.WeakSet()


def _module(command: Sequence[str]) -> list[str] | None:
    """The module that a command runs with this Python, and its arguments; None for another command."""
    words = [word for n, word in enumerate(command) if n != 1 or word != "-P"]
    return list(words[2:]) if list(words[:2]) == [sys.executable, "-m"] else None


def started(command: Sequence[str], **options: Any) -> Any:
    """Do what `subprocess.Popen` does, forking where the command runs a module of Python, in a network namespace or not."""
    inside = list(command[:3]) == ["ip", "netns", "exec"]
    words = _module(command[4:] if inside else command)
    if words is None:
        return subprocess.Popen(command, **options)
    return Forked(words, namespace=command[3] if inside else None, **options)


def running(name: str, start: str) -> list[int]:
    """Ids of forked processes that run with an environment variable whose value begins so."""
    given = [one for one in list(_STARTED) if one.environment.get(name, "").startswith(start)]
    return [one.pid for one in given if one.poll() is None]


def seconds() -> float:
    """CPU seconds of the process that is forked, and of all that have ended of those that were."""
    first = forkserver._forkserver._forkserver_pid
    if first is None:
        return 0.0
    fields = Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


class Forked:
    """A running module, with what our tests and the launcher use of `subprocess.Popen`. count: how many there have been."""

    count = 0

    def __init__(
        self,
        words: Sequence[str],
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        text: bool = False,
        errors: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        start_new_session: bool = False,
        namespace: str | None = None,
    ) -> None:
        self.args = list(words)
        self.environment = dict(os.environ if env is None else env)
        self.stdin, theirs_in = _stream(stdin, 0, text, errors)
        self.stdout, theirs_out = _stream(stdout, 1, text, errors)
        self.stderr, theirs_err = _stream(stderr, 2, text, errors)
        theirs = [theirs_in, theirs_out, theirs_err]
        folder = str(cwd or Path.cwd())
        with _STARTING, mock.patch.dict(os.environ, ENVIRONMENT), _no_main():
            _CONTEXT.set_forkserver_preload([__name__, *MODULES])
            forkserver.ensure_running()
            streams = [_Given(end) for end in theirs]
            self._process = _CONTEXT.Process(
                target=_become,
                args=(self.args, self.environment, folder, streams, start_new_session, namespace),
                daemon=True,
            )
            self._process.start()
            _STARTED.add(self)
            Forked.count += 1
        for end in theirs:
            os.close(end)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """See `returncode`."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended."""
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()

    def communicate(self, timeout: float | None = None) -> tuple[Any, Any]:
        """Read what it still says, and wait for its end."""
        said: dict[int, Any] = {}
        streams = {1: self.stdout, 2: self.stderr}
        readers = [
            threading.Thread(target=lambda n=n, stream=stream: said.update({n: stream.read()}), daemon=True)
            for n, stream in streams.items()
            if stream is not None
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        for stream in (self.stdin, *streams.values()):
            if stream is not None:
                stream.close()
        return said.get(1), said.get(2)


@contextmanager
def _no_main() -> Iterator[None]:
    """Let a process that is forked meanwhile not run the program again that runs here, as it otherwise would."""
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class _Given:
    """A descriptor on its way to the process that is about to start."""

    def __init__(self, end: int) -> None:
        self._end = end

    def __reduce__(self) -> tuple[Any, ...]:
        return _detached, (DupFd(self._end),)


def _detached(end: Any) -> int:
    return int(end.detach())


def _stream(wanted: int | None, number: int, text: bool, errors: str | None) -> tuple[IO[Any] | None, int]:
    """What is read or written here, and the descriptor at the other end."""
    if wanted is None:
        return None, os.dup(number)
    if wanted == DEVNULL:
        return None, os.open(os.devnull, os.O_RDWR)
    assert wanted == PIPE
    reading, writing = os.pipe()
    ours, theirs = (writing, reading) if number == 0 else (reading, writing)
    raw = open(ours, "wb" if number == 0 else "rb")  # noqa: SIM115
    return (io.TextIOWrapper(raw, errors=errors, write_through=True) if text else raw), theirs


def _become(
    words: list[str],
    environment: dict[str, str],
    folder: str,
    streams: list[int],
    own_session: bool,
    namespace: str | None,
) -> None:
    """In the new process: run the module as if this were its own start."""
    gc.freeze()  # what all of them share stays shared: the collector writes into none of it
    if namespace is not None:
        enter(namespace)
    if own_session:
        os.setsid()
    for number, end in enumerate(streams):
        os.dup2(end, number)
        os.close(end)
    sys.stdin, sys.stdout, sys.stderr = (open(n, mode, 1, closefd=False) for n, mode in enumerate("rww"))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    sys.argv = list(words)
    if words[0] == "launch.cli.main":  # imported, and nothing of it has run yet
        entry()
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
