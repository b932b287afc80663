"""What leaves a program: exact cuts, uniform output shares, samples from dealt noise. 2 and 3 parties, both suites."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from launch.local.in_process import run_in_process
from mpc import ring
from mpc.fixed_point import decode
from mpc.ledger import Ledger
from mpc.tape import CountingTape
from protocols import gumbel
from protocols.plain.suite import PlainSuite, PlainValue, tensor_of
from protocols.registry import SuiteSpec, secure_suite
from protocols.suite import Linear, Norm, OutputShare, Suite, Value
from tests.protocols.crypten.programs import evaluate
from tests.protocols.masked.harness import additive, run_masked
from tests.protocols.suite_harness import SECURE
from tests.protocols.uniformity import chi_square_p

Program = Callable[[Any, Any], Awaitable[Any]]
BITS = 30  # fraction bits of a product of activations and weights
SMALLEST_P = 1e-6


def outputs(name: str, parties: int, program: Program, words: Tensor, bits: int) -> list[OutputShare]:
    """Every party's output share of program(suite, x), x an int64 tensor with so many fraction bits; its costs are as
    dealer and estimate predict them."""
    shares = additive(words, parties)
    ledgers: list[Ledger] = []

    def main(suite: Suite, party: int | None) -> OutputShare:
        suite.begin(2)
        x = suite.input(words.shape, None if party is None else shares[party], bits)

        async def whole() -> Any:
            return await program(suite, x)

        out = suite.output(suite.run(whole()))
        ledgers.append(suite.ledger)
        return out

    def at_party(channel: Any, tape: Any) -> OutputShare:
        return main(secure_suite(SuiteSpec(name), parties=parties, tape=tape, channel=channel), channel.party)

    found, _ = run_in_process(
        parties, at_party, lambda tape: main(secure_suite(SuiteSpec(name), parties=parties, tape=tape, channel=None), None)
    )
    estimate = CountingTape()
    main(secure_suite(SuiteSpec(name), parties=parties, tape=estimate, channel=None), None)
    counted = max(ledger.total().offline_bytes for ledger in ledgers[:-1])
    assert estimate.ledger.total().offline_bytes == counted
    return found


def opened(shares: list[OutputShare]) -> Tensor:
    """What the client puts together, float64."""
    total = torch.stack([s.share.cpu() for s in shares]).sum(0)
    return decode(ring.reduce(total, shares[0].bits), shares[0].fraction_bits, shares[0].bits)


async def release(s: Suite, x: Value) -> Value:
    """The output of a value."""
    return await s.released(x)


def products() -> Tensor:
    """Positive and negative words with 30 fraction bits: random ones, and all that lies next to a cut."""
    edges = torch.tensor([-1, 0, 1]) + torch.tensor([-3, -1, 0, 1, 2])[:, None] * (1 << 16)
    return torch.cat([torch.randint(-(1 << 37), 1 << 37, (25,)), edges.reshape(-1)])


@pytest.mark.parametrize(("name", "parties"), SECURE)
def test_equal_values_are_cut_alike(name: str, parties: int) -> None:
    """200 times the same x, shared and masked anew: floor(x), whatever the masks are."""
    x = products()
    found = opened(outputs(name, parties, release, x.expand(200, -1).contiguous(), BITS))
    kept = 14 if name == "masked" else 16
    exact = torch.floor(x.double() / 2.0 ** (BITS - kept)) / 2.0**kept
    assert torch.equal(found, exact.expand(200, -1))


@pytest.mark.parametrize(("name", "parties"), SECURE)
def test_released_shares_are_uniform(name: str, parties: int) -> None:
    """Of one and the same value, and beside it: what an honest party sends says nothing but the value."""
    found = outputs(name, parties, release, torch.full((20_000,), 123_456_789), BITS)
    check_uniform(found)


@pytest.mark.parametrize(("name", "parties"), SECURE)
@pytest.mark.parametrize("temperature", [None, 1.0])
def test_shares_of_a_choice_are_uniform(name: str, parties: int, temperature: float | None) -> None:
    """The index of the largest of five, thousands of times."""
    words = torch.tensor([0, 1, 5, 2, 0]) << 14

    async def choose(s: Suite, x: Value) -> Value:
        scores = x if temperature is None else await s.perturbed(x, temperature)
        return (await s.argmax(scores) * torch.arange(5)).sum(-1)

    found = outputs(name, parties, choose, words.expand(3000, -1).contiguous(), 14)
    index = opened(found)
    assert bool((index == 2).all()) if temperature is None else index.unique().tolist() == [0, 1, 2, 3, 4]
    check_uniform(found)


def check_uniform(shares: list[OutputShare]) -> None:
    """Low and high bits of every party's share."""
    for one in shares:
        for x in (one.share & 15, ring.shift_right(ring.reduce(one.share, one.bits), one.bits - 4, one.bits)):
            assert chi_square_p(torch.bincount(x, minlength=16).double()) > SMALLEST_P


@pytest.mark.parametrize(("name", "parties"), SECURE)
@pytest.mark.parametrize("temperature", [0.05, 1.0, 100.0])
def test_a_sample_is_the_argmax_with_the_dealt_noise(
    name: str, parties: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dealer's noise, caught where it is drawn, gives the plain suite the same choice; the ring does not wrap."""
    drawn: list[Tensor] = []

    def caught(shape: Any) -> Tensor:
        drawn.append(draw(shape))
        return drawn[-1]

    draw = gumbel.gumbel
    monkeypatch.setattr(gumbel, "gumbel", caught)
    logits = torch.randn(300, 40, dtype=torch.float64) * 30 * min(temperature, 4)
    words = torch.round(logits * 2.0**14).long()

    async def choose(s: Suite, x: Value) -> Value:
        return await s.argmax(await s.perturbed(x, temperature))

    found = opened(outputs(name, parties, choose, words, 14))
    monkeypatch.undo()
    assert [tuple(noise.shape) for noise in drawn] == [(300, 40)]  # the dealer alone draws
    plain = PlainSuite(torch.float64, noise=lambda shape: drawn[0])
    scores = tensor_of(plain.run(plain.perturbed(PlainValue(words / 2.0**14), temperature)))
    best = scores.topk(2).values
    sure = best[:, 0] - best[:, 1] > 2.0**-8
    assert int(sure.sum()) > 250
    assert torch.equal(found.argmax(-1)[sure], scores.argmax(-1)[sure])
    assert bool((found.sum(-1) == 1).all())


@pytest.mark.parametrize("name", ["masked", "crypten", "plain"])
def test_samples_follow_the_softmax(name: str) -> None:
    logits, temperature, count = torch.tensor([1.0, 0.0, -1.0, 2.0]), 0.7, 4000

    async def choose(s: Suite, x: Value) -> Value:
        return (await s.argmax(await s.perturbed(x, temperature)) * torch.arange(4)).sum(-1)

    rows = logits.expand(count, -1).contiguous()
    if name == "plain":
        plain = PlainSuite()
        found = tensor_of(plain.run(choose(plain, PlainValue(rows))))
    else:
        found = opened(outputs(name, 2, choose, (rows * 2**14).long(), 14))
    expected = torch.softmax(logits.double() / temperature, 0) * count
    counts = torch.bincount(found.long(), minlength=4).double()
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert float(statistic) < 31  # three degrees of freedom: exceeded by chance once in a million


def test_two_steps_have_different_noise() -> None:
    async def twice(s: Suite, x: Value) -> Value:
        first = await s.argmax(await s.perturbed(x, 1.0))
        second = await s.argmax(await s.perturbed(x, 1.0))
        return (first - second).sum(0)

    found = opened(outputs("masked", 2, twice, torch.zeros(64, 50, dtype=torch.int64), 14))
    assert float(found.abs().sum()) > 20


@pytest.mark.parametrize(("name", "options"), [("masked", {}), ("crypten", {}), ("crypten", {"crypten_own": True})])
def test_a_whole_product_is_cut_once(name: str, options: dict[str, Any]) -> None:
    """Logits: a norm, a product of which nothing is cut, and its exact floor. At most a unit below float's."""
    torch.manual_seed(3)
    x, w = torch.randn(2, 32, dtype=torch.float64), torch.randn(32, 20, dtype=torch.float64) * 0.5

    async def logits(s: Suite, h: Value, weight: Value) -> Value:
        (y,) = await s.norm_linear(h, Norm("rms", 1e-5), [Linear(weight)], True)
        return await s.released(y)

    if name == "masked":
        (found,), _ = run_masked(logits, [x], [w])
    else:
        found = evaluate(logits, [x], weights={"weight": w}, **options).value
    exact = x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5) @ w
    assert (found - exact).abs().max() < (0.05 if options else 2.0**-11)
