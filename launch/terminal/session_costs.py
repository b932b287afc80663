"""What a session cost, from the parties' ledgers: by party, and by stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from launch.terminal.console import byte_count

Ledgers = Mapping[str, Mapping[str, Any]]

LOAD, PREFILL, TOKENS = "model load", "prefill", "tokens"
TITLES = {LOAD: "loading the model", PREFILL: "prompt, 1st token", TOKENS: "a further token"}
PARTS = {"embedding": "embedding", "attention": "attention", "mlp": "feed-forward", "head": "output logits"}
CHOICE = "token choice"


@dataclass
class StageCost:
    """Cost of a stage. Bytes by party; rounds and seconds are the largest of any party."""

    rounds: float = 0
    seconds: float = 0.0
    bytes_sent: dict[str, float] = field(default_factory=dict)
    offline_bytes: dict[str, float] = field(default_factory=dict)

    def add(self, other: StageCost) -> None:
        """Add another stage's cost in place."""
        self.rounds += other.rounds
        self.seconds += other.seconds
        for mine, theirs in ((self.bytes_sent, other.bytes_sent), (self.offline_bytes, other.offline_bytes)):
            for party, value in theirs.items():
                mine[party] = mine.get(party, 0) + value

    def divided(self, count: int) -> StageCost:
        """Return the mean over `count` repetitions."""
        n = max(1, count)
        return StageCost(
            self.rounds / n,
            self.seconds / n,
            {name: value / n for name, value in self.bytes_sent.items()},
            {name: value / n for name, value in self.offline_bytes.items()},
        )


def _place(stage: str) -> tuple[str, str]:
    """Return stage and part of a ledger's stage name: ("prefill", "attention") of "prefill/layer 3/attention".

    >>> _place("prefill/layer 3/attention"), _place("token 2")
    (('prefill', 'attention'), ('tokens', 'token choice'))
    """
    top, _, rest = stage.partition("/")
    if top == "token 0":
        return PREFILL, CHOICE
    if top.startswith("token "):
        return TOKENS, PARTS.get(rest.rpartition("/")[2], rest) if rest else CHOICE
    return (top, PARTS.get(rest.rpartition("/")[2], rest)) if rest else (top, "")


def costs_by_stage(ledgers: Ledgers) -> dict[tuple[str, str], StageCost]:
    """Return the sums by (stage, part); part "" is the whole stage. The stage "tokens" is all tokens after the first."""
    out: dict[tuple[str, str], StageCost] = {}
    for party, ledger in sorted(ledgers.items()):
        mine: dict[tuple[str, str], StageCost] = {}
        for name, cost in ledger["stages"].items():
            stage, part = _place(name)
            for key in {(stage, part), (stage, "")}:
                entry = mine.setdefault(key, StageCost())
                entry.rounds += cost["rounds"]
                entry.bytes_sent[party] = entry.bytes_sent.get(party, 0) + cost["bytes_sent"]
                entry.offline_bytes[party] = entry.offline_bytes.get(party, 0) + cost["offline_bytes"]
        for key, seconds in _seconds(ledger["seconds"]):
            mine.setdefault(key, StageCost()).seconds += seconds
        for key, entry in mine.items():
            total = out.setdefault(key, StageCost())
            total.rounds, total.seconds = max(total.rounds, entry.rounds), max(total.seconds, entry.seconds)
            total.bytes_sent.update(entry.bytes_sent)
            total.offline_bytes.update(entry.offline_bytes)
    return out


def _seconds(timed: Mapping[str, float]) -> Iterator[tuple[tuple[str, str], float]]:
    """Return the seconds for (stage, part); what a token took beyond its timed parts is the choice."""
    for name, seconds in timed.items():
        stage, part = _place(name)
        yield (stage, part), seconds
        if name.startswith("token ") and "/" not in name:
            inner = sum(value for other, value in timed.items() if other.startswith(f"{name}/"))
            yield (stage, ""), seconds
            yield (stage, part), -inner


def further_tokens(ledgers: Ledgers) -> int:
    """Return the number of tokens after the first."""
    names = {name.partition("/")[0] for ledger in ledgers.values() for name in ledger["stages"]}
    return sum(name.startswith("token ") and name != "token 0" for name in names)


def costs_json(ledgers: Ledgers) -> dict[str, Any]:
    """Return the totals by party, and by stage; "tokens" is all tokens after the first together."""
    by_stage = costs_by_stage(ledgers)
    return {
        "parties": {party: dict(ledgers[party]["total"]) for party in sorted(ledgers)},
        "stages": {stage: asdict(cost) for (stage, part), cost in by_stage.items() if not part},
        "further_tokens": further_tokens(ledgers),
    }


def cost_tables(ledgers: Ledgers) -> list[Table]:
    """Tabulate rounds, seconds, bytes sent and offline bytes, a row per stage and part.

    The row of further tokens is the mean over them; the model is loaded in the first session with it only. For more than
    two parties the columns show the party with the most bytes, and a second table each party's total.
    """
    parties = sorted(ledgers)
    columns: list[list[str]] = [[party] for party in parties] if len(parties) <= 2 else [parties]
    heads = parties if len(parties) <= 2 else ["largest"]
    table = _table("", "rounds", "seconds", *(f"{h}\nsends" for h in heads), *(f"{h}\noffline" for h in heads))
    by_stage = costs_by_stage(ledgers)
    total = StageCost()

    def add(title: str, cost: StageCost, style: str = "") -> None:
        numbers = [
            byte_count(max(values.get(party, 0) for party in column))
            for values in (cost.bytes_sent, cost.offline_bytes)
            for column in columns
        ]
        table.add_row(title, f"{cost.rounds:.0f}", f"{cost.seconds:.2f}", *numbers, style=style)

    for stage, title in TITLES.items():
        if (stage, "") not in by_stage:
            continue
        whole = by_stage[stage, ""]
        count = further_tokens(ledgers) if stage == TOKENS else 1
        add(title, whole.divided(count), "bold")
        for (other, part), cost in by_stage.items():
            if other == stage and part:
                add(f"  {part}", cost.divided(count))
        total.add(whole)
    add("whole session", total, "bold")
    if len(parties) <= 2:
        return [table]
    totals = _table("party", "rounds", "sends", "offline")
    for party in parties:
        sums = ledgers[party]["total"]
        totals.add_row(party, str(sums["rounds"]), byte_count(sums["bytes_sent"]), byte_count(sums["offline_bytes"]))
    return [table, totals]


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1))
    table.add_column(first, no_wrap=True)
    for title in numbers:
        table.add_column(title, justify="right")
    return table
