"""Vectors of secret routing to experts."""

from __future__ import annotations

from typing import Any

import torch

from protocols.masked import routing
from protocols.masked.exponential import in_units
from protocols.masked.shares import Masked, Shared
from protocols.masked.softmax import Spread
from protocols.masked.suite import MaskedSuite
from tests.vectors.cases_masked import cases, real
from tests.vectors.recording import Case, Input


async def _route(s: MaskedSuite, x: Masked, renormalised: bool, chosen: int, compared: int, score: int) -> list[Any]:
    spread = Spread(score + 1, in_units(0.875 * 2.0**score), s.convert.ranges)
    marks, gates = await routing.route(s.context, x, routing.Choice(chosen, renormalised, compared), spread)
    return [s.context.shared(marks), gates, s.flags()]


def _places(s: MaskedSuite, marks: Masked, capacity: int, bits: int) -> tuple[Shared, Shared]:
    return routing.slots(s.context, marks, capacity, bits)


def routing_files() -> dict[str, list[Case]]:
    """File -> its cases."""
    logits = real([[1.0, 1.0, 1.5]], 35, 14)
    marks = Input(torch.tensor([[1, 0], [1, 1], [1, 0]]), 33, 0)
    small: dict[str, Any] = {"chosen": 2, "compared": 20, "score": 5}
    return {
        "routing": [
            *cases("routing", _route, [logits], {**small, "renormalised": True}, (2,), options={"score": 5}),
            *cases("routing", _route, [logits], {**small, "renormalised": False}, (3,), options={"score": 5}),
            *cases("places", _places, [marks], {"capacity": 2, "bits": 48}),
        ]
    }
