"""What left its declared range on the way to an output: the opened flags in words, with the bound in force and a remedy.

With every output a party hands its XOR share of the range flags to the client (`Suite.flags`), who alone opens them.

Who learns what. The client learns which kinds left their range in which layers of its own session, and nothing else: a word
is zero, or uniformly random. A party alone learns nothing: its share is uniformly random. A party, or the dealer,
together with the client learns, in a flagged session only, up to 64 random parities of which values were outside.
Leaks: this, to the client (docs/security.md, "Range flags to the client").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

from torch import Tensor

from protocols.bounds import RANGE_KINDS, RANGES, Bounds, largest

Place = int | Literal["head"]

# kind -> (what it is, its verb's object, what the bound says of it)
_WORDS = {
    "residual": ("the residual stream", "its", "norm of a row up to"),
    "score": ("attention scores", "their", "spread up to"),
    "value": ("cached values", "their", "up to"),
    "activation": ("activations", "their", "up to"),
    "logits": ("logits", "their", "up to"),
}
_CALIBRATE = "calibrate the model with text like this prompt (mpcache calibrate)"


@dataclass(frozen=True)
class RangeFinding:
    """Values of one kind left their declared range in one place on the way to one output.

    kind: of `RANGE_KINDS`. layer: from 0, or "head" (final norm and logits). step: the output's, from 0. bound: log2 of the
    bound that was in force, None where the suite has no option for this kind. option: the suite option, `name=value`, that
    doubles it there; None where there is none or the bound is the largest that is offered.

    >>> RangeFinding("score", layer=3, step=0, bound=7, option="score=8").message.partition(":")[0]
    'attention scores of layer 3 left their range (spread up to 112) at token 1'
    """

    kind: str
    layer: Place
    step: int
    bound: int | None = None
    option: str | None = None

    @property
    def message(self) -> str:
        """One line for a person: kind, place, bound, token (from 1) and remedy."""
        what, whose, limit = _WORDS[self.kind]
        place = "at the head" if self.layer == "head" else f"of layer {self.layer}"
        declared = "" if self.bound is None else f" ({limit} {largest(self.kind, self.bound):g})"
        return f"{what} {place} left {whose} range{declared} at token {self.step + 1}: {self._remedy}"

    @property
    def _remedy(self) -> str:
        if self.option is None:
            return _CALIBRATE
        given = f"'{self.option}'" if " " in self.option else self.option
        return f"--suite-option {given}, or {_CALIBRATE}"

    def to_json(self) -> dict[str, Any]:
        """Return kind, layer, step, bound and the message, for programs."""
        return {
            "kind": self.kind,
            "layer": self.layer,
            "step": self.step,
            "bound": None if self.bound is None else int(largest(self.kind, self.bound)),
            "message": self.message,
        }


def summary(findings: Sequence[RangeFinding]) -> str:
    """Return one line about the findings of one output: the first in the order of the computation, and how many follow
    it."""
    more = len(findings) - 1
    if not more:
        return findings[0].message
    others = "1 further finding" if more == 1 else f"{more} further findings"
    return f"{findings[0].message} ({others} after it, which may follow from it)"


def open_flags(shares: Sequence[Tensor]) -> Tensor:
    """Return the flags from the XOR shares of all parties: int64 words [kinds, places]."""
    return reduce(lambda a, b: a ^ b, shares)


def findings_in(flags: Tensor, step: int, declared: Mapping[str, Bounds]) -> tuple[RangeFinding, ...]:
    """Return what opened flags [kinds, places] say, in the order of the computation: by layer, the head last. A clean output
    has none. declared: the bounds in force, by kind."""
    places = flags.shape[1]
    found: list[RangeFinding] = []
    for place, kind in (flags.T != 0).nonzero().tolist():
        name = RANGE_KINDS[kind]
        bounds = declared.get(name)
        raised = None if bounds is None else _raised(name, bounds, place, places)
        layer: Place = "head" if place == places - 1 else place
        found.append(RangeFinding(name, layer, step, None if bounds is None else bounds.at(place), raised))
    return tuple(found)


def _raised(option: str, bounds: Bounds, place: int, places: int) -> str | None:
    """Return the option with a bound one larger: everywhere if it is the same everywhere, else in this place."""
    wanted = bounds.at(place) + 1
    if wanted > RANGES[option].high:
        return None
    if isinstance(bounds.option, int):
        return f"{option}={wanted}"
    values = [bounds.at(p) for p in range(places)]
    values[place] = wanted
    return f"{option}={Bounds(tuple(values)).option}"
