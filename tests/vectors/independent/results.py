"""What an opened result is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Judge = Callable[..., Any]


@dataclass(frozen=True)
class Result:
    """value: float64. bound: on the absolute error; 0: exact; negative: exact modulo the ring. flags: only zero or not."""

    value: np.ndarray
    bound: np.ndarray | float
    flags: bool = False

    def check(self, found: np.ndarray, bits: int, frac: int) -> None:
        """Raise `AssertionError` where a value is too far from ours."""
        if self.flags:
            assert bool((found != 0).any()) == bool(self.value), "a range flag is wrong"
            return
        assert found.shape == np.shape(self.value)
        difference = np.abs(found - self.value)
        if np.ndim(self.bound) == 0 and self.bound < 0:
            difference = difference % 2.0 ** (bits - frac)
        assert (difference <= np.maximum(self.bound, 0)).all(), f"off by up to {difference.max()}"


def close(value: np.ndarray, bound: np.ndarray | float) -> Result:
    """Within a bound."""
    return Result(value, bound)


def exact(value: np.ndarray) -> Result:
    """The very number."""
    return Result(np.asarray(value, dtype=np.float64), 0.0)


def ring(value: np.ndarray) -> Result:
    """The very number, modulo the ring."""
    return Result(np.asarray(value, dtype=np.float64), -1.0)


def flagged(value: bool) -> Result:
    """Some word of the flags is not zero."""
    return Result(np.asarray(value), 0.0, True)


def by_rank(x: np.ndarray) -> np.ndarray:
    """Positions from the largest down, ties to the earlier."""
    return np.argsort(-x, -1, kind="stable")


def hots(index: np.ndarray, size: int) -> np.ndarray:
    """[...] -> [..., size]."""
    return (index[..., None] == np.arange(size)).astype(np.float64)


def softmax_of(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))
