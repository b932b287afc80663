"""The table beside published logs: their figures as the file has them, this project's as a trace counts them."""

from __future__ import annotations

from typing import Any

import torch

from launch.terminal.console import byte_count
from models.costs.tracing import STEP, Setting, trace_step
from models.shapes import find_shape
from tests.tools.published_page import PAGE, block, block_in, costs, published, seconds


def figures_in(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, list):
        return [found for item in value for found in figures_in(item)]
    if not isinstance(value, dict):
        return []
    return [value] if "file" in value else [found for item in value.values() for found in figures_in(item)]


def test_the_page_is_what_is_generated() -> None:
    assert block_in(PAGE.read_text(encoding="utf-8")) == block(), "docs/bench.md is out of date; run `make published`"


def test_every_figure_names_its_file_and_line() -> None:
    figures = published()
    assert len(figures["commit"]) == 40
    for system in figures["systems"]:
        found = figures_in(system)
        assert len(found) == 7
        assert all(isinstance(figure["value"], int) and figure["value"] > 0 for figure in found)
    for figure in figures_in(figures):
        assert figure["line"] > 0
        assert "." in figure["file"]


def test_this_projects_lines_are_a_trace_of_every_layer_and_head() -> None:
    with torch.inference_mode():
        ledger = trace_step(find_shape("gpt2"), Setting("masked", 2), 0, 128).ledger
    whole, layers = ledger.total(f"{STEP}/"), ledger.total(f"{STEP}/layer ")
    for line, cost in zip(costs(published()).rows[-2:], (layers, whole), strict=True):
        assert line[2:] == (byte_count(cost.offline_bytes), byte_count(2 * cost.bytes_sent), str(cost.rounds))


def test_seconds_are_theirs_alone() -> None:
    figures = published()
    assert [line[0] for line in seconds(figures).rows] == [system["name"] for system in figures["systems"]]
    runs = figures["systems"][0]["online_microseconds"]
    assert seconds(figures).rows[0][3].startswith(f"{sum(run['value'] for run in runs) / len(runs) / 1e6:.2f} (")
