"""Predictions of sessions in step: rounds of one, bytes of all, lists as they are sent."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from launch.cli.main import app
from launch.predict.in_step import in_step_stages
from launch.predict.networks import find_network
from models.costs.estimation import estimate
from models.costs.rates import Rates
from models.costs.tracing import Setting
from models.shapes import SHAPES
from mpc.step_messages import overhead

RATES = Rates(1e9, 4e9)


@pytest.mark.parametrize("parties", [2, 3])
def test_rounds_are_those_of_one_session_and_bytes_those_of_all(parties: int) -> None:
    found = estimate(SHAPES["tiny"], Setting("masked", parties), prompt=8, new=3)
    network = find_network("wan")
    for sessions in (1, 8):
        stages = in_step_stages(found, sessions, network, RATES)
        for name, costs, count in (("prefill", found.first, 1), ("token", found.further, 2)):
            stage = stages[name]
            rounds, sent = costs.total("rounds") / count, costs.total("bytes_sent") / count
            assert stage.costs.rounds == pytest.approx(rounds)
            assert stage.costs.bytes_sent == pytest.approx(sessions * sent)
            assert stage.costs.overhead_bytes == pytest.approx(rounds * (parties - 1) * overhead(sessions))
            assert stage.costs.rounds_saved == pytest.approx((sessions - 1) * rounds)
            lists = network.transfer_seconds(stage.costs.overhead_bytes)
            if sessions == 1:
                assert stage.seconds == pytest.approx(stage.seconds_in_turn + lists)
            else:
                assert stage.seconds < stage.seconds_in_turn / 4


def test_one_token_has_no_further_one() -> None:
    found = estimate(SHAPES["tiny"], Setting("masked"), prompt=8, new=1)
    assert list(in_step_stages(found, 2, find_network("lan"), RATES)) == ["prefill"]


def test_the_command_says_rounds_shared() -> None:
    arguments = ["estimate", "--model", "tiny", "--prompt", "8", "--new", "2", "--rate", "1", "--network", "wan"]
    record = json.loads(CliRunner().invoke(app, [*arguments, "--sessions", "8", "--json"]).stdout)
    assert record["in_step"]["token"]["sessions"] == 8
    assert record["in_step"]["token"]["rounds"] == record["stages"]["tokens"]["rounds"]
    assert record["in_step"]["token"]["rounds_saved"] == 7 * record["stages"]["tokens"]["rounds"]
    assert "in_step" not in json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    shown = " ".join(CliRunner().invoke(app, [*arguments, "--sessions", "8"]).stdout.split())
    assert "8 sessions in step, a further token of each:" in shown
