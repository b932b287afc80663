"""How fast this machine computes: measured in a moment, robustly, for predictions of seconds.

Each rate is the best of several repetitions, by the processor time of one thread that the piece took: what other programs do
meanwhile takes wall-clock time from a repetition, but hardly processor time.

What a role computes is put together of kinds of work whose amounts a trace counts (`models.costs.tracing`): products of
few rows, of many and of opened bits; dealt values, the tables among them; bytes sent, which are packed and unpacked; and
entries of the tape, each with the small operations that go with it, in which Python and torch take what the work itself does
not. How much of a measured rate each traced unit stands for is in `Weights`, fitted to the processor time of processes on
one machine (`python -m tests.tools.estimate_check --seconds`, which compares).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from models.costs.tracing import Costs
from mpc import ring
from mpc.random import Prg

REPETITIONS, LIMIT_SECONDS = 7, 0.4  # of each piece; on a busy machine fewer
MANY = 64  # rows of a product that is not bound by memory
ELEMENTS, SMALL = 1 << 18, 64  # of the tensors that element-wise work and calls are measured with
EXPANDED = 1 << 22  # bytes
CALLS = 500


@dataclass(frozen=True)
class Weights:
    """What a role does for each unit of a trace. products, bits: for each multiply-add of a party, of those of opened bits;
    dealt: bytes that are expanded for each byte of entries that depend on others, with what is done with them; sent: bytes
    that element-wise work makes for each byte that a party sends; calls: for each entry; session: calls beside its steps."""

    products: float
    bits: float
    dealt: float
    sent: float
    calls: float
    session: float


PARTY = Weights(products=0.575, bits=0.0, dealt=26.0, sent=203.0, calls=154.0, session=3.3e4)
DEALER = Weights(products=0.355, bits=0.0, dealt=28.5, sent=0.0, calls=101.0, session=2.75e4)
CRYPTEN_PARTY = Weights(products=1.27, bits=1.27, dealt=6.0, sent=60.0, calls=120.0, session=2.5e4)
CRYPTEN_DEALER = Weights(products=0.4, bits=0.4, dealt=4.0, sent=20.0, calls=45.0, session=1.2e4)
WEIGHTS = {"masked": (PARTY, DEALER), "crypten": (CRYPTEN_PARTY, CRYPTEN_DEALER)}
"""Of a party and of the dealer, by suite."""
START_CALLS = 1.1e6
"""Of a server until it is ready: Python brings its packages in."""


@dataclass(frozen=True)
class Rates:
    """Of one thread, but for products with many rows: multiply-adds of ring products a second, with few rows (bound by
    memory) and with many; pseudorandom bytes, bytes that element-wise work makes, and calls of small operations a second, by
    default those of a usual machine. spread: how much longer the slowest repetition took than the best, 0 where nothing was
    measured."""

    vector: float
    matrix: float
    expanded: float = 3.4e9
    made: float = 1e10
    calls: float = 5.6e5
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
            + (weights.calls * total("entries") + weights.session * sessions) / self.calls
        )


def measure_rates() -> Rates:
    """Measure rates on this machine, with one thread and with torch's present number of threads for products; a second or
    two."""
    weight = torch.ones(1024, 2048, dtype=torch.int64).t().contiguous().t()
    one, many = (torch.ones(rows, 1024, dtype=torch.int64) for rows in (1, MANY))
    large, small = (torch.ones(count, dtype=torch.int64) for count in (ELEMENTS, SMALL))
    prg = Prg(bytes(32))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = {
            "vector": (weight.numel(), lambda: ring.matmul(one, weight)),
            "matrix": (threads * MANY * weight.numel(), lambda: ring.matmul(many, weight)),
            "expanded": (EXPANDED, lambda: prg.bytes(EXPANDED)),
            "made": (3 * large.nbytes, lambda: ((large + large) & 0xFFFFF) * large),
            "calls": (2 * CALLS, lambda: [(small + small) & 1 for _ in range(CALLS)]),
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
