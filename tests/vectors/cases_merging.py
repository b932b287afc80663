"""Vectors of copying along rows."""

from __future__ import annotations

import torch

from protocols.masked import scan
from protocols.masked.shares import Shared
from protocols.masked.suite import MaskedSuite
from tests.vectors.cases_masked import cases
from tests.vectors.recording import Case, Input


async def _copied(suite: MaskedSuite, marks: Shared, values: Shared, reverse: bool) -> Shared:
    return await scan.copy_scan(suite.context, marks, values, reverse)


def merging_files() -> dict[str, list[Case]]:
    """File -> its cases."""
    marks = Input(torch.tensor([[0, 1, 0, 0, 1]]), 6, 0)
    values = Input(torch.tensor([[0, -9, 0, 0, 7]]), 6, 0)
    return {
        "scan": [
            case
            for parties, reverse in ((2, False), (3, True))
            for case in cases("scan", _copied, [marks, values], {"reverse": reverse}, (parties,), opened=False)
        ]
    }
