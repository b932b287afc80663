"""A secret bias that joins attention's scores, in the suite `masked`."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.protocols.masked.harness import run_masked


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize(("cap", "spread", "bound"), [(3.0, 60.0, 7), (None, 26.0, 5), (None, 110.0, 7), (None, 800.0, 10)])
def test_a_bias_joins_scores_as_far_apart_as_declared(cap: float | None, spread: float, bound: int, parties: int) -> None:
    """What a bias adds to the spread of a row, behind a soft cap or not, is no excursion and goes around no ring."""
    q, v = torch.full((1, 1, 4), 0.5).double(), torch.randn(1, 9, 4).double()
    k = torch.zeros(1, 9, 4).double()
    k[0, :, 0] = torch.linspace(-spread, spread, 9).double().mul(32).round() / 32
    bias = torch.tensor([[[-32.0, 0, 0, -32, 0, 0, 0, -32, -32]]]).double()

    async def program(s: Any, q: Any, k: Any, v: Any, bias: Any) -> Any:
        s.begin(2, cap)
        s.at(0)
        return await s.biased_attention(q, k, v, s.with_bound(bias, 32.0))

    shares: list[Tensor] = []
    options = {"score": bound, "activation": 12}
    (found,), _ = run_masked(program, [q, k, v, bias], parties=parties, flag_shares=shares, **options)
    scores = q @ k.transpose(1, 2)
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    assert (found - torch.softmax(scores + bias, -1) @ v).abs().max() < 2e-3
    assert not reduce(torch.bitwise_xor, shares).any()
