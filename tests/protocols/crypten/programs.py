"""Runs a program of the suite `crypten` with all parties and the dealer in one process, on shares of float inputs."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from launch.local.in_process import run_in_process
from mpc.fixed_point import decode, encode
from mpc.ledger import Ledger
from mpc.random import Prg, new_seed
from mpc.tape import DealerTape, PartyTape
from protocols.bounds import RANGE_KINDS
from protocols.crypten.linear import WEIGHT_BITS
from protocols.crypten.suite import CryptenSuite
from protocols.options import CryptenOptions
from protocols.suite import OutputShare, Value

Program = Callable[..., Coroutine[Any, Any, Any]]


@dataclass
class Outcome:
    """values: float64 results, one per value that the program returns. ledgers: one per party, of the program alone.

    words: the parties' shares of the range flags after it.
    """

    values: list[Tensor]
    ledgers: list[Ledger]
    dealer: Ledger
    shares: list[list[OutputShare]]
    words: list[Tensor]

    @property
    def value(self) -> Tensor:
        """The only result."""
        (out,) = self.values
        return out

    @property
    def flags(self) -> Tensor:
        """The range flags that a client opens: [kinds, places]."""
        out = torch.zeros_like(self.words[0])
        for share in self.words:
            out ^= share
        return out

    @property
    def flagged(self) -> set[str]:
        """Kinds that are flagged anywhere."""
        return {kind for kind, row in zip(RANGE_KINDS, self.flags, strict=True) if bool((row != 0).any())}


def split(x: Tensor, parties: int) -> list[Tensor]:
    """Additive shares of ring elements."""
    prg = Prg(new_seed())
    parts = [prg.ring(x.shape) for _ in range(parties - 1)]
    return [*parts, x - sum(parts)]


def evaluate(
    program: Program,
    inputs: Sequence[Tensor] = (),
    *,
    parties: int = 2,
    fraction_bits: int = 16,
    input_bits: int | None = None,
    weights: Mapping[str, Tensor] | None = None,
    dealer_program: Program | None = None,
    **options: Any,
) -> Outcome:
    """program(suite, *inputs, **weights) returns a value or several; see `Outcome`."""
    settings = CryptenOptions(fraction_bits=fraction_bits, **options)
    bits = fraction_bits if input_bits is None else input_bits
    shared = [split(encode(x, bits), parties) for x in inputs]
    weight_bits = fraction_bits if settings.crypten_own else WEIGHT_BITS
    fixed = {name: split(encode(w, weight_bits), parties) for name, w in (weights or {}).items()}

    def main(suite: CryptenSuite, party: int | None, runs: Program) -> tuple[list[OutputShare], Tensor | None]:
        values = [
            suite.input(x.shape, None if party is None else parts[party], bits)
            for x, parts in zip(inputs, shared, strict=True)
        ]

        async def whole() -> list[Value]:
            held = {
                name: await suite.weight(name, parts[0].shape, None if party is None else parts[party])
                for name, parts in fixed.items()
            }
            before.append(suite.ledger.total())
            suite.ledger.costs.clear()
            out = await runs(suite, *values, **held)
            return list(out) if isinstance(out, list | tuple) else [out]

        suite.at(0)
        before: list[Any] = []
        results = suite.run(whole())
        kept = Ledger(dict(suite.ledger.costs))
        suite.ledger.costs = {}
        outputs = [suite.output(x) for x in results]
        suite.ledger.costs = kept.costs
        return outputs, suite.flags()

    def party_main(channel: Any, tape: PartyTape) -> tuple[list[OutputShare], Tensor | None, Ledger]:
        suite = CryptenSuite(parties=parties, tape=tape, channel=channel, options=settings)
        return *main(suite, channel.party, program), suite.ledger

    def dealer_main(tape: DealerTape) -> Ledger:
        suite = CryptenSuite(parties=parties, tape=tape, channel=None, options=settings)
        main(suite, None, dealer_program or program)
        return suite.ledger

    results, dealer = run_in_process(parties, party_main, dealer_main)
    shares = [r[0] for r in results]
    totals = []
    for parts in zip(*shares, strict=True):
        total = sum(p.share.cpu() for p in parts)
        assert isinstance(total, Tensor)
        totals.append(decode(total, parts[0].fraction_bits))
    return Outcome(totals, [r[2] for r in results], dealer, shares, [r[1] for r in results])


def decoded(x: Tensor, fraction_bits: int = 16) -> Tensor:
    """x as it is after encoding: what an error is measured against."""
    return torch.round(x.double() * 2.0**fraction_bits) / 2.0**fraction_bits
