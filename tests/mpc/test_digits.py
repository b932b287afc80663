"""Matrices as signed digits of 8 bits against Python's integers: digits, both kernels of products, what these take."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mpc import byte_matmul, ring
from mpc.device import int8, products, triton_launch
from mpc.device.digits import DigitMatrix, digits_in, digits_of
from tests.mpc.test_device import interpreted, words

ENDS = (0, 1, -1, 127, 128, -128, -129, 2**63 - 1, -(2**63), 0x8080808080808080 - 2**64, 0x7F7F7F7F7F7F7F7F, 2**40 - 1)
RINGS = (1, 7, 8, 9, 16, 30, 32, 33, 40, 44, 48, 56, 57, 61, 63, 64)
needs_bytes = pytest.mark.skipif(not byte_matmul.exact(), reason="the host's product of 8-bit integers is not exact")


def by_hand(x: int) -> list[int]:
    """The digits of a number by division, the remainder from -128 to 127."""
    out = []
    for _ in range(8):
        out.append((x + 128) % 256 - 128)
        x = (x - out[-1]) // 256
    return out


def product(a: Tensor, b: Tensor, bits: int) -> Tensor:
    """The product modulo 2^bits by Python's integers."""
    found = a.numpy().astype(object) @ b.numpy().astype(object)
    wrapped = (found + 2**63) % 2**64 - 2**63 if bits == 64 else found % 2**bits
    return torch.from_numpy(np.asarray(wrapped, dtype=np.int64))


def factors(rows: int, depth: int, columns: int, bits: int) -> tuple[Tensor, Tensor]:
    """Uniform factors, canonical, with rows and columns of the extreme numbers."""
    a, b = words(rows, depth), words(depth, columns)
    ends = torch.tensor(ENDS).repeat(-(-depth // len(ENDS)))[:depth]
    a[0], b[:, 0], b[:, -1] = ends, ends.flip(0), -(2**63)
    return ring.reduce(a, bits), ring.reduce(b, bits)


def test_digits_are_those_of_division_by_hand() -> None:
    x = torch.cat([torch.tensor(ENDS), words(200)])
    assert digits_of(x, 8).tolist() == [by_hand(word) for word in x.tolist()]
    small = x.to(torch.int32)
    assert digits_of(small, 4).tolist() == [by_hand(word)[:4] for word in small.tolist()]


@pytest.mark.parametrize("bits", range(1, 65))
def test_the_first_digits_say_what_a_ring_needs_whatever_lies_above(bits: int) -> None:
    x = np.array([*ENDS, *words(50).tolist()], dtype=object)
    count = digits_in(bits)
    digits = digits_of(torch.tensor(x.tolist()), 8).numpy().astype(object)
    told = sum(digits[:, i] * 256**i for i in range(count))
    assert np.array_equal(told % 2**bits, x % 2**bits)
    above = torch.tensor([(int(v) % 256**count ^ (int(w) << 8 * count)) % 2**64 for v, w in zip(x, x[::-1], strict=True)
                          ], dtype=torch.uint64).view(torch.int64)  # fmt: skip
    assert np.array_equal(digits_of(above, count).numpy(), digits[:, :count].astype(np.int8))


def test_a_matrix_gives_its_words_back() -> None:
    for dtype, shape in itertools.product((torch.int64, torch.int32), ((1, 1), (37, 19), (3, 16, 8), (2, 5, 9))):
        x = words(*shape).to(dtype)
        matrix = DigitMatrix.of(x)
        assert torch.equal(matrix.words(), x)
        assert matrix.words().dtype == dtype
        assert matrix.shape == x.shape
    rows = DigitMatrix.empty((7, 5), torch.int64, "cpu")
    x = words(7, 5)
    rows[:3], rows[3:] = x[:3], x[3:]
    assert torch.equal(rows.words(), x)
    assert torch.equal(rows[2:4, 1:].words(), x[2:4, 1:])
    assert torch.equal(rows[..., 1:3, :].words(), x[1:3])
    assert rows.nbytes == 16 * 8 * 8  # of 16 rows, 8 columns, 8 digits


def test_a_matrix_moves_without_a_copy_where_its_columns_do() -> None:
    x = words(6, 8)
    matrix = DigitMatrix.of(x)
    moves: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda t: t.reshape(6, 2, 4).permute(1, 0, 2),  # columns by expert
        lambda t: t.reshape(3, 2, 8),  # rows by expert
        lambda t: t.permute(1, 0),
    )
    for move in moves:
        moved = matrix.moved(move)
        assert torch.equal(moved.words(), move(x))
        assert moved.memory is matrix.memory
    assert torch.equal(matrix.moved(lambda t: t.reshape(4, 12)).words(), x.reshape(4, 12))


@pytest.mark.parametrize("bits", RINGS)
def test_the_row_kernel(bits: int) -> None:
    """Sizes that its blocks do not divide, more than one block of either, and the sizes of one block."""
    interpreted()
    rows, depth, columns = ((1, 37, 19), (3, 130, 7), (8, 16, 8))[bits % 3]
    a, b = factors(rows, depth, columns, bits)
    matrix = DigitMatrix.of(b).lowest(bits)
    assert torch.equal(ring.reduce(products.by_triton(a, matrix), bits), product(a, b, bits))
    assert torch.equal(ring.reduce(products.by_torch(a, matrix), bits), product(a, b, bits))


def test_the_row_kernel_of_several_matrices_and_of_rows_that_lie_apart() -> None:
    interpreted()
    x = words(12, 20)
    a = words(3, 2, 4)
    moved = DigitMatrix.of(x).moved(lambda t: t.reshape(3, 4, 20))
    assert torch.equal(products.by_triton(a, moved), a @ x.reshape(3, 4, 20))
    turned = DigitMatrix.of(x).moved(lambda t: t.permute(1, 0))
    b = words(2, 40)[:, ::2]
    assert torch.equal(products.by_triton(b, turned), b @ x.t())


@needs_bytes
@pytest.mark.parametrize("bits", RINGS)
def test_products_of_8_bit_integers(bits: int) -> None:
    for rows, depth, columns in ((9, 37, 19), (33, 16, 8)):
        a, b = factors(rows, depth, columns, bits)
        found = int8.product(a, DigitMatrix.of(b).lowest(bits))
        assert torch.equal(ring.reduce(found, bits), product(a, b, bits))
        halves = DigitMatrix.of(b.to(torch.int32)).lowest(min(bits, 32))
        assert torch.equal(ring.reduce(int8.product(a, halves), min(bits, 32)), product(a, b, min(bits, 32)))


@needs_bytes
@pytest.mark.parametrize("depth", [16_383, 16_384, 43_700, (1 << 17) - 1, (1 << 17) + 5])
@pytest.mark.parametrize("word", [0x8080808080808080 - 2**64, 0x7F7F7F7F7F7F7F7F])
def test_sums_of_the_largest_digits_stay_exact(depth: int, word: int) -> None:
    """Every product of two digits is 2^14, or nearly: fewer digits are multiplied at a time, then pieces of a column."""
    a, b = torch.full((1, depth), word), torch.full((depth, 1), word)
    expected = (word * word * depth + 2**63) % 2**64 - 2**63
    assert int8.product(a, DigitMatrix.of(b)).tolist() == [[expected]]


@needs_bytes
@pytest.mark.parametrize("left_bits", [1, 6, 7, 8, 15, 16, 40, 63, 64])
def test_rows_of_few_bits(left_bits: int) -> None:
    a, b = ring.reduce(words(4, 20), left_bits), words(20, 5)
    a[0] = (1 << left_bits) - 1 if left_bits < 64 else -1
    assert torch.equal(int8.product(a, DigitMatrix.of(b), left_bits), a @ b)


@needs_bytes
def test_products_with_experts() -> None:
    """Parts of one matrix where they lie; where they begin at odd places, they are not for products of 8-bit integers."""
    x, a = words(32, 48), words(2, 5, 32)
    columns = DigitMatrix.of(x).moved(lambda t: t.reshape(32, 2, 24).permute(1, 0, 2))
    rows = DigitMatrix.of(x).moved(lambda t: t.reshape(2, 16, 48))
    assert int8.reads(columns)
    assert int8.reads(rows)
    assert torch.equal(int8.product(a, columns), a @ x.reshape(32, 2, 24).permute(1, 0, 2))
    assert torch.equal(int8.product(a[..., :16], rows), a[..., :16] @ x.reshape(2, 16, 48))
    odd = DigitMatrix.of(x).moved(lambda t: t.reshape(4, 8, 48))
    assert not int8.reads(odd)
    assert not int8.reads(DigitMatrix.of(x).moved(lambda t: t.permute(1, 0)))
    assert not int8.reads(DigitMatrix.of(x[:, :44])[..., 42:])  # 8 columns from there on are more than its memory has


# ---- on a device -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", ["int8", "float64"])
@pytest.mark.parametrize(("depth", "columns"), [(37, 19), (64, 24)])
def test_every_number_of_rows_on_a_device(way: str, depth: int, columns: int, device: str, monkeypatch: Any) -> None:
    """Sizes that the device's product refuses are padded; where it has none, float64."""
    if way == "float64":
        monkeypatch.setattr(int8, "exact", lambda device: False)
    place = torch.device("cuda:0")
    for rows, bits in ((1, 64), (8, 40), (9, 61), (16, 30), (17, 64), (40, 48)):
        a, b = factors(rows, depth, columns, bits)
        matrix = DigitMatrix.of(b.to(device))
        usual = "rows" if rows <= products.MOST_ROWS and device != "cpu" else way
        assert products.way(a.to(device), matrix) == (usual if way == "float64" or int8.exact(place) else "float64")
        assert torch.equal(ring.matmul(a.to(device), matrix, bits).cpu(), product(a, b, bits))
        assert torch.equal(ring.matmul(a[0].to(device), matrix, bits).cpu(), product(a, b, bits)[0])


@pytest.mark.parametrize("loading", [True, False])
@pytest.mark.parametrize("computing", [True, False])
def test_weights_serve_in_either_mode_of_torch(loading: bool, computing: bool, device: str) -> None:
    x, a = words(20, 24), words(17, 20)
    with torch.inference_mode(loading):
        matrix = DigitMatrix.empty((20, 24), torch.int64, "cuda:0")
        matrix[:] = x.to(device)
    with torch.inference_mode(computing):
        for rows in (a, a[:1]):
            assert torch.equal(ring.matmul(rows.to(device), matrix, 64).cpu(), rows @ x)
        moved = matrix.moved(lambda t: t.reshape(20, 2, 12).permute(1, 0, 2))
        assert torch.equal(moved.words().cpu(), x.reshape(20, 2, 12).permute(1, 0, 2))


def test_a_device_whose_product_is_wrong_or_missing_is_not_used(monkeypatch: Any) -> None:
    here = torch.device("cpu")
    int8.exact.cache_clear()
    true = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: true(a, b).clamp(max=1 << 15))
    assert not int8.exact(here)
    int8.exact.cache_clear()
    monkeypatch.delattr(torch, "_int_mm")
    assert not int8.exact(here)
    int8.exact.cache_clear()


# ---- memory ----------------------------------------------------------------------------------------------------------
class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes that tensors made inside hold at the same time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: dict[int, tuple[Any, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.live = {key: one for key, one in self.live.items() if not one[0].expired()}
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(found):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in given:
                storage = x.untyped_storage()
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()  # type: ignore[no-untyped-call]
        self.most = max(self.most, sum(size for _, size in self.live.values()))
        return found


SEVEN_B = [(4096, 12288), (4096, 4096), (4096, 22016), (11008, 4096)]
"""The matrices of a layer of LLaMA-2-7B: queries, keys and values; out; gate and up; down."""


def most_bytes(rows: int, times: Callable[[Tensor, DigitMatrix], Tensor]) -> int:
    """The most bytes that a product of rows with one of these matrices takes beside it, its result among them."""
    most = 0
    for shape in SEVEN_B:
        a, b = torch.empty((rows, shape[0]), dtype=torch.int64, device="meta"), DigitMatrix.empty(shape, torch.int64, "meta")
        with Peak() as peak:
            times(a, b)
        most = max(most, peak.most)
    return most


def test_products_of_a_large_model_take_little_memory(monkeypatch: Any) -> None:
    """Of a LLaMA-2-7B layer: 200 MB at most; from shapes."""

    class Nothing:
        def __getitem__(self, grid: Any) -> Callable[..., None]:
            return lambda *args, **sizes: None

    def shape_of(a: Tensor, b: Tensor) -> Tensor:
        return torch.empty((a.shape[0], b.shape[1]), dtype=torch.int32, device="meta")

    monkeypatch.setattr(torch, "_int_mm", shape_of)  # what torch itself has for shapes takes seconds to import
    monkeypatch.setattr(triton_launch, "kernel", lambda text: Nothing())
    assert most_bytes(1, products.by_triton) == 8 * 22016
    assert most_bytes(128, int8.product) <= 200e6
