"""Products with a matrix of digits: right, bytes read a second by one row, and products of 8-bit integers beside float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mpc import ring
from mpc.device import products
from mpc.device.digits import DigitMatrix
from tests.tools.gpu_check.timing import Row, ring_elements, timed

SHAPES = [(768, 3072), (4096, 11008), (11008, 4096)]
SMALL = [(64, 96), (40, 24)]
ROWS, RINGS = (1, 8, 17, 128), (30, 40, 48, 64)
COMPARED = 4  # rows of a product, with the CPU's


def digits(place: str, small: bool) -> Iterator[Row]:
    """Few rows and many, in every ring; of many float64, too, which takes the place of what a device has not."""
    for depth, columns in SMALL if small else SHAPES:
        words = ring_elements((depth, columns), 64, 2)
        kept = [DigitMatrix.of(x.to(place)) for x in words]
        for rows in ROWS:
            for bits in RINGS:
                (a,) = ring_elements((rows, depth), bits)
                yield from _products(a, words[0], kept, bits, place)
        made = lambda n, words=words: DigitMatrix.of(words[n % 2].to(place))  # noqa: E731
        yield timed(f"digits made, {depth} x {columns}", made, place, bytes=8 * depth * columns)


def _products(a: Tensor, words: Tensor, kept: list[DigitMatrix], bits: int, place: str) -> Iterator[Row]:
    """Multiply by both matrices in turn; words: of the first one, at the host."""
    (rows, depth), columns, there = a.shape, words.shape[1], a.to(place)
    some = slice(None, None, max(1, rows // COMPARED))
    expected = ring.matmul(a[some], words, bits)
    ways = {products.way(there, kept[0]): ring.matmul}
    if rows == ROWS[-1]:
        ways["float64"] = ring.limb_matmul
    for way, times in ways.items():
        right = torch.equal(times(there, kept[0], bits).cpu()[some], expected)
        yield timed(
            f"digits, {rows} rows, {depth} x {columns}, 2^{bits}, {way}",
            lambda n, times=times: times(there, kept[n % 2], bits),
            place,
            ok=right,
            bytes=kept[0].lowest(bits).digits.numel(),
            operations=2 * rows * depth * columns,
        )
