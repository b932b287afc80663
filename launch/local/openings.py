"""What a compute party sees, for the one demo in which all roles are one person's: a histogram of what is opened, and a few
of the values themselves.

What is opened is uniform whatever prompt and weights are (docs/security.md, "Openings"): that is what there is to look at. A
party whose parent did not ask for it has none of this.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from parties.program import Program
from protocols.suite import Suite

DIGIT_BITS = 4
SHOWN, SHOWN_BITS = 4, 32  # words, of rings of at least so many bits
TELL_SECONDS = 0.25


class Openings:
    """Counts the highest digit, of 4 bits, of opened values in rings of at least as many bits; of smaller rings (masked
    bits) only how many there were."""

    def __init__(self, tell: Callable[[Mapping[str, object]], None]) -> None:
        self._tell = tell
        self._told_at = 0.0
        self._digits = torch.zeros(1 << DIGIT_BITS, dtype=torch.int64)
        self._bits = 0
        self._last: deque[str] = deque(maxlen=SHOWN)
        self._lock = threading.Lock()  # sessions have threads of their own

    def see(self, m: Tensor, bits: int) -> None:
        """Count an opening: m in Z_2^bits, uniform."""
        with self._lock:
            self._count(m, bits)
        if time.monotonic() - self._told_at >= TELL_SECONDS:
            self.tell()

    def _count(self, m: Tensor, bits: int) -> None:
        if bits < DIGIT_BITS:
            self._bits += m.numel()
        else:
            digits = (m.reshape(-1) >> (bits - DIGIT_BITS)) & ((1 << DIGIT_BITS) - 1)
            self._digits += torch.bincount(digits, minlength=1 << DIGIT_BITS).cpu()
            words = m.reshape(-1)[:SHOWN].tolist() if bits >= SHOWN_BITS else []
            self._last.extend(f"{word & ((1 << bits) - 1):0{(bits + 3) // 4}x}" for word in words)

    def tell(self) -> None:
        """Tell what was counted so far."""
        self._told_at = time.monotonic()
        with self._lock:
            facts = {"digits": self._digits.tolist(), "masked_bits": self._bits, "last": list(self._last)}
            self._tell(facts)


def telling(program: Program, tell: Callable[[Mapping[str, object]], None]) -> Program:
    """Return the program whose suite, if it opens masked values, tells what a session opens; the load's counts with it."""
    seen = Openings(tell)

    def watch(suite: Suite) -> None:
        if (context := getattr(suite, "context", None)) is not None:
            context.observer = seen.see

    def load(suite: Suite, *rest: Any) -> dict[str, Any]:
        watch(suite)
        return program.load(suite, *rest)

    def run(suite: Suite, *rest: Any) -> int:
        watch(suite)
        try:
            return program.run(suite, *rest)
        finally:
            seen.tell()

    return replace(program, load=load, run=run)
