"""Range flags of the suite `masked`: what leaves its declared range is flagged, what does not never is; values stay right
until a flag is certain."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest
import torch
from torch import Tensor

from mpc.errors import RangeError
from protocols.bounds import Bounds
from protocols.masked.ranges import RangeFlags
from protocols.masked.shares import Masked
from protocols.suite import RANGE_KINDS, Linear, Norm
from tests.protocols.gate_harness import chi_square, chi_square_limit
from tests.protocols.masked.harness import run_masked

PARTIES = [2, 3]
PLACES = 4


def flags(program: Any, inputs: list[Tensor], weights: list[Tensor] | None = None, **options: Any) -> tuple[Any, set[Any]]:
    """Outputs, and the (kind, place) of every flag that is set."""
    shares: list[Tensor] = []

    async def placed(s: Any, *values: Any) -> Any:
        s.begin(PLACES)
        s.at(1)
        return await program(s, *values)

    outputs, _ = run_masked(placed, inputs, weights or [], flag_shares=shares, **options)
    words = reduce(torch.bitwise_xor, shares)
    return outputs, {(RANGE_KINDS[int(k)], int(p)) for k, p in words.nonzero()}


async def scores(s: Any, x: Any) -> Any:
    return await s.softmax(x)


async def attention(s: Any, q: Any, k: Any, v: Any) -> Any:
    keys, values = await s.together(s.mask_for_cache(k), s.mask_for_cache(v, "value"))
    return await s.attention(q, keys, values, None)


async def normed(s: Any, h: Any, w: Any) -> Any:
    (y,) = await s.norm_linear(h, Norm("rms", 1e-6), [Linear(w)])
    return await s.activation(y, "gelu")


async def logits(s: Any, h: Any, w: Any) -> Any:
    s.at(PLACES - 1)
    (y,) = await s.norm_linear(h, Norm("rms", 1e-6), [Linear(w)])
    return await s.argmax(y)


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("score", [5, 7, 10])
def test_a_spread_beyond_its_bound_is_flagged_wherever_the_scores_lie(parties: int, score: int) -> None:
    for base, spread, expected in ((0.0, 0.874, False), (-1500.0, 0.874, False), (3000.0, 1.01, True), (0.0, 1.9, True)):
        row = torch.linspace(0, 1, 40) ** 8 * spread * 2.0**score
        for x in (row, row.flip(0)):
            x = (x + base)[None]
            (found,), set_ = flags(scores, [x], parties=parties, score=score)
            assert set_ == ({("score", 1)} if expected else set())
            if not expected:
                assert (found - torch.softmax(x.double(), -1)).abs().max() < 2.0**-11


@pytest.mark.parametrize("other", [0.0, 100.0, -100.0])
def test_a_far_score_is_flagged_on_both_sides(other: float) -> None:
    """A score from 116 to 396 away from the row's last one, whatever else the row holds."""
    for distance in (116.1, 119.0, 127.9, 128.0, 139.9, 141.0, 160.0, 255.9, 260.0, 371.0, 383.9, 395.9):
        for sign in (1, -1):
            _, set_ = flags(scores, [torch.tensor([[sign * distance, other, 0.0]])])
            assert set_ == {("score", 1)}, (sign * distance, other)


def test_scores_are_right_wherever_they_are_not_flagged() -> None:
    """Between bound and certain flag, either: rows whose spread goes from 90 to 140, both signs of the last score."""
    wrong = flagged = 0
    for spread in torch.arange(100.0, 136.0, 4.0):
        for last in (0.0, 0.5, 1.0):
            x = torch.cat([torch.tensor([0.0, 1.0]), torch.rand(13), torch.tensor([last])])[None] * spread
            (found,), set_ = flags(scores, [x])
            right = (found - torch.softmax(x.double(), -1)).abs().max() < 2.0**-11
            flagged += bool(set_)
            wrong += not right and not set_
            assert not set_ or spread > 112
    assert flagged > 3
    assert wrong == 0


@pytest.mark.parametrize("parties", PARTIES)
def test_cached_values(parties: int) -> None:
    q, k = torch.randn(1, 2, 4), torch.randn(1, 5, 4)
    for size, expected in ((63.9, False), (97.0, True), (-97.0, True), (200.0, True)):
        v = torch.zeros(1, 5, 4)
        v[0, 3, 2] = size
        (found,), set_ = flags(attention, [q, k, v], parties=parties)
        assert set_ == ({("value", 1)} if expected else set())
        if not expected:
            exact = torch.softmax(q @ k.transpose(1, 2), -1) @ v
            assert (found - exact).abs().max() < 0.03


@pytest.mark.parametrize(("rows", "size"), [(1, 120.0), (6, 120.0), (1, 255.0), (6, 255.0)])
def test_activations_within_their_bound(rows: int, size: float) -> None:
    h = torch.randn(rows, 64)
    h = h / h.square().mean(-1, keepdim=True).sqrt()
    w = torch.randn(64, 40) / 8
    y = h @ w
    w[:, 0] *= size / y[:, 0].abs().max()
    exact = torch.nn.functional.gelu((h / torch.sqrt(h.square().mean(-1, keepdim=True) + 1e-6)).double() @ w.double())
    (found,), set_ = flags(normed, [h], [w])
    assert set_ == set()
    assert (found - exact).abs().max() < 0.02


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("size", [390.0, 700.0, 1800.0])
def test_activations_beyond_their_bound(rows: int, size: float) -> None:
    h, w = torch.randn(rows, 64), torch.randn(64, 40) / 8
    y = h / h.square().mean(-1, keepdim=True).sqrt() @ w
    w[:, 0] *= size / y[:, 0].abs().max()
    assert flags(normed, [h], [w])[1] == {("activation", 1)}
    assert flags(normed, [h], [w], activation=11)[1] == set()


async def fed_forward(s: Any, h: Any, w: Any, back: Any) -> Any:
    return await s.linear(await normed(s, h, w), Linear(back), h)


def test_activations_are_right_wherever_they_are_not_flagged() -> None:
    """Between bound and certain flag, either: inputs from 250 to 390, through the activation and the layer behind it."""
    h, w, back = torch.randn(1, 64), torch.randn(64, 40) / 8, torch.randn(40, 64) / 8
    unit = h / torch.sqrt(h.square().mean(-1, keepdim=True) + 1e-6)
    flagged = 0
    for size in torch.linspace(250.0, 390.0, 15):
        w[:, 0] *= size / (unit @ w)[0, 0]
        (found,), set_ = flags(fed_forward, [h], [w, back])
        exact = h + torch.nn.functional.gelu(unit.double() @ w.double()) @ back.double()
        assert set_ or (found - exact).abs().max() < 0.02
        assert not set_ or size > 255
        flagged += bool(set_)
    assert 0 < flagged < 15


def test_very_wide_rows_are_squared_with_fewer_fraction_bits() -> None:
    h, w = torch.randn(1, 1 << 14), torch.randn(1 << 14, 3) / 128
    for size in (2.0**17.9, 2.0**10):
        h[0, 5], w[5] = size, 0.0
        (found,), set_ = flags(normed_plain, [h], [w], residual=18, input_bits=16)
        assert not set_
        assert (found - (h / h.square().mean().sqrt()).double() @ w.double()).abs().max() < 0.005


@pytest.mark.parametrize("parties", PARTIES)
def test_logits_have_a_bound_of_their_own(parties: int) -> None:
    h, w = torch.randn(1, 64), torch.randn(64, 30) / 8
    y = h / h.square().mean(-1, keepdim=True).sqrt() @ w
    w = w - torch.outer(h[0], torch.full((30,), 400.0)) / h.square().sum() * h.square().mean().sqrt()  # logits near -400
    best = int(y[0].argmax())
    assert flags(logits, [h], [w], parties=parties)[1] == {("logits", PLACES - 1)}
    (found,), set_ = flags(logits, [h], [w], parties=parties, logits=10)
    assert set_ == set()
    assert int(found[0].argmax()) == best


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("residual", [8, 12, 15, 18])
def test_the_residual_stream_up_to_its_bound_and_beyond(rows: int, residual: int) -> None:
    """One channel at the bound, the others as small as ever; right within the bound, flagged beyond."""
    w = torch.randn(64, 16) / 8
    w[0] = 0  # a model that reads the small channels beside the outlier
    for factor, expected in ((0.99, False), (1.5, True), (3.9, True)):
        h = torch.randn(rows, 64)
        if factor * 2.0**residual < 2.0**11 or rows > 1:
            h[-1, 0] = factor * 2.0**residual
        else:
            h[0, 0] = -factor * 2.0**residual
        outputs, set_ = flags(normed_plain, [h], [w], residual=residual, input_bits=16)
        assert set_ == ({("residual", 1)} if expected else set())
        if not expected:
            exact = (h / torch.sqrt(h.square().mean(-1, keepdim=True) + 1e-6)).double() @ w.double()
            assert (outputs[0] - exact).abs().max() < 0.002 * max(1.0, float(exact.abs().max()))


async def normed_plain(s: Any, h: Any, w: Any) -> Any:
    h.magnitude = s.convert.bounds.here.residual + 2
    (y,) = await s.norm_linear(h, Norm("rms", 1e-6), [Linear(w)])
    return y


def test_a_row_that_is_too_small_for_the_streams_precision_is_flagged() -> None:
    w = torch.randn(64, 16) / 8
    for deviation, expected in ((2.0**-8, False), (2.0**-11, True)):
        h = torch.randn(1, 64)
        h = h / h.square().mean().sqrt() * deviation
        _, set_ = flags(normed_plain, [h], [w], input_bits=20)
        assert set_ == ({("residual", 1)} if expected else set())


def test_every_declared_option_works_at_the_default_precision() -> None:
    """With each option at both ends: no ring is too small, and nothing inside is flagged."""
    h, w = torch.randn(1, 64), torch.randn(64, 64) / 32
    ends = {"residual": (7, 18), "activation": (3, 12), "value": (2, 12), "score": (5, 10)}
    wanted: list[dict[str, int]] = [{option: value} for option, both in ends.items() for value in both]
    wanted += [{option: both[end] for option, both in ends.items()} for end in (0, 1)]
    for options in wanted:
        for rows in (h, h.repeat(6, 1)):
            found, set_ = flags(whole, [rows], [w], **options)
            assert set_ == set(), options
            assert (found[0] - plain_whole(rows.double(), w.double())).abs().max() < 0.01, options


def plain_whole(h: Tensor, w: Tensor) -> Tensor:
    y = h / torch.sqrt(h.square().mean(-1, keepdim=True) + 1e-6) @ w
    attended = torch.softmax(y @ y.T, -1) @ y
    h = h + attended @ w
    y = h / torch.sqrt(h.square().mean(-1, keepdim=True) + 1e-6) @ w
    return h + (torch.nn.functional.silu(y) * y) @ w


async def whole(s: Any, h: Any, w: Any) -> Any:
    (y,) = await s.norm_linear(h, Norm("rms", 1e-6), [Linear(w)])
    heads = y.reshape(1, *y.shape)
    keys, values = await s.together(s.mask_for_cache(heads), s.mask_for_cache(heads, "value"))
    attended = await s.attention(heads, keys, values, None)
    h = await s.linear(attended.reshape(*y.shape), Linear(w), h)
    gate, up = await s.norm_linear(h, Norm("rms", 1e-6), [Linear(w), Linear(w)])
    return await s.linear(await s.gated_activation(gate, up, "silu"), Linear(w), h)


def test_bounds_by_layer() -> None:
    w = torch.randn(64, 40) / 8
    h = torch.randn(1, 64)
    y = h / h.square().mean(-1, keepdim=True).sqrt() @ w
    w[:, 0] *= 100.0 / y[:, 0].abs().max()

    async def twice(s: Any, h: Any, w: Any) -> Any:
        await normed(s, h, w)
        s.at(2)
        return await normed(s, h, w)

    assert flags(twice, [h], [w], activation="8*2 6")[1] == {("activation", 2)}


@pytest.mark.parametrize("text", ["", "12,13", "3", "19", "12*0", "12*x", "-12", "12 99"])
def test_bounds_that_are_none(text: str) -> None:
    with pytest.raises(RangeError, match="residual"):
        Bounds.parse("residual", text, 4, 18)


@pytest.mark.parametrize("option", [7, "7", "10*2 15", "4 5 4"])
def test_bounds_are_read_and_written(option: int | str) -> None:
    bounds = Bounds.parse("residual", option, 4, 18)
    assert Bounds.parse("residual", bounds.option, 4, 18) == bounds
    assert bounds.at(99) == bounds.values[-1]


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("size", [0.0, 300.0])
def test_a_share_of_the_flags_is_uniform_and_a_set_flag_too(parties: int, size: float) -> None:
    """No party's words say whether a flag is set, and words of a set flag differ from run to run in all bits."""
    shares: list[list[Tensor]] = []
    opened = []
    for _ in range(24):
        taken: list[Tensor] = []

        async def program(s: Any, x: Any) -> Any:
            s.begin(1)
            return await s.softmax(x)

        run_masked(program, [torch.tensor([[0.0, size]])], parties=parties, flag_shares=taken)
        shares.append(taken)
        opened.append(reduce(torch.bitwise_xor, taken)[RANGE_KINDS.index("score"), 0])
    for party in range(parties):
        octets = torch.stack([s[party] for s in shares]).view(torch.uint8).to(torch.int64)
        assert chi_square(octets.flatten(), 256) < chi_square_limit(256)
    words = torch.stack(opened)
    if size:
        assert len(set(words.tolist())) == 24
        assert chi_square(words.view(torch.uint8).to(torch.int64) & 15, 16) < chi_square_limit(16)
    else:
        assert not words.any()


def test_no_false_flag_in_many_values_up_to_the_limit() -> None:
    """A million values of every size up to the limit: their digits' borrows never set a flag."""
    from tests.protocols.gate_harness import run

    x = torch.randint(-(256 << 14) + 1, 256 << 14, (1 << 18,))
    found: list[Tensor] = []

    async def gate(c: Any, s: Any) -> Any:
        m = await c.opening(s)
        ranges = RangeFlags(c, 1)
        ranges.check("activation", Masked(m.m, m.lam, m.bits, 14), 256.0)
        words = ranges.take()
        if c.evaluating:
            found.append(words)
        return c.shared(m)

    for _ in range(4):
        found.clear()
        run(gate, [(x, 14 + 8 + 4)])
        assert not reduce(torch.bitwise_xor, found).any()
