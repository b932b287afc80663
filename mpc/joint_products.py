"""Products of few rows with one large matrix, of several sessions in step at a time: the matrix is read once for them all.

A decoded token multiplies one row by every weight, which takes as long as reading the weight. Sessions in step ask for the
same products in the same round, each with its own row: what all of them ask of one matrix is one product of their rows.
Which sessions that are follows from public shapes and from when they run; each gets the rows that it would compute alone,
to the bit. A session's rows stay in this party's process, whose other sessions' shares lie there, too.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from mpc import ring
from mpc.device.digits import DigitMatrix
from mpc.pieced_matrix import PiecedMatrix
from mpc.ring import RING_BITS, Matrix

#: Products that are asked for together have at most so many rows each; a matrix has at least so many entries.
MOST_ROWS = 8
LEAST_ENTRIES = 1 << 18

Products = Callable[[list[Tensor]], list[Tensor]]


class Together(Protocol):
    """Who brings sessions together, such as `mpc.in_step.StepMember`."""

    def together(self, key: Hashable, rows: Tensor, products: Products) -> Tensor:
        """Return the product of `rows`: one call of products(all that is asked under this key) gives everyone's."""


class _Here(threading.local):
    together: Together | None = None


_here = _Here()


@contextmanager
def joined(together: Together | None) -> Iterator[None]:
    """Let `matmul` of this thread, in here, ask together with others; None: alone."""
    before, _here.together = _here.together, together
    try:
        yield
    finally:
        _here.together = before


def matmul(a: Tensor, b: Matrix, bits: int = RING_BITS, left_bits: int = RING_BITS) -> Tensor:
    """Return `a @ b` modulo 2^bits as `ring.matmul` does, for a fixed matrix b [K, N] of which other sessions ask the same,
    where there are such. Exact."""
    together = _here.together
    if together is None or a.dim() != 2 or not 1 <= a.shape[0] <= MOST_ROWS or math.prod(b.shape) < LEAST_ENTRIES:
        return ring.matmul(a, b, bits, left_bits)
    if len(b.shape) != 2 or (isinstance(b, Tensor) and b.device.type != "cpu"):  # elsewhere no address says which it is
        return ring.matmul(a, b, bits, left_bits)
    elements = b.digits if isinstance(b, DigitMatrix) else b.parts[0] if isinstance(b, PiecedMatrix) else b
    at = (id(b.memory), b.start) if isinstance(b, DigitMatrix) else b.data_ptr()
    where = (at, elements.shape, elements.stride(), b.dtype)

    def products(rows: list[Tensor]) -> list[Tensor]:
        if len(rows) == 1:
            return [ring.matmul(rows[0], b, bits, left_bits)]
        return list(torch.split(ring.matmul(torch.cat(rows), b, bits, left_bits), [len(x) for x in rows]))

    return together.together((where, bits, left_bits, a.dtype), a, products)
