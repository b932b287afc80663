"""The critical path of a layer has the rounds and bytes that the ledger counts for it."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from launch.cli.main import app
from launch.predict.critical_path import critical_path
from models.costs.estimation import Tracer
from models.costs.tracing import STEP, Setting
from models.shapes import find_shape, with_layers, with_positions
from mpc.errors import ConfigurationError


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize(("cached", "tokens"), [(40, 1), (0, 6), (128, 1)])
@pytest.mark.parametrize("layers", [1, 2, 5])
def test_listed_rounds_are_those_of_the_ledger(layers: int, cached: int, tokens: int, parties: int) -> None:
    architecture = with_positions(with_layers(find_shape("gpt2"), layers), 300)
    setting = Setting("masked", parties)
    with torch.inference_mode():
        path = critical_path(architecture, setting, cached, tokens)
        step = Tracer(architecture, setting).step(cached, tokens)
    counted = path.trace.ledger.total(f"{STEP}/layer {path.layer}/")
    assert len(path.rounds) == counted.rounds == step.layer.total("rounds")
    assert [r.number for r in path.rounds] == list(range(1, counted.rounds + 1))
    # an opening may ride along with another layer's round; all others are in the list
    listed = sum(s.bytes_sent for r in path.rounds for s in r.shares if s.part in ("attention", "mlp"))
    assert listed <= counted.bytes_sent
    assert all(r.shares[0].part in ("attention", "mlp") for r in path.rounds)
    assert all(r.bytes_sent > 0 for r in path.rounds)
    if tokens == 1:
        assert any(len(r.shares) > 1 for r in path.rounds), "no openings share a round"


def test_the_whole_step_is_heard() -> None:
    """With one layer, no round and no byte of the step is lost between the list and the ledger."""
    architecture = with_layers(find_shape("gpt2"), 1)
    path = critical_path(architecture, Setting("masked"), 10)
    listed = sum(r.bytes_sent for r in path.rounds)
    counted = path.trace.ledger.total(f"{STEP}/layer 0/").bytes_sent
    assert listed == counted


def test_a_suite_without_shared_rounds_is_named() -> None:
    with pytest.raises(ConfigurationError, match="suite 'crypten' runs one operation after the other"):
        critical_path(with_layers(find_shape("gpt2"), 1), Setting("crypten"), 10)


def test_the_command() -> None:
    arguments = ["estimate", "--model", "gpt2", "--layers", "3", "--prompt", "20", "--new", "3", "--critical-path"]
    result = CliRunner().invoke(app, [*arguments, "--rate", "1", "--json"])
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert len(record["critical_path"]["rounds"]) == record["last_token_layer"]["rounds"]
    assert record["critical_path"]["rounds"][0]["shares"][0]["operation"]
    shown = CliRunner().invoke(app, [*arguments, "--rate", "1"]).stdout
    assert "Rounds of one layer of the last token" in shown
