"""Vectors of the softmax, of its exponentials and of its zero tests, and of the soft cap of scores."""

from __future__ import annotations

from typing import Any

import torch

from protocols.masked import exponential, softmax
from protocols.masked.rows import Rows
from protocols.masked.shares import Masked, Shared
from protocols.masked.soft_cap import FRAC, soft_cap
from protocols.masked.suite import MaskedSuite
from protocols.masked.values import MaskedTensor
from protocols.masked.wide import open_any
from protocols.masked.zero_words import zero_words
from tests.vectors.cases_masked import cases, real
from tests.vectors.recording import Case, Input


async def _exponential(s: MaskedSuite, x: Masked, form: str, frac: int, bits: int) -> Shared:
    way = exponential.by_window if form == "window" else exponential.by_bits
    return s.context.shared(await way(s.context, x, frac, bits))


async def _zero(s: MaskedSuite, x: Masked, way: Any, bits: int) -> Shared:
    return await zero_words(s.context, x, way, bits)


async def _probabilities(s: MaskedSuite, x: Shared, frac: int, score: int) -> list[Any]:
    found = await s.softmax(MaskedTensor(s.context, score + 1, x))
    return [found.as_shared(), s.flags()]


async def _capped(s: MaskedSuite, x: Masked, cap: float, period: int, bits: int) -> Shared:
    found = soft_cap(s.context, x, cap, period, bits + FRAC - x.frac)
    return s.context.shared(await open_any(s.context, found, FRAC - x.frac))


async def _shift(s: MaskedSuite, y: Masked, form: str, score: int, rows: int) -> list[Any]:
    """Of differences of scores to the last one of their row, rows side by side."""
    spread = softmax.Spread(score + 1, 0.875 * 2.0**score, s.convert.ranges)
    found = await softmax.shift_by(s.context, y, Rows(torch.Size((rows, y.shape[0] // rows))), spread, form)
    return [s.context.shared(found), s.flags()]


def softmax_files() -> dict[str, list[Case]]:
    """File -> cases."""
    x = real([-4.25, -7.9, -100.0], 22, 14)
    scores = real([[3.0, -2.5, 9.75, 0.5], [1.0, 1.0, -11.0, 1.5]], 64, 16)
    small = {"frac": 14, "score": 5}
    differences = real([3.0, -2.5, 9.75, 0.0, -1.5, -12.0, -11.0, 0.0], 21, 14)
    shifts = []
    for form, parties in (("counts", (2, 3)), ("one", (2, 3)), ("two", (2,)), ("points", (2,))):
        shifts += cases("shift", _shift, [differences], {"form": form, "score": 5, "rows": 2}, parties=parties)
    found = []
    for bits in (13, 64):
        for way in ("one", "two") if bits == 13 else ("two",):
            words = Input(torch.tensor([0, 1, 1 << (bits - 2), -1]), bits, 0)
            found += cases("zero words", _zero, [words], {"way": way, "bits": 7})
    return {
        "exponential": cases("exponential", _exponential, [x], {"form": "window", "frac": 28, "bits": 62})
        + cases("exponential", _exponential, [x], {"form": "bits", "frac": 28, "bits": 62}, parties=(2,)),
        "zero_words": found,
        "soft_cap": cases("soft cap", _capped, [real([-4.5], 18, 10)], {"cap": 5.0, "period": 8, "bits": 16}),
        "softmax": cases("softmax", _probabilities, [scores], small, opened=False, options={"score": 5}) + shifts,
    }
