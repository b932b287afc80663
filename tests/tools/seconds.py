"""Where the seconds of a test run go: a test's wall time, its CPU time, that of processes that ended, and how many started.

Where few cores run the tests, wall time says little: it holds what else ran, and waiting. So both are counted apart. As a
plugin of pytest it writes one line a test into a folder, and as a command it adds such lines up by file:

    python -m pytest -n 2 -p tests.tools.seconds --seconds DIR
    python -m tests.tools.seconds DIR [--by test] [--top 30]

The CPU time of a process counts for the test in which it ends, be it started or forked (`tests.forked`); a process that is
never waited for is not counted at all.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import forked

FIELDS = ("wall", "own", "children", "started")


class Clock:
    """Seconds of this process so far: wall time, CPU time, CPU time of its ended children; and processes started."""

    def __init__(self) -> None:
        self.started = 0
        sys.addaudithook(self._hear)

    def _hear(self, event: str, _: object) -> None:
        if event in ("subprocess.Popen", "os.fork", "os.posix_spawn"):
            self.started += 1

    def read(self) -> tuple[float, float, float, int]:
        """Return the four numbers, in the order of `FIELDS`."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        of_children = ended.ru_utime + ended.ru_stime + forked.seconds()
        return time.perf_counter(), time.process_time(), of_children, self.started + forked.Forked.count


class Seconds:
    """The plugin: a line of JSON for each test, in a file of this process."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"{os.environ.get('PYTEST_XDIST_WORKER', 'main')}.jsonl").open("a")
        self._clock = Clock()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Run one test with its fixtures, and write what it took."""
        before = self._clock.read()
        outcome = yield
        spent = [b - a for a, b in zip(before, self._clock.read(), strict=True)]
        entry = {"test": item.nodeid} | {name: round(value, 4) for name, value in zip(FIELDS, spent, strict=True)}
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        return outcome


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--seconds`."""
    parser.addoption("--seconds", type=Path, help="a folder for the seconds of each test")


def pytest_configure(config: pytest.Config) -> None:
    """Count in every process that runs tests, which the one that hands them to workers does not."""
    folder = config.getoption("--seconds")
    if folder and (hasattr(config, "workerinput") or not config.getoption("numprocesses", None)):
        config.pluginmanager.register(Seconds(folder.absolute()))


def table(folder: Path, by: str, top: int) -> list[str]:
    """Return the lines of the table: the sum of all, and the `top` files or tests with the most CPU time."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * (len(FIELDS) + 1))
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            name = entry["test"] if by == "test" else entry["test"].split("::")[0]
            for key in (name, "all"):
                sums[key] = [a + b for a, b in zip(sums[key], [*(entry[field] for field in FIELDS), 1], strict=True)]
    rows = sorted(sums.items(), key=lambda row: -(row[1][1] + row[1][2]))
    lines = ["    wall      cpu      own children started tests  of"]
    for name, (wall, own, children, started, tests) in rows[: top + 1]:
        lines.append(f"{wall:8.1f} {own + children:8.1f} {own:8.1f} {children:8.1f} {started:7.0f} {tests:5.0f}  {name}")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--by", choices=("file", "test"), default="file")
    parser.add_argument("--top", type=int, default=30)
    arguments = parser.parse_args()
    print("\n".join(table(arguments.folder, arguments.by, arguments.top)))
