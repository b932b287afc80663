"""The quick part of the fault matrix: every fault, role and phase. All cells: `python -m tests.tools.fault_matrix`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mpc.errors import PeerLost, PeerSilent
from tests.tools.fault_matrix import Matrix, check


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Matrix]:
    running = Matrix(tmp_path_factory.mktemp("matrix"), checkpoint)
    yield running
    running.close()


@pytest.mark.parametrize(
    ("fault", "phase", "role", "kind", "message"),
    [
        ("killed", "handshake", "party1", PeerLost, "party1: "),
        ("killed", "model load", "party1", PeerLost, "party1: the connection ended"),
        ("killed", "decode", "dealer", PeerLost, "dealer: the connection ended"),
        ("killed", "prefill", "client", PeerLost, "did not come back within 3 s"),
        ("cut off", "decode", "party1", PeerSilent, "party1: sent nothing for 2 s"),
        ("cut off", "tape", "dealer", PeerSilent, "dealer: sent nothing for 2 s"),
        ("restarted", "decode", "party1", PeerLost, "party1: .*it was started anew since"),
        ("restarted", "tape", "dealer", PeerLost, "dealer: .*it was started anew since"),
        ("slowed", "prefill", "party1", None, ""),
    ],
)
def test_cell(matrix: Matrix, fault: str, phase: str, role: str, kind: type[Exception] | None, message: str) -> None:
    outcome = matrix.cell(fault, phase, role)
    check(fault, role, outcome)
    if kind is None:
        assert outcome.error is None
        return
    with pytest.raises(kind, match=message):
        raise outcome.error or AssertionError("the session succeeded")


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Matrix]:
    """With streams between servers that have left gRPC."""
    running = Matrix(tmp_path_factory.mktemp("beside"), checkpoint, "tls")
    yield running
    running.close()


@pytest.mark.parametrize(
    ("fault", "phase", "role", "kind", "message"),
    [
        ("cut off", "decode", "party1", PeerSilent, "party1: sent nothing for 2 s"),
        ("killed", "tape", "dealer", PeerLost, "dealer: the connection ended"),
    ],
)
def test_cell_beside_grpc(beside: Matrix, fault: str, phase: str, role: str, kind: type[Exception], message: str) -> None:
    outcome = beside.cell(fault, phase, role)
    check(fault, role, outcome)
    with pytest.raises(kind, match=message):
        raise outcome.error or AssertionError("the session succeeded")
