"""Non-linear functions of the suite `crypten` against float64, at the edges where CrypTen's own are wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mpc.errors import RangeError
from protocols.crypten.maximum import maximum
from protocols.crypten.reciprocal import WORKING_BITS, reciprocal, rsqrt_unit
from protocols.crypten.softmax import exp_negative
from protocols.crypten.value import CryptenValue
from protocols.suite import Linear, Norm, Value
from tests.protocols.crypten.programs import Outcome, decoded, evaluate

ULP = 2.0**-16
PARTIES = [2, 3]
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "silu": torch.nn.functional.silu,
    "relu": torch.relu,
}
# largest error over [-2^15, 2^15], as the table in protocols.crypten.activation says
ERRORS = {"gelu": 1.2e-4, "gelu_tanh": 1.2e-4, "silu": 1.2e-4, "relu": 0.0}


def _activate(x: Tensor, kind: Any, **options: Any) -> Outcome:
    async def program(s: Any, v: Any) -> Value:
        return await s.activation(v, kind)

    return evaluate(program, [x], **options)


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_activations_over_the_whole_range(parties: int, kind: str) -> None:
    far = 2.0 ** torch.linspace(-16, 15, 500, dtype=torch.float64)
    around = torch.cat([torch.linspace(t - 0.02, t + 0.02, 200, dtype=torch.float64) for t in (4.125, 4.25, 5, 13)])
    x = torch.cat([torch.linspace(-16, 16, 4001, dtype=torch.float64), far, -far, around, -around, torch.zeros(1)])
    out = _activate(x, kind, parties=parties)
    error = (out.value - FUNCTIONS[kind](decoded(x))).abs()
    assert float(error.max()) <= ERRORS[kind]
    assert out.ledgers[0].total().rounds <= 18


@pytest.mark.parametrize("fraction_bits", [10, 12, 18, 20])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_activations_at_other_precisions(fraction_bits: int, kind: str) -> None:
    x = torch.cat([torch.linspace(-14, 14, 801, dtype=torch.float64), torch.tensor([-30_000.0, 30_000.0])])
    error = (_activate(x, kind, fraction_bits=fraction_bits).value - FUNCTIONS[kind](decoded(x, fraction_bits))).abs()
    assert float(error.max()) <= ERRORS[kind] + 4 * 2.0**-fraction_bits


# ---- maximum ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 100])
def test_max_and_argmax(parties: int, count: int) -> None:
    x = torch.randn(4, count) * 1000
    x[1] = 7.0
    x[2, count // 2 :] = x[2].max()
    x[3] = -30_000.0
    x[3, -1] = -29_999.99

    async def program(s: Any, v: Any) -> list[Value]:
        return [await s.max(v), await s.argmax(v)]

    out = evaluate(program, [x], parties=parties)
    known = decoded(x)
    assert torch.equal(out.values[0], known.amax(-1, keepdim=True))
    first = torch.stack([(row == row.max()).nonzero()[0, 0] for row in known])
    assert torch.equal(out.values[1], torch.eye(count, dtype=torch.float64)[first])
    assert out.shares[0][1].fraction_bits == 0


def test_max_of_masked_rows() -> None:
    x = torch.randn(50, 37) * 100
    mask = torch.rand(50, 37) < 0.4
    mask[:, 5] = True

    async def program(s: Any, v: Any) -> Value:
        return v.like(maximum(s.session, v.share, mask))

    assert torch.equal(evaluate(program, [x]).value[:, 0], decoded(x).masked_fill(~mask, -1e9).amax(-1))


# ---- exp, softmax ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fraction_bits", [8, 16, 20])
def test_exp_error_is_as_documented(fraction_bits: int) -> None:
    dense = torch.linspace(-16, 0.25, 3000, dtype=torch.float64)
    x = torch.cat(
        [dense, -(2.0 ** torch.linspace(4, 17, 200, dtype=torch.float64)), torch.tensor([-64.0, -63.999, -64.001])]
    )

    async def program(s: Any, v: Any) -> Value:
        return CryptenValue(exp_negative(s.session, v.share, fraction_bits), 30, s.session.party)

    out = evaluate(program, [x], fraction_bits=fraction_bits)
    known = decoded(x, fraction_bits)
    error = (out.value - known.exp()).abs()
    assert float((error / known.exp())[known >= -1].max()) < 3e-7
    assert float((error / known.exp())[known >= -8].max()) < 2e-5
    assert float(error[known < -8].max()) < 1e-8
    assert out.ledgers[0].total().rounds == 22


def _softmax(x: Tensor, mask: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor, Outcome]:
    async def program(s: Any, v: Any) -> Value:
        return await s.softmax(v, mask)

    out = evaluate(program, [x], **options)
    known = decoded(x)
    if mask is not None:
        known = known.masked_fill(~mask, float("-inf"))
    return out.value, known.softmax(-1), out


SCORES = {
    "1024 equal": torch.full((2, 1024), 3.25),
    "1024 equal, far down": torch.full((1, 1024), -9000.0),
    "one outlier": torch.cat([torch.zeros(1, 299), torch.full((1, 1), 3000.0)], -1),
    "spread of 60": torch.linspace(-30, 30, 500)[None],
    "mass at -7": torch.cat([torch.zeros(1, 1), torch.full((1, 1100), -7.0)], -1),
    "extremes": torch.tensor([[-32_768.0, 32_767.0, 32_766.5, 0.0], [-32_768.0, -32_768.0, -32_767.0, -32_768.0]]),
    "scores of 1 800, spread 110": 1800 - torch.linspace(0, 110, 300).flip(0)[None],
    "spread of 500": torch.linspace(-250, 250, 900)[None],
    "gaussian": torch.linspace(-3, 3, 2 * 3 * 130).reshape(2, 3, 130).sin() * 20,
    "single": torch.tensor([[5.0], [-5.0]]),
    "two": torch.tensor([[1.0, 1.0], [0.0, 20.0]]),
}


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("name", SCORES)
def test_softmax_is_right_where_crypten_is_not(parties: int, name: str) -> None:
    got, expected, _ = _softmax(SCORES[name], parties=parties)
    assert float((got - expected).abs().max()) < 5e-5
    assert float((got.sum(-1) - 1).abs().max()) < 1e-4 + 0.5 * ULP * SCORES[name].shape[-1] ** 0.5 * 8


def test_softmax_of_several_thousand_equal_terms() -> None:
    got, expected, _ = _softmax(torch.zeros(1, 5000))
    assert float((got - expected).abs().max()) <= 2 * ULP


@pytest.mark.parametrize("parties", PARTIES)
def test_causal_mask(parties: int) -> None:
    x = torch.randn(3, 40, 40) * 5
    mask = torch.ones(40, 40, dtype=torch.bool).tril()
    x = torch.where(mask, x, torch.full_like(x, 30_000.0))
    got, expected, out = _softmax(x, mask, parties=parties)
    assert float((got - expected).abs().max()) < 5e-5
    assert not got[:, ~mask].any()
    unmasked = _softmax(x, parties=parties)[2]
    assert out.ledgers[0].total().bytes_sent < 0.65 * unmasked.ledgers[0].total().bytes_sent


def test_mask_with_holes_that_broadcasts() -> None:
    x = torch.randn(2, 5, 9) * 3
    mask = torch.tensor([True, False, True, True, False, False, True, False, True])
    got, expected, _ = _softmax(x, mask)
    assert float((got - expected).abs().max()) < 5e-5
    assert not got[..., ~mask].any()


def test_mask_that_is_true_everywhere_costs_nothing() -> None:
    x = torch.randn(2, 9)
    costs = [_softmax(x, m)[2].ledgers[0].total() for m in (None, torch.ones(9, dtype=torch.bool))]
    assert costs[0].bytes_sent == costs[1].bytes_sent


def test_empty_row_is_refused() -> None:
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[2] = False
    with pytest.raises(RangeError, match=r"the mask \[4, 6\] has a row of False"):
        _softmax(torch.zeros(4, 6), mask)


# ---- reciprocal, roots, norms ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("parties", PARTIES)
def test_reciprocal_over_a_huge_range(parties: int) -> None:
    x = 2.0 ** torch.linspace(-15.9, 14.9, 300, dtype=torch.float64)

    async def program(s: Any, v: Any) -> Value:
        return CryptenValue(reciprocal(s.session, v.share, 16, 0, 32, 24), 24, s.session.party)

    known = decoded(x)
    out = evaluate(program, [x], parties=parties)
    error = (out.value - 1 / known).abs()
    assert float((error - known.reciprocal() * 2.0**-23).max()) <= 2 * 2.0**-24


def test_reciprocal_without_steps_and_bad_bounds() -> None:
    x = torch.linspace(1, 1.999, 50)

    async def program(s: Any, v: Any) -> Value:
        return CryptenValue(reciprocal(s.session, v.share, 16, 16, 17, 20), 20, s.session.party)

    assert float((evaluate(program, [x]).value - 1 / decoded(x)).abs().max()) < 2.0**-19

    async def wrong(s: Any, v: Any) -> Value:
        return v.like(reciprocal(s.session, v.share, 16, 5, 5, 20))

    with pytest.raises(RangeError, match="0 <= low < high <= 62, got 5 and 5"):
        evaluate(wrong, [x])


def test_rsqrt_of_a_unit() -> None:
    x = torch.linspace(0.25, 1, 500, dtype=torch.float64)

    async def program(s: Any, v: Any) -> Value:
        return CryptenValue(rsqrt_unit(s.session, v.share), WORKING_BITS, s.session.party)

    out = evaluate(program, [x], input_bits=WORKING_BITS)
    assert float((out.value * decoded(x, WORKING_BITS).sqrt() - 1).abs().max()) < 2.0**-19
    cost = out.ledgers[0].total()
    assert (cost.rounds, cost.bytes_sent) == (11, 168 * x.numel())


def _rows(width: int) -> dict[str, Tensor]:
    x = torch.randn(width, generator=torch.Generator().manual_seed(3))
    outlier, small = x.clone(), x.clone()
    outlier[1], small[2] = 3000.0, 400.0
    massive = x.clone()
    massive[0] = 200_000.0
    return {
        "ordinary": x, "outlier of 3000": outlier, "outlier of 400": small, "deviation 0.01": x * 0.01,
        "deviation 0.01, mean 50": x * 0.01 + 50, "constant": torch.full((width,), 3.0), "zero": torch.zeros(width),
        "massive outlier": massive, "norm near the limit": x / x.norm() * 2.0**18 * 0.999,
    }  # fmt: skip


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize(("width", "epsilon"), [(768, 1e-5), (5, 1e-6), (100, 1e-12)])
def test_moments(parties: int, kind: Any, width: int, epsilon: float) -> None:
    rows = torch.stack(list(_rows(width).values()))
    norm = Norm(kind, epsilon)

    async def program(s: Any, v: Any) -> Value:
        return await s.rsqrt_moment(v, norm)

    out = evaluate(program, [rows], parties=parties, residual=18)
    known = decoded(rows)
    moment = known.var(-1, unbiased=False) if kind == "layer" else known.square().mean(-1)
    # epsilon counts from 2^-32 / D on, and the mean is rounded to 2^-16
    least = max(epsilon, 2.0**-32 / width)
    expected = (moment + least).rsqrt()
    got = out.value[:, 0]
    relative = (got - expected).abs() / expected
    tolerance = 5e-5 + (2.0**-32 / (moment + least) if kind == "layer" else 0.0)
    assert (relative <= tolerance).all(), dict(zip(_rows(width), relative.tolist(), strict=True))


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norm_linear_with_outliers(parties: int, kind: Any) -> None:
    width = 768
    rows = torch.stack([v for k, v in _rows(width).items() if k not in ("zero", "constant")])
    w = torch.randn(width, 30, dtype=torch.float64) * 0.05
    if kind == "layer":
        w = w - w.mean(0)
    bias = torch.randn(30)

    async def program(s: Any, v: Any, w: Any, bias: Any) -> list[Value]:
        return await s.norm_linear(v, Norm(kind, 1e-5), [Linear(w, bias), Linear(w)])

    out = evaluate(program, [rows], parties=parties, weights={"w": w, "bias": bias}, residual=18)
    known = decoded(rows)
    if kind == "layer":
        known = known - known.mean(-1, keepdim=True)
    expected = known * (known.square().mean(-1, keepdim=True) + 1e-5).rsqrt() @ decoded(w, 20)
    # 768 roundings of normalised inputs and of their largest (27.7) times the error of the inverse
    assert float((out.values[1] - expected).abs().max()) < 2e-3
    assert float((out.values[0] - expected - decoded(bias, 20)).abs().max()) < 2e-3


def test_epsilon_is_checked() -> None:
    async def program(s: Any, v: Any) -> Value:
        return await s.rsqrt_moment(v, Norm("rms", 0.0))

    with pytest.raises(RangeError, match=r"epsilon must be positive and small, got 0\.0"):
        evaluate(program, [torch.ones(1, 4)])
