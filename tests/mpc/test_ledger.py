"""What is booked where."""

from __future__ import annotations

import json

from mpc.ledger import Cost, Ledger, current, operation, stage


def test_names_nest() -> None:
    assert current() == ("", "other")
    with stage("decode"), stage("layer0"), operation("softmax"), operation("max"):
        assert current() == ("decode/layer0", "max")
    assert current() == ("", "other")


def test_sums_by_stage_and_operation() -> None:
    ledger = Ledger()
    for layer in range(2):
        with stage("decode"), stage(f"layer{layer}"), operation("mul"):
            ledger.at().add(Cost(bytes_sent=10, bytes_received=20, rounds=1, messages=1))
            ledger.offline(5)
    with stage("prefill"):
        ledger.at().add(Cost(bytes_sent=1))
    assert ledger.total().bytes_sent == 21
    assert ledger.total("decode").rounds == 2
    assert ledger.total("decode").offline_bytes == 10
    assert ledger.by_stage(1)["decode"].bytes_received == 40
    assert set(ledger.by_stage()) == {"decode/layer0", "decode/layer1", "prefill"}
    assert ledger.by_operation("decode") == {"mul": Cost(20, 40, 2, 2, 0.0, 10)}
    assert json.loads(json.dumps(ledger.to_json()))["total"]["bytes_sent"] == 21


def test_seconds_of_timed_stages() -> None:
    ledger = Ledger()
    for _ in range(2):
        with ledger.timed("load"):
            pass
    assert list(ledger.seconds) == ["load"]
    assert ledger.seconds["load"] >= 0
