"""Rows that are split in two kinds: partition."""

from __future__ import annotations

import numpy as np

from tests.vectors.independent.formats import U
from tests.vectors.independent.linear import reveal
from tests.vectors.independent.lookup import prefix
from tests.vectors.independent.order import compact_by_matrix, shuffle, take
from tests.vectors.independent.world import Masked, Shared, Steps, World, together


def _complement(marks: Masked) -> Masked:
    """1 where there is no mark."""
    return marks.each(lambda t: -t).plus_public(U(1))


def partition_by_shuffle(w: World, marks: Masked, rows: Masked, k: int) -> Steps:
    """Shuffle marks, both counts and rows; reveal the marks, then of each row its own kind's count; move in the clear."""
    bits = max(1, marks.shape[-1].bit_length())
    counts = [x.to(bits).each(prefix) for x in (marks, _complement(marks))]
    mark, ones, zeros, moved = yield from shuffle(w, [marks.to(1), *counts, rows])
    seen = yield from reveal(mark)
    reached = yield from reveal(Shared(np.where(seen != 0, ones.x, zeros.x), bits, 0))
    source = np.argsort(reached + U(k) * (U(1) - seen), -1).astype(U)
    return moved.each(lambda t: take(t, source))


def partition_by_matrix(w: World, marks: Masked, rows: Masked, k: int) -> Steps:
    """Both kinds compacted, their openings in one round."""
    kept, others = yield from together(
        compact_by_matrix(w, marks, rows, k),
        compact_by_matrix(w, _complement(marks), rows, marks.shape[-1] - k),
    )
    return Shared(np.concatenate([kept.x, others.x], 2), kept.bits, kept.frac)


# ---- copying along a row ---------------------------------------------------------------------------------------------
