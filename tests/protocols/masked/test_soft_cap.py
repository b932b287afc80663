"""The soft cap and norms with gains on masked values, over their ranges, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mpc.errors import RangeError
from protocols.masked import soft_cap as gate
from protocols.masked.context import Context, open_value
from protocols.masked.shares import Shared
from protocols.suite import Linear, Norm
from tests.protocols.gate_harness import run
from tests.protocols.masked.harness import run_masked

FRAC = 14


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize(("cap", "bound"), [(50.0, 7), (50.0, 9), (30.0, 9), (5.0, 5), (20.0, 10)])
def test_the_whole_range(cap: float, bound: int, parties: int) -> None:
    period = gate.period_bits(cap, bound)
    limit = 2.0**bound
    x = torch.cat([torch.linspace(-limit, limit, 501), torch.linspace(-3 * cap, 3 * cap, 400), torch.zeros(1)]).double()
    units = (x * 2.0**FRAC).round().to(torch.int64)

    async def program(c: Context, shared: Shared) -> Any:
        return gate.soft_cap(c, await open_value(c, shared.with_frac(FRAC)), cap, period, 62)

    found = run(program, [(units, FRAC + period)], parties).out.double() / 2.0**gate.FRAC
    wanted = cap * torch.tanh(units / 2.0**FRAC / cap)
    assert (found - wanted).abs().max() < 2.0**-12
    assert wanted.abs().max() > 0.9 * cap


def test_a_period_leaves_room_for_the_next_repetition() -> None:
    """It follows from the bound, or from the cap where that is large; half of it would be off."""
    assert (gate.period_bits(50.0, 7), gate.period_bits(1.0, 9)) == (11, 11)
    at = torch.tensor([round(100.0 * 2**FRAC)])

    async def program(c: Context, shared: Shared) -> Any:
        return gate.soft_cap(c, await open_value(c, shared.with_frac(FRAC)), 50.0, 9, 62)

    found = run(program, [(at, FRAC + 11)]).out.double() / 2.0**gate.FRAC
    assert (found - 50.0 * torch.tanh(torch.tensor(2.0))).abs().max() > 0.01


def test_caps_that_are_too_large_are_refused() -> None:
    async def program(c: Context, shared: Shared) -> Any:
        return gate.soft_cap(c, await open_value(c, shared.with_frac(FRAC)), 256.0, 13, 62)

    with pytest.raises(RangeError, match=r"a cap of 256\.0 is not below 256"):
        run(program, [(torch.zeros(1, dtype=torch.int64), FRAC + 13)])


@pytest.mark.parametrize("parties", [2, 3])
def test_norms_with_gains(parties: int) -> None:
    """Of a linear layer's outputs: rows of all sizes; gains of any sign and 0; with and without a residual stream."""
    generator = torch.Generator().manual_seed(0)
    h, w = torch.randn(4, 12, generator=generator), torch.randn(12, 6, generator=generator)
    w = w * torch.tensor([1.0, 3.0, 0.3, 1.0, 1.0, 1.0])
    h[1] *= 20.0
    h[2] *= 0.05
    gain = torch.tensor([1.0, -2.5, 0.0, 40.0, 0.01, -1.0])
    residual, norm = torch.randn(4, 6, generator=generator) * 3, Norm("rms", 1e-5)

    async def program(s: Any, x: Any, r: Any, weight: Any, g: Any) -> Any:
        y = await s.linear(x, Linear(weight, None, "normalised"))
        heads = y.reshape(4, 3, 2)
        return [await s.norm_gain(y, norm, g, r), await s.norm_gain(heads, norm, g)]

    y = (h @ w).double()
    both, _ = run_masked(program, [h, residual], [w, gain], parties)
    wanted = residual + gain * y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5)
    rows = y.reshape(4, 3, 2)
    by_head = gain.reshape(3, 2) * rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + 1e-5)
    torch.testing.assert_close(both[0].double(), wanted.double(), atol=0.02, rtol=2e-3)
    torch.testing.assert_close(both[1].double(), by_head, atol=0.02, rtol=2e-3)
