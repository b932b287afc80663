"""Runs a program of the suite `masked` on shares of given floats, all parties and the dealer in one process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from launch.local.in_process import run_in_process
from mpc import fixed_point, ring
from mpc.ledger import Ledger
from mpc.random import Prg, new_seed
from mpc.tape import CountingTape
from protocols.masked.magnitudes import WEIGHT_BITS
from protocols.masked.suite import MaskedSuite
from protocols.options import MaskedOptions
from protocols.suite import Value

Program = Callable[..., Awaitable[Any]]


def additive(x: Tensor, parties: int, bits: int = 64) -> list[Tensor]:
    """Additive shares of int64 ring elements."""
    prg = Prg(new_seed())
    parts = [prg.ring(x.shape, bits) for _ in range(parties - 1)]
    rest = x.clone()
    for part in parts:
        rest = rest - part
    return [*parts, ring.reduce(rest, bits)]


def run_masked(
    program: Program,
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor] = (),
    parties: int = 2,
    input_bits: int = 16,
    flag_shares: list[Tensor] | None = None,
    **options: Any,
) -> tuple[list[Tensor], Ledger]:
    """Outputs (float64) of `program(suite, *inputs, *weights)` and party 0's ledger without the loading of weights.

    The costs that the dealer and the estimator predict are compared with those counted at the parties. flag_shares: gets
    every party's share of the range flags.
    """
    shares = [additive(fixed_point.encode(x, input_bits), parties) for x in inputs]
    weight_shares = [additive(fixed_point.encode(w, WEIGHT_BITS), parties) for w in weights]

    async def main(suite: MaskedSuite, party: int | None) -> list[Any]:
        values: list[Value] = [
            suite.input(x.shape, None if party is None else shares[k][party], input_bits) for k, x in enumerate(inputs)
        ]
        for k, w in enumerate(weights):
            values.append(await suite.weight(f"w{k}", w.shape, None if party is None else weight_shares[k][party]))
        suite.ledger.costs.clear()
        found = await program(suite, *values)
        outputs = [suite.output(v) for v in (found if isinstance(found, list | tuple) else [found])]
        if flag_shares is not None and (words := suite.flags()) is not None and party is not None:
            flag_shares.append(words)
        return outputs

    def at_party(channel: Any, tape: Any) -> Any:
        suite = MaskedSuite(parties=parties, tape=tape, channel=channel, options=MaskedOptions(**options))
        return suite.run(main(suite, channel.party)), suite.ledger

    def at_dealer(tape: Any) -> Any:
        suite = MaskedSuite(parties=parties, tape=tape, channel=None, options=MaskedOptions(**options))
        suite.run(main(suite, None))
        return suite.ledger

    results, dealer = run_in_process(parties, at_party, at_dealer)
    estimator = MaskedSuite(parties=parties, tape=CountingTape(), channel=None, options=MaskedOptions(**options))
    estimator.run(main(estimator, None))
    counted = results[-1][1].total()
    for predicted in (dealer.total(), estimator.ledger.total()):
        assert (predicted.bytes_sent, predicted.rounds) == (counted.bytes_sent, counted.rounds)
    assert estimator.ledger.total().offline_bytes == counted.offline_bytes
    outputs = []
    for k, first in enumerate(results[0][0]):
        total = torch.zeros(first.share.shape, dtype=torch.int64)
        for shares_of_party, _ in results:
            total = total + shares_of_party[k].share.cpu()
        outputs.append(fixed_point.decode(ring.reduce(total, first.bits), first.fraction_bits, first.bits))
    return outputs, results[0][1]
