"""The option `--device`: where all that runs in the tests' own process computes; and the fixture `device`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.devices import NAMES, STAND_IN, computing_on


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--device`."""
    parser.addoption("--device", choices=NAMES, default="cpu", help="where roles in the tests' process compute")


def pytest_configure(config: pytest.Config) -> None:
    """Say what the marker means."""
    config.addinivalue_line("markers", "cuda: runs on a GPU, and is skipped where there is none")


@pytest.fixture(scope="session", autouse=True)
def _everywhere(request: pytest.FixtureRequest) -> Iterator[None]:
    with computing_on(request.config.getoption("--device")):
        yield


@pytest.fixture(params=[STAND_IN, pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test on the stand-in device and, where there is one, on a GPU; what torch calls the device."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    with computing_on(request.param) as name:
        yield name
