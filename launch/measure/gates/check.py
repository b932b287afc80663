"""A check of one gate: where it is defined, what it must give, how far it may be off, and the run that measures it.

INSECURE FOR REAL DATA BY NATURE: one process makes all shares and holds them (`launch.local.in_process`).

Two kinds. A `Gate` is a coroutine of the suite `masked` on masked values; its costs are those of the gate alone. A
`Function` is a method of the interface `Suite`, run on every suite that has a bound for it; its costs are those from an
additive sharing, the opening of the input included.

An element, of which bytes are counted, is one number of the first input.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from launch.local.in_process import InProcessSuite, run_in_process
from launch.local.shares import additive_shares, encoded_shares, opened
from mpc import ring
from mpc.channel import MemoryChannel
from mpc.ledger import Cost, stage
from mpc.tape import DealerTape, PartyTape
from protocols.masked.context import Context, open_value
from protocols.masked.shares import Shared
from protocols.registry import SuiteSpec
from protocols.schedule import Scheduler
from protocols.suite import OutputShare, Suite

INPUT_BITS = 16
"""Fraction bits of a `Function`'s inputs: finer than a suite's own, so that its rounding of the input is measured too."""

MEASURED = "gate"
Meaning = Literal["absolute", "relative", "exact"]
Judge = Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Check:
    """What both kinds have.

    name: unique within a suite. range: in words. meaning: of the bound; "exact" allows no error at all. points: inputs
    (float64) for a wanted number of elements, both ends of the range and all breakpoints among them. judge: from (inputs as
    they were encoded, results) to (absolute errors, errors in their meaning).
    """

    name: str
    group: str
    range: str
    meaning: Meaning
    points: Callable[[int], Sequence[Tensor]]
    judge: Judge


@dataclass(frozen=True)
class Gate(Check):
    """program(c, *masked) -> Shared or several. ring, frac: of every input. parties: None for any number."""

    program: Callable[..., Awaitable[Any]]
    bound: float
    ring: int
    frac: int
    parties: int | None = None


@dataclass(frozen=True)
class Function(Check):
    """program(suite, *values, *weights) -> Value or several. bounds: by suite. input_bits: fraction bits of the inputs."""

    program: Callable[..., Awaitable[Any]]
    bounds: Mapping[str, float]
    weights: tuple[Tensor, ...] = ()
    input_bits: int = INPUT_BITS


@dataclass(frozen=True)
class Row:
    """One line of the table. ring, frac: of the masked input (suite `crypten`: of its shares). Bytes: sent by the busiest
    party to all others, and received from the dealer by the party that receives most, for each element."""

    suite: str
    group: str
    name: str
    range: str
    ring: int
    frac: int
    parties: int
    points: int
    max_absolute: float
    meaning: Meaning
    error: float
    bound: float
    rounds: int
    bytes_sent: float
    offline_bytes: float

    @property
    def ok(self) -> bool:
        """Return whether the error is within its bound (a result that is no number is not)."""
        return self.error <= self.bound


@dataclass
class Found:
    """Results as floats, each party's costs, and the ring and fraction bits in which the input was opened."""

    outputs: list[Tensor] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    ring: int = 64
    frac: int = 0


def measure(check: Check, suite: str, parties: int, points: int) -> Row:
    """Run a check once. Raises what the gate raises; an error above the bound is a row that is not `ok`."""
    inputs = [x.to(torch.float64) for x in check.points(points)]
    frac = check.frac if isinstance(check, Gate) else check.input_bits if isinstance(check, Function) else 0
    inputs = [torch.round(x * 2.0**frac) / 2.0**frac for x in inputs]
    if isinstance(check, Gate):
        found, bound = run_gate(check, parties, inputs), check.bound
    elif isinstance(check, Function):
        found, bound = run_function(check, suite, parties, inputs), check.bounds[suite]
    else:
        raise TypeError(f"{type(check).__name__} is no kind of check")
    absolute, judged = check.judge(inputs, found.outputs)
    count = inputs[0].numel()
    return Row(
        suite=suite,
        group=check.group,
        name=check.name,
        range=check.range,
        ring=found.ring,
        frac=found.frac,
        parties=parties,
        points=count,
        max_absolute=_largest(absolute),
        meaning=check.meaning,
        error=_largest(judged),
        bound=bound,
        rounds=max(cost.rounds for cost in found.costs),
        bytes_sent=max(cost.bytes_sent for cost in found.costs) / count,
        offline_bytes=max(cost.offline_bytes for cost in found.costs) / count,
    )


def _largest(errors: Tensor) -> float:
    if not bool(torch.isfinite(errors).all()):
        return float("inf")
    return float(errors.max()) if errors.numel() else 0.0


def _listed(found: Any) -> list[Any]:
    return list(found) if isinstance(found, list | tuple) else [found]


def _opened(parts: Sequence[Sequence[OutputShare]]) -> list[Tensor]:
    """Return the float values of each result, from every party's shares of all of them."""
    return [opened(shares) for shares in zip(*parts, strict=True)]


def run_gate(gate: Gate, parties: int, inputs: Sequence[Tensor]) -> Found:
    """Run a gate on shares of float inputs that lie on its grid, from masked values."""
    # not `fixed_point.encode`, which refuses the ring's lowest value
    elements = [ring.reduce(torch.round(x * 2.0**gate.frac).to(torch.int64), gate.ring) for x in inputs]
    shares = [additive_shares(x, parties, gate.ring) for x in elements]

    async def main(c: Context, own: Sequence[Shared]) -> list[Shared]:
        masked = [await open_value(c, x) for x in own]
        with stage(MEASURED):
            return _listed(await gate.program(c, *masked))

    def party(channel: MemoryChannel, tape: PartyTape) -> tuple[list[OutputShare], Cost]:
        c = Context(tape, channel, parties)
        out = Scheduler(c.flush).run(main(c, [Shared(s[channel.party].to(c.device), gate.ring, gate.frac) for s in shares]))
        return [OutputShare(x.x.cpu(), x.bits, x.frac) for x in out], channel.ledger.total(MEASURED)

    def dealer(tape: DealerTape) -> None:
        c = Context(tape, None, parties)
        Scheduler(c.flush).run(main(c, [Shared(c.blank(x.shape), gate.ring, gate.frac) for x in inputs]))

    results, _ = run_in_process(parties, party, dealer)
    return Found(_opened([r[0] for r in results]), [r[1] for r in results], gate.ring, gate.frac)


def run_function(function: Function, name: str, parties: int, inputs: Sequence[Tensor]) -> Found:
    """Run a function on shares of float inputs, from sharings; weights are loaded before anything is counted."""
    shares = [encoded_shares(x, function.input_bits, parties) for x in inputs]
    weight_shares = [encoded_shares(w, INPUT_BITS, parties) for w in function.weights]
    masked_rings: list[int] = []

    def own_weight(suite: Suite, k: int, index: int | None) -> Tensor | None:
        if index is None:
            return None
        return weight_shares[k][index] << (suite.weight_fraction_bits - INPUT_BITS)

    async def main(suite: Suite, index: int | None) -> list[Any]:
        values = [
            suite.input(x.shape, None if index is None else s[index], function.input_bits)
            for x, s in zip(inputs, shares, strict=True)
        ]
        held = [await suite.weight(f"w{k}", w.shape, own_weight(suite, k, index)) for k, w in enumerate(function.weights)]
        context = getattr(suite, "context", None)
        if index == 0 and isinstance(context, Context):
            context.observer = lambda m, bits: masked_rings.append(bits)
        with stage(MEASURED):
            return _listed(await function.program(suite, *values, *held))

    def role(suite: Suite, party: int | None) -> tuple[list[OutputShare], Cost, int]:
        values = suite.run(main(suite, party))
        cost = suite.ledger.total(MEASURED)
        return [suite.output(v) for v in values], cost, suite.fraction_bits

    results = InProcessSuite(SuiteSpec(name), parties).run(role)
    outputs, ring_bits = _opened([r[0] for r in results]), masked_rings[0] if masked_rings else 64
    return Found(outputs, [r[1] for r in results], ring_bits, results[0][2])
