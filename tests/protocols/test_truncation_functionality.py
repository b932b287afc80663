"""Stochastic truncation gives floor(x / 2^t) + [u < x mod 2^t] for a uniform u that parties hold, element by element.

This is the functionality of docs/security.md, "Rounding": u is taken from what parties see, and x and u decide.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from launch.local.in_process import run_in_process
from mpc import ring
from mpc.random import Prg, new_seed
from mpc.wide import Wide
from protocols.crypten import arithmetic
from protocols.crypten.binding.library import CryptenSession
from protocols.crypten.value import CryptenValue
from protocols.masked import truncation, veiled
from protocols.masked.context import Context, open_value
from protocols.masked.lifted import Factor
from protocols.masked.product import elementwise
from protocols.masked.shares import Shared, WideShared
from protocols.masked.weights import fixed_weight
from protocols.masked.wide import open_cut_wide
from protocols.schedule import Scheduler, together
from tests.protocols.crypten.programs import evaluate
from tests.protocols.gate_harness import run
from tests.protocols.masked.harness import additive
from tests.protocols.uniformity import chi_square_p

BITS, CUT = 10, 4
EVERY = torch.arange(1 << BITS).repeat(40)  # each x of the ring
LOW = (1 << CUT) - 1
RARE = 1e-9  # of a right u, by chi-square


def expected(x: Tensor, u: Tensor, cut: int = CUT) -> Tensor:
    return (x >> cut) + (u < (x & ((1 << cut) - 1)))


def check_uniform(u: Tensor, size: int = LOW + 1) -> None:
    assert chi_square_p(torch.bincount(u, minlength=size).double()) > RARE


def masked(parties: int, local: bool) -> tuple[list[Tensor], Tensor, Tensor]:
    """Shares of x, what is opened, and the result, by `open_cut` (local) or by opening and `truncate`."""
    shares, seen = additive(EVERY, parties, BITS), []

    async def gate(c: Context, x: Shared) -> Shared:
        if local:
            return c.shared(await truncation.open_cut(c, x, CUT))
        return c.shared(truncation.truncate(c, await open_value(c, x), CUT))

    def at_party(channel: Any, tape: Any) -> Shared:
        c = Context(tape, channel, parties)
        if c.first:
            c.observer = lambda m, bits: seen.append(m.cpu())
        out: Shared = Scheduler(c.flush).run(gate(c, Shared(shares[channel.party].to(c.device), BITS, CUT)))
        return out

    def at_dealer(tape: Any) -> None:
        c = Context(tape, None, parties)
        Scheduler(c.flush).run(gate(c, Shared(c.blank(EVERY.shape), BITS, CUT)))

    found, _ = run_in_process(parties, at_party, at_dealer)
    return shares, seen[0], ring.reduce(torch.stack([s.x.cpu() for s in found]).sum(0), BITS - CUT)


def behind_a_veil(parties: int) -> tuple[list[Tensor], Tensor]:
    """Shares of x + R before they are cut, and the result of `veiled.open_cut`, of products of x and 1."""
    one = torch.ones_like(EVERY)
    shares = [additive(x, parties, BITS) for x in (EVERY, one)]
    held: list[Tensor] = [one] * parties

    async def gate(c: Context, x: Tensor, y: Tensor, party: int | None) -> Shared:
        a, b = await together(open_value(c, Shared(x, BITS, CUT)), open_value(c, Shared(y, BITS, 0)))
        behind, again = (veiled.product(c, "product", a, b, elementwise) for _ in range(2))
        if party is not None:
            held[party] = ring.reduce(behind.x, BITS).cpu()
            check_uniform(ring.reduce(again.x - behind.x, BITS).cpu(), 1 << BITS)  # each behind a veil of its own
        return c.shared(await veiled.open_cut(c, behind, CUT))

    def at_party(channel: Any, tape: Any) -> Shared:
        c, me = Context(tape, channel, parties), channel.party
        out: Shared = Scheduler(c.flush).run(gate(c, *(x[me].to(c.device) for x in shares), me))
        return out

    def at_dealer(tape: Any) -> None:
        c = Context(tape, None, parties)
        Scheduler(c.flush).run(gate(c, c.blank(EVERY.shape), c.blank(EVERY.shape), None))

    found, _ = run_in_process(parties, at_party, at_dealer)
    return held, ring.reduce(torch.stack([s.x.cpu() for s in found]).sum(0), BITS - CUT)


def test_a_veiled_product_of_two_parties_is_decided_by_the_low_bits_of_both_shares() -> None:
    (first, second), found = behind_a_veil(2)
    a, b, y = (first + LOW // 2 + 1) & LOW, second & LOW, EVERY + LOW // 2 + 1
    assert torch.equal(found, ring.reduce((y >> CUT) - ((a + b - (y & LOW)) >> CUT), BITS - CUT))
    for coin in (a, b, a * (LOW + 1) + b):
        check_uniform(coin, int(coin.max()) + 1)
    for share in (first, second):
        check_uniform(share, 1 << BITS)
    error = ring.signed(ring.reduce((found << CUT) - EVERY, BITS), BITS).double() / (1 << CUT)
    away = error[(EVERY > LOW) & (EVERY < (1 << BITS) - 2 * LOW)]
    assert abs(away.mean() - 0.5 / (1 << CUT)) < 0.01
    assert abs(away.var() - 0.25) < 0.01
    assert away.abs().max() < 1.5


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize(("bits", "count"), [(60, 20), (90, 30)])
def test_sums_of_known_factors_behind_a_veil(parties: int, bits: int, count: int) -> None:
    """x F + y G, opened in their product's ring or a wide one, and lifted as values are whose shares' wraps are known."""
    x, y = (torch.arange(-1000, 1000) * factor for factor in (97, -31))
    f, g = torch.arange(2000) * 1_003 - 10**6, 3 - torch.arange(2000)

    async def gate(c: Context, a: Shared, b: Shared) -> list[Shared]:
        first, second = await together(open_value(c, a), open_value(c, b))
        terms = [(first, Factor(lambda: f.to(c.device), 4)), (second, Factor(lambda: g.to(c.device), 1))]
        found = await veiled.open_cut(c, veiled.sum_known(c, "sum", terms, bits), count, wraps=True)
        assert (found.bits, found.frac) == (bits - count, 4 - count)
        return [c.shared(found), truncation.lift(c, found, 64)]

    result = run(gate, [(x, 20), (y, 18)], parties)
    exact = (x * f + (y * g << 3)).double() / 2.0**count
    for out in result.outputs:
        assert (out - exact).abs().max() < (1.5 if parties == 2 else 1.0)


@pytest.mark.parametrize("parties", [2, 3])
def test_products_with_a_weight_behind_a_veil(parties: int) -> None:
    """Each behind a veil of its own; opened within 3/2 units, and exact as an ordinary sharing."""
    x = torch.arange(-900, 900).reshape(600, 3) * 1001
    w = torch.tensor([[5, -7], [1 << 10, 3], [-11, 1 << 16]])
    apart: list[Tensor] = []

    async def gate(c: Context, a: Shared, b: Shared) -> list[Shared]:
        kept = await fixed_weight(c, w.shape, b.x if c.evaluating else None, (0, 64), True)
        m = await open_value(c, a)
        one, two = (veiled.weight_product(c, "linear", m, kept) for _ in range(2))
        if c.evaluating:
            assert not isinstance(one.x, Wide)
            apart.append(ring.reduce(one.x - two.x, 50) >> 46)
        return [c.shared(await veiled.open_cut(c, one, 12)), two.without(c)]

    opened, exact = run(gate, [(x, 50), (w, 64)], parties).outputs
    assert torch.equal(exact, x @ w)
    assert (opened - exact.double() / 2.0**12).abs().max() < (1.5 if parties == 2 else 1.0)
    assert len(apart) == parties
    for difference in apart:
        check_uniform(difference.flatten(), 16)


def test_a_veiled_product_of_more_parties_is_rounded_once() -> None:
    shares, found = behind_a_veil(3)
    veil = ring.reduce(torch.stack(shares).sum(0) - EVERY, BITS)
    carry = ((EVERY & LOW) + (veil & LOW)) >> CUT
    assert torch.equal(found, ring.reduce((EVERY >> CUT) + carry, BITS - CUT))
    check_uniform(veil, 1 << BITS)


@pytest.mark.parametrize(("parties", "local"), [(2, False), (3, False), (3, True)])
def test_what_is_opened_whole_decides_with_its_low_bits(parties: int, local: bool) -> None:
    _, m, found = masked(parties, local)
    u = m & LOW
    assert torch.equal(found, ring.reduce(expected(EVERY, u), BITS - CUT))
    check_uniform(u)


def test_a_local_cut_of_two_parties_is_decided_by_either_share() -> None:
    (first, second), _, found = masked(2, True)
    u = (first + LOW) & LOW
    assert torch.equal(found, ring.reduce(expected(EVERY, u), BITS - CUT))
    assert torch.equal(found, ring.reduce(expected(EVERY, second & LOW), BITS - CUT))
    check_uniform(u)


WIDE, WIDE_CUT = 71, 9  # 9 bits cut, and 62 stay


def _wide_shares(parties: int) -> tuple[list[Wide], list[int], list[list[int]]]:
    """Shares modulo 2^71 of elements of its whole range; the elements; every party's shares as integers."""
    prg = Prg(new_seed())
    shares = [Wide(prg.ring((20_000,), 64), prg.ring((20_000,), WIDE - 64)) for _ in range(parties)]
    numbers = [[(int(b) << 64) + int(a) % (1 << 64) for a, b in zip(s.low, s.high, strict=True)] for s in shares]
    return shares, [sum(each) % (1 << WIDE) for each in zip(*numbers, strict=True)], numbers


@pytest.mark.parametrize("parties", [2, 3])
def test_a_wide_cut(parties: int) -> None:
    shares, xs, numbers = _wide_shares(parties)
    seen: list[Tensor] = []

    def at_role(c: Context, share: Wide) -> Shared:
        async def gate() -> Shared:
            return c.shared(await open_cut_wide(c, WideShared(share, WIDE, WIDE_CUT), WIDE_CUT))

        out: Shared = Scheduler(c.flush).run(gate())
        return out

    def at_party(channel: Any, tape: Any) -> Shared:
        c = Context(tape, channel, parties)
        if c.first:
            c.observer = lambda m, bits: seen.append(m.cpu())
        share = shares[channel.party]
        return at_role(c, Wide(share.low.to(c.device), share.high.to(c.device)))

    def at_dealer(tape: Any) -> None:
        c = Context(tape, None, parties)
        at_role(c, Wide(c.blank((20_000,)), c.blank((20_000,))))

    found, _ = run_in_process(parties, at_party, at_dealer)
    result = ring.reduce(torch.stack([s.x.cpu() for s in found]).sum(0), WIDE - WIDE_CUT)
    low = (1 << WIDE_CUT) - 1
    us = [(x + low) & low for x in numbers[0]] if parties == 2 else (seen[0] & low).tolist()
    wanted = [((x >> WIDE_CUT) + (u < (x & low))) % (1 << (WIDE - WIDE_CUT)) for x, u in zip(xs, us, strict=True)]
    assert result.tolist() == wanted
    assert chi_square_p(torch.bincount(torch.tensor(us), minlength=low + 1).double()) > RARE


@pytest.mark.parametrize("parties", [2, 3])
def test_crypten(parties: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    opened = CryptenSession.open_together

    def watched(s: CryptenSession, items: Any) -> list[Tensor]:
        out = opened(s, items)
        if s.channel is not None and s.party == 0:
            seen.extend(x.cpu() for x in out)
        return out

    monkeypatch.setattr(CryptenSession, "open_together", watched)

    async def program(s: Any, v: Any) -> CryptenValue:
        return CryptenValue(arithmetic.truncate(s.session, v.share, CUT), 0, s.session.party)

    x = EVERY - (1 << (BITS - 1))
    out = evaluate(program, [x], parties=parties, input_bits=0)
    found = torch.stack([parts[0].share.cpu() for parts in out.shares]).sum(0)
    assert torch.equal(found, expected(x, seen[0] & LOW))
    check_uniform(seen[0].reshape(-1) & LOW)
