"""Range flags of the suite `masked`: what leaves its declared range is flagged, what does not never is; values stay right
until a flag is certain."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import pytest
import torch
from torch import Tensor

from mpc.errors import RangeError
from mpc.tape import CountingTape
from protocols.bounds import RANGE_KINDS, RANGES, Bounds
from protocols.masked.magnitudes import WEIGHT_BITS
from protocols.masked.ranges import DIGIT, RangeFlags
from protocols.masked.shares import Masked
from protocols.masked.stream import stream_bits
from protocols.masked.suite import MaskedSuite
from protocols.options import MaskedOptions
from protocols.ranges import SURE
from protocols.suite import Linear, Norm
from tests.protocols.gate_harness import chi_square, chi_square_limit, run
from tests.protocols.masked.harness import run_masked

PARTIES = [2, 3]
PLACES = 4
PREFERENCES = ["rounds", "bytes"]  # linear layers before a norm's division, or after it


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
    for base, spread, expected in ((0.0, 0.874, False), (-1500.0, 0.874, False), (3000.0, 1.05, True), (0.0, 1.9, True)):
        row = torch.linspace(0, 1, 40) ** 8 * spread * 2.0**score
        for x in (row, row.flip(0)):
            x = (x + base)[None]
            (found,), set_ = flags(scores, [x], parties=parties, score=score)
            assert set_ == ({("score", 1)} if expected else set())
            if not expected:
                assert (found - torch.softmax(x.double(), -1)).abs().max() < 2.0**-11


@pytest.mark.covering(1)
@pytest.mark.parametrize("prefer", ["auto", "bytes"])
@pytest.mark.parametrize("score", [5, 6, 7, 10])
def test_a_far_score_is_flagged_on_both_sides(score: int, prefer: str) -> None:
    """From 7 beyond the bound of 7/8 2^score, as far as the ring of 4 2^score goes, less that: 119 to 396 by default."""
    first, last = 0.875 * 2**score + 7, 3.125 * 2**score - 4
    for other in (0.0, 0.8 * 2**score, -0.8 * 2**score):
        for share in (0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1.0):
            distance = first + 0.1 + share * (last - first - 0.2)
            for sign in (1, -1):
                _, set_ = flags(scores, [torch.tensor([[sign * distance, other, 0.0]])], score=score, prefer=prefer)
                assert set_ == {("score", 1)}, (sign * distance, other)


@pytest.mark.parametrize("prefer", ["auto", "bytes"])
def test_scores_are_right_wherever_they_are_not_flagged(prefer: str) -> None:
    """Between bound and certain flag, either: rows whose spread goes from 90 to 140, both signs of the last score."""
    wrong = flagged = 0
    for spread in torch.arange(100.0, 136.0, 4.0):
        for last in (0.0, 0.5, 1.0):
            x = torch.cat([torch.tensor([0.0, 1.0]), torch.rand(13), torch.tensor([last])])[None] * spread
            (found,), set_ = flags(scores, [x], prefer=prefer)
            flagged += bool(set_)
            wrong += not set_ and bool((found - torch.softmax(x.double(), -1)).abs().max() >= 2.0**-11)
            assert not set_ or spread > 112
    assert (flagged > 3, wrong) == (True, 0)


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


@pytest.mark.parametrize("prefer", PREFERENCES)
@pytest.mark.parametrize("size", [120.0, 255.0])
def test_activations_within_their_bound(prefer: str, size: float) -> None:
    h = torch.randn(6, 64)
    h = h / h.square().mean(-1, keepdim=True).sqrt()
    w = torch.randn(64, 40) / 8
    y = h @ w
    w[:, 0] *= size / y[:, 0].abs().max()
    exact = torch.nn.functional.gelu((h / torch.sqrt(h.square().mean(-1, keepdim=True) + 1e-6)).double() @ w.double())
    (found,), set_ = flags(normed, [h], [w], prefer=prefer)
    assert set_ == set()
    assert (found - exact).abs().max() < 0.02


@pytest.mark.parametrize("prefer", PREFERENCES)
@pytest.mark.parametrize("size", [390.0, 700.0, 1800.0])
def test_activations_beyond_their_bound(prefer: str, size: float) -> None:
    h, w = torch.randn(6, 64), torch.randn(64, 40) / 8
    y = h / h.square().mean(-1, keepdim=True).sqrt() @ w
    w[:, 0] *= size / y[:, 0].abs().max()
    assert flags(normed, [h], [w], prefer=prefer)[1] == {("activation", 1)}
    assert flags(normed, [h], [w], prefer=prefer, activation=11)[1] == set()


async def rotated(s: Any, h: Any, w: Any) -> Any:
    (y,) = await s.norm_linear(h, Norm("rms", 1e-6), [Linear(w, use="rotated")])
    angles = torch.outer(torch.arange(1.0, 1 + h.shape[0]), torch.tensor([0.1, 0.7, 2.0, 0.0])).repeat(1, 2).double()
    return await s.mask_for_cache(await s.rotate(y.reshape(1, *y.shape), torch.cos(angles), torch.sin(angles)))


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("prefer", PREFERENCES)
@pytest.mark.parametrize(("size", "expected"), [(250.0, False), (800.0, True), (-1800.0, True)])
def test_queries_and_keys_are_checked_where_they_are_rotated(parties: int, prefer: str, size: float, expected: bool) -> None:
    h, w = torch.randn(1, 64), torch.randn(64, 8) / 8
    unit = h / torch.sqrt(h.square().mean(-1, keepdim=True) + 1e-6)
    w[:, 0] = unit[0] * size / unit.square().sum()
    (found,), set_ = flags(rotated, [h], [w], parties=parties, prefer=prefer)
    assert set_ == ({("activation", 1)} if expected else set())
    if not expected:
        y, angles = (unit.double() @ w.double())[0], torch.tensor([0.1, 0.7, 2.0, 0.0]).double()
        a, b = y[:4], y[4:]
        exact = torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()])
        assert (found[0, 0] - exact).abs().max() < 0.02


async def fed_forward(s: Any, h: Any, w: Any, back: Any) -> Any:
    return await s.linear(await normed(s, h, w), Linear(back), h)


@pytest.mark.parametrize("prefer", PREFERENCES)
def test_activations_are_right_wherever_they_are_not_flagged(prefer: str) -> None:
    """Either, from 250 to 390, through the activation and the layer behind it; at 345 chance decides, so it comes often."""
    h, w, back = torch.randn(1, 64), torch.randn(64, 40) / 8, torch.randn(40, 64) / 8
    unit = h / torch.sqrt(h.square().mean(-1, keepdim=True) + 1e-6)
    flagged = 0
    sizes = [*torch.linspace(250.0, 390.0, 15).tolist(), *([345.0] * 20 if prefer == "bytes" else [])]
    for size in sizes:
        w[:, 0] = unit[0] * size / unit.square().sum()
        (found,), set_ = flags(fed_forward, [h], [w, back], prefer=prefer)
        exact = h + torch.nn.functional.gelu(unit.double() @ w.double()) @ back.double()
        assert set_ or (found - exact).abs().max() < 0.02
        assert not set_ or size > 255
        flagged += bool(set_)
    assert 0 < flagged < len(sizes)


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


@pytest.mark.parametrize(("rows", "prefer"), [(1, "rounds"), (1, "bytes"), (6, "bytes")])
@pytest.mark.parametrize("residual", [8, 12, 15, 18])
def test_the_residual_stream_up_to_its_bound_and_beyond(rows: int, prefer: str, residual: int) -> None:
    """One channel at the bound, the others as small as ever; right within the bound, flagged beyond."""
    w = torch.randn(64, 16) / 8
    w[0] = 0  # a model that reads the small channels beside the outlier
    for factor, expected in ((0.99, False), (1.5, True), (3.9, True)):
        h = torch.randn(rows, 64)
        if factor * 2.0**residual < 2.0**11 or rows > 1:
            h[-1, 0] = factor * 2.0**residual
        else:
            h[0, 0] = -factor * 2.0**residual
        outputs, set_ = flags(normed_plain, [h], [w], residual=residual, prefer=prefer, input_bits=16)
        assert set_ == ({("residual", 1)} if expected else set())
        if not expected:
            exact = (h / torch.sqrt(h.square().mean(-1, keepdim=True) + 1e-6)).double() @ w.double()
            assert (outputs[0] - exact).abs().max() < 0.002 * max(1.0, float(exact.abs().max()))


@pytest.mark.parametrize(
    ("kind", "residual", "width"), [("rms", 8, 64), ("layer", 12, 64), ("rms", 18, 64), ("layer", 18, 1 << 14)]
)
@pytest.mark.parametrize("prefer", PREFERENCES)
def test_a_norm_up_to_four_bounds_is_flagged_for_certain(kind: Any, residual: int, width: int, prefer: str) -> None:
    async def program(s: Any, h: Any, w: Any) -> Any:
        h.magnitude = s.convert.bounds.here.residual + 2
        (y,) = await s.norm_linear(h, Norm(kind, 1e-6), [Linear(w)])
        return y

    w = torch.randn(width, 2) / math.sqrt(width)
    w[0] = 0
    for factor in (1.3, 2.1, 3.94, -3.94):
        h = torch.zeros(1, width)
        h[0, 0] = factor * 2.0**residual
        assert flags(program, [h], [w], residual=residual, prefer=prefer)[1] == {("residual", 1)}


@pytest.mark.parametrize("width", [64, 576, 768, 896, 4096, 8192])
def test_what_no_prompt_can_exceed_is_flagged_for_certain_before_a_norm_divides_it(width: int) -> None:
    """A row flagged for nothing has a norm below sqrt(1.5) bounds, so |h W| stays below sqrt(1.5) 2^residual |W|, with
    sqrt(D) |W| up to `SURE` bounds: less than where the ring is around, for all bounds."""
    for residual in range(RANGES["residual"].low, RANGES["residual"].high + 1):
        for bound in range(RANGES["activation"].low, RANGES["activation"].high + 1):
            suite = MaskedSuite(
                parties=2,
                tape=CountingTape(),
                channel=None,
                options=MaskedOptions(residual=residual, activation=bound, prefer="rounds"),
            )
            b = stream_bits(suite.convert, 1, width)
            assert b.product_first
            whole = b.bits - b.frac - WEIGHT_BITS  # integer bits where the product is opened
            unit = 2.0 ** (whole - DIGIT)
            certain = ((1 << DIGIT) - 1 - math.ceil(b.product / unit)) * unit
            reach = math.sqrt(1.5) * 2.0**residual * SURE * 2.0**bound / math.sqrt(width)
            assert reach < certain
            assert (math.ceil(b.product / unit) + 1) * unit <= 2.0 ** (whole - 2)  # it is lifted where it is not flagged


@pytest.mark.parametrize("prefer", PREFERENCES)
def test_outputs_of_a_row_at_its_bound_are_flagged_up_to_their_certain_size(prefer: str) -> None:
    """Of 1 824 channels, where the ring of products goes around soonest: divided they would look small again."""

    async def program(s: Any, h: Any, w: Any) -> Any:
        return await s.activation(await normed_plain(s, h, w), "gelu")

    h = torch.randn(1, 1824)
    h *= 1.2 * 2.0**12 / h.norm()
    unit = h / h.square().mean().sqrt()
    for bounds in (1.6, 2.5, SURE, SURE, SURE):
        w = (unit * bounds * 256 / unit.square().sum()).t()
        assert ("activation", 1) in flags(program, [h], [w], prefer=prefer)[1]


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
        for rows, prefer in ((h, "rounds"), (h.repeat(6, 1), "bytes")):
            found, set_ = flags(whole, [rows], [w], prefer=prefer, **options)
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
