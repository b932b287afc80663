"""Scores that something learned says of tokens: what their ranking may not hold is flagged, else the choice is right."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import Any

import pytest
import torch
from torch import Tensor

from models.learned import Learned
from models.observation import Seen
from models.policies.axes.lasting import BOUND, LIMIT, LastingScores
from models.policies.axes.scorers import EvictionState
from models.policies.eviction import Kept
from tests.protocols.crypten.programs import evaluate
from tests.protocols.masked.harness import run_masked


class Given(LastingScores):
    """Features are the scores."""

    async def scored(self, suite: Any, features: Any, learned: Learned) -> Any:
        return features


@pytest.mark.parametrize(("suite", "parties"), [("crypten", 2), ("crypten", 3), ("masked", 2), ("masked", 3)])
@pytest.mark.parametrize(("largest", "said"), [(1.0, False), (2.0**LIMIT, False), (BOUND, True), (8 * BOUND - 1, True)])
def test_scores_beyond_their_bound_are_flagged(largest: float, said: bool, suite: str, parties: int) -> None:
    scores = torch.arange(24.0).reshape(2, 12).double() / 24
    scores[1, 5] = largest
    state = EvictionState(learned=Learned({}, 0, "relu"))

    async def program(s: Any, x: Any) -> Any:
        s.begin(2)
        s.at(0)
        own = replace(state)  # every role's
        for _, work in Given().batch(s, own, Seen(features=x.permute(1, 0))):
            await work()
        found = Given().scores(s, own, Seen(), Kept(0, 12, 3))
        return await s.keep_largest(found.value, 3, found.bound)

    if suite == "crypten":
        out = evaluate(program, [scores], parties=parties)
        kept, flagged = out.value, bool((out.flags != 0).any())
    else:
        shares: list[Tensor] = []
        (kept,), _ = run_masked(program, [scores], parties=parties, flag_shares=shares)
        flagged = bool(reduce(torch.bitwise_xor, shares).any())
    assert flagged == said
    if not flagged:
        wanted = torch.zeros_like(scores).scatter(1, scores.topk(3).indices, 1)
        assert torch.equal(kept, wanted)
