"""Public bounds as powers of two, the same everywhere or by layer: `12`, or the text `"10*11 15*20"`.

A bound says |x| < 2^bound for all tensors of a kind; the suite's page says which kinds there are. The text is a list of
runs, `bound*layers` or a single `bound`, from layer 0 on; after its end the last bound goes on. The place after the last
layer is the final norm and the head. Bounds are the model owner's to publish: they come from its own text, say nothing of a
prompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby

from mpc.errors import RangeError


@dataclass(frozen=True)
class Range:
    """What may be declared of a kind. low, high: log2 of the smallest and the largest bound. usual: where nothing is
    declared. floor: the smallest that calibration chooses. what: the kind in words, in the plural."""

    low: int
    high: int
    usual: int
    floor: int
    what: str


RANGES: dict[str, Range] = {
    "residual": Range(4, 18, 12, 8, "norms of rows of the residual stream"),
    "score": Range(5, 10, 7, 7, "spreads of a row of attention scores"),
    "value": Range(2, 12, 6, 6, "cached values"),
    "activation": Range(3, 12, 8, 8, "outputs of linear layers"),
    "logits": Range(3, 12, 8, 8, "logits"),
}
RANGE_KINDS = tuple(RANGES)
"""What may leave its declared range, one row of `OutputShare.flags` each: the norm of a row of the residual stream, the
spread of a row of attention scores, a cached value, the input of an activation function (or its factor), a logit."""

LARGEST_WEIGHT = 6  # entries of a weight matrix, and of gains on a residual path, stay below 2^6
LARGEST_GAIN = 8  # gains of norms that stand before no linear layer stay below 2^8


def largest(kind: str, bound: int) -> float:
    """Return what a value of this kind must stay below where `bound` is declared. Scores keep an eighth for rounding."""
    return 0.875 * 2.0**bound if kind == "score" else 2.0**bound


_RUN = re.compile(r"(\d{1,2})(?:\*(\d{1,4}))?")
MOST_PLACES = 1 << 12


@dataclass(frozen=True)
class Bounds:
    """Bounds of one kind. values: one for each place from layer 0 on; the last one goes on."""

    values: tuple[int, ...]

    def at(self, place: int) -> int:
        """Return the bound of a layer, or of the head (place = number of layers)."""
        return self.values[min(place, len(self.values) - 1)]

    @property
    def largest(self) -> int:
        """The largest of all places."""
        return max(self.values)

    @property
    def option(self) -> int | str:
        """What `parse` makes these bounds of, as short as can be."""
        runs = [(value, len(list(same))) for value, same in groupby(self.values)]
        if len(runs) == 1:
            return runs[0][0]
        runs[-1] = (runs[-1][0], 1)
        return " ".join(str(value) if count == 1 else f"{value}*{count}" for value, count in runs)

    @staticmethod
    def parse(name: str, value: int | str, low: int, high: int) -> Bounds:
        """Parse an option's value. Raises `RangeError` naming the option, its value and what is allowed.

        >>> Bounds.parse("residual", "10*2 15", 4, 18).at(2)
        15
        """
        wanted = f"a whole number from {low} to {high} (log2 of the bound), or runs by layer such as '{low}*4 {high}'"
        values: list[int] = []
        for run in str(value).split() if isinstance(value, str) else []:
            found = _RUN.fullmatch(run)
            if found is None or found[2] == "0" or len(values) > MOST_PLACES:
                raise RangeError(f"{name} = {value!r} must be {wanted}")
            values += [int(found[1])] * int(found[2] or 1)
        if isinstance(value, int) and not isinstance(value, bool):
            values = [value]
        if not values or not all(low <= v <= high for v in values):
            raise RangeError(f"{name} = {value!r} must be {wanted}")
        return Bounds(tuple(values))
