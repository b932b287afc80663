"""Matrices in pieces against torch's own wrapping integer product, and against columns by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mpc import byte_matmul, ring
from mpc.pieced_matrix import PIECE_BYTES, PiecedMatrix, cuts, pays

DEPTHS = (1025, 2048, 2500, 16384, 20001)  # of int64, whose rows of more than 1024 elements are cut
SIZES = [(depth, bits, bits) for depth in DEPTHS for bits in (30, 57, 64)]


def words(*shape: int, bits: int = 64, seed: int = 0) -> Tensor:
    drawn = torch.randint(-(2**63), 2**63 - 1, shape, generator=torch.Generator().manual_seed(seed))
    return ring.reduce(drawn, bits)


def filled(of: Tensor, step: int) -> PiecedMatrix:
    """Return a matrix in pieces, filled `step` rows at a time."""
    out = PiecedMatrix.empty(of.shape, of.dtype)
    for start in range(0, of.shape[0], step):
        out[slice(start, min(start + step, of.shape[0]))] = of[start : start + step]
    return out


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("depth", [1, 1024, 1025, 2048, 2049, 3072, 50257])
def test_pieces_fit_the_cache_and_are_all_rows(depth: int, dtype: torch.dtype) -> None:
    found = cuts(depth, dtype)
    assert [i for cut in found for i in range(depth)[cut]] == list(range(depth))
    assert all((cut.stop - cut.start) * dtype.itemsize <= PIECE_BYTES for cut in found)
    assert pays((depth, 3), dtype) == (len(found) > 1)
    assert max(cut.stop - cut.start for cut in found) - min(cut.stop - cut.start for cut in found) <= 1


@pytest.mark.parametrize("step", [1000, 1025, 4096])
@pytest.mark.parametrize("depth", DEPTHS)
def test_what_is_filled_is_there(depth: int, step: int) -> None:
    matrix = words(depth, 3)
    found = filled(matrix, step)
    assert found.shape == matrix.shape
    assert found.nbytes == matrix.nbytes
    assert len(found.parts) > 1
    assert all(part.stride(0) == 1 and part.shape[0] <= 1024 for part in found.parts)
    assert torch.equal(found.words(), matrix)
    assert found.words().stride(0) == 1
    found.join()
    assert len(found.parts) == 1
    assert torch.equal(found.words(), matrix)
    found[slice(2, 4)] = matrix[:2]
    assert torch.equal(found.words()[2:4], matrix[:2])
    assert torch.equal(found.words()[4:], matrix[4:])


@pytest.mark.parametrize("bytes_used", [False, True])
@pytest.mark.parametrize(("depth", "bits", "left_bits"), [*SIZES, (20001, 30, 1)])
def test_products_are_exact(
    depth: int, bits: int, left_bits: int, bytes_used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one row, of as many as are multiplied row by row, and of more; by bytes and by float64."""
    if bytes_used and not byte_matmul.exact():
        pytest.skip("this machine's product of 8-bit integers is not exact: never used")
    monkeypatch.setattr(ring, "byte_matmul_pays", lambda: bytes_used)
    matrix = words(depth, 5, bits=bits, seed=1)
    kept = filled(matrix.to(torch.int32) if bits <= 32 else matrix, 4096)
    assert len(kept.parts) > 1 or not pays(matrix.shape, kept.dtype)
    for rows in (1, 2, 11, 12, 13):
        a = words(rows, depth, bits=left_bits, seed=rows)
        assert torch.equal(ring.matmul(a, kept, bits, left_bits), ring.reduce(torch.matmul(a, matrix), bits))


def test_the_largest_digits_of_a_deep_product_in_pieces() -> None:
    """Sums of products stay below 2^31 between the blocks that pieces are brought together in."""
    if not byte_matmul.exact():
        pytest.skip("this machine's product of 8-bit integers is not exact: never used")
    for word in (0x8080808080808080 - 2**64, 0x7F7F7F7F7F7F7F7F, -1, -(2**63)):
        kept = filled(torch.full((50257, 3), word), 50257)
        expected = word * word * 50257 % 2**64
        expected -= 2**64 if expected >= 2**63 else 0
        assert torch.equal(byte_matmul.byte_matmul(torch.full((12, 50257), word), kept, 64), torch.full((12, 3), expected))
