"""Range flags of the suite `crypten`: what must be flagged, what must not, what a word says, and at which cost."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mpc.errors import ConfigurationError, RangeError
from protocols.bounds import RANGE_KINDS
from protocols.crypten.binding.library import open_session
from protocols.crypten.ranges import ACTIVATION_LIMIT, GROUP, KEY_LIMIT, SCORE_LIMIT, query_limit
from protocols.crypten.suite import CryptenSuite
from protocols.options import CryptenOptions
from protocols.suite import Norm, Value
from tests.protocols.crypten.programs import Outcome, decoded, evaluate
from tests.tools import range_cases

PARTIES = [2, 3]
NEVER = 9 / 64  # of a limit: below, nothing is flagged


async def _compared(s: Any, v: Any) -> Value:
    """Any comparison: checks that wait are settled by it."""
    bit: Value = await s.less_than_zero(v.reshape(-1)[:1])
    return bit


async def _softmax(s: Any, v: Any) -> Value:
    await s.softmax(v)
    return await _compared(s, v)


async def _gelu(s: Any, v: Any) -> Value:
    await s.activation(v, "gelu")
    return await _compared(s, v)


async def _gated_relu(s: Any, v: Any) -> Value:
    await s.gated_activation(v, v[:1] * 0 + 1.0, "relu")
    return await _compared(s, v)


async def _factor(s: Any, v: Any) -> Value:
    await s.gated_activation(v * 0 + 1.0, v, "silu")
    return await _compared(s, v)


async def _cached(s: Any, v: Any) -> Value:
    await s.mask_for_cache(v)
    return await _compared(s, v)


async def _query(s: Any, v: Any) -> Value:
    await s.mask_queries(v)
    return await _compared(s, v)


WATCHED: dict[str, tuple[Callable[..., Any], str, int]] = {
    "softmax": (_softmax, "score", SCORE_LIMIT),
    "gelu": (_gelu, "activation", ACTIVATION_LIMIT),
    "gated relu": (_gated_relu, "activation", ACTIVATION_LIMIT),
    "factor": (_factor, "activation", ACTIVATION_LIMIT),
    "cached": (_cached, "value", KEY_LIMIT),
    "queries": (_query, "activation", query_limit(64)),
}


def _planted(name: str, size: float) -> Tensor:
    """Ordinary values, one of which has that size (softmax: below the others)."""
    x = torch.randn(3, 70, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[1, 40] = -size if name == "softmax" else size
    return x


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("name", WATCHED)
def test_beyond_a_limit_is_flagged_for_certain(name: str, parties: int) -> None:
    program, kind, limit = WATCHED[name]
    for size in (2.0**limit * 1.01, 2.0 ** (limit + 7) - 1):
        assert evaluate(program, [_planted(name, size)], parties=parties).flagged == {kind}, size


@pytest.mark.parametrize("name", WATCHED)
def test_every_element_within_range_is_not_flagged(name: str) -> None:
    program, _, limit = WATCHED[name]
    largest = 2.0**limit * NEVER
    x = torch.full((2000, GROUP), largest) * (1 - 2.0**-10)
    if name == "softmax":
        x = -x
        x[:, 0] = 0.0
    assert evaluate(program, [x]).flagged == set()


def test_negative_values_are_flagged_too() -> None:
    assert evaluate(_gelu, [-_planted("gelu", 40_000.0)]).flagged == {"activation"}
    assert evaluate(_cached, [-_planted("cached", 2.0**21)]).flagged == {"value"}


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("bound", [4, 12, 18])
def test_a_norm_is_judged_by_its_declared_bound(bound: int, parties: int) -> None:
    x = torch.randn(6, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x = x / x.norm(dim=-1, keepdim=True)

    async def program(s: Any, v: Any) -> Value:
        return await s.rsqrt_moment(v, Norm("rms", 1e-5))

    def run(factor: float) -> Outcome:
        rows = x.clone() * 2.0 ** (bound - 3)
        rows[3] *= 8 * factor
        return evaluate(program, [rows], parties=parties, residual=bound)

    inside = run(0.998)
    assert inside.flagged == set()
    known = decoded(x * 2.0 ** (bound - 3))
    known[3] = decoded(x[3] * 2.0**bound * 0.998)
    expected = (known.square().mean(-1) + 1e-5).rsqrt()
    assert float((inside.value[:, 0] / expected - 1).abs().max()) < 5e-5
    for factor in (1.02, 5.0, 2.0 ** (25 - bound), 2.0 ** (26 - bound)):
        assert run(factor).flagged == {"residual"}, factor


@pytest.mark.parametrize("parties", PARTIES)
def test_a_norm_of_outputs_is_judged_by_their_bound(parties: int) -> None:
    """Rows that a gain follows, and rows that merging compares, are no residual stream, and may be larger."""
    x = torch.linspace(0.5, 1.0, 64, dtype=torch.float64).expand(3, 64).clone()
    x[1] *= 60.0  # a norm of 360, where the stream's is below 16
    gain = torch.linspace(-2.0, 2.0, 64, dtype=torch.float64)

    async def program(s: Any, v: Any, g: Any) -> list[Value]:
        return [await s.norm_gain(v, Norm("rms", 1e-5), g), await s.normalised(v)]

    def run(rows: torch.Tensor) -> Outcome:
        return evaluate(program, [rows, gain], parties=parties, residual=4, activation=6)

    found = run(x)
    assert found.flagged == set()
    rows = decoded(x)
    gained, unit = found.values
    torch.testing.assert_close(
        gained, decoded(gain) * rows * (rows.square().mean(-1, keepdim=True) + 1e-5).rsqrt(), atol=2e-3, rtol=1e-3
    )
    torch.testing.assert_close(unit, rows / rows.norm(dim=-1, keepdim=True), atol=1e-3, rtol=1e-3)
    assert run(x * 64).flagged == {"activation"}


def test_no_round_more_for_wide_rows() -> None:
    async def program(s: Any, v: Any) -> Value:
        return await s.rsqrt_moment(v, Norm("rms", 1e-5))

    costs = [evaluate(program, [torch.ones(4, 64)], residual=r).ledgers[0].total() for r in (12, 18)]
    assert [c.rounds for c in costs] == [25, 25]


def test_bounds_and_flags_belong_to_places() -> None:
    rows = torch.full((1, 64), 40.0)  # a norm of 320

    async def program(s: Any, v: Any) -> list[Value]:
        s.begin(4)
        out = []
        for place in range(4):
            s.at(place)
            out.append(await s.rsqrt_moment(v, Norm("rms", 1e-5)))
            if place == 2:
                await s.activation(v * 4096, "gelu")  # settled by the next place's norm
        return out

    found = evaluate(program, [rows], residual="9 8*2 9")
    set_words = {(RANGE_KINDS[kind], int(place)) for kind, place in (found.flags != 0).nonzero()}
    assert set_words == {("residual", 1), ("residual", 2), ("activation", 2)}


def test_a_word_is_random_and_a_share_says_nothing() -> None:
    async def many(s: Any, v: Any) -> Value:
        s.begin(400)
        s.at(7)
        return await _gelu(s, v)

    runs = [evaluate(many, [_planted("gelu", 1e5)]) for _ in range(5)]
    row = RANGE_KINDS.index("activation")
    assert len({int(out.flags[row, 7]) for out in runs} - {0}) == 5
    assert all(int((out.flags != 0).sum()) == 1 for out in runs)
    shares = torch.stack([out.words[0] for out in runs])
    assert len(shares.unique()) == shares.numel()
    ones = sum(int(((shares >> i) & 1).sum()) for i in range(64))
    assert abs(ones - 32 * shares.numel()) < 6 * (16 * shares.numel()) ** 0.5


def test_flags_since_the_last_call() -> None:
    async def program(s: Any, v: Any) -> Value:
        await _gelu(s, v)
        s.flags()
        return await _gelu(s, v[:1])

    assert evaluate(program, [_planted("gelu", 1e5)]).flagged == set()


def test_options_are_checked_and_own_functions_have_no_flags() -> None:
    for name, bad in (("residual", 19), ("score", 11), ("value", "6*3 13"), ("activation", 2), ("logits", "x")):
        with pytest.raises(RangeError, match=re.escape(f"{name} = {bad!r} must be a whole number")):
            CryptenOptions(**{name: bad})
    assert CryptenSuite(parties=2, tape=None, channel=None, options=CryptenOptions(crypten_own=True)).flags() is None
    suite = CryptenSuite(parties=2, tape=None, channel=None)
    suite.begin(7)
    words = suite.flags()
    assert words is not None
    assert (tuple(words.shape), words.is_meta) == ((len(RANGE_KINDS), 7), True)


def test_a_common_seed_needs_openings() -> None:
    session = open_session(parties=2, tape=None, channel=None)
    with pytest.raises(ConfigurationError, match="needs 256 opened bits, there are 0"):
        session.common_seed()


SESSIONS = [
    ("logits near -300", 1), ("logits near -300, sample", 0), ("table entry of 3900, llama", 1),
    ("table entry of 131072, mistral", 1), ("key biases 200, scores 1800", 0), ("cached values 240", 1), ("gates of 300", 1),
    ("token table of deviation 0.001", 1), ("temperature 100", 0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "seed"), SESSIONS)
def test_sessions_with_excursions_are_right(name: str, seed: int) -> None:
    case = range_cases.CASES[name]
    result, error, kinds = range_cases.outcome(case, seed, "crypten", 2 + seed, case.declared)
    assert (result, kinds) == ("right", set()), error


@pytest.mark.parametrize("name", ["norm of 4 900 with residual=12", "scores spread over 2^17", "gates of 2^20"])
def test_sessions_beyond_their_bounds_are_flagged(name: str) -> None:
    case, kind = range_cases.EXCESSES[name]
    result, _, kinds = range_cases.outcome(case, 0, "crypten", 2, case.declared)
    assert result == "flagged"
    assert kind in kinds
