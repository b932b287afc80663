"""Bounds by layer from extremes, and what of the extremes does not fit a bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from models.calibration.extremes import PROVABLE, TABLE, Extremes
from protocols.bounds import RANGES, Bounds, largest
from protocols.options import OptionValue
from protocols.ranges import MARGIN, SURE, least_bound
from protocols.registry import SUITES, SuiteSpec


@dataclass(frozen=True)
class Excess:
    """A kind's largest value where it does not fit. place: layer, or the number of layers for the head. limit: what the
    bound in force allows. option: what to declare; None where no bound that the suite has would do."""

    kind: str
    place: int
    extreme: float
    limit: float
    option: int | str | None
    layers: int

    @property
    def text(self) -> str:
        """Return it in words, with the remedy."""
        where = f"layer {self.place}" if self.place < self.layers else "the head"
        said = f"{RANGES[self.kind].what} reach {self.extreme:.4g} in {where}, bound {self.limit:g}"
        if self.option is None:
            return f"{said}: more than the suite can hold (2^{RANGES[self.kind].high} with `{self.kind}`)"
        shown = f"{self.kind}={self.option}"
        return f"{said}: --suite-option {shown}" if " " not in shown else f"{said}: --suite-option '{shown}'"


def chosen(suite: str, extremes: Extremes) -> dict[str, int | str]:
    """Return the options of a suite: every kind's bound by layer with a margin of one bit where the suite has room for
    it, no smaller than the kind's floor, and such that what no prompt can exceed is flagged for certain where it exceeds
    the bound; kinds that need nothing but the usual bound are left out."""
    options: dict[str, int | str] = {}
    for kind in SUITES[suite].options.kinds:
        about = RANGES[kind]
        needed = [MARGIN * x for x in extremes.kinds[kind]]
        if kind in ("activation", "logits"):
            needed = [max(x, y / SURE) for x, y in zip(needed, extremes.details.get(PROVABLE, needed), strict=True)]
        elif kind == "residual":
            needed = [max(x, y) for x, y in zip(needed, extremes.details.get(TABLE, needed), strict=True)]
        wanted = [max(about.floor, min(about.high, least_bound(kind, x))) for x in needed]
        if kind == "logits":
            wanted = wanted[-1:]
        bounds = Bounds(tuple(wanted if kind in ("residual", "logits") else wanted[:-1]))
        usual = about.usual if kind != "logits" else None  # logits are as activations where nothing is said
        if bounds.values != (usual,) * len(bounds.values):
            options[kind] = bounds.option
    if options.get("logits") == options.get("activation", RANGES["activation"].usual):
        options.pop("logits", None)
    return options


def excesses(suite: str, options: Mapping[str, OptionValue], extremes: Extremes, margin: float = 1.0) -> list[Excess]:
    """Return what, times `margin`, does not fit the bounds in force: the worst place of each kind, with the option that
    would hold it (and a margin of one bit where the suite has it)."""
    found: list[Excess] = []
    for kind, bounds in SuiteSpec(suite, options=options).settings.bounds.items():
        values = extremes.kinds[kind]
        shares = [margin * x / largest(kind, bounds.at(n)) for n, x in enumerate(values)]
        over = {n: share for n, share in enumerate(shares) if share >= 1}
        if not over:
            continue
        place = max(over, key=over.__getitem__)
        most = max(values)
        need = least_bound(kind, most)
        option = min(RANGES[kind].high, least_bound(kind, MARGIN * most)) if need <= RANGES[kind].high else None
        layers = len(values) - 1
        found.append(Excess(kind, place, values[place], largest(kind, bounds.at(place)), option, layers))
    return found
