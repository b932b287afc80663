"""Random checkpoints of each mechanism that a family brings, on shares: transformers' tokens, and no range flag.

`python -m tests.tools.family_sweep` does the same at length, for every checkpoint.
"""

from __future__ import annotations

import pytest

from tests.tools.family_sweep import Cell, sweep

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
    outcome = sweep(Cell(name, suite, parties, policy), prompts=1, tokens=2)
    assert outcome.right
    assert outcome.error < 0.02
