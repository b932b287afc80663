"""Coroutines whose only event is a communication round.

A protocol is an `async def`. `await request` suspends it until the opening that `request` describes has been exchanged.
`await together(a(), b())` runs protocols concurrently: when every one of them is waiting, all their requests leave in *one*
message. Rounds therefore add up along the critical path only, without any code that plans messages by hand.

Scheduling is deterministic (first in, first out), so all parties and the dealer take the same steps in the same order.
There is no event loop and no thread in it, and no decision by the clock; asyncio is not involved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextvars import Context, copy_context
from typing import Any, Generic, TypeVar

from mpc import timeline
from mpc.ledger import current

T = TypeVar("T")


class Request(Generic[T]):
    """Something that needs a round. Awaiting it gives what the scheduler's `flush` returns for it."""

    def __await__(self) -> Generator[Any, Any, T]:
        return (yield self)  # type: ignore[no-any-return]


class Future(Generic[T]):
    """The result of a coroutine that runs beside others; awaiting it waits for that coroutine."""

    def __init__(self) -> None:
        self.done = False
        self.result: T | None = None
        self._waiting: list[_Task] = []

    def __await__(self) -> Generator[Any, Any, T]:
        while not self.done:
            yield self
        return self.result  # type: ignore[return-value]


class _Task:
    def __init__(self, coroutine: Coroutine[Any, Any, Any], future: Future[Any], context: Context, background: bool) -> None:
        self.coroutine = coroutine
        self.future = future
        self.context = context
        self.background = background
        self.value: Any = None


class _Spawn(Generic[T]):
    def __init__(self, coroutine: Coroutine[Any, Any, T], background: bool) -> None:
        self.coroutine = coroutine
        self.background = background

    def __await__(self) -> Generator[Any, Any, Future[T]]:
        return (yield self)  # type: ignore[no-any-return]


async def later(coroutine: Coroutine[Any, Any, T], background: bool = False) -> Future[T]:
    """Start a coroutine beside the current one; its requests overlap other rounds. Await the result to join it.

    background: nothing waits for it soon; its requests come last in a round, which so counts as one of the others'
    operations.
    """
    return await _Spawn(coroutine, background)


async def together(*coroutines: Coroutine[Any, Any, Any]) -> tuple[Any, ...]:
    """Run coroutines concurrently, their openings sharing rounds; results in the order given."""
    futures = [await later(c) for c in coroutines]
    return tuple([await f for f in futures])


class Scheduler:
    """Runs coroutines; calls `flush(requests)` once a round with all requests that are waiting.

    `flush` returns one result per request, in order. Coroutines started with `later` that are still waiting when `run`
    returns stay and go on with the next `run` (a cached key's re-sharing may overlap the next token's rounds).

    >>> class Opening(Request[int]):
    ...     value = 7
    >>> async def protocol(factor):
    ...     return factor * await Opening()
    >>> rounds = []
    >>> scheduler = Scheduler(lambda requests: rounds.append(len(requests)) or [r.value for r in requests])
    >>> scheduler.run(together(protocol(1), protocol(2))), rounds  # one round for both
    ((7, 14), [2])
    """

    def __init__(self, flush: Callable[[list[Any]], Sequence[Any]]) -> None:
        self._flush = flush
        self._ready: deque[_Task] = deque()
        self._requests: list[tuple[_Task, Any]] = []
        self._live: list[_Task] = []

    def run(self, coroutine: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
        """Run to the end of `coroutine` and return its result. An exception in any coroutine ends the run."""
        main: Future[T] = Future()
        assert isinstance(coroutine, Coroutine)
        self._start(_Task(coroutine, main, copy_context(), False))
        try:
            while not main.done:
                while self._ready and not main.done:
                    self._step(self._ready.popleft())
                if main.done:
                    break
                if not self._requests:
                    raise RuntimeError("every coroutine waits for another one: a protocol awaits its own result")
                self._exchange()
        except BaseException:
            self.close()
            raise
        return main.result  # type: ignore[return-value]

    def drain(self) -> None:
        """Run everything that was started with `later` to its end."""
        while self._ready or self._requests:
            while self._ready:
                self._step(self._ready.popleft())
            if self._requests:
                self._exchange()

    def _exchange(self) -> None:
        waiting, self._requests = sorted(self._requests, key=lambda item: item[0].background), []
        for (task, _), value in zip(waiting, self._flush([r for _, r in waiting]), strict=True):
            task.value = value
            self._ready.append(task)

    def close(self) -> None:
        """Drop everything that is still waiting."""
        for task in self._live:
            task.context.run(task.coroutine.close)
        self._live.clear()
        self._ready.clear()
        self._requests.clear()

    def _start(self, task: _Task) -> None:
        self._live.append(task)
        self._ready.append(task)

    def _step(self, task: _Task) -> None:
        value, task.value = task.value, None
        while True:
            line = timeline.active
            if line is not None:
                line.begin()
            try:
                wanted = task.context.run(task.coroutine.send, value)
            except StopIteration as stop:
                if line is not None:
                    line.end(task.context.run(current))
                task.future.done, task.future.result = True, stop.value
                self._live.remove(task)
                self._ready.extend(task.future._waiting)
                task.future._waiting.clear()
                return
            if line is not None:
                line.end(task.context.run(current))
            if isinstance(wanted, _Spawn):
                future: Future[Any] = Future()
                child = _Task(wanted.coroutine, future, task.context.copy(), task.background or wanted.background)
                self._start(child)
                value = future
                continue
            if isinstance(wanted, Future):
                wanted._waiting.append(task)
                return
            self._requests.append((task, wanted))
            return
