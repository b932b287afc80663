"""The parts, in the order in which they are run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.tools.gpu_check import machine, work
from tests.tools.gpu_check.timing import Row


@dataclass(frozen=True)
class Part:
    """Rows of one subject, from (device, whether sizes are tiny); seconds that it takes, twice that is its deadline."""

    of: Callable[[str, bool], Iterator[Row]]
    seconds: float

    def rows(self, device: str, small: bool) -> Iterator[Row]:
        """Yield the rows; only one, which says so, without the device."""
        why = work.only_on_a_gpu(device)
        if why:
            yield {"name": "device", "skip": why}
            return
        yield from self.of(device, small)


PARTS = {
    "environment": Part(machine.environment, 15),
    "operations": Part(machine.operations, 30),
    "tests": Part(work.tests, 75),
    "token": Part(work.token, 60),
    "prompt": Part(work.prompt, 80),
    "kernels": Part(work.kernels, 55),
    "llama": Part(work.llama, 50),
    "mixed": Part(work.mixed, 20),
    "plain": Part(work.plain, 15),
    "processes": Part(work.processes, 40),
}
