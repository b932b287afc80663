"""Secret routing, places and rows of mixtures of experts on shares, against torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mpc.errors import RangeError
from protocols.suite import Suite, Value
from tests.protocols.suite_harness import SECURE, run_plain, run_secure

TOKENS, EXPERTS = 7, 5
LOGITS = torch.linspace(-6, 6, TOKENS * EXPERTS, dtype=torch.float64)[
    torch.randperm(35, generator=torch.Generator().manual_seed(1))
]
LOGITS = LOGITS.reshape(TOKENS, EXPERTS)


def gates_of(logits: Tensor, chosen: int, renormalised: bool) -> tuple[Tensor, Tensor]:
    """Return marks and gates as transformers' routers make them."""
    values, places = torch.topk(torch.softmax(logits, -1), chosen, -1)
    values = values / values.sum(-1, keepdim=True) if renormalised else values
    zero = torch.zeros_like(logits)
    return zero.scatter(-1, places, 1.0), zero.scatter(-1, places, values)


@pytest.mark.covering(2)
@pytest.mark.parametrize("chosen", [1, 2, 3, 5])
@pytest.mark.parametrize("renormalised", [True, False])
@pytest.mark.parametrize(("name", "parties"), SECURE)
def test_route(name: str, parties: int, chosen: int, renormalised: bool) -> None:
    async def program(suite: Suite, logits: Value) -> Any:
        return await suite.route(logits, chosen, renormalised)

    wanted = gates_of(LOGITS, chosen, renormalised)
    for found in (run_plain(program, [LOGITS]), run_secure(name, parties, program, [LOGITS])):
        assert torch.equal(found[0], wanted[0])
        torch.testing.assert_close(found[1], wanted[1], atol=2**-11, rtol=0)
        assert torch.equal(found[1] != 0, wanted[1] != 0)


@pytest.mark.parametrize(("name", "parties"), SECURE)
def test_equal_logits_go_to_the_earlier_expert(name: str, parties: int) -> None:
    async def program(suite: Suite, logits: Value) -> Any:
        return await suite.route(logits, 2, True)

    logits = torch.tensor([[0.5, 2.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    for found in (run_plain(program, [logits]), run_secure(name, parties, program, [logits])):
        assert found[0].tolist() == [[0, 1, 1, 0], [1, 1, 0, 0]]


@pytest.mark.parametrize("capacity", [1, 3, TOKENS])
@pytest.mark.parametrize(("name", "parties"), SECURE)
def test_places_and_back(name: str, parties: int, capacity: int) -> None:
    """Rows go to the experts' places the last token's first, and come back; what has no place is counted."""
    rows = torch.arange(TOKENS * 3, dtype=torch.float64).reshape(TOKENS, 3) / 4 - 2
    own = torch.rand(EXPERTS, TOKENS, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    async def program(suite: Suite, logits: Value, x: Value, gates: Value) -> Any:
        marks, _ = await suite.route(logits, 2, True)
        slots, dropped = await suite.slots(marks, capacity)
        found = await suite.gather(slots, x)
        weights = await suite.gather(slots, gates)
        return [slots, dropped, found, weights, await suite.scatter(slots, found, x)]

    marks = gates_of(LOGITS, 2, True)[0]
    slots = torch.zeros(EXPERTS, capacity, TOKENS, dtype=torch.float64)
    for e in range(EXPERTS):
        for j, t in enumerate(marks[:, e].nonzero().flatten().flip(0)[:capacity].tolist()):
            slots[e, j, t] = 1
    wanted = [
        slots,
        marks.sum() - slots.sum(),
        slots @ rows,
        slots @ own,
        rows + torch.einsum("ejt,ejd->td", slots, slots @ rows),
    ]
    for found in (run_plain(program, [LOGITS, rows, own]), run_secure(name, parties, program, [LOGITS, rows, own])):
        assert torch.equal(found[0], wanted[0])
        assert float(found[1]) == float(wanted[1])
        for a, b in zip(found[2:], wanted[2:], strict=True):
            torch.testing.assert_close(a, b, atol=2**-11, rtol=0)


@pytest.mark.parametrize("chosen", [0, 6])
def test_more_experts_than_there_are(chosen: int) -> None:
    async def program(suite: Suite, logits: Value) -> Any:
        return await suite.route(logits, chosen, True)

    with pytest.raises(RangeError, match=f"{chosen} of 5"):
        run_plain(program, [LOGITS])
    for name in ("masked", "crypten"):
        with pytest.raises(RangeError, match=f"{chosen} of 5"):
            run_secure(name, 2, program, [LOGITS])
