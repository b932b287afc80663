"""The generations of a request, and the request that waits for them: a whole answer, or a stream of events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from launch.serve.gateway.access import Metrics, told
from launch.serve.gateway.errors import ApiError, from_error
from launch.serve.gateway.generation import Answer, Done, Event, Failed, Generation, Gone, Text

BEAT_SECONDS = 10.0  # a stream says something this often, so that nobody between takes it for dead
ENDED = ("stop", "length")  # why an answer ends that no failure ends
GONE_STATUS = 499  # nobody reads it; for the log


class Shape(Protocol):
    """How the answers to one request look on the wire. Pieces are server-sent events, complete or empty."""

    @property
    def name(self) -> str:
        """The request's id."""

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the body of answers without a stream."""

    def opening(self, answers: Sequence[Answer]) -> bytes:
        """Return what a stream begins with."""

    def piece(self, event: Text, answer: Answer) -> bytes:
        """Return the event of a piece; answer: as it was before."""

    def ended(self, done: Done, answer: Answer) -> bytes:
        """Return the event that says why an answer ended."""

    def closing(self, answers: Sequence[Answer]) -> bytes:
        """Return the last events."""

    def error(self, problem: ApiError) -> bytes:
        """Return the event of an error after a stream has begun."""


class Exchange:
    """The generations of a request, and the request that waits for them."""

    def __init__(self, generation: Generation, shape: Shape, watcher: asyncio.Task[None], metrics: Metrics) -> None:
        self._generation = generation
        self._shape = shape
        self._watcher = watcher
        self._metrics = metrics
        self._answers = [Answer.to(asked) for asked in generation.asked]

    def close(self) -> None:
        """End the generation at the parties, unless it is over."""
        self._watcher.cancel()
        self._generation.cancel()

    async def _next(self, seconds: float | None = None) -> Event | None:
        """Wait for the next event; return None after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                return await self._generation.events.get()
        except TimeoutError:
            return None

    async def whole(self) -> dict[str, Any]:
        """Wait for all answers and return the body. Raises `ApiError`."""
        while True:
            event = await self._next()
            if isinstance(event, Failed | Gone):
                raise self._problem(event)
            self._take(event)
            if self._over:
                self.close()
                return self._shape.whole(self._answers)

    @property
    def _over(self) -> bool:
        return all(answer.done is not None for answer in self._answers)

    def _take(self, event: Event | None) -> None:
        """Keep a piece of an answer, or its end."""
        if isinstance(event, Text | Done):
            self._answers[event.index].take(event)
        if isinstance(event, Done):
            self._record(200, event)

    async def first(self) -> Event | None:
        """Wait for the first event, so that an early failure gets its status code; return None when it takes long.

        Raises `ApiError` for a failure.
        """
        event = await self._next(BEAT_SECONDS)
        if isinstance(event, Failed | Gone):
            raise self._problem(event)
        return event

    async def stream(self, first: Event | None) -> AsyncIterator[bytes]:
        """Yield the answer as server-sent events."""
        yield self._shape.opening(self._answers)
        event = first
        while True:
            if event is None:
                yield b": the parties are at work\n\n"
            elif isinstance(event, Failed | Gone):
                yield self._shape.error(self._problem(event))
                return
            elif isinstance(event, Text) and (event.text or event.probability is not None):
                yield self._shape.piece(event, self._answers[event.index])
            elif isinstance(event, Done):
                yield self._shape.ended(event, self._answers[event.index])
            self._take(event)
            if self._over:
                yield self._shape.closing(self._answers)
                return
            event = await self._next(BEAT_SECONDS)

    def _problem(self, event: Event | None) -> ApiError:
        if isinstance(event, Failed):
            found = from_error(event.error)
            self._record(found.status, None, event.error.code)
            return found
        self._record(GONE_STATUS, None, "the connection was closed")
        return ApiError(GONE_STATUS, "the connection was closed", "server_error")

    def _record(self, status: int, done: Done | None, problem: str = "") -> None:
        """Write a line of log; of the request it has only lengths that the parties know too: a padded prompt's bucket, and
        of an answer of fixed length all tokens, whatever ended it."""
        over = sum(answer.done is not None for answer in self._answers)
        asked = self._generation.asked[done.index if done else min(over, len(self._answers) - 1)]
        params = asked.request.params
        prompt, most = asked.request.plan().prompt_tokens, params.max_tokens
        fixed = params.fixed_length and done is not None and done.reason in ENDED
        new = most if fixed else len(done.result.tokens) if done else 0
        reason = "complete" if fixed else done.reason if done else problem
        seconds = time.perf_counter() - self._generation.began
        tokens = f"{prompt} + {new} of {most} tokens"
        if done:
            self._metrics.prompt_tokens.inc(prompt)
            self._metrics.tokens.inc(new)
        session = f", session {done.result.session}, {reason}" if done else f": {problem}"
        model = asked.served.reference.id
        facts = {
            "request": self._shape.name,
            "status": status,
            "model": model,
            "prompt_tokens": prompt,
            "tokens": new,
            "max_tokens": most,
            "seconds": round(seconds, 4),
            "session": done.result.session if done else None,
            "outcome": reason,
        }
        text = f"{self._shape.name} {status}, model {model}, {tokens}, {seconds:.2f} s{session}"
        told("answer", text, **{name: value for name, value in facts.items() if value is not None})


class EventStream(Response):
    """Server-sent events from an iterator, each sent as soon as it is there."""

    media_type = "text/event-stream"

    def __init__(self, pieces: AsyncIterator[bytes], close: Callable[[], None], headers: dict[str, str]) -> None:
        self._pieces = pieces
        self._close = close
        self.status_code = 200
        self.background = None
        self.init_headers({**headers, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for piece in self._pieces:
                if piece:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._close()
