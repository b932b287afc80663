"""`mpcache plan`: costs are those of the program, the cheapest alternative is named, and when eviction pays."""

from __future__ import annotations

import pytest

from launch.networks import find_network
from launch.planning import make_plan, price
from launch.tracing import Setting, trace_step
from mpc.errors import ConfigurationError
from tests.launch.conftest import Command
from tests.models.policy_cases import tiny

POLICY = "mpcache:static=0.5,dynamic=0.3,fine=4,coarse=8,sinks=4,window=4,sharing=1"


def test_a_price_is_what_a_step_costs() -> None:
    setting = Setting("masked", 2, POLICY)
    token, once = price(tiny(), setting, 96)
    traced = trace_step(tiny(), setting, 96).ledger.total("step")
    assert (token.rounds, token.bytes_sent, token.offline_bytes) == (traced.rounds, traced.bytes_sent, traced.offline_bytes)
    assert once.rounds > 0


@pytest.mark.parametrize("suite", ["masked", "crypten"])
def test_the_best_alternative_is_the_cheapest(suite: str) -> None:
    plan = make_plan(tiny(), Setting(suite, 2, POLICY), 96, 400, find_network("0,1"))
    assert len(plan.choices) == 8
    assert len({c.policy for c in plan.choices}) == 8
    usable = [c for c in plan.choices if not c.problem]
    assert plan.total_seconds(plan.best) == min(plan.total_seconds(c) for c in [*usable, plan.full])
    for choice in usable:
        extra = choice.once_seconds(plan.network) - plan.full.once_seconds(plan.network)
        after = plan.pays_after(choice)
        if 0 < after < float("inf"):
            saved = plan.full.seconds(plan.network) - choice.seconds(plan.network)
            assert after * saved == pytest.approx(extra)


def test_where_only_round_trips_count_the_full_cache_is_best() -> None:
    plan = make_plan(tiny(), Setting("masked", 2, POLICY), 96, 8, find_network("50,100000"))
    assert plan.best is plan.full
    assert all(plan.pays_after(c) == float("inf") for c in plan.choices if not c.problem)


def test_other_policies_and_short_prompts_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="policy 'quest' has no alternatives to plan"):
        make_plan(tiny(), Setting("masked", 2, "quest"), 96, 8, find_network("lan"))
    with pytest.raises(ConfigurationError, match=r"no alternative fits: policy mpcache: dynamic = 0\.1 attends to 10"):
        make_plan(tiny(), Setting("masked", 2, "mpcache:sharing=1,static=1"), 96, 8, find_network("lan"))


def test_the_command_explains(command: Command) -> None:
    found = command(
        "plan", "--model", "gpt2", "--prompt", "96", "--policy", "mpcache:fine=4,coarse=8,sinks=4,window=4", "--explain"
    )
    assert found.code == 0
    assert "full cache" in found.out
    assert "8/4 products" in found.out
    assert "full: for 32 new tokens after 96 eviction does not pay on 'lan'" in " ".join(found.out.split())
