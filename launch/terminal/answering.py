"""One question to running parties: progress while they work, tokens as they come, and the answer with what it cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from launch.terminal.console import err
from models.tokenizer.text import TextTokenizer
from parties.client.client import Client, GenerationResult
from parties.client.request import GenerationRequest


@dataclass(frozen=True)
class Answer:
    """text, result: the client's secrets. token_seconds: from the session's start to each token."""

    text: str = field(repr=False)
    prompt_tokens: int
    result: GenerationResult
    token_seconds: list[float]

    @property
    def seconds_per_token(self) -> float | None:
        """Mean seconds of the tokens after the first; None when there was but one."""
        times = self.token_seconds
        return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None


class _View:
    """A bar on standard error until the first token, then text on standard output; without streaming, a bar throughout."""

    def __init__(self, tokenizer: TextTokenizer, before: list[int], streaming: bool) -> None:
        self._stream = tokenizer.stream(before)
        self._streaming = streaming
        self._start = time.perf_counter()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._pieces: list[str] = []
        self.times: list[float] = []

    def __enter__(self) -> _View:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._bar.stop()
        if kind is not None and self._streaming and self.times:
            sys.stdout.write("\n")  # the error gets a line of its own
            sys.stdout.flush()

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show a line for each stage before the first token, and one of tokens where their text does not show them."""
        if self._streaming and (self.times or stage == "tokens"):
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=None)
        self._bar.update(self._tasks[stage], completed=done, total=total or None)

    def token(self, token: int) -> None:
        """Show one more token, whose text may have to wait for the next one."""
        if not self.times and self._streaming:
            self._bar.stop()
        self.times.append(time.perf_counter() - self._start)
        self._write(self._stream.push(token))

    def finish(self) -> str:
        """Show the text that still waited, end the line, and return the whole text."""
        self._write(self._stream.flush())
        if self._streaming:
            sys.stdout.write("\n")
            sys.stdout.flush()
        return "".join(self._pieces)

    def _write(self, piece: str) -> None:
        self._pieces.append(piece)
        if self._streaming and piece:
            sys.stdout.write(piece)
            sys.stdout.flush()


def answer(
    client: Client,
    tokenizer: TextTokenizer,
    request: GenerationRequest,
    streaming: bool = True,
    watched: Callable[[Callable[[], GenerationResult]], GenerationResult] = lambda work: work(),
) -> Answer:
    """Ask the parties for a request with its prompt.

    streaming: text is written to standard output as it comes. watched: runs the call to the parties.
    """
    ids = list(request.prompt_ids)
    with _View(tokenizer, ids, streaming) as view:
        result = watched(lambda: client.generate(request, on_token=view.token, on_progress=view.progress))
    return Answer(view.finish(), len(ids), result, view.times)
