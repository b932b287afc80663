"""Load tests: arrivals, percentiles, what is counted, and sessions that fail."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from launch.cli.main import app
from launch.measure import load_plot
from launch.measure.drawing import Plot
from launch.measure.load import Asked, Load, LoadResult, Seen, percentiles, run_load
from mpc.errors import ConfigurationError
from protocols.registry import SuiteSpec
from tests.parties.conftest import make_checkpoint
from tests.parties.deployment import Deployment
from tests.parties.toy import Toy, slow


@pytest.mark.parametrize("arrivals", ["sometimes", "every:0", "every:x", "poisson:-1", "poisson:inf", "every", "together:1"])
def test_unknown_arrivals_are_refused(arrivals: str) -> None:
    with pytest.raises(ConfigurationError, match=f"--arrivals '{arrivals}' is not known: together, turn, every:SECONDS"):
        Load(3, arrivals)


@pytest.mark.parametrize(
    ("changes", "words"), [({"sessions": 0}, "sessions"), ({"new_tokens": 1}, "new_tokens"), ({"prompt": 0}, "prompt")]
)
def test_numbers_are_checked(changes: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{words} must be at least"):
        Load(**{"sessions": 1, **changes})  # type: ignore[arg-type]


def test_poisson_arrivals_have_the_rate_that_was_asked_for() -> None:
    times = Load(2000, "poisson:4").times()
    gaps = [b - a for a, b in pairwise(times)]
    assert times[0] == 0.0
    assert all(gap > 0 for gap in gaps)
    assert sum(gaps) / len(gaps) == pytest.approx(0.25, rel=0.1)
    assert sum(gap > 0.25 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.04)  # exponential
    assert times == Load(2000, "poisson:4").times() != Load(2000, "poisson:4", seed=2).times()


def test_percentiles() -> None:
    values = [float(n) for n in range(1, 101)]
    assert percentiles(values) == {"p50": 50.0, "p90": 90.0, "p99": 99.0}
    assert percentiles([7.0]) == {"p50": 7.0, "p90": 7.0, "p99": 7.0}
    assert percentiles([]) is None


def test_figures_of_a_result() -> None:
    seen = [
        Seen(0.0, [1.0, 2.0, 4.0], rounds=30, shared_rounds=20, bytes_sent=100),
        Seen(1.0, [1.0, 2.0, 3.0], rounds=30, shared_rounds=25, bytes_sent=100),
        Seen(2.0, error="busy", message="party0 is busy"),
    ]
    found = LoadResult(Load(3), seen, 5.0).to_json()
    assert (found["completed"], found["failed"], found["tokens"]) == (2, {"busy": 1}, 6)
    assert found["tokens_per_second"] == pytest.approx(6 / 5)
    assert found["decoding_tokens_per_second"] == pytest.approx(4 / 3)  # from 1 to 4 s
    assert found["first_token_seconds"] == {"p50": 1.0, "p90": 1.0, "p99": 1.0}
    assert found["seconds_per_token"]["p90"] == 2.0
    assert (found["rounds"], found["shared_rounds"], found["share_of_rounds_shared"]) == (60, 45, 0.75)


def test_the_picture_shows_each_session_and_all_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [Seen(0.0, [1.0, 2.0, 4.0]), Seen(1.0, [1.5, 2.0, 3.0]), Seen(2.0, error="busy", message="party0 is busy")]
    figures: list[Any] = []
    monkeypatch.setattr(load_plot, "png_of", lambda figure: figures.append(figure) or b"png")
    found = load_plot.drawn(LoadResult(Load(3), seen, 5.0))
    assert found == Plot(b"png", "2 of 3 sessions, arrivals together, 32 tokens of prompt, 8 new ones")
    sessions, waits = figures[0].axes
    rows = [(list(line.get_xdata()), list(line.get_ydata())) for line in sessions.lines]
    assert rows[:3] == [([0.0, 1.0], [0, 0]), ([2.0, 4.0], [0, 0]), ([1.0], [0])]
    assert rows[3:] == [([1.0, 2.5], [1, 1]), ([3.0, 4.0], [1, 1]), ([2.5], [1]), ([2.0], [2])]
    steps, marks, between, _ = [(list(line.get_xdata()), list(line.get_ydata())) for line in waits.lines]
    assert steps == ([1.0, 1.0, 1.5], [0.0, 0.5, 1.0])
    assert marks == ([1.0, 1.5, 1.5], [0.5, 0.9, 0.99])
    assert between == ([0.5, 0.5, 1.0, 1.0, 2.0], [0.0, 0.25, 0.5, 0.75, 1.0])
    nobody = load_plot.drawn(LoadResult(Load(1), [seen[2]], 1.0))
    assert nobody.caption.startswith("0 of 1 sessions")


def test_a_load_test_against_running_parties(tmp_path: Path) -> None:
    toy = Toy()
    toy.before_round = slow(0.02)
    limits = {"max_sessions": 4, "max_in_step": 4, "max_queued_per_client": 0}
    with Deployment(tmp_path, 2, toy.program, limits=limits, queue_seconds=5) as deployment:
        deployment.share(make_checkpoint(tmp_path / "checkpoint"))
        client = deployment.client()
        done: list[int] = []
        asked = Asked(client, client.find_model(None), SuiteSpec("crypten"), progress=done.append)
        small = Load(4, "together", prompt=1, new_tokens=4)
        found = run_load(small, asked).to_json()
        assert (found["completed"], found["tokens"], sorted(done)) == (4, 16, [1, 2, 3, 4])
        assert found["share_of_rounds_shared"] > 0.2
        turn = run_load(Load(2, "turn", prompt=1, new_tokens=2), asked).to_json()
        assert turn["shared_rounds"] == 0
        crowd = run_load(Load(7, "together", prompt=1, new_tokens=4), asked).to_json()
        assert crowd["failed"]["busy"] >= 1
        assert crowd["completed"] + sum(crowd["failed"].values()) == 7
        path = tmp_path / "client.yaml"
        path.write_text(yaml.safe_dump(json.loads(json.dumps(deployment.values("client", "client"), default=str))))
        arguments = ["load", "--config", str(path), "--sessions", "2", "--prompt", "1", "--new", "2", "--suite", "crypten"]
        shown = CliRunner().invoke(app, [*arguments, "--arrivals", "every:0.1"])
        assert shown.exit_code == 0, shown.output
        assert "2 of 2 sessions, 4 tokens in" in shown.stdout
        plot = ["--plot", str(tmp_path / "load.png")]
        record = json.loads(CliRunner().invoke(app, [*arguments, *plot, "--json"]).stdout)
        assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")
        again = CliRunner().invoke(app, [*arguments, *plot])
        assert isinstance(again.exception, ConfigurationError)
        assert "load.png: give a file NAME.png that is not there yet" in str(again.exception)
        assert record["load"]["arrivals"] == "together"
        assert len(record["sessions"]) == 2
