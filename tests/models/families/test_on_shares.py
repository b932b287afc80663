"""Random checkpoints of each mechanism that a family brings, on shares: transformers' tokens, and no range flag.

`python -m tests.tools.family_sweep` does the same at length, for every checkpoint.
"""

from __future__ import annotations

import pytest

from models.generation import GenerationPlan
from tests.tools.family_sweep import LENGTH, sweep

ONE_EACH = [
    ("qwen3", "masked", 2, "full"),  # normalised queries and keys
    (
        "gpt-neox",
        "masked",
        3,
        "mpcache:preset=clusters,static=1,dynamic=1,sharing=1",
    ),  # parts beside each other, a part of the channels
    ("gemma2", "masked", 2, "full"),  # soft caps, norms on both sides, windows
    ("olmo2", "masked", 3, "full"),  # norms after a part alone
    ("falcon-40b", "masked", 2, "chunked:tokens=4|full"),
    ("stablelm-parallel-norms", "crypten", 2, "full"),
    ("gemma2", "crypten", 2, "full"),
]


@pytest.mark.parametrize(("name", "suite", "parties", "policy"), ONE_EACH)
def test_tokens_are_those_of_transformers(name: str, suite: str, parties: int, policy: str) -> None:
    different, flagged, error = sweep(name, GenerationPlan(LENGTH, 2, policy=policy), suite, parties, 1)
    assert (different, flagged) == (0, 0)
    assert error < 0.02
