"""Matrices over ranks: products to the bit with a part of the memory."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mpc import ring
from mpc.device.digits import DigitMatrix
from mpc.pieced_matrix import PiecedMatrix
from mpc.ranks import Block, SplitMatrix, cut
from tests.mpc.rank_processes import Group, running


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    with running(tmp_path_factory.mktemp("ranks"), 3) as found:
        yield found


def words(*shape: int, bits: int = 64) -> Tensor:
    """Uniform ring elements."""
    return ring.reduce(torch.randint(-(2**63), 2**63 - 1, shape), bits)


def filled(group: Group, values: Tensor, step: int = 3) -> SplitMatrix:
    """A matrix with these values, filled by blocks of rows."""
    matrix = group.ranks.matrix((values.shape[0], values.shape[1]), values.dtype)
    for start in range(0, len(values), step):
        rows = slice(start, min(start + step, len(values)))
        matrix.put(rows, values[rows])
    return matrix


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (1, 9), (9, 1), (64, 300), (300, 64), (2, 2), (7001, 3)])
@pytest.mark.parametrize("bits", [30, 48, 64])
def test_products(group: Group, shape: tuple[int, int], bits: int) -> None:
    """All shapes that no number of ranks divides, from one row to many, either way round, are exact; of deep matrices that
    lie in pieces, too."""
    values = words(*shape, bits=min(bits, 31))
    values = values.to(torch.int32) if bits <= 32 else words(*shape)
    matrix = filled(group, values, max(3, shape[0] // 5))
    assert isinstance(matrix.own.values, PiecedMatrix) == (shape[0] > 7000)
    assert torch.equal(matrix.whole(), values)
    for n in (1, 2, 9):
        for turned in (False, True):
            factor = values.to(torch.int64).t() if turned else values.to(torch.int64)
            rows = words(n, factor.shape[0], bits=bits)
            assert torch.equal(matrix.times(rows, bits, turned), ring.reduce(rows @ factor, bits))


def test_that_a_rank_holds_its_part_only(group: Group) -> None:
    for shape in ((12, 60), (60, 12)):
        matrix = group.ranks.matrix(shape, torch.int64)
        assert matrix.own.words().numel() == 12 * 60 // group.ranks.count
        assert sum(matrix.width(rank) for rank in range(group.ranks.count)) == 60


def test_that_threads_do_not_mix_their_products(group: Group) -> None:
    factors = [words(20, 30) for _ in range(4)]
    matrices = [filled(group, factor) for factor in factors]
    wrong: list[int] = []

    def body(i: int) -> None:
        for _ in range(20):
            rows = words(3, 20)
            if not torch.equal(matrices[i].times(rows, 64), rows @ factors[i]):
                wrong.append(i)

    threads = [threading.Thread(target=body, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_that_what_nobody_holds_is_freed_at_all_ranks(group: Group) -> None:
    """A rank is told before the next order; it would end at an order for what it does not have."""
    kept, gone = filled(group, words(4, 4)), filled(group, words(4, 4))
    del gone
    gc.collect()
    kept.times(words(1, 4), 64)
    assert not group.ranks._freed
    assert all(other.poll() is None for other in group.others)


@pytest.mark.parametrize("size", [0, 1, 2, 7, 50257])
@pytest.mark.parametrize("ranks", [1, 2, 3, 16])
def test_cuts(size: int, ranks: int) -> None:
    parts = cut(size, ranks)
    assert [i for part in parts[:8] for i in range(size)[part]] == list(range(parts[min(8, ranks) - 1].stop))
    assert parts[-1].stop == size
    assert max(p.stop - p.start for p in parts) - min(p.stop - p.start for p in parts) <= 1


def test_that_rows_outside_of_a_block_are_not_put_there() -> None:
    block = Block((6, 2), 0, slice(2, 4), (torch.int64, torch.device("cpu")))
    values = torch.arange(6)[:, None].expand(6, 2)
    for start in range(6):
        rows = slice(start, start + 1)
        block.put(rows, block.of(rows, values[rows]))
    assert block.words()[:, 0].tolist() == [2, 3]
    assert block.words().stride() == (1, 2)


@pytest.mark.parametrize("axis", [0, 1])
def test_that_a_block_on_a_device_is_digits(axis: int, device: str) -> None:
    whole, part = torch.arange(20 * 24).reshape(20, 24) * -(3**30), slice(4, 12)
    block = Block((20, 24), axis, part, (torch.int64, torch.device("cuda:0")))
    for rows in (slice(0, 7), slice(7, 20)):
        block.put(rows, block.of(rows, whole[rows].to(device)))
    expected = whole[part] if axis == 0 else whole[:, part]
    assert isinstance(block.values, DigitMatrix)
    assert torch.equal(block.words().cpu(), expected)
    for x, turned in ((expected[:, :3].t(), False), (expected[:2], True)):
        right = x @ (expected.t() if turned else expected)
        assert torch.equal(block.times(x.contiguous().to(device), 64, turned).cpu(), right)
