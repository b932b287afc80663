"""How fast this machine computes: measured in a moment, robustly, for predictions of seconds.

Each rate is the best of several repetitions, by the processor time of one thread that the piece took: what other programs do
meanwhile takes wall-clock time from a repetition, but hardly processor time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from models.costs.tracing import Costs
from mpc import ring

REPETITIONS, LIMIT_SECONDS = 5, 1.0  # of each piece; on a busy machine fewer
MANY = 64  # rows of a product that is not bound by memory


@dataclass(frozen=True)
class Rates:
    """Of a party: multiply-adds of ring products a second, with few rows (bound by memory) and with many. spread:
    how much longer the slowest repetition took than the best, 0 where nothing was measured."""

    vector: float
    matrix: float
    spread: float = 0.0

    def seconds(self, costs: Costs, part: str | None = None) -> float:
        """Return the seconds of the ring products alone."""
        return costs.total("vector_products", part) / self.vector + costs.total("matrix_products", part) / self.matrix


def measure_rates() -> Rates:
    """Measure rates on this machine, with one thread and with torch's present number of threads for products; a second or
    less."""
    weight = torch.ones(1024, 2048, dtype=torch.int64).t().contiguous().t()
    one, many = (torch.ones(rows, 1024, dtype=torch.int64) for rows in (1, MANY))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        vector, slow = _best(lambda: ring.matmul(one, weight))
        matrix, slower = _best(lambda: ring.matmul(many, weight))
    finally:
        torch.set_num_threads(threads)
    size = weight.numel()
    return Rates(size / vector, threads * MANY * size / matrix, max(slow, slower))


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
