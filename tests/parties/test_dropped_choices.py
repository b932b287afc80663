"""How many choices of an expert found no place reaches the client, and nobody else; what does not fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mpc.errors import WireError
from protocols.suite import OutputShare
from tests.parties.conftest import Running

PROMPT, NEW = [3, 1, 4], 3
SHARES = (torch.tensor([(1 << 47) + 9]), torch.tensor([(1 << 47) - 2]))  # of 7, modulo 2^48


def planted(first: Callable[[int], OutputShare | None], later: OutputShare | None = None) -> Callable[..., OutputShare]:
    """Return an `after_share` that plants each party's share of a count beside the first output, or beside later ones."""
    steps = [0, 0]

    def after_share(party: int, share: OutputShare) -> OutputShare:
        if party < 0:
            return share
        steps[party] += 1
        return replace(share, dropped=first(party) if steps[party] == 1 else later)

    return after_share


def test_the_count_reaches_the_client(two: Running) -> None:
    two.toy.after_share = planted(lambda party: OutputShare(SHARES[party], 48, 0))
    assert two.deployment.client().ask(PROMPT, NEW).dropped_choices == 7


def test_no_count_is_none(two: Running) -> None:
    assert two.deployment.client().ask(PROMPT, NEW).dropped_choices is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            planted(lambda party: OutputShare(SHARES[0], 48, 0) if party else None),
            "output 0 with and without a count of dropped choices: party0 0 bytes, party1 4 bytes",
        ),
        (planted(lambda party: None, OutputShare(SHARES[0], 48, 0)), "sent 4 bytes of a count with output 1"),
        (planted(lambda party: OutputShare(SHARES[0].repeat(2), 48, 0)), "sent 8 bytes of a count with output 0"),
    ],
)
def test_a_count_that_does_not_fit(two: Running, change: Callable[..., OutputShare], message: str) -> None:
    two.toy.after_share = change
    with pytest.raises(WireError, match=message):
        two.deployment.client().ask(PROMPT, NEW)
