"""A program's roles as threads of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from launch.local import in_process

ENTRIES, ELEMENTS = 64, 1 << 12


def test_a_dealer_that_waits_for_one_party_has_kept_nothing_back_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last party is dealt far more than it may leave unread, the first one headers alone, and both need each other for
    every entry: what the first one waits for must not lie at the dealer."""
    monkeypatch.setattr(in_process, "UNREAD_BYTES", 4 * ELEMENTS * 8)
    monkeypatch.setattr(in_process, "TAPE_SECONDS", 10.0)

    def party(channel: Any, tape: Any) -> torch.Tensor:
        total = torch.zeros(ELEMENTS, dtype=torch.int64)
        for _ in range(ENTRIES):
            total += tape.dependent("entry", (ELEMENTS,), None)
            channel.exchange_all(b"next")
        return total

    def dealer(tape: Any) -> None:
        for number in range(ENTRIES):
            tape.dependent("entry", (ELEMENTS,), lambda number=number: torch.full((ELEMENTS,), number))

    (first, last), _ = in_process.run_in_process(2, party, dealer)
    assert torch.equal(first + last, torch.full((ELEMENTS,), sum(range(ENTRIES))))
