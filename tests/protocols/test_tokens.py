"""Secret token indices: rows of a table on shares, whatever index was shared; in blocks; at every suite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import protocols.masked.tokens as module
from launch.local.in_process import run_in_process
from mpc import fixed_point
from mpc.tape import CountingTape
from protocols.registry import SuiteSpec, secure_suite
from tests.protocols.masked.harness import additive
from tests.protocols.suite_harness import SECURE

WIDTH = 5


EVERY = [*SECURE, ("masked, bits", 2), ("masked, bits", 3)]


@pytest.fixture(autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the form of `masked` that a test names, whatever is chosen for so few tokens."""
    named = getattr(request.node, "callspec", None)
    name = str(named.params.get("suite_name", "")) if named is not None else ""
    monkeypatch.setattr(module, "look_up", module.by_bits if "bits" in name else module.by_rows)


def looked_up(suite_name: str, parties: int, index: Tensor, table: Tensor) -> tuple[Tensor, Any]:
    """Rows found on shares, float64, and the last party's costs, which the estimate's equal."""
    suite_name = suite_name.partition(",")[0]
    encoded = fixed_point.encode(table, 16)
    bits = 20 if suite_name == "crypten" else 16
    weights = [additive(encoded << (bits - 16), parties), additive(index, parties)]

    def program(suite: Any, party: int | None) -> Any:
        held, shared = (None, None) if party is None else (weights[0][party], weights[1][party])
        weight = suite.run(suite.weight("embedding.tokens", table.shape, held))
        suite.ledger.costs.clear()

        async def main() -> Any:
            return await suite.look_up(suite.indices(len(index), shared, len(table)), weight)

        return suite.output(suite.run(main())), suite.ledger.total()

    def at_party(channel: Any, tape: Any) -> Any:
        return program(secure_suite(SuiteSpec(suite_name), parties=parties, tape=tape, channel=channel), channel.party)

    def at_dealer(tape: Any) -> Any:
        return program(secure_suite(SuiteSpec(suite_name), parties=parties, tape=tape, channel=None), None)

    outputs, _ = run_in_process(parties, at_party, at_dealer)
    estimate = secure_suite(SuiteSpec(suite_name), parties=parties, tape=CountingTape(), channel=None)
    predicted, counted = program(estimate, None)[1], outputs[-1][1]
    for name in ("rounds", "bytes_sent", "offline_bytes"):
        assert getattr(predicted, name) == getattr(counted, name), name
    first = outputs[0][0]
    total = torch.stack([share.share.cpu() for share, _ in outputs]).sum(0)
    return fixed_point.decode(total, first.fraction_bits, first.bits), counted


@pytest.mark.parametrize(("suite_name", "parties"), EVERY)
@pytest.mark.parametrize("size", [2, 3, 64, 97])
def test_every_index_gives_its_row(suite_name: str, parties: int, size: int) -> None:
    table = torch.arange(size * WIDTH, dtype=torch.float64).reshape(size, WIDTH) / 16 - 7
    found, _ = looked_up(suite_name, parties, torch.arange(size), table)
    assert torch.equal(found, table)


@pytest.mark.parametrize(("suite_name", "parties"), EVERY)
def test_whatever_was_shared_is_a_row_of_the_table(suite_name: str, parties: int) -> None:
    table = torch.arange(11 * WIDTH, dtype=torch.float64).reshape(11, WIDTH) + 1
    index = torch.tensor([11, 15, 16, -1, 3 << 40, 2**62 + 4, -(2**63)])
    found, _ = looked_up(suite_name, parties, index, table)
    assert torch.equal(found, table[(index & 15) % 11])


@pytest.mark.parametrize(("suite_name", "parties"), EVERY)
def test_blocks_give_the_same_rows(suite_name: str, parties: int, monkeypatch: pytest.MonkeyPatch) -> None:
    table = torch.randn(97, WIDTH, generator=torch.Generator().manual_seed(1)).double().mul(256).round() / 256
    index = torch.arange(20) * 31 % 97
    whole, cost = looked_up(suite_name, parties, index, table)
    monkeypatch.setattr(module, "ROW_ENTRIES", 7 * 128)
    assert [cut.stop - cut.start for cut in module.blocks(20, 97)] == [7, 7, 6]
    parts, more = looked_up(suite_name, parties, index, table)
    assert torch.equal(whole, table[index])
    assert torch.equal(parts, whole)
    assert more.bytes_sent == cost.bytes_sent
    assert more.rounds == cost.rounds + (2 if suite_name == "crypten" else 0)


@pytest.mark.parametrize(
    ("suite_name", "rounds", "sent"),
    [
        ("masked", 2, 8 * 7 // 8 + 8 * 97 * 32 // 8),
        ("masked, bits", 3, 8 * 7 // 8 + 8 * -(-97 // 8) + 8 * WIDTH * 32 // 8 + 8 // 8),
    ],
)
def test_costs_are_those_documented(suite_name: str, rounds: int, sent: int) -> None:
    """Two parties: w bits a token, then V ring elements, or V bits in whole bytes, D ring elements and a bit."""
    table, index = torch.zeros(97, WIDTH, dtype=torch.float64), torch.arange(8)
    _, cost = looked_up(suite_name, 2, index, table)
    assert (cost.rounds, cost.bytes_sent) == (rounds, sent)


@pytest.mark.parametrize(("size", "bits"), [(1, 1), (2, 1), (3, 2), (256, 8), (257, 9), (50257, 16), (128256, 17)])
def test_bits_of_an_index(size: int, bits: int) -> None:
    assert module.index_bits(size) == bits


def test_no_more_rows_are_held_than_stated() -> None:
    for size in (97, 50257, 128256):
        assert all(
            (cut.stop - cut.start) << module.index_bits(size) <= module.ROW_ENTRIES for cut in module.blocks(999, size)
        )
