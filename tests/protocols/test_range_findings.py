"""Opened range flags in words: kind, place, the bound in force and the option that helps."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
import torch
from torch import Tensor

from protocols.bounds import RANGE_KINDS, RANGES, Bounds
from protocols.options import MaskedOptions
from protocols.range_findings import RangeFinding, findings_in, open_flags, summary

AT = "at token 3: --suite-option"
CALIBRATE = "calibrate the model with text like this prompt (mpcache calibrate)"
PLACES = 7


def flags(*marks: tuple[str, int]) -> Tensor:
    words = torch.zeros(len(RANGE_KINDS), PLACES, dtype=torch.int64)
    for kind, place in marks:
        words[RANGE_KINDS.index(kind), place] = -(2**63)
    return words


@pytest.mark.parametrize(
    ("mark", "options", "message"),
    [
        (
            ("score", 5),
            {},
            f"attention scores of layer 5 left their range (spread up to 112) {AT} score=8, or {CALIBRATE}",
        ),
        (
            ("residual", 0),
            {"residual": 15},
            f"the residual stream of layer 0 left its range (norm of a row up to 32768) {AT} residual=16, or {CALIBRATE}",
        ),
        (
            ("value", 2),
            {"value": "6*2 7 8"},
            f"cached values of layer 2 left their range (up to 128) {AT} 'value=6*2 8', or {CALIBRATE}",
        ),
        (
            ("activation", 6),
            {"activation": "8*6 9"},
            f"activations at the head left their range (up to 512) {AT} 'activation=8*6 10', or {CALIBRATE}",
        ),
        (
            ("score", 1),
            {"score": 10},
            f"attention scores of layer 1 left their range (spread up to 896) at token 3: {CALIBRATE}",
        ),
        (
            ("logits", 6),
            {"activation": 9},
            f"logits at the head left their range (up to 512) {AT} ",
        ),
    ],
)
def test_message(mark: tuple[str, int], options: dict[str, Any], message: str) -> None:
    (found,) = findings_in(flags(mark), 2, MaskedOptions(**options).bounds)
    assert found.message.startswith(message)
    assert (found.kind, found.step) == (mark[0], 2)
    assert found.layer == ("head" if mark[1] == PLACES - 1 else mark[1])
    assert found.to_json()["message"] == found.message
    if found.option is not None:  # one that may be given as it is, and that doubles the bound there
        name, _, value = found.option.partition("=")
        raised = Bounds.parse(name, int(value) if value.isdigit() else value, RANGES[name].low, RANGES[name].high)
        assert found.bound is not None
        assert raised.at(mark[1]) == found.bound + 1


def test_a_suite_without_the_option() -> None:
    (found,) = findings_in(flags(("residual", 3)), 0, {})
    assert found == RangeFinding("residual", 3, 0)
    assert found.message == f"the residual stream of layer 3 left its range at token 1: {CALIBRATE}"


def test_in_the_order_of_the_computation() -> None:
    found = findings_in(flags(("activation", 1), ("logits", 6), ("score", 4), ("score", 1)), 0, MaskedOptions().bounds)
    assert [(f.kind, f.layer) for f in found] == [("score", 1), ("activation", 1), ("score", 4), ("logits", "head")]
    assert summary(found) == f"{found[0].message} (3 further findings after it, which may follow from it)"
    assert summary(found[:2]) == f"{found[0].message} (1 further finding after it, which may follow from it)"
    assert summary(found[:1]) == found[0].message
    assert findings_in(flags(), 0, MaskedOptions().bounds) == ()


@pytest.mark.parametrize("parties", [2, 3])
def test_opening(parties: int) -> None:
    words = [[secrets.randbits(63) for _ in range(6)] for _ in range(parties - 1)]
    wanted = [0, 1, 0, -5, 2**62, -(2**63)]
    last = [w for w in wanted]
    for row in words:
        last = [a ^ b for a, b in zip(last, row, strict=True)]
    shares = [torch.tensor(row, dtype=torch.int64).reshape(2, 3) for row in [*words, last]]
    assert open_flags(shares).flatten().tolist() == wanted
