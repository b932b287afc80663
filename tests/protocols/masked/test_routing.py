"""Routing to experts: what is opened is uniform, broken masks are found out, logits beyond their range are flagged."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from mpc.errors import RangeError
from protocols.masked import routing
from protocols.masked.context import Context, Opening, open_value
from protocols.masked.shares import Shared
from protocols.masked.softmax import Spread
from protocols.suite import Suite, Value
from tests.protocols import uniformity
from tests.protocols.gate_harness import run
from tests.protocols.masked.harness import run_masked

TOKENS, EXPERTS = 600, 5
LOGITS = torch.tensor([3, 1, 2, 1, 0]).expand(TOKENS, EXPERTS) << 14  # one row everywhere: what shows through is not uniform


async def routed(c: Context, x: Shared) -> list[Any]:
    """Marks and gates, and the places of the first tokens."""
    logits = (await open_value(c, x)).with_frac(14)
    marks, gates = await routing.route(c, logits, routing.Choice(2, True, 20), Spread())
    rows, dropped = routing.slots(c, marks.map(lambda t: t[:60]), 20, 48)
    opened = await open_value(c, rows)
    assert isinstance(gates, Shared)
    return [c.shared(marks), gates.with_frac(0), c.shared(opened), dropped]


def failures(parties: int) -> list[uniformity.Result]:
    found = run(routed, [(LOGITS, 36)], parties)
    tested = uniformity.results([uniformity.Opened("routing", m, bits) for m, bits in found.seen])
    assert len(tested) > 10
    return uniformity.failures(tested)


@pytest.mark.parametrize("parties", [2, 3])
def test_what_is_opened_is_uniform(parties: int) -> None:
    assert not failures(parties)


def test_openings_without_a_mask_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of marks and of numerators."""

    async def bare(c: Context, x: Shared) -> Any:
        known = c.evaluating or c.tape.dealing
        return await Opening(x, torch.zeros(x.shape, dtype=torch.int64, device=c.device) if known else c.blank(x.shape))

    monkeypatch.setattr(routing, "open_value", bare)
    assert failures(2)


def test_counts_without_masks_of_their_own_tell_nothing_of_marks() -> None:
    """Places depend on marks; what parties see before they are opened does not: there is nothing that is opened for them."""

    async def program(c: Context, x: Shared) -> Any:
        marks = await open_value(c, x)
        return list(routing.slots(c, marks, 3, 48))

    marks = torch.tensor([[1, 0], [1, 1], [0, 1], [1, 1], [1, 0]])
    found = run(program, [(marks, 33)], 2)
    assert len(found.seen) == 1
    assert found.outputs[0].sum() == 6
    assert found.outputs[1].tolist() == [1]


@pytest.mark.parametrize(("spread", "flagged"), [(100.0, False), (200.0, True)])
def test_logits_that_lie_too_far_apart_are_flagged(spread: float, flagged: bool) -> None:
    async def program(suite: Suite, x: Value) -> Any:
        return await suite.route(x, 2, True)

    words: list[torch.Tensor] = []
    run_masked(program, [torch.tensor([[0.0, spread / 2, -spread / 2, 1.0]], dtype=torch.float64)], flag_shares=words)
    assert bool((words[0] ^ words[1]).any()) == flagged


@pytest.mark.covering(2)
@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("prefer", ["rounds", "bytes"])
@pytest.mark.parametrize(("activation", "size"), [(8, 250.0), (12, 4000.0)])
def test_logits_anywhere_within_their_bound_are_right_or_flagged(
    activation: int, size: float, prefer: str, parties: int
) -> None:
    async def program(suite: Suite, x: Value) -> Any:
        return await suite.route(x, 2, True)

    rows = [[size, size - 1, -size, -size], [size, size - 1, size - 2, -size], [-size, -size, size - 1, size]]
    for row in [*rows, *([a, a - 1, -size, b] for a in (size, 0.6 * size, 0.0) for b in (-0.9 * size, -0.5 * size))]:
        x, words = torch.tensor([row], dtype=torch.float64), list[torch.Tensor]()
        run = partial(run_masked, program, [x], parties=parties, flag_shares=words)
        (_, gates), _ = run(activation=activation, prefer=prefer)
        flags = words[0]
        for more in words[1:]:
            flags = flags ^ more
        kept = torch.where(x >= x.topk(2).values[:, 1:], x, -torch.inf)
        assert bool(flags.any()) or float((gates - torch.softmax(kept, -1)).abs().max()) < 2.0**-10, row


def test_logits_that_no_comparison_holds() -> None:
    async def program(suite: Suite, x: Value) -> Any:
        return await suite.route(x * (1 << 12), 2, True)

    with pytest.raises(RangeError, match="routing: logits up to"):
        run_masked(program, [torch.ones(1, 4, dtype=torch.float64)], fraction_bits=16)
