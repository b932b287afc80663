"""What a suite's option `prefer` gives on named networks: rows of docs/costs.md, and rounds of a layer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from models.costs.estimation import estimate
from models.costs.tracing import Costs, Setting
from models.shapes import find_shape, with_positions

PAGE = Path(__file__).parents[3] / "docs" / "costs.md"
MOST = {"3ms/1000mbit": (18, 20), "80ms/1000mbit": (18, 30), "online": (18, 25), "online:40ms/400mbit": (18, 30)}
"""Network -> the most rounds of a layer of a token, and the most megabytes that it is dealt with MPCache."""


def told(costs: Costs, tokens: int = 1) -> list[float]:
    """Rounds, and megabytes sent and dealt, of each token."""
    rounds, sent, dealt = (costs.total(name) / tokens for name in ("rounds", "bytes_sent", "offline_bytes"))
    return [rounds, sent / 1e6, dealt / 1e6]


@pytest.mark.parametrize("network", MOST)
def test_the_page_says_what_a_network_costs(network: str) -> None:
    (row,) = (line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{network}` |"))
    cells = [re.findall(r"[\d.]+", cell) for cell in row.split("|")[2:5]]
    a, options = with_positions(find_shape("gpt2"), 2048), {"prefer": network}
    found = [told(estimate(a, Setting("masked", options=options), 128, 1).first)]
    for policy in ("full", "mpcache"):
        session = estimate(a, Setting("masked", policy=policy, options=options), 1024, 3)
        found.append(told(session.further, 2))
        assert session.last_layer.total("rounds") <= MOST[network][0]
    assert found[2][2] <= MOST[network][1]
    for cell, values in zip(cells, found, strict=True):
        for text, value in zip(cell, values, strict=True):
            assert float(text) == round(value, len(text.partition(".")[2])), (row, values)


def test_a_prompt_for_which_everything_is_dealt_before() -> None:
    """At most 260 rounds and fewer bytes for a prompt of 128 tokens, and 1.6 GB sent for one of 1 024; more is dealt."""
    a = with_positions(find_shape("gpt2"), 1024)

    def first(prefer: str, prompt: int) -> list[float]:
        return told(estimate(a, Setting("masked", options={"prefer": prefer}), prompt, 1).first)

    short, usual = first("online", 128), first("auto", 128)
    assert short[0] <= 260
    assert short[1] <= 0.8 * usual[1]
    assert usual[2] < short[2] <= 1200
    assert first("online:80ms/1000mbit", 1024)[1] <= 1600
