"""Vectors of rows that move: shuffle, compaction, partition."""

from __future__ import annotations

from typing import Any

import torch

from protocols.masked.compaction import compact
from protocols.masked.context import open_value
from protocols.masked.partitioning import partition
from protocols.masked.shares import Masked, Shared
from protocols.masked.shuffle import shuffle
from protocols.masked.suite import MaskedSuite
from protocols.schedule import together
from tests.vectors.cases_masked import Function, cases, some
from tests.vectors.recording import Case, Input


def moved_files() -> dict[str, list[Case]]:
    """File -> its cases."""

    async def mixed(s: MaskedSuite, *xs: Shared, masked: bool) -> list[Shared]:
        c = s.context
        return await shuffle(c, await together(*(open_value(c, x) for x in xs)) if masked else xs, 1)

    def compacted(method: Any) -> Function:
        async def run(s: MaskedSuite, marks: Masked, x: Masked, k: int) -> list[Shared]:
            return await compact(s.context, marks, [x], k, method)

        return run

    def split(method: Any) -> Function:
        async def run(s: MaskedSuite, marks: Masked, x: Masked, k: int) -> list[Shared]:
            return await partition(s.context, marks, [x], k, method)

        return run

    rows, marks = some((1, 6, 2), 20, 4), Input(torch.tensor([[0, 1, 1, 0, 0, 1]]), 4, 0)
    four, few = some((1, 4, 1), 20, 4), Input(torch.tensor([[0, 1, 0, 1]]), 4, 0)
    both = [rows, some((1, 6), 11, 0)]
    return {
        "shuffle": [c for masked in (True, False) for c in cases("shuffle", mixed, both, {"masked": masked}, opened=False)],
        "compaction": [
            c for way in ("shuffle", "matrix")
            for c in cases(f"compaction by {way}", compacted(way), [marks, rows], {"k": 3})
        ],
        "partition": [
            c for way in ("shuffle", "matrix")
            for c in cases(f"partition by {way}", split(way), [few, four], {"k": 2})
        ],
    }  # fmt: skip
