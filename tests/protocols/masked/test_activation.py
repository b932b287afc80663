"""GELU, its tanh form, SiLU and ReLU in all forms, over the whole declared range, against float64; and their parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mpc.errors import RangeError
from mpc.tape import CountingTape, DealerTape, PartyTape
from protocols.masked import activation as gate
from protocols.masked import curves
from protocols.masked.activation import Plan, Rings, activation, chosen, plans
from protocols.masked.brackets import Interval, brackets
from protocols.masked.comparison import less_than_zero
from protocols.masked.context import Context, open_value
from protocols.masked.opened_bits import alone, opposite, times
from protocols.masked.shares import Shared
from protocols.masked.wide import open_any
from tests.protocols import uniformity
from tests.protocols.gate_harness import Run, run
from tests.protocols.masked.harness import run_masked

FRAC = 14
UNIT = 2.0**-FRAC
BOUND = 2.0**-12
EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda t: torch.nn.functional.gelu(t, approximate="tanh"),
    "silu": torch.nn.functional.silu,
    "relu": torch.relu,
}
PARTIES = [2, 3]


def points(least: int) -> Tensor:
    """Both edges of the range, every place where a segment, a bracket or a wave's corner lies and a unit to both sides, and
    values between."""
    limit = 3 << (least - 3)
    edges = torch.arange(-40 * 8, 40 * 8) * (1 << (FRAC - 3))
    found = [edges - 1, edges, edges + 1, torch.tensor([-limit, limit, 0])]
    generator = torch.Generator().manual_seed(least)
    found += [torch.randint(-(17 << FRAC), 17 << FRAC, (9000,), generator=generator)]
    found += [torch.randint(-limit, limit + 1, (3000,), generator=generator)]
    return torch.cat(found).clamp(-limit, limit)


def run_plan(kind: str, plan: Plan, x: Tensor, parties: int = 2) -> Run:
    """Run a gate in given forms, its result opened in the ring that it has."""

    async def program(c: Context, a: Shared) -> Any:
        m = (await open_value(c, a)).with_frac(FRAC)
        found = await activation(c, m, kind, plan)
        excess = found.frac - FRAC
        return c.shared(await open_any(c, found.to_ring(plan.left + excess), excess))

    return run(program, [(x, plan.x_bits)], parties)


def real(found: Tensor, bits: int) -> Tensor:
    """Return what is above -1."""
    return torch.where(found < -(1 << FRAC), found + (1 << bits if bits < 62 else 0), found) * UNIT


@pytest.mark.covering(1)
@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("kind", sorted(EXACT))
def test_all_forms_over_the_whole_range(kind: str, parties: int) -> None:
    for least, wanted in ((24, 64), (26, 50), (24, 24)):
        x = points(least)
        for plan in plans(kind, Rings(FRAC, least, wanted)):
            found = run_plan(kind, plan, x, parties)
            error = (real(found.out, plan.left) - EXACT[kind](x * UNIT)).abs().max()
            assert error < BOUND, (plan, float(error))


@pytest.mark.parametrize("kind", sorted(curves.HALF))
def test_small_ranges(kind: str) -> None:
    """Where a wave for the whole ring needs no bracket, and where brackets have few digits."""
    least = gate.least_bits(kind, FRAC)
    for bits in (least, 21):
        x = points(bits)
        found = plans(kind, Rings(FRAC, bits, 64))
        assert any(plan.curve == "waves" for plan in found)
        for plan in found:
            run_ = run_plan(kind, plan, x)
            assert (real(run_.out, plan.left) - EXACT[kind](x * UNIT)).abs().max() < BOUND, plan
            if plan.curve == "waves" and plan.result == "lifted":
                assert run_.costs[0].rounds == 2  # x, and the result


def test_rounds_and_bytes_of_a_number() -> None:
    """From a masked x to a result that is opened in the ring that is wanted; without headers and without flags."""

    def cost(kind: str, plan: tuple[str, str], wanted: int) -> tuple[int, float, float]:
        found = {(p.curve, p.result): p for p in plans(kind, Rings(FRAC, 24, wanted))}
        return gate.counted(kind, 2, found[plan])  # type: ignore[index]

    for kind, most, dealt in (("gelu", 9.1, 83), ("gelu_tanh", 9.1, 83), ("silu", 10.5, 96)):
        rounds, sent, offline = cost(kind, ("segments", "opened"), 24)
        assert (rounds, offline < dealt, sent < most) == (2, True, True)
        # with its lift to 64 bits, which are opened once more
        assert cost(kind, ("segments", "opened"), 64)[2] < dealt + 13.1
    for kind, most, dealt in (("gelu", 12.3, 55), ("gelu_tanh", 12.3, 55), ("silu", 13.8, 62)):
        rounds, sent, offline = cost(kind, ("halved digits", "opened"), 24)
        assert (rounds, offline < dealt, sent < most) == (3, True, True)
    for kind, dealt in (("gelu", 185), ("silu", 251)):
        rounds, sent, offline = cost(kind, ("brackets", "lifted"), 64)
        assert (rounds, offline < dealt, sent < 11) == (2, True, True)


def test_rounds_and_bytes_of_a_large_range() -> None:
    """Whole brackets' digits double with every bit of the range; in two steps they do not."""
    plans_of = {p.curve: p for p in plans("gelu", Rings(FRAC, 28, 28))}
    found = [gate.counted("gelu", 2, plans_of[curve]) for curve in ("segments", "halved digits")]
    assert [rounds for rounds, _, _ in found] == [2, 3]
    assert found[1][2] < 70 < 300 < found[0][2]


def test_which_forms_are_run() -> None:
    def names(prefer: str, count: int, parties: int = 2, least: int = 24) -> tuple[str, str]:
        c = Context(CountingTape(), None, parties)
        c.prefer = prefer  # type: ignore[assignment]
        plan = chosen(c, "gelu", count, Rings(FRAC, least, 64))
        return plan.curve, plan.result

    token, prompt = 3072, 128 * 3072
    assert names("auto", token) == names("rounds", prompt) == ("brackets", "lifted")
    assert names("auto", 12 * token) == ("segments", "opened")
    assert names("auto", prompt) == names("bytes", token) == ("halved digits", "opened")
    assert names("bytes", prompt, 3)[0] == "brackets"  # bits with a sign are for two parties
    assert names("rounds", token, 2, 21) == ("waves", "lifted")


def test_bad_input_is_named() -> None:
    c = Context(CountingTape(), None, 2)
    with pytest.raises(RangeError, match="unknown function 'elu'"):
        chosen(c, "elu", 1, Rings(FRAC, 24, 64))
    with pytest.raises(RangeError, match="a ring of 18 bits is too small, 20 are needed"):
        chosen(c, "gelu", 1, Rings(FRAC, 18, 64))


@pytest.mark.covering(1)
@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("kind", sorted(curves.HALF))
def test_segments_at_the_edges(kind: str, parties: int) -> None:
    """At both edges of what is curved and of what inside may hold in, and where digits go around, under many masks, so with
    every borrow: beyond the latter exactly x or 0."""
    half, reach = curves.HALF[kind], gate.INTERVAL[kind].reach
    around = 1 << curves.SEGMENTS[kind].period
    edges = torch.tensor([s * v for v in (half, reach, half + around, reach + around, 3 * around) for s in (-1, 1)]) << FRAC
    x = torch.cat([edges + d for d in (-(1 << FRAC), -1, 0, 1, 1 << (FRAC - 3), 1 << FRAC)]).repeat(150)
    for least in (24, 26):
        for plan in plans(kind, Rings(FRAC, least, least)):
            if plan.curve in ("segments", "halved digits"):
                found = real(run_plan(kind, plan, x, parties).out, least)
                assert (found - EXACT[kind](x * UNIT)).abs().max() < BOUND, plan
                beyond = (x * UNIT).abs() > reach
                assert torch.equal(found[beyond], torch.relu(x * UNIT)[beyond]), plan


# ---- parts -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(("bits", "half", "unit"), [(24, 4, 2), (25, 12, 2), (26, 4, 3), (20, 4, 2), (21, 12, 2)])
@pytest.mark.parametrize("parties", PARTIES)
def test_brackets(bits: int, half: int, unit: int, at_once: bool, parties: int) -> None:
    interval = Interval(half, unit)
    limit = (1 << (bits - 1)) - (interval.reach << FRAC)
    edges = torch.tensor([s * v for v in (half, interval.reach) for s in (-1, 1)]) << FRAC
    x = torch.cat([torch.randint(-limit, limit, (3000,)), edges - 1, edges, edges + 1]).clamp(-limit, limit - 1)

    async def program(c: Context, a: Shared) -> Any:
        m = (await open_value(c, a)).with_frac(FRAC)
        inside, above = await brackets(c, m, interval, at_once)
        return inside.share(20), above.share(20), times(c, "inside", inside, m, bits + 9)

    found = run(program, [(x, bits)], parties)
    inside, above, product = found.outputs
    value = x * UNIT
    assert set(inside.tolist()) <= {0, 1}
    assert (inside[(value >= -half) & (value < half)] == 1).all()
    assert (value[inside == 1].abs() <= interval.reach).all()
    assert (above[value >= -half] == 1).all()
    assert (above[value < -interval.reach] == 0).all()
    assert ((above == 1) | (inside == 0)).all()
    assert torch.equal(product, inside * x)


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("bits", [5, 12, 24])
def test_a_bit_alone_and_its_opposite(bits: int, parties: int) -> None:
    x = torch.cat([torch.randint(0, 1 << bits, (2000,)), torch.tensor([0, 1, (1 << bits) - 1, 1 << (bits - 1)])])

    async def program(c: Context, a: Shared) -> Any:
        negative = await less_than_zero(c, await open_value(c, a), 6)
        single = await alone(negative)
        return negative.share(30), single.share(30), opposite(single).share(30), opposite(negative).share(30)

    found = run(program, [(x, bits)], parties)
    exact = (x >> (bits - 1)) & 1
    whole, single, turned, both = found.outputs
    assert torch.equal(whole, exact)
    assert torch.equal(single, exact)
    assert torch.equal(turned, 1 - exact)
    assert torch.equal(both, 1 - exact)


def test_public_integers_are_far_from_ties() -> None:
    """So they are equal on machines whose functions differ in the last bit (2^-52 relative, a few of them)."""

    def distance(x: float) -> float:
        return abs(x - math.floor(x) - 0.5)

    for kind in curves.HALF:
        for segment in curves.exact_coefficients(kind):
            for a in segment:
                assert distance(a * 2.0**curves.COEFFICIENT_BITS) > 1e-7, (kind, a)
        for period in range(5, 8):
            for j, a in curves.exact_amplitudes(kind, period):
                assert distance(a * 2.0**curves.AMPLITUDE_BITS) > 1e-7, (kind, period, j)
    angles = torch.arange(1 << 19, dtype=torch.float64) * (2 * math.pi / (1 << 19))
    exact = torch.cos(angles) * 2.0**curves.AMPLITUDE_BITS
    found = curves.cosines(19, torch.device("cpu"))
    assert (found - exact).abs().max() < 0.5 + 1e-6


# ---- what is seen ----------------------------------------------------------------------------------------------------
@pytest.mark.covering(1)
@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("kind", ["gelu", "silu", "relu"])
def test_all_that_is_opened_is_uniform(kind: str, parties: int) -> None:
    x = torch.full((20_000,), 3 << (FRAC - 2))
    for plan in plans(kind, Rings(FRAC, 24, 64)):
        found = run_plan(kind, plan, x, parties)
        seen = [uniformity.Opened(kind, m.flatten(), bits) for m, bits in found.seen]
        assert not uniformity.failures(uniformity.results(seen)), plan


@pytest.mark.parametrize("missing", ["open", "mask bits"])
def test_a_mask_that_is_missing_is_found_out(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks of what follows x are 0 at dealer and parties alike: the values are right, and the test above fails."""
    for tape in (DealerTape, PartyTape):

        def drawn(self: Any, op: str, shape: Any, bits: int = 64, kind: str = "sum", whole: Any = tape.random) -> Tensor:
            found = whole(self, op, shape, bits, kind)
            return torch.zeros_like(found) if op == missing and bits != 24 else found

        def each(
            self: Any, op: str, shape: Any, bits: int = 64, *rest: Any, all_of: Any = tape.random_shares, **host: Any
        ) -> Any:
            found = all_of(self, op, shape, bits, *rest, **host)
            return [torch.zeros_like(share) for share in found] if op == missing and bits != 24 else found

        monkeypatch.setattr(tape, "random", drawn)
        monkeypatch.setattr(tape, "random_shares", each)
    x = torch.full((20_000,), 3 << (FRAC - 2))
    for plan in plans("gelu", Rings(FRAC, 24, 64)):
        found = run_plan("gelu", plan, x)
        assert (real(found.out, plan.left) - EXACT["gelu"](x * UNIT)).abs().max() < BOUND
        seen = [uniformity.Opened("gelu", m.flatten(), bits) for m, bits in found.seen]
        assert uniformity.failures(uniformity.results(seen)), plan


# ---- in the suite ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize(("prefer", "rounds"), [("rounds", 3), ("bytes", 6)])
def test_a_gate_is_opened_once(prefer: str, rounds: int, parties: int) -> None:
    """SiLU(gate) up, both factors up to their bounds: masked, one or two rounds of SiLU, its opening; the product is then
    opened by whoever needs it."""
    gated, up = (torch.empty(3, 40).uniform_(-250, 250) for _ in range(2))
    gated[0, :4] = torch.tensor([250.0, -250.0, 0.0, 12.0])

    async def program(s: Any, a: Any, b: Any) -> Any:
        return await s.gated_activation(a, b, "silu")

    (found,), ledger = run_masked(program, [gated, up], parties=parties, prefer=prefer)
    exact = torch.nn.functional.silu(gated.double()) * up
    assert ((found - exact).abs() / (1 + up.abs() + gated.abs())).max() < 2 * BOUND
    assert ledger.total().rounds <= rounds
