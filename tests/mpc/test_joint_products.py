"""Products that sessions in step ask of one matrix are one product, of the rows of them all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mpc import ring
from mpc.device.digits import DigitMatrix
from mpc.errors import ConfigurationError, MpcacheError
from mpc.in_step import StepMember
from mpc.joint_products import joined, matmul
from mpc.pieced_matrix import PiecedMatrix
from tests.devices import STAND_IN, computing_on
from tests.mpc.test_in_step import View, running, wait_until

BITS = 40
GENERATOR = torch.Generator().manual_seed(0)
MATRIX = torch.randint(-(2**39), 2**39, (1024, 512), generator=GENERATOR).t()
OTHER = torch.randint(-(2**31), 2**31, (512, 600), generator=GENERATOR, dtype=torch.int64).to(torch.int32)


def rows_of(session: int, count: int) -> Tensor:
    return torch.randint(0, 2**40, (count, 512), generator=torch.Generator().manual_seed(session))


def by_hand(a: Tensor, b: Tensor, bits: int) -> list[list[int]]:
    columns = b.t().tolist()
    return [[sum(x * y for x, y in zip(row, column, strict=True)) % 2**bits for column in columns] for row in a.tolist()]


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each product that is really computed."""
    found: list[int] = []
    real = ring.matmul

    def counted(a: Tensor, b: Tensor, bits: int, left_bits: int) -> Tensor:
        found.append(len(a))
        return real(a, b, bits, left_bits)

    monkeypatch.setattr(ring, "matmul", counted)
    return found


def together(sessions: int, program: Callable[[StepMember, int], Any]) -> list[Any]:
    """Run a program in each of so many sessions of two parties that begin together; what it gave at party 0."""
    with running(2) as found:
        for number in range(sessions):

            def run(member: StepMember, party: int, number: int = number) -> Any:
                member.exchange({1 - party: b"x"}, {1 - party: 1})
                if party:
                    return None
                with joined(member):
                    return program(member, number)

            found.session(number, run)
        wait_until(lambda: all(group.all_posted(sessions) for group in map(View, found.groups)))
        found.start()
    return [found.results(number)[0] for number in range(sessions)]


def test_each_session_has_the_product_of_its_own_rows(products: list[int]) -> None:
    def program(_member: StepMember, number: int) -> tuple[Tensor, Tensor]:
        return matmul(rows_of(number, 1 + number % 2), MATRIX, BITS), matmul(rows_of(number, 1), OTHER, 32)

    results = together(4, program)
    assert products == [6, 4]
    for number, (first, second) in enumerate(results):
        assert first.tolist() == by_hand(rows_of(number, 1 + number % 2), MATRIX, BITS)
        assert second.tolist() == by_hand(rows_of(number, 1), OTHER, 32)


def test_a_matrix_in_pieces_is_one(products: list[int]) -> None:
    deep = torch.cat([MATRIX, MATRIX + 1, MATRIX - 7])
    kept = PiecedMatrix.empty(deep.shape, deep.dtype)
    kept[:] = deep

    def rows(number: int) -> Tensor:
        return torch.cat([rows_of(number + i, 1) for i in range(3)], 1)

    results = together(3, lambda _member, number: matmul(rows(number), kept, BITS))
    assert products == [3]
    for number, result in enumerate(results):
        assert result.tolist() == by_hand(rows(number), deep, BITS)


def test_small_matrices_many_rows_and_single_sessions_are_computed_alone(products: list[int]) -> None:
    def program(_member: StepMember, number: int) -> Tensor:
        matmul(rows_of(number, 9), MATRIX, BITS)
        return matmul(rows_of(number, 1), MATRIX[:, :7], BITS)

    together(2, program)
    assert products == [9, 1, 9, 1]
    products.clear()
    matmul(rows_of(0, 1), MATRIX, BITS)
    assert products == [1]


def test_a_session_that_asks_something_else_waits_for_nobody(products: list[int]) -> None:
    def program(_member: StepMember, number: int) -> Tensor:
        for _ in range(number):
            matmul(rows_of(number, 2), MATRIX, BITS)
        return matmul(rows_of(number, 1), MATRIX, BITS)

    results = together(3, program)
    assert products == [1 + 2 + 2, 1 + 2, 1]
    for number, result in enumerate(results):
        assert isinstance(result, Tensor)
        assert result.tolist() == by_hand(rows_of(number, 1), MATRIX, BITS)


def test_the_failure_of_one_is_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    real, failed = ring.matmul, threading.Event()

    def once(a: Tensor, b: Tensor, bits: int, left_bits: int) -> Tensor:
        if not failed.is_set():
            failed.set()
            raise ConfigurationError("no memory")
        return real(a, b, bits, left_bits)

    monkeypatch.setattr(ring, "matmul", once)
    results = together(3, lambda _member, number: matmul(rows_of(number, 1), MATRIX, BITS))
    assert sum(isinstance(result, MpcacheError) for result in results) == 1
    for number, result in enumerate(results):
        if isinstance(result, Tensor):
            assert result.tolist() == by_hand(rows_of(number, 1), MATRIX, BITS)


def test_products_of_some_rows_of_no_and_of_many_entries() -> None:
    assert (
        ring.matmul(torch.zeros(3, 0, dtype=torch.int64), torch.zeros(5, 0, dtype=torch.int64).t(), BITS).tolist()
        == [[0] * 5] * 3
    )
    a, b = rows_of(1, 5).repeat(1, 70), MATRIX[:, :6].t().repeat(1, 70).t()
    assert ring.matmul(a, b, BITS).tolist() == by_hand(a, b, BITS)


def test_digits_on_a_device_are_read_once_for_all_sessions(products: list[int]) -> None:
    with computing_on(STAND_IN) as device:
        matrix = DigitMatrix.of(MATRIX.contiguous().to(device))

        def program(_member: StepMember, number: int) -> tuple[Tensor, Tensor]:
            rows = rows_of(number, 1).to(device)
            turned = matrix.moved(lambda t: t.t())  # each session turns the same digits for itself
            wide = torch.cat([rows, rows], -1) + number  # written down, and not computed yet
            return matmul(rows, matrix, BITS).cpu(), matmul(wide, turned, BITS).cpu()

        results = together(3, program)
    assert products == [3, 3]
    for number, (first, second) in enumerate(results):
        assert first.tolist() == by_hand(rows_of(number, 1), MATRIX, BITS)
        wide = rows_of(number, 1).repeat(1, 2) + number
        assert second.tolist() == by_hand(wide, MATRIX.t(), BITS)


def test_matrices_of_another_device_are_not_taken_for_each_other(products: list[int]) -> None:
    meta = MATRIX.to("meta")
    together(2, lambda _member, number: ring.reduce(matmul(rows_of(number, 1).to("meta"), meta, BITS), BITS))
    assert products == [1, 1]
