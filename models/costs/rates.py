"""How fast this machine computes: measured in a moment, robustly, for predictions of seconds.

Each rate is the best of several repetitions, by the processor time of one thread that the piece took: what other programs do
meanwhile takes wall-clock time from a repetition, but hardly processor time.

What a role computes is put together of kinds of work whose amounts a trace counts (`models.costs.tracing`): products of
few rows, of many and of opened bits; dealt values, the tables among them; bytes sent, which are packed and unpacked; and
entries of the tape, each with the small operations that go with it, in which Python and torch take what the work itself does
not: a dealer's step of a small model is run to see how long. How much of a measured rate each traced unit stands for is in
`Weights`, fitted to the processor time of processes on one machine (`python -m tests.tools.estimate_check --seconds`, which
compares).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from models.costs.program import NoInputs, StepPlan, fill, load, step
from models.costs.tracing import STEP, Costs
from models.decoder import Decoder
from models.policies import parse
from models.shapes import find_shape
from mpc import ring
from mpc.random import Prg
from mpc.tape import DealerTape
from protocols.registry import SuiteSpec, secure_suite

REPETITIONS, LIMIT_SECONDS = 7, 0.4  # of each piece; on a busy machine fewer
MANY = 64  # rows of a product that is not bound by memory
ELEMENTS = 1 << 18  # of the tensors that element-wise work is measured with
EXPANDED = 1 << 22  # bytes
SMALL = {"layers": 1, "heads": 2, "kv_heads": 2, "width": 64, "head_channels": 32, "feed_forward": 256, "vocabulary": 256}
BEHIND = 16  # tokens in the small model's cache


@dataclass(frozen=True)
class Weights:
    """What a role does for each unit of a trace. products, bits: for each multiply-add of a party, of those of opened bits;
    dealt: bytes that are expanded for each byte of entries that depend on others, with what is done with them; sent: bytes
    that element-wise work makes for each byte that a party sends; entries: for each entry, in small entries of a dealer;
    session: beside its steps, in the same unit."""

    products: float
    bits: float
    dealt: float
    sent: float
    entries: float
    session: float


PARTY = Weights(products=0.575, bits=0.0, dealt=26.0, sent=203.0, entries=1.06, session=315)
DEALER = Weights(products=0.355, bits=0.0, dealt=28.5, sent=0.0, entries=0.88, session=262)
CRYPTEN_PARTY = Weights(products=1.27, bits=1.27, dealt=6.0, sent=60.0, entries=1.15, session=239)
CRYPTEN_DEALER = Weights(products=0.4, bits=0.4, dealt=4.0, sent=20.0, entries=0.43, session=115)
WEIGHTS = {"masked": (PARTY, DEALER), "crypten": (CRYPTEN_PARTY, CRYPTEN_DEALER)}
"""Of a party and of the dealer, by suite, where there are two parties."""
TABLES = 15.0
"""`Weights.dealt` of a party of the suite masked where there are more: tables are dealt in place of point functions."""
START_ENTRIES = 10_500
"""Of a server until it is ready: Python brings its packages in."""


@dataclass(frozen=True)
class Rates:
    """Of one thread, but for products with many rows: multiply-adds of ring products a second, with few rows (bound by
    memory) and with many; pseudorandom bytes, bytes that element-wise work makes, and small entries that a dealer deals a
    second, by default those of a usual machine. spread: how much longer the slowest repetition took than the best, 0 where
    nothing was measured."""

    vector: float
    matrix: float
    expanded: float = 3.4e9
    made: float = 1e10
    entries: float = 5.4e3
    spread: float = 0.0

    def seconds(self, costs: Costs, part: str | None = None, weights: Weights = PARTY, sessions: int = 0) -> float:
        """Return the seconds that a party computes, or a role with other weights. sessions: that begin meanwhile."""

        def total(kind: str) -> float:
            return costs.total(kind, part)

        products = total("vector_products") / self.vector + total("matrix_products") / self.matrix
        return (
            weights.products * products
            + weights.bits * total("bit_products") / self.matrix
            + weights.dealt * total("corrected_bytes") / self.expanded
            + weights.sent * total("bytes_sent") / self.made
            + (weights.entries * total("entries") + weights.session * sessions) / self.entries
        )


def weights_of(suite: str, parties: int) -> tuple[Weights, Weights]:
    """Return the weights of a party and of the dealer. What is sent to each of several parties is made once."""
    party, dealer = WEIGHTS[suite]
    if parties > 2:
        dealt = TABLES if suite == "masked" else party.dealt
        party = replace(party, sent=party.sent / (parties - 1), dealt=dealt)
    return party, dealer


def measure_rates() -> Rates:
    """Measure rates on this machine, with one thread and with torch's present number of threads for products; a second or
    two."""
    weight = torch.ones(1024, 2048, dtype=torch.int64).t().contiguous().t()
    one, many = (torch.ones(rows, 1024, dtype=torch.int64) for rows in (1, MANY))
    large = torch.ones(ELEMENTS, dtype=torch.int64)
    prg = Prg(bytes(32))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = {
            "vector": (weight.numel(), lambda: ring.matmul(one, weight)),
            "matrix": (threads * MANY * weight.numel(), lambda: ring.matmul(many, weight)),
            "expanded": (EXPANDED, lambda: prg.bytes(EXPANDED)),
            "made": (3 * large.nbytes, lambda: ((large + large) & 0xFFFFF) * large),
            "entries": _dealt_step(),
        }
        taken = {name: (count, *_best(work)) for name, (count, work) in found.items()}
    finally:
        torch.set_num_threads(threads)
    rates = {name: count / best for name, (count, best, _) in taken.items()}
    return Rates(**rates, spread=max(slow for _, _, slow in taken.values()))


def _best(work: Callable[[], object]) -> tuple[float, float]:
    """Return the processor seconds of the best repetition, and by how much the longest exceeds it in wall-clock time."""
    cpu: list[float] = []
    wall: list[float] = []
    limit = time.perf_counter() + LIMIT_SECONDS
    while len(cpu) < REPETITIONS and (not cpu or time.perf_counter() < limit):
        begun, began = time.thread_time(), time.perf_counter()
        work()
        cpu.append(time.thread_time() - begun)
        wall.append(time.perf_counter() - began)
    best = max(min(cpu), 1e-9)
    return best, max(wall) / best - 1


def _dealt_step() -> tuple[int, Callable[[], object]]:
    """Return the entries that a dealer deals for a token of a small model, and what deals one such token."""
    architecture = find_shape("gpt2").model_copy(update=SMALL)
    tape = DealerTape([Prg(bytes([i]) * 32) for i in range(2)], lambda party, piece: None)
    suite = secure_suite(SuiteSpec("masked"), parties=2, tape=tape, channel=None)
    weights = suite.run(load(suite, architecture, NoInputs()))
    decoder = Decoder(suite, architecture, weights, parse("full"))
    cache = suite.run(fill(decoder, BEHIND, NoInputs()))

    def deal() -> None:
        suite.run(step(decoder, cache.copied(), StepPlan(), None, STEP))

    before = tape.position
    deal()
    return tape.position - before, deal
