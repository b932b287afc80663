"""The most that a cache takes while a policy works on it."""

from __future__ import annotations

import pytest

from models.costs.cached import Watch, held_in
from models.costs.estimation import estimate
from models.costs.tracing import Setting
from models.shapes import SHAPES


@pytest.mark.parametrize("policy", ["mikv:budget=0.4,every=2", "mpcache:static=0.6,sharing=1", "h2o:budget=0.5"])
def test_layers_that_changed_are_looked_at_again(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that codecs hold apart, rows that leave, rows that come: as if every layer were looked at every time."""

    def cached() -> object:
        return estimate(SHAPES["tiny"], Setting("masked", policy=policy), 44, 4).cached

    found = cached()
    monkeypatch.setattr(Watch, "_held", lambda self, entry: held_in(entry))
    assert cached() == found
