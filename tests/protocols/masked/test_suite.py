"""The suite `masked` against float torch, at the values where fixed-point protocols break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from launch.local.in_process import run_in_process
from mpc import fixed_point
from mpc.errors import RangeError
from protocols.masked.exponential import Exponents
from protocols.masked.rows import Rows
from protocols.masked.shares import Masked
from protocols.masked.softmax import Spread, numerators
from protocols.masked.suite import MaskedSuite
from protocols.options import MaskedOptions
from protocols.suite import Linear, Norm
from tests.protocols.masked.harness import additive, run_masked

PARTIES = [2, 3]
torch.manual_seed(0)

CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda t: torch.nn.functional.gelu(t, approximate="tanh"),
    "silu": torch.nn.functional.silu,
    "relu": torch.nn.functional.relu,
}


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("kind", sorted(CURVES))
@pytest.mark.parametrize(("prefer", "rounds"), [("rounds", 2), ("bytes", 3)])
def test_activation_over_its_whole_range(prefer: str, rounds: int, kind: str, parties: int) -> None:
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.linspace(-255, 255, 1001)])

    async def program(s: Any, v: Any) -> Any:
        return await s.activation(v, kind)

    (found,), ledger = run_masked(program, [x], parties=parties, prefer=prefer)
    assert (found - CURVES[kind](x.double())).abs().max() < 2.0**-11.5
    assert ledger.total().rounds == (2 if parties == 3 and kind != "relu" else rounds)  # three take no signed bits


SCORES = {
    "1024 equal": torch.zeros(2, 1024),
    "normal": torch.randn(3, 1024) * 3,
    "spread of 60": torch.linspace(-30, 30, 64)[None],
    "one outlier": torch.cat([torch.full((1, 1), 100.0), torch.zeros(1, 1023)], 1),
    "far below zero": torch.randn(2, 300) - 5000,
    "spread of 111": torch.tensor([[55.0, -56.0, 54.0, 0.0], [111.0, 0.0, 110.0, 111.0], [0.0, 111.0, 0.0, 0.0]]),
    "one column": torch.randn(3, 1),
    "bin edges": torch.arange(-56.0, 56.0, 4.0)[None],
}


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("name", sorted(SCORES))
def test_softmax(name: str, parties: int) -> None:
    x = SCORES[name]

    async def program(s: Any, v: Any) -> Any:
        return await s.softmax(v)

    (found,), _ = run_masked(program, [x], parties=parties)
    exact = torch.softmax(x.double(), -1)
    assert (found - exact).abs().max() < 2.0**-11
    assert ((found - exact).abs() / exact.amax(-1, keepdim=True)).max() < 2.0**-10


@pytest.mark.parametrize(("prefer", "rounds", "a_score"), [("rounds", 3, 61), ("bytes", 6, 49)])
def test_softmax_costs_of_a_score(prefer: Any, rounds: int, a_score: int) -> None:
    """Dealt bytes of a score beyond those of its row; rounds from the opening of the scores to the numerators."""
    from mpc.tape import CountingTape

    def predicted(columns: int) -> Any:
        s = MaskedSuite(parties=2, tape=CountingTape(), channel=None, options=MaskedOptions(prefer=prefer))

        async def program() -> None:
            y = Masked(*(s.context.blank((12 * columns,)),) * 2, 40, 14)
            await numerators(
                s.context, Exponents(y), Rows(torch.Size((12, columns))), (28, 62), Spread(8, 112.0, s.convert.ranges)
            )

        s.run(program())
        return s.ledger.total()

    short, long = predicted(600), predicted(1000)
    assert (long.offline_bytes - short.offline_bytes) / (12 * 400) <= a_score
    assert long.rounds == rounds


def test_masked_softmax_gives_exact_zeros_and_refuses_empty_rows() -> None:
    mask = torch.tril(torch.ones(20, 20, dtype=torch.bool))
    x = torch.randn(2, 20, 20) * 4

    async def program(s: Any, v: Any) -> Any:
        return await s.softmax(v, mask)

    (found,), _ = run_masked(program, [x])
    exact = torch.softmax(x.masked_fill(~mask, float("-inf")).double(), -1)
    assert (found - exact).abs().max() < 2.0**-11
    assert (found[:, ~mask] == 0).all()
    mask[3] = False
    with pytest.raises(RangeError, match="False everywhere"):
        run_masked(program, [x])


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norm_with_outliers_and_with_a_tiny_deviation(kind: str, parties: int) -> None:
    x = torch.randn(4, 768) * 2
    x[0, 5] = 3000
    x[1, 9] = -400
    x[2] *= 0.005
    x[3] += 1.5

    async def program(s: Any, v: Any) -> Any:
        return await s.rsqrt_moment(v, Norm(kind, 1e-5))  # type: ignore[arg-type]

    (found,), _ = run_masked(program, [x], parties=parties)
    moment = x.double().var(-1, unbiased=False) if kind == "layer" else x.double().square().mean(-1)
    exact = 1 / torch.sqrt(moment + 1e-5)
    relative = (found[:, 0] - exact).abs() / exact
    assert relative[[0, 1, 3]].max() < 2.0**-12
    assert relative[2] < 2.0**-10  # the input itself is rounded: a deviation of 0.01 is 160 units


@pytest.mark.parametrize(("prefer", "rounds"), [("rounds", 3), ("bytes", 4)])
def test_norm_linear_both_ways(prefer: str, rounds: int) -> None:
    x = torch.randn(9, 200) * 3
    w, b = torch.randn(200, 50) * 0.1, torch.randn(50)

    async def program(s: Any, v: Any, weight: Any, bias: Any) -> Any:
        return await s.norm_linear(v, Norm("rms", 1e-5), [Linear(weight, bias), Linear(weight)])

    (first, second), ledger = run_masked(program, [x], [w, b], prefer=prefer)
    exact = (x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5)).double() @ w.double()
    assert (first - exact - b).abs().max() < 2e-3
    assert (second - exact).abs().max() < 2e-3
    assert ledger.total().rounds == rounds


@pytest.mark.parametrize("parties", PARTIES)
def test_a_small_ring_of_scores_needs_not_hold_their_factors(parties: int) -> None:
    """The fewest fraction bits, the smallest spread and the largest activations, as they are after a rotation."""
    q, k, v = torch.randn(2, 3, 8) / 2, torch.randn(2, 5, 8) / 2, torch.randn(2, 5, 8)

    async def program(s: Any, a: Any, b: Any, c: Any) -> Any:
        return await s.attention(await s.mask_queries(a * 2), b * 2, c, None)

    (found,), _ = run_masked(program, [q, k, v], parties=parties, fraction_bits=8, score=5, activation=12)
    wanted = torch.softmax(4 * q.double() @ k.double().transpose(1, 2), -1) @ v.double()
    assert (found - wanted).abs().max() < 0.03


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("cap", [2.0, 5.0, 20.0, 50.0, 200.0])
def test_attention_of_capped_scores(cap: float, parties: int) -> None:
    """Exponents of scores within twice the cap, small ones in the least ring that rows' spreads have."""
    q, k, v = torch.randn(2, 3, 16) * 3, torch.randn(2, 40, 16), torch.randn(2, 40, 16)

    async def program(s: Any, *factors: Any) -> Any:
        s.begin(1, cap)
        return await s.attention(*factors, None)

    (found,), _ = run_masked(program, [q, k, v], parties=parties)
    scores = cap * torch.tanh(q.double() @ k.double().transpose(1, 2) / cap)
    assert (found - torch.softmax(scores, -1) @ v.double()).abs().max() < 2.0**-11 * v.abs().max()


def _opened_flags(words: list[Tensor]) -> Tensor:
    found = words[0]
    for more in words[1:]:
        found = found ^ more
    return found


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("prefer", ["rounds", "bytes"])
def test_tanh_over_its_whole_range(prefer: str, parties: int) -> None:
    """And twice beyond, where x is not an output that is checked but one that its ring holds."""
    x = torch.cat(
        [torch.linspace(-10, 10, 1001), torch.linspace(-255, 255, 301), torch.tensor([-0.0, 7.99, 8.0, -8.0, 8.01])]
    )

    async def program(s: Any, v: Any) -> Any:
        return await s.tanh(v)

    words: list[Tensor] = []
    (found,), _ = run_masked(program, [x], parties=parties, prefer=prefer, flag_shares=words)
    assert (found - torch.tanh(x.double())).abs().max() < 2.0**-11.5
    assert not _opened_flags(words).any()


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("joined", [False, True])
def test_tanh_and_joined_rows_of_a_layer_are_right_or_flagged(joined: bool, parties: int) -> None:
    """x is the output of a linear layer, which is checked by its own bound, 2^8."""

    async def program(s: Any, v: Any, weight: Any) -> Any:
        y = await s.linear(v, Linear(weight, None))
        return await s.rounded(s.concat([y, -y], -1)) if joined else await s.tanh(y)

    for size in (60.0, 210.0, 255.0, 266.0, 300.0, 383.0, 500.0, 700.0, 1000.0):
        words: list[Tensor] = []
        x = torch.tensor([[size / 8, -size / 8]])
        (found,), _ = run_masked(program, [x], [8 * torch.eye(2)], parties=parties, flag_shares=words)
        wanted = torch.cat([8 * x, -8 * x], -1) if joined else torch.tanh(8 * x)
        flagged = bool(_opened_flags(words).any())
        assert flagged or (found - wanted).abs().max() < 2.0**-11.5, size
        assert flagged == (size > 256) or 256 < size < 384, size


@pytest.mark.parametrize("parties", PARTIES)
def test_attention(parties: int) -> None:
    q, k, v = torch.randn(3, 4, 16) * 1.5, torch.randn(3, 200, 16), torch.randn(3, 200, 16)

    async def program(s: Any, a: Any, b: Any, c: Any) -> Any:
        return await s.attention(a, b, c, None)

    (found,), _ = run_masked(program, [q, k, v], parties=parties)
    assert (found - torch.softmax(q @ k.transpose(1, 2), -1) @ v).abs().max() < 2.0**-11 * v.abs().max()


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("n", [1, 2, 7, 50, 300, 2000])
def test_argmax_and_max_with_ties(n: int, parties: int) -> None:
    x = torch.randn(3, n) * 5
    x[0, n // 2] = x[0, n - 1] = 40.0
    x[1] = 0.0

    async def argmax(s: Any, v: Any) -> Any:
        return await s.argmax(v)

    async def largest(s: Any, v: Any) -> Any:
        return await s.max(v)

    (found,), _ = run_masked(argmax, [x], parties=parties)
    expected = torch.zeros_like(found)
    expected[torch.arange(3), torch.tensor([n // 2, 0, int(x[2].argmax())])] = 1
    assert torch.equal(found, expected)
    (found,), _ = run_masked(largest, [x], parties=parties)
    assert (found[:, 0] - x.amax(-1)).abs().max() < 2.0**-12


def test_vocabulary_argmax_costs() -> None:
    from mpc.tape import CountingTape

    s = MaskedSuite(parties=2, tape=CountingTape(), channel=None)

    async def program() -> Any:
        return await s.argmax(s.input((1, 50257), None, 16))

    s.run(program())
    assert s.ledger.total().rounds <= 40
    assert s.ledger.total().bytes_sent <= 1_500_000


def test_arithmetic() -> None:
    x, y = torch.randn(4, 6) * 10, torch.randn(6, 5) * 10
    angles = torch.randn(4, 6)
    cos, sin = torch.cos(angles), torch.sin(angles)
    cos[:, 3:], sin[:, 3:] = cos[:, :3], sin[:, :3]

    async def program(s: Any, a: Any, b: Any) -> Any:
        return [
            await s.matmul(a, b),
            await s.mul(a, a),
            await s.scale(a, 0.37),
            (await s.rotate(a.reshape(1, 4, 6), cos, sin)).reshape(4, 6),
            await s.less_than_zero(a),
            a * 3 - a[:, :1] + 1.5,
        ]

    out, _ = run_masked(program, [x, y])
    turned = x * cos + torch.cat([-x[:, 3:], x[:, :3]], 1) * sin
    exact = [x @ y, x * x, x * 0.37, turned, (x < 0).float(), x * 3 - x[:, :1] + 1.5]
    for found, expected in zip(out, exact, strict=True):
        assert (found - expected).abs().max() < 2e-2


def test_bounds_are_checked_when_the_program_is_planned() -> None:
    async def program(s: Any, a: Any) -> Any:
        b = a
        for _ in range(4):
            b = await s.mul(b, b)
        return b

    with pytest.raises(RangeError, match="product"):
        run_masked(program, [torch.ones(3)])


@pytest.mark.parametrize("bound", [{"score": 12}, {"residual": 2}, {"value": 0}, {"activation": 99}, {"fraction_bits": 20}])
def test_bounds_outside_their_range_are_refused(bound: dict[str, int]) -> None:
    async def program(s: Any, a: Any) -> Any:
        return a

    with pytest.raises(RangeError, match=next(iter(bound)).replace("_", " ")):
        run_masked(program, [torch.ones(3)], **bound)


def test_wider_scores() -> None:
    x = torch.tensor([[110.0, -110.0, 109.0, 0.0], [-200.0, -201.0, -400.0 / 2, 10.0]])

    async def program(s: Any, v: Any) -> Any:
        return await s.softmax(v)

    (found,), _ = run_masked(program, [x], score=8)
    assert (found - torch.softmax(x.double(), -1)).abs().max() < 2.0**-11


def test_output_shares_are_fresh() -> None:
    """A share of a masked value is m - lam or -lam: unless a sharing of zero is added, two outputs of it are the same."""
    shares = additive(fixed_point.encode(torch.ones(500), 14), 2)

    async def program(s: Any, party: int | None) -> Any:
        x = s.input((500,), None if party is None else shares[party], 14)
        await s.convert.masked(x, 14, 40)
        return [s.output(x).share for _ in range(2)]

    def at_party(channel: Any, tape: Any) -> Any:
        s = MaskedSuite(parties=2, tape=tape, channel=channel)
        return s.run(program(s, channel.party))

    def at_dealer(tape: Any) -> None:
        s = MaskedSuite(parties=2, tape=tape, channel=None)
        s.run(program(s, None))

    found, _ = run_in_process(2, at_party, at_dealer)
    for first, second in found:
        assert (first != second).all()
    totals = [a + b for a, b in zip(*found, strict=True)]
    assert torch.equal(totals[0] & (2**40 - 1), totals[1] & (2**40 - 1))


@pytest.mark.parametrize("parties", PARTIES)
def test_scale_is_right_or_refused(parties: int) -> None:
    """A factor that 12 fraction bits do not hold is none; powers of two are held exactly."""
    x = (torch.randn(5, 8, dtype=torch.float64) * 30).mul(64).round() / 64

    def scaled(factor: float) -> Any:
        async def program(s: Any, v: Any) -> Any:
            return await s.scale(v, factor)

        return run_masked(program, [x], parties=parties)[0][0]

    for factor in (0.0, 1.0, -3.0, 0.37, 1 / 100, 2.0**-12):
        assert ((scaled(factor) - x * factor).abs() <= 2.0**-13 + x.abs() * abs(factor) / 16).all()
    for factor in (1 / 624, 2.0**-13, 1e-6):
        with pytest.raises(RangeError, match="is not held by 12 fraction bits; take two factors"):
            scaled(factor)
