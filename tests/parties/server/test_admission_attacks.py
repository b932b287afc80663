"""What one authorised client, two of them, a model owner or a disk could do to unmodified roles: caught, each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.attack.contract import Attack
from tests.tools.attack.costly_policy import CostlyPolicy
from tests.tools.attack.damaged_share import DamagedShare
from tests.tools.attack.idle_streams import IdleStreams
from tests.tools.attack.model_id_reused import ModelIdReused
from tests.tools.attack.option_sets import OptionSets
from tests.tools.attack.two_clients_one_session import TwoClientsOneSession

pytestmark = pytest.mark.usefixtures("own_predictions")
ATTACKS: list[Attack] = [
    IdleStreams(),
    CostlyPolicy(),
    OptionSets(),
    TwoClientsOneSession(),
    ModelIdReused(),
    DamagedShare(),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_it_is_caught(attack: Attack, tmp_path: Path) -> None:
    verdict = attack.run(tmp_path)
    assert verdict.caught, f"{verdict.shown}; {verdict.detail}"
