"""What a policy decides, written down in a run on shares and in plaintext, and compared head by head.

A decision is one ranking of one head (or of one layer): which tokens stay, which clusters count. INSECURE FOR REAL DATA BY
NATURE, as `launch.measure.fidelity`, which alone gives shares to it: decisions are secrets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from protocols.plain.suite import tensor_of
from protocols.suite import OutputShare, Suite, Value


@dataclass
class Decision:
    """In plaintext. marks: 1 at what was kept, [..., N]; scores: what was ranked, [..., N]; drops: whether what was not kept
    left the cache, so that later decisions are about other tokens. turn: how many times the model had been gone through
    before; place: in which layer."""

    marks: Tensor
    scores: Tensor
    drops: bool = False
    turn: int = 0
    place: int = 0


class TracedSelection:
    """A suite that tells `note` (what was ranked, what was kept [..., N]) of every ranking, and passes everything on.

    dropped: called when rows leave the cache by what was ranked last.
    """

    def __init__(
        self, suite: Suite, note: Callable[[Value, Value], None], dropped: Callable[[], None] = lambda: None
    ) -> None:
        self._suite, self._note, self._dropped = suite, note, dropped
        self.turn = self.place = 0

    def at(self, place: int) -> None:
        """Pass on; a place before the last one begins another turn."""
        self.turn, self.place = self.turn + (place < self.place), place
        self._suite.at(place)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._suite, name)

    async def top_k(self, x: Value, k: int, bound: float) -> Value:
        """Pass on; the order among the kept is not noted."""
        found = await self._suite.top_k(x, k, bound)
        self._note(x, found.sum(-2))
        return found

    async def keep_largest(self, x: Value, k: int, bound: float, fraction_bits: int | None = None) -> Value:
        found = await self._suite.keep_largest(x, k, bound, fraction_bits)
        self._note(x, found)
        return found

    async def compact(self, keep: Value, rows: Sequence[Value], k: int) -> list[Value]:
        self._dropped()
        return await self._suite.compact(keep, rows, k)

    async def replace(self, rows: Value, place: Value, new: Value) -> Value:
        self._dropped()
        return await self._suite.replace(rows, place, new)


def noting_shares(suite: Suite, shares: list[OutputShare]) -> TracedSelection:
    """Return a party's or the dealer's suite that appends what it decides to `shares`."""
    return TracedSelection(suite, lambda _, kept: shares.append(suite.output(kept)))


def noting(suite: Suite, decisions: list[Decision]) -> TracedSelection:
    """Return a suite `plain` that appends what it decides to `decisions`."""

    def dropped() -> None:
        decisions[-1].drops = True

    def note(ranked: Value, kept: Value) -> None:
        decisions.append(Decision(tensor_of(kept).clone(), tensor_of(ranked).clone(), False, traced.turn, traced.place))

    traced = TracedSelection(suite, note, dropped)
    return traced


@dataclass(frozen=True)
class Agreement:
    """compared, equal: decisions that were compared, and those where both runs kept the same. gap: in the others, how much
    higher a score that one of them left out was than one that it kept, at most, as a share of that row's spread. after:
    decisions not compared, since they depend on another token having left the cache: later ones of the same layer, and all
    of later turns through the model."""

    compared: int
    equal: int
    gap: float
    after: int


def agreement(plain: Sequence[Decision], secure: Sequence[Tensor]) -> Agreement:
    """Compare what both decided, as far as both went, and as long as it does not depend on a difference in what left the
    cache. What leaves it in one turn changes other layers in the next one only. secure: marks, as `Decision.marks`."""
    compared = equal = after = 0
    gap = 0.0
    apart: set[int] = set()  # layers
    since: int | None = None  # the turn in which the first of them came apart
    for one, marks in zip(plain, secure, strict=False):
        ours = one.marks.double().cpu().reshape(-1, one.marks.shape[-1]).round().bool()
        if one.place in apart or (since is not None and one.turn > since):
            after += len(ours)
            continue
        theirs = marks.double().cpu().reshape(ours.shape).round().bool()
        same = (ours == theirs).all(-1)
        compared, equal = compared + len(ours), equal + int(same.sum())
        for mine, other, row in zip(ours[~same], theirs[~same], one.scores.reshape(ours.shape)[~same], strict=True):
            spread = float(row.max() - row.min())
            missed, instead = row[mine & ~other], row[other & ~mine]
            found = float(missed.max() - instead.min()) if len(missed) and len(instead) else float("inf")
            gap = max(gap, found / spread if spread > 0 else 0.0)
        if one.drops and not bool(same.all()):
            apart.add(one.place)
            since = one.turn if since is None else since
    return Agreement(compared, equal, gap, after)
