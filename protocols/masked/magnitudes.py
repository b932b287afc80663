"""Public bounds of the suite `masked`: what the owner declares by layer, and which of it is in force where a program is.

|x| < 2^bound is declared for each kind of tensor and each place (layers 0, 1, ... and the head after them). Rings follow
from the bounds alone, so dealer, parties and estimate choose alike. Bounds are public configuration; no value is looked at
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from protocols.bounds import Bounds

WEIGHT_BITS = 16  # fraction bits of the weights' shares, as the model owner gives them
ROOM = 2  # bits between a bound and what a ring holds where it is checked
SIMILARITY_ROOM = 2  # products with cluster representatives may be 2^2 times larger than scores


@dataclass(frozen=True)
class Magnitudes:
    """Public bounds at one place: |x| < 2^bound for every tensor of a kind, see `protocols.options.MaskedOptions`."""

    residual: int
    activation: int
    value: int
    score: int
    logits: int

    @property
    def range_bits(self) -> int:
        """Differences of scores are read modulo 2^range_bits."""
        return self.score + 1

    @staticmethod
    def at(bounds: Mapping[str, Bounds], place: int) -> Magnitudes:
        """Return the bounds of a layer or of the head."""
        return Magnitudes(**{kind: of_kind.at(place) for kind, of_kind in bounds.items()})


class PlaceBounds:
    """The declared bounds, and the place whose bounds are in force.

    declared: of each kind, `BoundedOptions.bounds`. places: layers of the program, and the head. here: the bounds of the
    current place.
    """

    def __init__(self, declared: Mapping[str, Bounds]) -> None:
        self._declared = declared
        self._first = Magnitudes.at(declared, 0)
        self.begin(1)

    def begin(self, places: int) -> None:
        """Start a program with so many places at the first one."""
        self.places = places
        self.at(0)

    def at(self, place: int) -> None:
        """Put the bounds of a place in force."""
        self.place = place
        self.here = Magnitudes.at(self._declared, place)

    @property
    def linear_kind(self) -> tuple[str, int]:
        """What the outputs of linear layers are here, and their bound."""
        if self.place and self.place == self.places - 1:
            return "logits", self.here.logits
        return "activation", self.here.activation

    @property
    def stream(self) -> int:
        """Bound on the residual stream that is written here: it is read here and at the next place."""
        return max(self.here.residual, self._declared["residual"].at(self.place + 1))

    @property
    def first_stream(self) -> int:
        """Bound on the residual stream at the first layer, which rows of the token table and of positions enter."""
        return self._first.residual

    @property
    def table_bits(self) -> int:
        """The ring of products with the token table."""
        return WEIGHT_BITS + self._first.residual + ROOM + 2
