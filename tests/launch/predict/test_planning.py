"""`mpcache plan`: costs are those of the program, the cheapest alternative is named, and when eviction pays."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from launch.predict.measured import read_measurements
from launch.predict.networks import LOCALHOST, NETWORKS, find_network
from launch.predict.planning import Lengths, make_plan, pays_after, price
from models.costs.tracing import Setting, trace_step
from models.policies import parse
from mpc.errors import ConfigurationError
from tests.launch.conftest import Command
from tests.models.policies.policy_cases import tiny

POLICY = "mpcache:preset=clusters,static=0.5,dynamic=0.3,fine=4,coarse=8,sinks=4,window=4,sharing=1"


def test_a_price_is_what_a_step_costs() -> None:
    setting = Setting("masked", 2, POLICY)
    token, once = price(tiny(), setting, 96)
    traced = trace_step(tiny(), setting, 96).ledger.total("step")
    assert (token.rounds, token.bytes_sent, token.offline_bytes) == (traced.rounds, traced.bytes_sent, traced.offline_bytes)
    assert once.rounds > 0


@pytest.mark.parametrize("suite", ["masked", "crypten"])
def test_the_best_alternative_is_the_cheapest(suite: str) -> None:
    plan = make_plan(tiny(), Setting(suite, 2, POLICY), Lengths(96, 400), find_network("0,1"))
    assert len(plan.choices) == 9
    assert len({c.policy for c in plan.choices}) == 9
    usable = [c for c in plan.choices if not c.problem]
    assert plan.total_seconds(plan.best) == min(plan.total_seconds(c) for c in [*usable, plan.full])
    for choice in usable:
        extra = choice.once_seconds(plan.network)
        after = plan.pays_after(choice)
        if 0 < after < float("inf"):
            saved = plan.full.seconds(plan.network) - choice.seconds(plan.network)
            assert after * saved == pytest.approx(extra)


def test_where_only_round_trips_count_the_full_cache_is_best() -> None:
    plan = make_plan(tiny(), Setting("masked", 2, POLICY), Lengths(96, 8), find_network("50,100000"))
    assert plan.best is plan.full
    assert all(plan.pays_after(c) == float("inf") for c in plan.choices[1:] if not c.problem)
    assert plan.choices[0].token.rounds == plan.full.token.rounds  # all that stays: no choice


def test_other_policies_and_short_prompts_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="policy 'quest' has no alternatives to plan"):
        make_plan(tiny(), Setting("masked", 2, "quest"), Lengths(96, 8), find_network("lan"))
    with pytest.raises(ConfigurationError, match=r"no alternative fits: policy mpcache: static = 0\.1 keeps 10"):
        make_plan(
            tiny(), Setting("masked", 2, "mpcache:preset=clusters,sharing=1,static=0.1"), Lengths(96, 8), find_network("lan")
        )


def test_the_command_explains(command: Command) -> None:
    found = command(
        "plan",
        "--model",
        "gpt2",
        "--prompt",
        "96",
        "--policy",
        "mpcache:preset=clusters,fine=4,coarse=8,sinks=4,window=4",
        "--explain",
    )
    assert found.code == 0
    assert "full cache" in found.out
    assert "8/4 products" in found.out
    text = " ".join(found.out.split())
    assert "full: for 32 new tokens after 96 eviction does not pay on 'lan' (computing not counted)" in text
    assert "tokens on localhost lan wan mobile" in text
    assert "What parties compute is not in it" in text


def record(**changes: object) -> dict[str, object]:
    """What `mpcache bench --json` prints, as far as a plan reads it."""
    given = {
        "layers": 4,
        "suite": "masked",
        "parties": 2,
        "cached": 96,
        "options": {},
        "policy": "full",
        "seconds_median": 2.0,
    }
    return {**given, **changes}


def eviction(**changes: object) -> dict[str, object]:
    """The same with --eviction."""
    stages = [{"name": "importance", "seconds": 3.0}, {"name": "keep-set", "seconds": 2.0}]
    return record(eviction=True, policy=POLICY, per_layer={"seconds": 2.0}, stages=stages, **changes)


def files(folder: Path, *records: object) -> list[Path]:
    paths = [folder / f"{n}.json" for n in range(len(records))]
    for path, one in zip(paths, records, strict=True):
        path.write_text(f"a table\n{json.dumps(one)}\n", encoding="utf-8")
    return paths


def test_measured_computing_decides_where_the_wire_does_not(tmp_path: Path) -> None:
    setting = Setting("masked", 2, POLICY)
    network = find_network("0,1000000")
    paths = files(tmp_path, record(), record(policy=POLICY, seconds_median=1.5), eviction())
    known = read_measurements(paths, tiny(), setting, 96)
    assert (known.token, known.once) == ({"full": 2.0, parse(POLICY).spec: 1.5}, {parse(POLICY).spec: 4 * 2.0 + 3.0})
    plan = make_plan(tiny(), setting, Lengths(96, 400), network, known)
    (choice,) = (c for c in plan.choices if c.computing is not None)
    assert parse(choice.policy) == parse(POLICY)
    assert plan.pays_by_network(choice)[network.name] == pytest.approx(11.0 / 0.5, rel=0.05)
    for name, other in {"localhost": LOCALHOST, **NETWORKS}.items():
        saved = plan.full.token.rounds - choice.token.rounds
        delay = other.round_trip / 2 + (0 if name == "localhost" else 0.3e-3)
        wire = saved * delay + (plan.full.token.bytes_sent - choice.token.bytes_sent) * 8 / other.bandwidth
        once = choice.once.rounds * delay + choice.once.bytes_sent * 8 / other.bandwidth
        expected = (11.0 + once) / (0.5 + wire) if 0.5 + wire > 0 else float("inf")
        assert plan.pays_by_network(choice)[name] == pytest.approx(expected)
    assert plan.best is choice  # 22 tokens of 400
    assert make_plan(tiny(), setting, Lengths(96, 20), network, known).best.policy == "full"
    without = next(c for c in plan.choices if c.computing is None and not c.problem)
    assert plan.pays_by_network(without)["lan"] == plan.pays_after(without, NETWORKS["lan"])


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([record(layers=3)], "layers is 3, the plan is for 4"),
        ([record(cached=97)], "cached is 97, the plan is for 96"),
        ([record(suite="crypten")], "suite is 'crypten', the plan is for 'masked'"),
        ([record(), eviction()], "a decode step with --policy mpcache:"),
        ([record(), record(policy=POLICY)], "an eviction (--eviction) with --policy mpcache:"),
        ([eviction()], "a decode step with --policy full is missing"),
        ([record(seconds_median="soon")], "is not one that `mpcache bench --json` prints"),
        (["text"], "is not one that `mpcache bench --json` prints"),
    ],
)
def test_measurements_that_do_not_fit_are_refused(tmp_path: Path, records: list[object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        read_measurements(files(tmp_path, *records), tiny(), Setting("masked", 2, POLICY), 96)


def test_a_file_of_measurements_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.json: cannot be read"):
        read_measurements([tmp_path / "none.json"], tiny(), Setting("masked"), 96)


def test_paying_never_and_at_once() -> None:
    assert (pays_after(6.0, 2.0), pays_after(6.0, 0.0), pays_after(6.0, -1.0)) == (3.0, float("inf"), float("inf"))
    assert (pays_after(0.0, 1.0), pays_after(0.0, 0.0), pays_after(0.0, -1.0)) == (0.0, 0.0, float("inf"))
