"""Predictions of costs that know what any server of this process has traced.

All servers of a deployment predict the same sessions, and most deployments of tests have the same model. A trace depends on
public numbers only, so each is made once. A test of predictions themselves takes the fixture `own_predictions`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from models.costs.estimation import Step, Tracer
from models.costs.prediction import Predictor
from parties.server import cost_limits

_TRACED: dict[str, dict[tuple[int, int, bool], Step]] = {}


class KnowingPredictor(Predictor):
    """A predictor that begins with the steps that were traced in its setting."""

    def _tracer(self, prompt: int) -> Tracer:
        tracer = super()._tracer(prompt)
        tracer.lengths = _TRACED.setdefault(repr((self._architecture, self._setting, tracer.read)), tracer.lengths)
        return tracer


@pytest.fixture(scope="session", autouse=True)
def _shared_predictions() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost_limits, "Predictor", KnowingPredictor)
        yield


@pytest.fixture
def own_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every server predict by itself."""
    monkeypatch.setattr(cost_limits, "Predictor", Predictor)
