"""Cases that cover a product: each value, or each pair, in some case; no more than a product needs; nothing that `--every`
or a name asks for is left out."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations, product
from pathlib import Path

import pytest

from tests.covering import chosen

POLICIES = [f"policy {n}" for n in range(7)]
CASES = [{"policy": p, "suite": s, "parties": n} for p, s, n in product(POLICIES, ["masked", "crypten"], "23")]
UNEVEN = [case for case in CASES if (case["suite"], case["parties"]) != ("crypten", "3")]


@pytest.mark.parametrize("cases", [CASES, UNEVEN])
@pytest.mark.parametrize(("strength", "fewest"), [(1, 7), (2, 14)])
def test_all_combinations_occur(cases: list[dict[str, str]], strength: int, fewest: int) -> None:
    kept = [cases[n] for n in chosen(cases, strength)]
    for names in combinations(CASES[0], strength):
        assert {tuple(case[n] for n in names) for case in kept} == {tuple(case[n] for n in names) for case in cases}
    assert fewest <= len(kept) <= fewest + 2


def test_values_are_used_alike() -> None:
    kept = [CASES[n] for n in chosen(CASES, 1)]
    for name in ("suite", "parties"):
        values = [case[name] for case in kept]
        assert max(map(values.count, values)) <= 4  # of 7


def test_with_more_strength_than_parameters_all_stay() -> None:
    assert chosen([{"suite": "masked"}, {"suite": "crypten"}], 2) == [0, 1]
    assert len(chosen(CASES, 4)) == len(CASES)


TEST = """
import pytest

@pytest.mark.covering(1)
@pytest.mark.parametrize("a", [1, 2, 3])
@pytest.mark.parametrize("b", [[4], [5]])
def test_product(a, b): ...
"""


@pytest.mark.parametrize(
    ("arguments", "passed"), [([], 3), (["--every"], 6), (["-k", "b1"], 3), (["test_it.py::test_product[b1-2]"], 1)]
)
def test_what_runs(arguments: list[str], passed: int, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TEST)
    command = [sys.executable, "-m", "pytest", "-p", "tests.covering", "-p", "no:cacheprovider", "-q", "--rootdir", "."]
    ran = subprocess.run(
        [*command, *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert f"{passed} passed" in ran.stdout, ran.stdout + ran.stderr
