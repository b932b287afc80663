"""A secret bias that joins attention's scores."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.protocols.masked.harness import run_masked
from tests.protocols.suite_harness import SECURE, run_secure


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
    options: dict[str, Any] = {"score": bound, "activation": 12}
    (found,), _ = run_masked(program, [q, k, v, bias], parties=parties, flag_shares=shares, **options)
    scores = q @ k.transpose(1, 2)
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    assert (found - torch.softmax(scores + bias, -1) @ v).abs().max() < 2e-3
    assert not reduce(torch.bitwise_xor, shares).any()


@pytest.mark.parametrize(("suite", "parties"), SECURE)
def test_a_learned_bias_behind_a_causal_mask(suite: str, parties: int) -> None:
    """Of each pair of tokens and head its own, for the last 3 of 7 tokens and 2 query heads of a key/value head."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 6, 4), torch.randn(2, 7, 4), torch.randn(2, 7, 4)
    bias = torch.randn(2, 6, 7) * 3
    mask = (torch.arange(7)[None] <= torch.arange(4, 7)[:, None]).repeat(2, 1)

    async def program(s: Any, q: Any, k: Any, v: Any, bias: Any) -> Any:
        return await s.relative_attention(q, k, v, bias, mask)

    (found,) = run_secure(suite, parties, program, [q, k, v, bias])
    scores = (q @ k.transpose(1, 2) + bias).masked_fill(~mask, float("-inf"))
    assert (found - torch.softmax(scores, -1) @ v).abs().max() < 2e-3


@pytest.mark.parametrize(("reach", "flagged"), [(26.0, False), (60.0, True)])
def test_the_declared_bound_is_of_scores_with_a_learned_bias(reach: float, flagged: bool) -> None:
    """Scores alone are all equal; the bound 28 holds for their sums with the bias, at the ring of that bound."""
    q, k, v = torch.full((1, 1, 4), 0.5).double(), torch.ones(1, 9, 4).double(), torch.randn(1, 9, 4).double()
    bias = torch.linspace(0.0, reach, 9).double().mul(32).round().div(32).reshape(1, 1, 9)

    async def program(s: Any, q: Any, k: Any, v: Any, bias: Any) -> Any:
        s.begin(2)
        s.at(0)
        return await s.relative_attention(q, k, v, bias, None)

    shares: list[Tensor] = []
    (found,), _ = run_masked(program, [q, k, v, bias], parties=2, flag_shares=shares, score=5, activation=12)
    assert bool(reduce(torch.bitwise_xor, shares).any()) == flagged
    if not flagged:
        assert (found - torch.softmax(q @ k.transpose(1, 2) + bias, -1) @ v).abs().max() < 2e-3
