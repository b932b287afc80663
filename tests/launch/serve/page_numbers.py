"""Every number of the page against the ledgers that they come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpc.ledger import Cost
from tests.launch.serve.browser import Browser


def plain(number: float) -> str:
    """A number as the page writes it: thousands apart, at most three digits behind the point."""
    text = f"{number:,.3f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _table(page: Browser, id: str) -> list[list[str]]:
    cells = f"[...document.getElementById('{id}').rows].map(row => [...row.cells].map(cell => cell.textContent))"
    found: list[list[str]] = page.value(cells)
    return found


def _role(page: Browser, name: str) -> dict[str, str]:
    facts = f"[...document.querySelectorAll('[data-role=\"{name}\"] dd')].map(dd => [dd.dataset.what, dd.textContent])"
    return dict(page.value(facts))


def check_numbers(page: Browser, costs: Mapping[str, Mapping[str, Any]], own: Cost) -> None:
    """Compare tables and roles with the parties' ledgers and the client's own bytes."""
    keys = list(next(iter(costs.values()))["total"])
    head = [key.replace("_", " ") for key in keys]
    wanted = [["party", *head], *([name, *(plain(c["total"][key]) for key in keys)] for name, c in costs.items())]
    assert _table(page, "parties") == wanted
    stages = next(iter(costs.values()))["stages"]
    assert _table(page, "stages") == [["stage", *head], *([n, *(plain(c[key]) for key in keys)] for n, c in stages.items())]
    for name, ledger in costs.items():
        total = ledger["total"]
        assert _role(page, name) == {
            "rounds": plain(total["rounds"]),
            "sent": plain(total["bytes_sent"]),
            "received": plain(total["bytes_received"]),
            "dealt": plain(total["offline_bytes"]),
        }
    assert _role(page, "client") == {"sent": plain(own.bytes_sent), "received": plain(own.bytes_received)}
    dealt = sum(ledger["total"]["offline_bytes"] for ledger in costs.values())
    assert _role(page, "dealer") == {"dealt": plain(dealt)}
