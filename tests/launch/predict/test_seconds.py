"""Seconds of a stage: the slower side counts, one machine's processors have everybody's work, and each term is there."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from launch.predict.networks import LOCALHOST, find_network
from launch.predict.seconds import BUSY, Machines
from models.costs.estimation import estimate
from models.costs.rates import DEALER, PARTY, Rates, measure_rates, weights_of
from models.costs.tracing import Costs, Setting
from models.shapes import SHAPES

RATES = Rates(1e9, 4e9)
STEP = Costs(
    {
        ("attention", "linear", "vector_products"): 2e9,
        ("attention", "linear", "rounds"): 10,
        ("attention", "linear", "bytes_sent"): 5e6,
        ("mlp", "gelu", "corrected_bytes"): 34e6,
        ("mlp", "gelu", "offline_bytes"): 50e6,
    }
)


def test_by_hand() -> None:
    party = 2 * PARTY.products + PARTY.dealt * 0.01 + PARTY.sent * 5e-4
    dealer = 2 * DEALER.products + DEALER.dealt * 0.01 + DEALER.sent * 5e-4
    assert RATES.seconds(STEP) == pytest.approx(party)
    assert RATES.seconds(STEP, weights=DEALER) == pytest.approx(dealer)
    fast, slow = Machines(find_network("0,400000"), RATES), Machines(find_network("20,4"), RATES)
    assert fast.seconds(STEP).total == pytest.approx(party + 10 * 0.3e-3 + 1e-4)
    assert slow.seconds(STEP).total == pytest.approx(dealer + 100), "what is dealt takes longest"


@pytest.mark.parametrize("cores", [1, 2, 64])
def test_one_machine(cores: int) -> None:
    """Of few processors every role's work counts, of many the slower side's."""
    here = Machines(LOCALHOST, RATES, parties=3, cores=cores).seconds(STEP)
    alone = here.party + here.latency + here.transfer
    assert here.total == pytest.approx(max((3 * here.party + here.dealer) / (BUSY * cores), alone))


@pytest.mark.parametrize(("prefer", "before"), [("online", True), ("online:20ms/4mbit", True), ("20ms/4mbit", False)])
def test_what_is_dealt_before_takes_no_time(prefer: str, before: bool) -> None:
    setting = Setting("masked", options={"prefer": prefer})
    slow = Machines.of(find_network("20,4"), RATES, setting)
    found, here = slow.seconds(STEP), replace(slow, cores=1).seconds(STEP)
    parties = found.party + found.latency + found.transfer
    assert (found.total == pytest.approx(parties)) == before
    assert here.together == pytest.approx((2 * found.party + (0 if before else found.dealer)) / BUSY)
    assert found.dealt == pytest.approx(100), "it is told all the same"
    assert ("there before" in slow.formula) == before
    assert not Machines.of(LOCALHOST, RATES, Setting("crypten")).dealt_before


def test_every_term_counts() -> None:
    """Element-wise work, tables, the session's start and products are in a prediction of a real shape."""
    found = estimate(SHAPES["tiny"], Setting("masked"), 16, 3)
    weights = replace(PARTY, bits=1.0)
    whole = RATES.seconds(found.first, weights=weights, sessions=1)
    for term in fields(weights):
        less = RATES.seconds(found.first, weights=replace(weights, **{term.name: 0.0}), sessions=1)
        assert less < whole, term.name
    assert RATES.seconds(found.load) > 0
    assert sum(RATES.seconds(found.first, part) for part in found.first.parts()) == pytest.approx(RATES.seconds(found.first))


def test_measured_rates() -> None:
    found = measure_rates()
    assert all(getattr(found, name) > 1e5 for name in ("vector", "matrix", "expanded", "made"))
    assert 100 < found.entries < 1e5  # an entry takes some twenty small operations


def test_more_parties_make_what_they_send_once() -> None:
    """To each of two others the same bytes go; tables take less of a party than point functions."""
    (two, dealer), (three, same) = (weights_of("masked", parties) for parties in (2, 3))
    assert (three.sent, three.products, same) == (two.sent / 2, two.products, dealer)
    assert three.dealt < two.dealt
    assert weights_of("crypten", 3)[0].dealt == weights_of("crypten", 2)[0].dealt
