"""The option `--device`: where all that runs in the tests' own process computes; `--backwards`: in which order; the fixture
`device`; processes; threads; and the marker `covering` (`tests.covering`).

Each of several workers computes with its share of the cores. With all of them in each, threads that wait for one another
while others run cost several times what they save: 34 s in place of 4 for a test of 600 tokens on 2 cores.
"""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from launch.local import processes
from tests import covering, forked, predictions
from tests.devices import NAMES, STAND_IN, computing_on

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the host; asked for before Triton is imported


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Add `--device`, `--backwards`, and what `tests.covering` adds."""
    pluginmanager.register(covering)
    pluginmanager.register(predictions)
    parser.addoption("--backwards", action="store_true", help="run tests in the opposite order: none may need another one")
    parser.addoption("--device", choices=NAMES, default="cpu", help="where roles in the tests' process compute")


def pytest_configure(config: pytest.Config) -> None:
    """Say what the marker means, and share the cores among the workers."""
    config.addinivalue_line("markers", "cuda: runs on a GPU, and is skipped where there is none")
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        threads = max(1, (os.cpu_count() or 1) // int(workers))
        torch.set_num_threads(threads)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # of the processes that tests start
            os.environ.setdefault(name, str(threads))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Turn the order around where that is asked for. Workers that take tests over from each other change it anyway."""
    if config.getoption("--backwards"):
        items.reverse()


def pytest_collection_finish() -> None:
    """Leave what was imported out of the collector's passes, which else go over millions of objects that stay."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _everywhere(request: pytest.FixtureRequest) -> Iterator[None]:
    with computing_on(request.config.getoption("--device")):
        yield


@pytest.fixture(scope="session", autouse=True)
def _forked() -> Iterator[None]:
    """Let the launcher fork its processes from one that has imported everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "subprocess", SimpleNamespace(Popen=forked.started, PIPE=subprocess.PIPE))
        yield


@pytest.fixture(params=[STAND_IN, pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test on the stand-in device and, where there is one, on a GPU; what torch calls the device."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    with computing_on(request.param) as name:
        yield name
