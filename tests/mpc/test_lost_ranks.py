"""Ranks that are killed, silent or of another version: an error that names the rank, soon, and from then on."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch

from mpc.errors import EnvironmentProblem, ManifestMismatch
from mpc.ranks import SplitMatrix
from tests.mpc.rank_processes import running


def use(matrix: SplitMatrix) -> None:
    """Multiply; the first order may still be on its way when the other end is gone."""
    for _ in range(3):
        matrix.times(torch.ones(2, 8, dtype=torch.int64), 64)


@pytest.mark.parametrize(("number", "message"), [(signal.SIGKILL, "is lost"), (signal.SIGSTOP, r"is silent for 2 s")])
def test_a_rank_that_is_gone(tmp_path: Path, number: signal.Signals, message: str) -> None:
    with running(tmp_path, patience=2.0) as group:
        matrix = group.ranks.matrix((8, 8), torch.int64)
        group.others[0].send_signal(number)
        began = time.monotonic()
        for _ in range(2):  # and from then on
            with pytest.raises(EnvironmentProblem, match=f"^rank 1 of party0 {message} .*start all ranks of party0 again"):
                use(matrix)
        assert time.monotonic() - began < 8
        group.others[0].kill()


def test_a_rank_of_another_version(tmp_path: Path) -> None:
    with (
        pytest.raises(ManifestMismatch, match="rank 1 of party0 has version '2', rank 0 has '1': start all ranks with"),
        running(tmp_path, theirs={"version": "2"}),
    ):
        pass
