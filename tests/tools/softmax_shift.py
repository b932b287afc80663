"""Where may a softmax's shift come from? The candidates compared on shares, over scores that are hard. A command:

    python -m tests.tools.softmax_shift [--parties 2]

Keys of 64 channels lie in clusters of 16 or 32; a selection takes 4 of 16 clusters, by MPCache's linearised similarity or by
the true upper bound. For each source of the shift: how far it is above (+) or below (-) the largest score attended to, and
the error of the attention's output (values in -1..1) that the suite `masked` computes with it; "lost" is 2^-4 or more.
"""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from protocols.masked import softmax
from protocols.masked.context import Context
from protocols.masked.exponential import in_units
from protocols.masked.rows import Rows
from protocols.masked.shares import Masked
from tests.protocols.masked.harness import run_masked

CHANNELS, CLUSTERS, TAKEN, ALPHA = 64, 16, 4, 0.6
SOURCES = ("linearised similarity", "upper bound", "histogram", "exact maximum")
OFFSETS = (-16, -8, -6, -4, 0, 4, 8, 12, 16, 24, 32, 48)
LOST = 2.0**-4  # of an output whose values lie in -1..1


@dataclass(frozen=True)
class Case:
    """A query's scores over the tokens of the chosen clusters, and what the two similarities say the largest is."""

    name: str
    scores: Tensor
    values: Tensor
    linearised: float
    bound: float

    @property
    def largest(self) -> float:
        return float(self.scores.max())


def _scored(name: str, keys: np.ndarray, q: np.ndarray, size: int, by_bound: bool, rng: np.random.Generator) -> Case:
    """keys [clusters, size, C]."""
    high, low = keys.max(1), keys.min(1)
    linear = (ALPHA * high + (1 - ALPHA) * low) @ q
    bound = np.maximum(high * q, low * q).sum(-1)
    chosen = np.argsort(-(bound if by_bound else linear), kind="stable")[:TAKEN]
    scores = torch.from_numpy((keys[chosen] @ q).reshape(-1))
    values = torch.from_numpy(rng.uniform(-1, 1, TAKEN * size))
    return Case(name, scores, values, float(linear[chosen].max()), float(bound[chosen].max()))


def cases() -> list[Case]:
    """All distributions, by both selections."""
    out = []
    for size in (16, 32):
        for by_bound in (False, True):
            rng = np.random.default_rng(size)
            way = f"clusters of {size}, {'upper bound' if by_bound else 'linearised'}"
            q = rng.standard_normal(CHANNELS) / CHANNELS**0.5
            shape = (CLUSTERS, size, CHANNELS)
            unit = q / (q @ q)
            outlier = rng.standard_normal(shape)
            outlier[3, 5] = 100 * unit + 0.1 * rng.standard_normal(CHANNELS)
            spread = rng.uniform(-30, 30, (CLUSTERS, size, 1)) * unit
            out += [
                _scored(f"one outlier of 100; {way}", outlier, q, size, by_bound, rng),
                _scored(f"all equal; {way}", np.broadcast_to(5 * unit, shape), q, size, by_bound, rng),
                _scored(f"range of 60; {way}", spread, q, size, by_bound, rng),
                _scored(f"random, deviation 1; {way}", rng.standard_normal(shape), q, size, by_bound, rng),
                _scored(f"random, deviation 4; {way}", 4 * rng.standard_normal(shape), q, size, by_bound, rng),
            ]
    return out


def given(shifts: Tensor) -> Callable[[Context, Masked, Rows, softmax.Spread], Awaitable[Masked]]:
    """A stand-in for the gate that finds the shift: these public numbers, one for each row, as the ring holds them.

    What the gate finds is the upper edge of the bin of 4 units, that is 4.16, of the largest score."""

    async def shift(c: Context, y: Masked, rows: Rows, spread: softmax.Spread) -> Masked:
        bits = spread.range_bits + 1 + y.frac
        edges = torch.floor((shifts * in_units(1.0) + 2.0**softmax.BIN_BITS) * 2.0**y.frac).to(torch.int64) & (
            (1 << bits) - 1
        )
        public = edges if c.evaluating else c.blank(edges.shape)
        return Masked(public, torch.zeros_like(edges), bits, y.frac)

    return shift


def errors(scores: Tensor, values: Tensor, shifts: Tensor | None, parties: int) -> Tensor:
    """Error of each row's attention on shares: scores, values [rows, n]; shifts [rows], None for the gate's own."""

    async def program(s: Any, k: Any, v: Any) -> Any:
        ones = s.public(torch.ones(1), (rows, 1, 1))
        return await s.attention(ones, k, v, None)

    rows = scores.shape[0]
    inputs = [x[..., None] for x in (scores, values)]
    if shifts is None:
        (found,), _ = run_masked(program, inputs, parties=parties, input_bits=14)
    else:
        with mock.patch.object(softmax, "shift", given(shifts - torch.round(scores[:, -1] * 2.0**14) / 2.0**14)):
            (found,), _ = run_masked(program, inputs, parties=parties, input_bits=14)
    exact = (torch.softmax(torch.round(scores * 2.0**14) / 2.0**14, -1) * values).sum(-1)
    return (found[:, 0, 0] - exact).abs()


@dataclass(frozen=True)
class Row:
    """One case: by source (distance of the shift from the largest score, error of the output)."""

    name: str
    largest: float
    found: dict[str, tuple[float, float]]


def compare(parties: int = 2) -> list[Row]:
    """All cases with all sources."""
    todo = cases()
    found: list[dict[str, tuple[float, float]]] = [{} for _ in todo]
    for source in SOURCES:
        for size in {len(c.scores) for c in todo}:
            group = [n for n, c in enumerate(todo) if len(c.scores) == size]
            scores, values = (torch.stack([getattr(todo[n], x) for n in group]) for x in ("scores", "values"))
            picked = {
                "linearised similarity": lambda c: c.linearised,
                "upper bound": lambda c: c.bound,
                "exact maximum": lambda c: c.largest,
            }
            largest = scores.max(-1).values
            if source == "histogram":
                shifts, used = 4 * (largest / 4).floor() + 4, None  # what the gate finds is between this and 4 less
            else:
                shifts = used = torch.tensor([picked[source](todo[n]) for n in group], dtype=torch.float64)
            wrong = errors(scores, values, used, parties)
            for place, n in enumerate(group):
                found[n][source] = float(shifts[place] - largest[place]), float(wrong[place])
    return [Row(c.name, c.largest, f) for c, f in zip(todo, found, strict=True)]


def tolerated(parties: int = 2) -> dict[int, float]:
    """Largest error of the output over random rows of deviation 4, by how far the shift is off."""
    rng = np.random.default_rng(1)
    scores = torch.from_numpy(4 * rng.standard_normal((8, 64)))
    values = torch.from_numpy(rng.uniform(-1, 1, (8, 64)))
    largest = scores.max(-1).values
    return {offset: float(errors(scores, values, largest + offset, parties).max()) for offset in OFFSETS}


def shown(error: float) -> str:
    """An error in a table: a power of two above it, or that nothing is left of the output."""
    return f"2^{max(-14, int(np.ceil(np.log2(max(error, 1e-9)))))}" if error < LOST else "lost"


def place(source: str, distance: float) -> str:
    """Where a shift lies, in a table."""
    if source == "histogram":
        return "within 4"
    return "0" if abs(distance) < 0.5 else f"{distance:+.0f}"


def tables(parties: int = 2) -> str:
    """Both tables, as Markdown."""
    lines = [
        "| shift minus the largest score | " + " | ".join(f"{n:+d}" if n else "0" for n in OFFSETS) + " |",
        "| --- |" + " --- |" * len(OFFSETS),
        "| output's error below | " + " | ".join(shown(e) for e in tolerated(parties).values()) + " |",
        "",
        "| scores; clusters, chosen by | largest | " + " | ".join(SOURCES) + " |",
        "| --- | --- |" + " --- |" * len(SOURCES),
    ]
    for row in compare(parties):
        cells = []
        for source, (distance, error) in row.found.items():
            cells.append(f"{place(source, distance)}: {shown(error)}")
        lines.append(f"| {row.name} | {row.largest:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parties", type=int, default=2)
    print(tables(parser.parse_args().parties))
