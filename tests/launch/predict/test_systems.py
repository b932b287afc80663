"""`mpcache plan --systems`: costs are those of the program, what is found is what was committed, and who is as good."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from launch.cli.commands.plan import times_less
from launch.predict.networks import find_network
from launch.predict.planning import Lengths, price
from launch.predict.systems import SYSTEMS, Offer, as_good, found, offers
from models.costs.tracing import Setting
from models.policies import parse
from models.policies.registry import POLICIES
from models.shapes import SHAPES, with_positions
from mpc.ledger import Cost
from tests.launch.conftest import Command
from tests.tools import found_needles

RECALL = Path(__file__).parents[3] / "models" / "recall" / "gpt2"


def test_every_system_is_compared() -> None:
    named = {name for text in SYSTEMS for name in POLICIES if name in text.replace("|", ":").split(":")}
    assert set(POLICIES) - named == {"epicache"}  # its probes are no part of a prompt of that length
    for text in SYSTEMS:
        parse(text)


def test_what_is_found_is_what_was_committed() -> None:
    assert found_needles.WHERE.read_text(encoding="utf-8") == found_needles.text()
    assert found("full", 1500) == (36, 36, 1000)
    assert found("mpcache", 1600) == (12, 12, 2000)
    assert found("mpcache:fine=9", 1000) is None


def test_costs_are_those_of_the_program_and_problems_are_named() -> None:
    setting, architecture = Setting("masked"), with_positions(SHAPES["gpt2"], 1100)
    asked = ("full", "mpcache", "snapkv:budget=0.01", "kvmerger:budget=0.4")
    full, kept, much, merged = offers(architecture, setting, Lengths(512, 8), asked)
    assert (full.policy, kept.problem, merged.problem) == ("full", "", "")  # what tokens receive reaches beyond 2^8 here
    assert "budget = 0.01" in much.problem
    token, once = price(architecture, Setting("masked", policy="mpcache"), 512)
    assert (kept.token, kept.once) == (token, once)
    assert kept.cache_bytes / full.cache_bytes == pytest.approx(0.4, abs=0.01)
    lan = find_network("lan")
    assert full.in_all(lan, 11) == pytest.approx(10 * full.seconds(lan))


def test_as_good_is_the_full_caches_count_but_for_one() -> None:
    given = [Offer("full", Cost(), found=(12, 12, 1000))]
    given += [Offer(f"p{n}", Cost(), found=(n, of, 1000)) for n, of in ((10, 12), (11, 12), (33, 36), (32, 36))]
    assert [one.policy for one in as_good([*given, Offer("unknown", Cost())])] == ["p11", "p33"]


def test_the_command(command: Command) -> None:
    done = command("plan", "--model", "gpt2", "--prompt", 128, "--systems", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert {one["policy"] for one in told["systems"]} == set(SYSTEMS)
    assert "mpcache" in told["as_good"]
    assert told["systems"][0]["rounds"] == 209


def test_lengths_beyond_the_positions_are_said_first(command: Command) -> None:
    """Of an encoder too; before anything is priced, and where they fit, not at all."""
    for arguments, message in (
        (
            ("estimate", "--model", "tiny", "--prompt", 63, "--new", 3, "--rate", 1),
            "64 positions, too few for 63 tokens and 3",
        ),
        (("plan", "--model", "tiny", "--prompt", 63, "--new", 3), "64 positions, too few for 63 tokens and 3 new ones"),
        (("estimate", "--model", "bert-base", "--prompt", 513, "--rate", 1), "512 positions, too few for 513 tokens"),
        (("estimate", "--model", "tiny", "--prompt", 63, "--new", 2, "--rate", 1), ""),
    ):
        done = command(*arguments)
        assert done.code == 0
        first = done.err.splitlines()[0] if done.err else ""
        assert message in first if message else "positions" not in done.err


def test_a_checkpoint_without_a_calibration_is_named(command: Command, tmp_path: Path) -> None:
    """Until there is one: an estimate counts usual bounds, a session its own."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(RECALL / name, tmp_path / name)
    asked = ("estimate", "--model", tmp_path, "--prompt", 8, "--rate", 1)
    said = f"{tmp_path} has no calibration for suite masked"
    assert said in command(*asked).err.replace("\n", " ")
    (tmp_path / "mpcache.json").write_text("{}")
    assert said in command(*asked).err
    shutil.copy(RECALL / "mpcache.json", tmp_path / "mpcache.json")
    assert said not in command(*asked).err
    assert said not in command("estimate", "--model", "gpt2", "--prompt", 8, "--rate", 1).err


@pytest.mark.parametrize("network", ["1e300,1", "-1,5", "1,1e-300", "1,1e12", "nan,1"])
def test_networks_that_nobody_has_are_refused(command: Command, network: str) -> None:
    done = command("estimate", "--model", "tiny", "--prompt", 5, "--network", network)
    assert done.code == 2
    assert f"network '{network}' is not one of lan, wan" in done.err
    assert "up to 100,000 ms" in done.err.replace("\n", " ")


@pytest.mark.parametrize(
    ("full", "one", "said"),
    [(30, 10, "3.00 times fewer bytes"), (10, 10, "1.00 times fewer bytes"), (68, 100, "1.47 times more bytes")],
)
def test_more_is_said_where_it_is_more(full: float, one: float, said: str) -> None:
    assert times_less(full, one, "fewer bytes") == said
