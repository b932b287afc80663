"""The marker `covering` and the option `--every`: of a product of parameters, a few cases in which all of them still occur.

A test of 20 policies over two suites and two numbers of parties has 80 cases, and a fault that one of them shows is shown
by nearly every case with the same policy, or with the same suite. So a test says how much of its product runs each time:

    @pytest.mark.covering(1)   every value of every parameter, in some case
    @pytest.mark.covering(2)   every pair of values of two parameters, where the product has it

and `--every` runs all cases of all tests (`make test ARGS=--every`). Cases that need a GPU always run, and so does a case
that is asked for by its name. The choice is the same in every run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

import pytest

Case = Mapping[str, str]


def chosen(cases: Sequence[Case], strength: int) -> list[int]:
    """Return indices of cases in which all combinations of `strength` parameters' values occur that occur in `cases`: one
    after the other the case with the most that are new, then the one with values that were used the least."""
    missing = [set(combinations(sorted(case.items()), min(strength, len(case)))) for case in cases]
    used: Counter[tuple[str, str]] = Counter()
    found: list[int] = []
    while any(missing):
        best = max(range(len(cases)), key=lambda n: (len(missing[n]), -sum(used[item] for item in cases[n].items()), -n))
        found.append(best)
        used.update(cases[best].items())
        shown = set(missing[best])
        for rest in missing:
            rest -= shown
    return sorted(found)


def _case(item: pytest.Function) -> Case:
    """A test's parameters, as texts so that they can be compared."""
    return {name: repr(value) for name, value in item.callspec.params.items()}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--every`."""
    parser.addoption("--every", action="store_true", help="run every case of tests that else run some (tests/covering.py)")


def pytest_configure(config: pytest.Config) -> None:
    """Say what the marker means."""
    config.addinivalue_line("markers", "covering(strength): of the parameters' product run what covers so many together")


@pytest.hookimpl(trylast=True)  # what `-k` and `-m` leave is what is to be covered
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take the cases out that are not chosen."""
    if config.getoption("--every") or any("[" in argument for argument in config.args):
        return
    tests: dict[tuple[str, int], list[tuple[pytest.Item, Case]]] = {}
    for item in items:
        marked = item.get_closest_marker("covering")
        if marked and isinstance(item, pytest.Function) and hasattr(item, "callspec") and "cuda" not in item.keywords:
            tests.setdefault((item.nodeid.split("[")[0], *marked.args), []).append((item, _case(item)))
    left_out: list[pytest.Item] = []
    for (_, strength), found in tests.items():
        kept = set(chosen([case for _, case in found], strength))
        left_out += [item for n, (item, _) in enumerate(found) if n not in kept]
    if left_out:
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]
        config.hook.pytest_deselected(items=left_out)
