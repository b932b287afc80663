"""Predictions: what the estimate says, not less, within a time limit; policies' layers that are traced for others."""

from __future__ import annotations

import time

import pytest

from models.costs import prediction
from models.costs.estimation import Tracer, alike, estimate
from models.costs.prediction import PredictionTooLong, Predictor, rounded
from models.costs.tracing import Setting
from models.shapes import SHAPES

MODEL = SHAPES["tiny"].model_copy(update={"layers": 7})


def test_lengths_are_rounded_up_by_an_eighth_at_most() -> None:
    for tokens in (1, 7, 15, 16, 17, 100, 127, 128, 129, 900, 8191):
        found = rounded(tokens, 1 << 20)
        assert tokens <= found <= tokens * 9 / 8
        assert rounded(found, 1 << 20) == found
    assert rounded(900, 920) == 920
    assert len({rounded(n, 1 << 20) for n in range(1, 8193)}) < 100


@pytest.mark.parametrize("suite", ["masked", "crypten"])
def test_as_the_estimate(suite: str) -> None:
    found = Predictor(MODEL, Setting(suite)).predict(12, 4, 60)
    exact = estimate(MODEL, Setting(suite), 12, 4)
    assert found.prompt_dealt == exact.first.total("offline_bytes")
    assert found.prompt_sent == exact.first.total("bytes_sent")
    for field, value in (("offline_bytes", found.dealt), ("bytes_sent", found.sent)):
        assert exact.total.total(field) <= value <= 1.05 * exact.total.total(field)


def test_costly_policies_are_seen() -> None:
    usual, costly = (
        Predictor(MODEL, Setting("masked", 2, policy)).predict(60, 2, 60) for policy in ("full", "quest:budget=0.9,page=1")
    )
    assert costly.dealt_each > 1.5 * usual.dealt_each


def test_a_time_limit() -> None:
    began = time.perf_counter()
    predictor = Predictor(MODEL, Setting("crypten"))
    with pytest.raises(PredictionTooLong):
        predictor.predict(40, 2, 0.01)
    assert time.perf_counter() - began < 5
    assert not predictor.known(40, 2)


def test_like_sessions_share_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(MODEL, Setting("masked"))
    predictor.predict(50, 2, 60)
    assert predictor.known(52, 1)
    assert not predictor.known(53, 1)
    monkeypatch.setattr(prediction.Tracer, "_whole", None)
    assert predictor.predict(52, 1, 60).prompt_dealt == predictor.predict(50, 1, 60).prompt_dealt


@pytest.mark.parametrize(
    ("policy", "layers"),
    [
        ("mpcache:preset=clusters,dynamic=0.5,sinks=1,window=2", 5),
        ("mpcache:preset=clusters,dynamic=0.5,sinks=1,window=2,apart=0,sharing=3", 7),
        ("quest:budget=0.5", 4),
        ("full@0-1;h2o:budget=0.5", 4),
        ("chunked:tokens=16|mpcache:preset=clusters,dynamic=0.5,sinks=1,window=2", 5),
        ("batches:tokens=16,ahead=4|mpcache:preset=clusters,dynamic=0.5,sinks=1,window=2", 5),
        ("batches:tokens=12,ahead=0|full@0-1;h2o:budget=0.5", 4),
    ],
)
def test_layers_of_policies_that_are_alike(policy: str, layers: int) -> None:
    setting = Setting("masked", 2, policy)
    reduced, _, repeats = alike(MODEL, setting)
    assert (reduced.layers, sum(repeats)) == (layers, MODEL.layers)
    for cached, tokens in ((0, 40), (40, 1)):
        quick, whole = (Tracer(MODEL, setting, every).step(cached, tokens).costs for every in (False, True))
        assert quick == whole
