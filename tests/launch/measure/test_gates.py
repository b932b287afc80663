"""The table of gates: every gate within its bound, the generated document up to date, the command's exit codes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch.cli.main import app
from launch.measure.gates import products, table
from launch.measure.gates.check import Check, Gate, measure
from mpc.errors import ConfigurationError
from protocols.masked import curves

DOCUMENT = Path(__file__).parents[3] / "docs" / "gates.md"
POINTS = 300
SUITES = ["masked", "crypten"]


def ids(suite: str) -> list[str]:
    return [f"{check.group} {check.name}" for check in table.checks(suite)]


@pytest.mark.parametrize("check", table.checks("masked"), ids=ids("masked"))
def test_gates_of_the_suite_masked(check: Check) -> None:
    row = measure(check, "masked", 2, POINTS)
    assert row.ok, f"{row.error} above {row.bound}"
    assert row.points >= 4
    assert row.max_absolute < 1


@pytest.mark.parametrize("check", table.checks("crypten"), ids=ids("crypten"))
def test_functions_of_the_suite_crypten(check: Check) -> None:
    row = measure(check, "crypten", 2, POINTS)
    assert row.ok, f"{row.error} above {row.bound}"


@pytest.mark.parametrize("suite", SUITES)
def test_three_parties(suite: str) -> None:
    for check in table.checks(suite):
        if table.applies(check, 3) and check.group in ("comparison", "powers", "activations", "softmax"):
            assert measure(check, suite, 3, 20).ok, check.name


@pytest.mark.parametrize("suite", SUITES)
def test_the_document_lists_every_gate_with_the_bound_of_the_code(suite: str) -> None:
    sections = DOCUMENT.read_text(encoding="utf-8").split("\n## ")
    lines = [line for part in sections if part.startswith(f"Suite `{suite}`") for line in part.splitlines()]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    bounds = {row[0]: row[table.COLUMNS.index("bound")] for row in cells if row[0] not in ("", "---")}
    expected = {}
    for check in table.checks(suite):
        number = table.number(table.documented_bound(check, suite))
        text = {"exact": "exact", "relative": f"{number} relative", "absolute": number}
        expected[check.name] = text[check.meaning]
    assert len(expected) == len(table.checks(suite)), "names of gates are not unique"
    assert bounds == expected, "docs/gates.md is out of date; run `make gates`"


@pytest.mark.parametrize("kind", sorted(curves.HALF))
def test_points_hold_both_ends_and_what_lies_beside_breakpoints(kind: str) -> None:
    (check,) = [c for c in table.checks("masked") if c.name == f"{kind}, segments, opened"]
    assert isinstance(check, Gate)
    (x,) = check.points(100)
    unit = 2.0**-check.frac
    assert x.min() == -384
    assert x.max() == 384
    for edge in range(-curves.HALF[kind], curves.HALF[kind] + 1):
        for step in (-unit, 0.0, unit):
            assert int((x == edge + step).sum()) >= 8


def test_an_error_above_the_bound_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [c for c in table.checks("masked") if c.name == "truncation"]
    assert isinstance(found[0], Gate)
    strict = replace(found[0], bound=2.0**-20)
    monkeypatch.setattr(table, "checks", lambda suite: [strict])
    result = CliRunner().invoke(app, ["gates", "--points", "100"])
    assert result.exit_code == 1
    assert "is above the bound" in result.stdout
    result = CliRunner().invoke(app, ["gates", "--points", "100", "--json"])
    record = json.loads(result.stdout)
    assert result.exit_code == 1
    assert not record["ok"]
    assert record["gates"][0]["error"] > record["gates"][0]["bound"]


def test_the_command_for_a_few_gates() -> None:
    result = CliRunner().invoke(app, ["gates", "--only", "exact floor", "--points", "50", "--parties", "3", "--json"])
    assert result.exit_code == 0
    (row,) = json.loads(result.stdout)["gates"]
    assert (row["name"], row["rounds"], row["parties"]) == ("exact floor", 1, 3)
    with pytest.raises(ConfigurationError, match="no gate of suite 'masked' has 'nothing'"):
        list(table.rows("masked", 2, 10, "nothing"))
    with pytest.raises(ConfigurationError, match="'plain' has no gates"):
        table.checks("plain")


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("kind", products.KINDS)
def test_random_products(suite: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "BATCH", 3000)
    found = products.multiply(suite, 3, 5000, kind)
    assert found.ok
    assert found.count >= 5000
    assert 0.4 < found.worst <= 2.0


def test_products_that_are_wrong_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    real = products.run_function

    def off(*arguments: object) -> object:
        found = real(*arguments)  # type: ignore[arg-type]
        found.outputs[0][5] += 3 * 2.0**-14
        return found

    monkeypatch.setattr(products, "run_function", off)
    result = CliRunner().invoke(app, ["gates", "--products", "1000"])
    assert result.exit_code == 1
    assert "1 above 2" in result.stdout
    with pytest.raises(ConfigurationError, match="give a positive number"):
        products.multiply("masked", 2, 0, products.KINDS[0])
    with pytest.raises(ConfigurationError, match="'cubic' are unknown"):
        products.multiply("masked", 2, 5, "cubic")
