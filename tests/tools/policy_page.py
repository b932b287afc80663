"""The generated tables of docs/policies.md. A command, since some take a minute (`make policies`):

    python -m tests.tools.policy_page [--check] [shift] [crypten]

Without names all tables are made. --check: print what differs and exit with 1, and write nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from launch.predict.networks import NETWORKS
from models.costs.tracing import STEP, Setting, trace_step
from models.shapes import find_shape, with_positions
from mpc.ledger import Cost, Ledger
from tests.tools import softmax_shift

PAGE = Path(__file__).parents[2] / "docs" / "policies.md"
LENGTHS = (1024, 4096)
POLICIES = {
    "default": "mpcache",
    "clusters": "mpcache:preset=clusters",
    "two levels": "mpcache:preset=clusters,levels=2",
    "rows gathered": "mpcache:preset=clusters,gathering=rows",
}
AROUND = ("norm", "norm scale", "linear", "other")  # of an attention sub-layer: what is not the attention itself


@dataclass(frozen=True)
class Token:
    """One decoded token: the whole of it, and the attention part of all layers (scores, selection, softmax, values)."""

    whole: Cost
    attention: Cost

    @staticmethod
    def of(ledger: Ledger) -> Token:
        attention = Cost()
        for (where, op), cost in ledger.costs.items():
            if where.endswith("/attention") and op not in AROUND:
                attention.add(cost)
        return Token(ledger.total(STEP), attention)

    def seconds(self, network: str) -> float:
        profile = NETWORKS[network]
        return profile.latency_seconds(self.whole.rounds) + profile.transfer_seconds(self.whole.bytes_sent)


def token(length: int, policy: str, suite: str = "crypten") -> Token:
    """GPT-2 base, after `length` cached tokens: what `mpcache estimate` and parties count."""
    architecture = with_positions(find_shape("gpt2"), length + 1)
    with torch.inference_mode():
        return Token.of(trace_step(architecture, Setting(suite, 2, policy), length).ledger)


def crypten_row(length: int, name: str, full: Token, found: Token) -> str:
    """One line of the table."""
    attention = full.attention.bytes_sent / found.attention.bytes_sent
    whole = full.whole.bytes_sent / found.whole.bytes_sent
    latency = " | ".join(f"{full.seconds(n) / found.seconds(n):.2f}" for n in ("lan", "wan", "mobile"))
    return (
        f"| {length:,} | {name} | {full.attention.bytes_sent / 1e6:.1f} | {found.attention.bytes_sent / 1e6:.1f} | "
        f"{attention:.2f} | {whole:.2f} | {full.whole.rounds} : {found.whole.rounds} | {latency} |"
    )


def crypten_table() -> str:
    """The suite `crypten` with MPCache against its own full cache."""
    lines = [
        "| cached | policy | full: MB | with it: MB | ratio | whole token's ratio | rounds | lan | wan | mobile |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for length in LENGTHS:
        full = token(length, "full")
        lines += [crypten_row(length, name, full, token(length, policy)) for name, policy in POLICIES.items()]
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {"shift": softmax_shift.tables, "crypten": crypten_table}


def marks(name: str) -> tuple[str, str]:
    """The lines between which a table stands."""
    return f"<!-- table {name}: made by `make policies` -->\n", f"\n<!-- end of table {name} -->"


def table_in(page: str, name: str) -> str:
    """What stands on the page."""
    return _parts(page, name)[1]


def _parts(page: str, name: str) -> tuple[str, str, str]:
    """What stands before, in and behind a table's marks."""
    start, end = marks(name)
    before, rest = page.split(start, 1)
    inside, behind = rest.split(end, 1)
    return before + start, inside, end + behind


def with_table(page: str, name: str, table: str) -> str:
    """The page with another table."""
    before, _, behind = _parts(page, name)
    return before + table + behind


def main() -> int:
    """Make the tables and put them where they belong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="TABLE", help=f"one of {', '.join(TABLES)}")
    parser.add_argument("--check", action="store_true")
    wanted = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    new = page
    for name in wanted.names or TABLES:
        new = with_table(new, name, TABLES[name]())
    if new == page:
        return 0
    if wanted.check:
        old_lines = set(page.splitlines())
        print("\n".join(line for line in new.splitlines() if line not in old_lines))
        return 1
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
