"""Forty columns: no number is cut, no line is longer than the terminal, and progress still says what it has to."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from launch.terminal import progress
from launch.terminal.console import FittingConsole
from launch.terminal.session_costs import cost_tables
from mpc.ledger import Cost, Ledger


def printed(width: int, *objects: object) -> list[str]:
    target = io.StringIO()
    FittingConsole(file=target, width=width, highlight=False).print(*objects)
    return [line.rstrip() for line in target.getvalue().splitlines()]


@pytest.fixture
def costs() -> list[Table]:
    ledgers = {}
    for party in ("party0", "party1"):
        ledger = Ledger()
        for stage in ("model load", "prefill/layer 0/attention", "token 0", "token 1/layer 0/mlp"):
            ledger.at((stage, "x")).add(Cost(bytes_sent=123_456_789, rounds=4321, offline_bytes=98_765))
        ledger.seconds = {"model load": 12.5, "prefill": 3.25, "token 1": 0.125}
        ledgers[party] = ledger.to_json()
    return cost_tables(ledgers)


def test_costs(costs: list[Table]) -> None:
    narrow, wide = printed(40, *costs), printed(100, *costs)
    assert max(map(len, narrow)) <= 40
    assert not [line for line in narrow if "…" in line]
    numbers = {word for line in wide for word in line.split() if word[:1].isdigit()}
    assert numbers - {"1st"} <= {word for line in narrow for word in line.split()}
    assert "  party1 offline: 98.77 KB" in narrow
    assert narrow.count("loading the model") == 1


def test_a_table_that_fits_stays_one(costs: list[Table]) -> None:
    target = io.StringIO()
    Console(file=target, width=100, highlight=False).print(*costs)
    assert printed(100, *costs) == [line.rstrip() for line in target.getvalue().splitlines()]


def test_what_goes_into_a_file_is_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table("prefix", "id", "model", "options", box=None)
    table.add_row("terms-of-service", "0123456789abcdef" * 2, "assistant", "fraction_bits=14 score=9 residual=12")
    line = "terms-of-service is registered: 1024 tokens, its text is public (id 0123456789abcdef0123456789abcdef)"
    target = io.StringIO()
    console = FittingConsole(file=target, highlight=False)
    console.print(table)
    console.print(line)
    assert len(target.getvalue().splitlines()) == 3
    assert line in target.getvalue().splitlines()


def test_a_table_of_texts_is_wrapped() -> None:
    table = Table("name", "what")
    table.add_row("client", "has document and question; alone sees the answer")
    assert max(map(len, printed(40, table))) <= 40
    assert printed(40, table)[0].startswith("┏")


@pytest.mark.parametrize("width", [40, 80])
def test_progress(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    target = io.StringIO()
    monkeypatch.setattr(progress, "err", Console(file=target, width=width, force_terminal=True, color_system=None))
    bar = progress.bars()
    task = bar.add_task("share model", total=2_500_000_000)
    bar.update(task, completed=1_250_000_000)
    told = Console(file=io.StringIO(), width=width, color_system=None)
    with told.capture() as said:
        told.print(bar.get_renderable())
    line = said.get().splitlines()[0].rstrip()
    assert len(line) <= width
    assert "share model" in line
    assert "1.25 GB/2.50 GB" in line
    assert "0:00:00" in line
    assert ("━" in line) == (width == 80)


def test_stages_in_bytes_and_in_numbers() -> None:
    bar = progress.bars()
    for name in ("model load", "prefill"):
        task = bar.add_task(name, total=2000)
        bar.update(task, completed=1000)
    shown = [progress.Counted().render(task).plain for task in bar.tasks]
    assert shown == ["1.00 KB/2.00 KB", "1000/2000"]
    assert progress.Counted().render(next(iter(_unknown().tasks))).plain == ""


def _unknown() -> Progress:
    bar = progress.bars()
    bar.add_task("waiting for party1", total=None)
    return bar


def test_time_left() -> None:
    clock = [0.0]
    bar = Progress(get_time=lambda: clock[0])
    task = bar.add_task("share model", total=100)
    for done in (10, 20, 30):
        clock[0] += 1
        bar.update(task, completed=done)
    assert progress.Left(compact=True).render(bar.tasks[0]).plain == "00:07 left"
    bar.update(task, completed=100)
    assert progress.Left(compact=True).render(bar.tasks[0]).plain == ""


def test_parts_of_a_stage_are_further_in() -> None:
    table = Table("", "rounds")
    table.columns[1].justify = "right"
    for title in ("prompt", "  attention"):
        table.add_row(title, "1" * 18)
    assert printed(30, table) == ["prompt", f"  rounds: {'1' * 18}", "  attention", f"    rounds: {'1' * 18}"]
