"""Runs cases against a target and notices crashes, slow cases and memory that a case makes it take."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from launch.local.memory import peak_memory
from mpc.errors import MpcacheError
from tests.fuzz.mutation import case
from tests.fuzz.targets import TARGETS, Target

SLOW_SECONDS = 5.0
GROWTH_BYTES = 256 << 20
LONGEST_MESSAGE = 8192


class FuzzFailure(AssertionError):
    """A case that a decoder did not survive."""


@dataclass(frozen=True)
class Outcome:
    """accepted, refused: cases; slowest: CPU-seconds of one case; growth: bytes of peak memory that the cases added."""

    accepted: int
    refused: int
    slowest: float
    growth: int


def one(target: Target, data: bytes) -> bool:
    """Whether the target accepts a case; raises `FuzzFailure` when it neither accepts nor refuses it properly."""
    try:
        target.decode(data)
    except MpcacheError as error:
        if len(str(error)) > LONGEST_MESSAGE:
            raise FuzzFailure(f"a message of {len(str(error))} characters for {data[:200]!r}") from error
        return False
    except target.refusals:
        return False
    except Exception as error:
        raise FuzzFailure(f"{type(error).__name__} ({str(error)[:200]}) for {data[:400]!r} ({len(data)} bytes)") from error
    return True


def fuzz(name: str, cases: int, seed: int = 0) -> Outcome:
    """Run so many cases. Raises `FuzzFailure` for a crash, a slow case or memory that grows without bound."""
    target = TARGETS[name]
    samples = list(target.samples())
    for sample in samples:
        one(target, sample)
    rng = random.Random(f"{name} {seed}")
    before, accepted, slowest = peak_memory(), 0, 0.0
    for _ in range(cases):
        data = case(rng, samples)
        start = time.process_time()
        accepted += one(target, data)
        used = time.process_time() - start
        slowest = max(slowest, used)
        if used > SLOW_SECONDS:
            raise FuzzFailure(f"{name}: {used:.1f} s for {data[:400]!r} ({len(data)} bytes)")
        if peak_memory() - before > GROWTH_BYTES:
            raise FuzzFailure(f"{name}: memory grew by {peak_memory() - before} bytes at {data[:400]!r} ({len(data)} bytes)")
    return Outcome(accepted, cases - accepted, slowest, peak_memory() - before)
