"""Every decoder against some hundred damaged inputs; `python -m tests.fuzz` runs many more."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.mutation import LONGEST, case
from tests.fuzz.run import FuzzFailure, fuzz, one
from tests.fuzz.targets import TARGETS, Target

#: Decoders of whole files, milliseconds a case.
SLOW = ("role configuration", "checkpoint", "certificate", "tape journal", "suite options", "GGUF")


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_damaged_inputs_are_refused(name: str) -> None:
    cases = 60 if name in SLOW else 300
    outcome = fuzz(name, cases)
    assert outcome.refused > cases // 4


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_what_is_valid_is_accepted(name: str) -> None:
    target = TARGETS[name]
    assert any(one(target, sample) for sample in target.samples())


@given(st.binary(max_size=300))
@settings(max_examples=20, deadline=None)
def test_noise(data: bytes) -> None:
    for target in TARGETS.values():
        one(target, data)


def test_a_crash_is_noticed() -> None:
    def broken(data: bytes) -> None:
        if b"x" in data:
            raise KeyError("no")

    target = Target(lambda: [b"abcx"], broken)
    with pytest.raises(FuzzFailure, match="KeyError"):
        one(target, b"abcx")
    assert one(target, b"abc")


def test_cases_are_reproducible_and_bounded() -> None:
    first, second = (random.Random(3) for _ in range(2))
    made = [case(first, [b"sample 12", b"other"]) for _ in range(500)]
    assert made == [case(second, [b"sample 12", b"other"]) for _ in range(500)]
    assert len(set(made)) > 400
    assert max(map(len, made)) <= LONGEST
