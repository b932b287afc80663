"""Coroutines that share rounds."""

from __future__ import annotations

from typing import Any

import pytest

from mpc.ledger import current, operation
from protocols.schedule import Future, Request, Scheduler, later, together


class _Ask(Request[int]):
    def __init__(self, value: int) -> None:
        self.value = value


async def chain(start: int, length: int) -> int:
    """Ask for so many numbers, one round after the other; their answers' sum."""
    total = 0
    for i in range(length):
        total += await _Ask(start + i)
    return total


def _scheduler(log: list[list[int]]) -> Scheduler:
    def flush(requests: list[Any]) -> list[int]:
        log.append([r.value for r in requests])
        return [10 * r.value for r in requests]

    return Scheduler(flush)


def test_requests_of_concurrent_protocols_share_rounds() -> None:
    log: list[list[int]] = []

    async def main() -> tuple[int, ...]:
        return await together(chain(1, 3), chain(5, 1), chain(7, 2))

    assert _scheduler(log).run(main()) == (60, 50, 150)
    assert log == [[1, 5, 7], [2, 8], [3]]


def test_nested_together_and_immediate_results() -> None:
    log: list[list[int]] = []

    async def nothing() -> int:
        return 4

    async def pair() -> tuple[int, ...]:
        return await together(nothing(), one(1))

    async def one(x: int) -> int:
        return await _Ask(x)

    async def main() -> tuple[Any, ...]:
        return await together(pair(), one(2))

    assert _scheduler(log).run(main()) == ((4, 10), 20)
    assert log == [[2, 1]] or log == [[1, 2]]


def test_background_work_rides_along() -> None:
    log: list[list[int]] = []
    scheduler = _scheduler(log)

    async def slow() -> int:
        return await _Ask(1) + await _Ask(2)

    async def main() -> Future[int]:
        future = await later(slow())
        await _Ask(9)
        return future

    future = scheduler.run(main())
    assert log == [[1, 9]] or log == [[9, 1]]
    assert not future.done
    scheduler.drain()
    assert future.done
    assert future.result == 30
    assert len(log) == 2


def test_what_runs_aside_comes_last_in_a_round() -> None:
    """A round counts as the operation that the main work is in, though the work aside was started before it."""
    log: list[list[int]] = []

    async def apart() -> int:
        first, second = await together(chain(20, 2), chain(30, 1))
        return first + second

    async def main() -> tuple[int, ...]:
        asides = [await later(work, background=True) for work in (chain(10, 3), apart())]
        (found,) = await together(chain(1, 2))  # asks after the first work aside has
        return found, *[await aside for aside in asides]

    assert _scheduler(log).run(main()) == (30, 330, 710)
    assert log == [[1, 10, 20, 30], [2, 11, 21], [12]]


def test_names_follow_a_coroutine() -> None:
    seen: list[tuple[str, str]] = []

    async def named(name: str) -> None:
        with operation(name):
            await _Ask(1)
            seen.append(current())
            await _Ask(2)
            seen.append(current())

    async def main() -> None:
        await together(named("a"), named("b"))

    _scheduler([]).run(main())
    assert sorted(seen) == [("", "a"), ("", "a"), ("", "b"), ("", "b")]


def test_errors_end_the_run_and_leave_nothing() -> None:
    log: list[list[int]] = []
    scheduler = _scheduler(log)

    async def bad() -> None:
        await _Ask(1)
        raise ValueError("broken")

    async def endless() -> None:
        while True:
            await _Ask(2)

    async def main() -> None:
        await together(endless(), bad())

    with pytest.raises(ValueError, match="broken"):
        scheduler.run(main())

    async def fine() -> int:
        return await _Ask(3)

    log.clear()
    assert scheduler.run(fine()) == 30
    assert log == [[3]]


def test_waiting_for_oneself_is_an_error() -> None:
    async def main() -> None:
        await Future[int]()

    with pytest.raises(RuntimeError, match="awaits its own result"):
        _scheduler([]).run(main())
