"""Every kind of entry of the tape once, as its vector has them."""

from __future__ import annotations

import numpy as np

from tests.vectors.independent.formats import U, Words, total
from tests.vectors.independent.results import Result, ring
from tests.vectors.independent.world import Shared, World

Raw = Words


def entries(w: World) -> list[Shared | Raw]:
    """First in, first out: what is dependent is computed from what is random."""
    a = w.random("first", (2, 3), 13)
    b = w.random("second", (4,), 64, "xor")
    own = w.random("third", (2,), 64)
    first, second = total(a, 13), total(b, 64, "xor")
    square = w.deal("square", (2, 3), 20, first * first)
    inverse = w.deal("inverse", (4,), 64, ~second, "xor")
    table = w.deal("table", (2, 3, 2), 11, np.stack([first, first + U(1)], -1))
    common = w.common("common", (3,), 9, np.array([1, 2, 511], U))
    sums = [Shared(x, bits, 0) for x, bits in ((a, 13), (own, 64), (square, 20), (table, 11))]
    return [sums[0], b, sums[1], sums[2], inverse, sums[3], w.sharing(common, 9)]


def judge() -> list[Result | None]:
    """The common value is the only one that is nobody's secret."""
    return [None, None, None, None, None, None, ring(np.array([1, 2, 511]))]
