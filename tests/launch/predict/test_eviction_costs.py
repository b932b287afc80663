"""What eviction costs once is what a prompt costs more with the policy than without, in the decoder itself."""

from __future__ import annotations

import pytest

from launch.predict.eviction_costs import after_prompt, full_costs
from models.architecture import Architecture
from models.costs.tracing import STEP, Setting, trace_step
from tests.models.policies.policy_cases import tiny

POLICY = "mpcache:preset=clusters,static=0.5,dynamic=0.3,fine=4,coarse=8,sinks=4,window=4,sharing=1"
WITHOUT = "mpcache:preset=clusters,static=1,dynamic=0.3,fine=4,coarse=8,sinks=4,window=4,sharing=1"
SHAPES = [tiny(layers=3), tiny(heads=4, groups=2, layers=2)]


@pytest.mark.parametrize("policy", [POLICY, WITHOUT])
@pytest.mark.parametrize("architecture", SHAPES)
@pytest.mark.parametrize("suite", ["masked", "crypten"])
def test_it_is_the_difference_of_two_prompts(suite: str, architecture: Architecture, policy: str) -> None:
    with_policy, full = (
        trace_step(architecture, Setting(suite, 2, text), 0, 64, agreed=False).ledger.total(STEP)
        for text in (policy, "full")
    )
    found = after_prompt(architecture, Setting(suite, 2, policy), 64)
    assert found.rounds == with_policy.rounds - full.rounds >= 0
    assert found.bytes_sent == with_policy.bytes_sent - full.bytes_sent > 0
    assert found.offline_bytes == with_policy.offline_bytes - full.offline_bytes > 0


@pytest.mark.parametrize("suite", ["masked", "crypten"])
def test_a_prompt_in_batches_is_compared_as_a_whole(suite: str) -> None:
    """More rounds; what is dropped saves within the prompt, too."""
    architecture, text = tiny(heads=4, groups=4, layers=3, positions=256), f"batches:tokens=32,ahead=4|{POLICY}"
    with_policy, full = (
        trace_step(architecture, Setting(suite, 2, policy), 0, 128, agreed=False).ledger.total(STEP)
        for policy in (text, "full")
    )
    found = after_prompt(architecture, Setting(suite, 2, text), 128)
    assert found.rounds == with_policy.rounds - full.rounds >= 0
    assert found.bytes_sent == with_policy.bytes_sent - full.bytes_sent
    assert found.offline_bytes == with_policy.offline_bytes - full.offline_bytes
    setting = Setting(suite, 2, text)
    assert found == after_prompt(architecture, setting, 128, full_costs(architecture, setting, 128))
