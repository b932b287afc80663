"""Runs a gate of the suite `masked` on shares of ring elements and compares every party's costs with the predicted ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from launch.local.in_process import run_in_process
from mpc import ring
from mpc.ledger import Cost
from mpc.tape import CountingTape
from protocols.masked.context import Context
from protocols.masked.shares import Shared
from protocols.schedule import Scheduler
from tests.protocols.masked.harness import additive

Gate = Callable[..., Awaitable[Any]]
Input = tuple[Tensor, int]


@dataclass
class Run:
    """Results as signed ring elements, every party's costs in all and by operation, what each saw
    arrive masked, and what was opened to it in the clear: (tensor, bits)."""

    outputs: list[Tensor]
    costs: list[Cost]
    operations: list[dict[str, Cost]]
    seen_by: list[list[tuple[Tensor, int]]]
    revealed: list[list[tuple[Tensor, int]]]

    @property
    def seen(self) -> list[tuple[Tensor, int]]:
        """What party 0 saw."""
        return self.seen_by[0]

    @property
    def out(self) -> Tensor:
        """The only result."""
        (only,) = self.outputs
        return only


def _listed(found: Any) -> list[Any]:
    return list(found) if isinstance(found, list | tuple) else [found]


def predict(gate: Gate, shapes: Sequence[tuple[Sequence[int], int]], parties: int, perspective: int | None = None) -> Cost:
    """The costs of a gate from shapes and rings alone."""
    c = Context(CountingTape(), None, parties, perspective=perspective)
    Scheduler(c.flush).run(gate(c, *(Shared(c.blank(shape), bits, 0) for shape, bits in shapes)))
    return c.ledger.total()


def run(gate: Gate, inputs: Sequence[Input], parties: int = 2) -> Run:
    """`gate(c, *sharings)`; its results are sharings. Fails when a party's counted costs differ from the predicted ones."""
    shares = [additive(ring.reduce(x, bits), parties, bits) for x, bits in inputs]
    seen: list[list[tuple[Tensor, int]]] = [[] for _ in range(parties)]
    revealed: list[list[tuple[Tensor, int]]] = [[] for _ in range(parties)]

    def at_party(channel: Any, tape: Any) -> Any:
        c = Context(tape, channel, parties)
        c.observer = lambda m, bits: seen[channel.party].append((m.cpu().clone(), bits))
        c.revealed = lambda m, bits: revealed[channel.party].append((m.cpu().clone(), bits))
        values = [Shared(s[channel.party].to(c.device), bits, 0) for s, (_, bits) in zip(shares, inputs, strict=True)]
        return _listed(Scheduler(c.flush).run(gate(c, *values))), channel.ledger

    def at_dealer(tape: Any) -> Any:
        c = Context(tape, None, parties)
        Scheduler(c.flush).run(gate(c, *(Shared(c.blank(x.shape), bits, 0) for x, bits in inputs)))
        return c.ledger.total()

    results, dealer = run_in_process(parties, at_party, at_dealer)
    costs = [ledger.total() for _, ledger in results]
    for party, cost in enumerate(costs):
        predicted = predict(gate, [(x.shape, bits) for x, bits in inputs], parties, party)
        assert (cost.bytes_sent, cost.bytes_received, cost.rounds, cost.messages) == (
            predicted.bytes_sent,
            predicted.bytes_received,
            predicted.rounds,
            predicted.messages,
        )
    assert costs[-1].offline_bytes == predicted.offline_bytes
    assert (costs[-1].bytes_sent, costs[-1].rounds) == (dealer.bytes_sent, dealer.rounds)
    outputs = []
    for k, first in enumerate(results[0][0]):
        total = torch.zeros(first.x.shape, dtype=torch.int64)
        for found, _ in results:
            assert (found[k].bits, found[k].frac, found[k].shape) == (first.bits, first.frac, first.shape)
            total = total + found[k].x.cpu()
        outputs.append(ring.signed(ring.reduce(total, first.bits), first.bits))
    return Run(outputs, costs, [ledger.by_operation() for _, ledger in results], seen, revealed)


def chi_square(values: Tensor, categories: int) -> float:
    """Pearson's statistic of int64 values in [0, categories) against the uniform distribution."""
    counts = torch.bincount(values.flatten(), minlength=categories).double()
    expected = values.numel() / categories
    return float(((counts - expected) ** 2 / expected).sum())


def chi_square_limit(categories: int) -> float:
    """A quantile of about 1 - 1e-6 of chi-square with categories - 1 degrees of freedom (Wilson-Hilferty)."""
    n = categories - 1
    return float(n * (1 - 2 / (9 * n) + 4.75 * (2 / (9 * n)) ** 0.5) ** 3)
