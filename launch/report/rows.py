"""Results as rows that tables and plots are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from launch.measure.bench.cell import LOCALHOST, Cell
from models.shapes import SHAPES

FULL = "full"


@dataclass(frozen=True)
class Row:
    """One result. bytes_sent: of the party that sends most, in one token (or one prompt); offline_bytes likewise.
    seconds: median, None where nothing was run."""

    cell: Cell
    measured: dict[str, Any]
    environment: dict[str, Any]
    file: str

    @property
    def predicted(self) -> bool:
        """Return whether it was counted on tensors without content instead of on the wire."""
        return bool(self.measured.get("predicted", False))

    @property
    def rounds(self) -> float:
        """Return the rounds (for a peer: send actions)."""
        return float(self.measured["rounds"])

    @property
    def bytes_sent(self) -> float:
        """Return the bytes of the party that sends most."""
        return float(max(self.measured["bytes_sent"].values()))

    @property
    def offline_bytes(self) -> float:
        """Return dealt bytes of the party that receives most."""
        return float(max(self.measured["offline_bytes"].values()))

    @property
    def seconds(self) -> float | None:
        """Return the median of the seconds."""
        found = self.measured.get("seconds")
        return None if found is None else float(found["median"])

    @property
    def cpu_seconds(self) -> float | None:
        """Return the median of the party that used most."""
        found = self.measured.get("cpu_seconds")
        return None if found is None else float(found["median"])

    @property
    def label(self) -> str:
        """Return suite, policy, and the guesses of a drafted step."""
        parts = [f"{self.cell.suite}, its own way" if self.cell.options.get("crypten_own") else self.cell.suite]
        parts += [self.cell.policy] if self.cell.policy != FULL else []
        parts += [f"{self.cell.draft} guesses"] if self.cell.draft else []
        return ", ".join(parts)

    @property
    def model(self) -> str:
        """Return model and, where not all of them ran, the number of layers."""
        return self.cell.model if self.cell.layers is None else f"{self.cell.model} ({self.cell.layers} layers)"

    @property
    def of_prompt(self) -> bool:
        """Return whether it is about a prompt up to its first token."""
        return self.cell.measure in ("prompt", "estimate-prompt", "peer-prompt")

    @property
    def title(self) -> str:
        """Return what `model` is called at this length: beyond the positions that a known model has, its shape alone ran."""
        shape = SHAPES.get(self.cell.model)
        new = 0 if self.of_prompt else self.cell.new_tokens
        beyond = shape is not None and self.cell.prompt + new > shape.positions
        return f"shape of {self.model}" if beyond else self.model


def rows_of(records: Iterable[dict[str, Any]]) -> list[Row]:
    """Return rows in the order of the records."""
    return [Row(r["cell"], r["measured"], r["environment"], r["file"]) for r in records]


def pick(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Return rows whose cell has these values; a list means any of them."""

    def fits(row: Row) -> bool:
        for name, value in wanted.items():
            have = getattr(row.cell, name)
            if have not in value if isinstance(value, list | tuple | set) else have != value:
                return False
        return True

    return [row for row in rows if fits(row)]


def tokens(rows: Sequence[Row]) -> list[Row]:
    """Return rows about one decoded token on this machine as it is: measured ones, and predicted ones where none was
    measured over as many tokens."""
    measured = [r for r in rows if r.cell.measure == "token" and r.cell.network == LOCALHOST and not r.cell.draft]
    have = {(*_setting(r), r.cell.new_tokens) for r in measured}
    predicted = [r for r in rows if r.cell.measure == "estimate"]
    return [*measured, *(r for r in predicted if (*_setting(r), r.cell.new_tokens) not in have)]


def prompts(rows: Sequence[Row]) -> list[Row]:
    """Return rows about one prompt on this machine as it is, up to its first token, by length: measured ones, and predicted
    ones where none was measured."""
    measured = [r for r in rows if r.cell.measure == "prompt" and r.cell.network == LOCALHOST]
    have = {_setting(r) for r in measured}
    predicted = [r for r in rows if r.cell.measure == "estimate-prompt" and _setting(r) not in have]
    return sorted([*measured, *predicted], key=lambda r: (r.cell.prompt, r.cell.suite, r.cell.policy))


def counted(rows: Sequence[Row]) -> list[Row]:
    """Return of `tokens` one a setting: the mean over most tokens, since a token now and then costs more than the others."""
    best: dict[tuple[Any, ...], Row] = {}
    for row in tokens(rows):
        other = best.get(_setting(row))
        if other is None or row.cell.new_tokens > other.cell.new_tokens:
            best[_setting(row)] = row
    return list(best.values())


def timed(rows: Sequence[Row], row: Row) -> Row | None:
    """Return the measured row with this row's setting."""
    found = (r for r in tokens(rows) if r.seconds is not None and _setting(r) == _setting(row))
    return next(found, None)


def _setting(row: Row) -> tuple[Any, ...]:
    return (row.model, row.label, row.cell.prompt, row.cell.parties)


def title_of(rows: Sequence[Row]) -> str:
    """Return what the model of these rows is called: its shape where one of them is longer than the model's positions."""
    return max((row.title for row in rows), key=len)


def groups(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    """Group by model and number of parties, in order of appearance."""
    out: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        out.setdefault((row.model, row.cell.parties), []).append(row)
    return out


def by_label(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Group by suite and policy, each sorted by length."""
    out: dict[str, list[Row]] = {}
    for row in rows:
        out.setdefault(row.label, []).append(row)
    return {label: sorted(found, key=lambda r: r.cell.prompt) for label, found in out.items()}
