"""Vectors of attention to chosen clusters."""

from __future__ import annotations

import torch

from protocols.masked import gather
from protocols.masked.shares import Masked, Shared
from protocols.masked.suite import MaskedSuite
from tests.vectors.cases_masked import cases, some
from tests.vectors.recording import Case, Input


def _picked(suite: MaskedSuite, ranks: Masked, s: Masked, count: int, bits: int) -> tuple[Shared, Shared]:
    return gather.picked_by_rank(suite.context, ranks, count, s, bits)


def gather_files() -> dict[str, list[Case]]:
    """File -> its cases."""
    e, q = Input(torch.tensor([[[0, 1, 0], [0, 0, 1]]]), 44, 0), some((1, 2, 2), 44, 12, 14)
    k, p = some((1, 3, 2, 2), 64, 12, 14), some((1, 2, 2, 2), 44, 12, 12)
    s, ranked = some((1, 2, 3, 2), 30, 14, 20), Input(torch.tensor([[1, 2, 0]]), 2, 0)
    return {
        "gather": cases("chosen scores", lambda s, *v: gather.chosen_scores(s.context, *v), [e, q, k])
        + cases("chosen values", lambda s, *v: gather.chosen_values(s.context, *v), [e, p, k])
        + cases("picked scores", lambda s, *v: gather.picked_scores(s.context, *v), [e, s])
        + cases("spread weights", lambda s, *v: gather.spread_weights(s.context, *v), [e, p])
        + cases("picked by rank", _picked, [ranked, s], {"count": 2, "bits": 44}, parties=(2,)),
    }
