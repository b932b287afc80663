"""One question to running parties: progress while they work, tokens as they come, and the answer with what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from rich.progress import TaskID

from launch.terminal.console import write
from launch.terminal.progress import bars
from models.tokenizer.stop_strings import TextUntil
from models.tokenizer.text import TextTokenizer
from parties.client.client import Client, GenerationResult
from parties.client.request import GenerationRequest
from parties.client.sampling_params import SamplingParams


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
    """A bar on standard error until the first token, then text on standard output; without streaming, a bar throughout.

    before: tokens that the text continues. params: what ends it: of a token or text that ends it nothing is shown.
    """

    def __init__(self, tokenizer: TextTokenizer, before: Sequence[int], params: SamplingParams, streaming: bool) -> None:
        stops = [params.stop] if isinstance(params.stop, str) else list(params.stop)
        self._text = TextUntil(tokenizer.stream(list(before)), stops)
        self._ends = frozenset(params.stop_token_ids)
        self._streaming = streaming
        self._start = time.perf_counter()
        self._bar = bars()
        self._tasks: dict[str, TaskID] = {}
        self._waits: set[str] = set()  # stages without an end
        self._pieces: list[str] = []
        self.times: list[float] = []

    def __enter__(self) -> _View:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._bar.stop()
        if kind is not None and self._streaming and self.times:
            write("\n")  # the error gets a line of its own

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show a line for each stage before the first token, and one of tokens where their text does not show them; one that
        has no end, such as for whom it waits, until something goes on."""
        if self._streaming and (self.times or stage == "tokens"):
            return
        if total:
            for name in self._waits - {stage}:
                self._bar.remove_task(self._tasks.pop(name))
            self._waits.clear()
        else:
            self._waits.add(stage)
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=None)
        self._bar.update(self._tasks[stage], completed=done, total=total or None)

    def token(self, token: int) -> bool:
        """Show one more token, whose text may have to wait for the next one. False: a text that ends the answer has come."""
        if not self.times and self._streaming:
            self._bar.stop()
        self.times.append(time.perf_counter() - self._start)
        if token not in self._ends:
            self._write(self._text.push(token))
        return not self._text.stopped

    def finish(self) -> str:
        """Show the text that still waited, end the line, and return the whole text."""
        self._write(self._text.flush())
        if self._streaming:
            write("\n")
        return "".join(self._pieces)

    def _write(self, piece: str) -> None:
        self._pieces.append(piece)
        if self._streaming and piece:
            write(piece)


@dataclass(frozen=True)
class Asking:
    """Who asks, and how the answer is shown. streaming: its text is written to standard output as it comes. watched: runs
    the call to the parties."""

    client: Client
    tokenizer: TextTokenizer
    streaming: bool = True
    watched: Callable[[Callable[[], GenerationResult]], GenerationResult] = lambda work: work()

    def answer(self, request: GenerationRequest, context: Sequence[int] | None = None) -> Answer:
        """Ask the parties for a request with its prompt. context: tokens that the answer's text continues, by default the
        prompt; none in a conversation."""
        before = list(request.prompt_ids) if context is None else list(context)
        tokens = replace(request, params=replace(request.params, stop=()))  # texts are looked for here
        with _View(self.tokenizer, before, request.params, self.streaming) as view:
            result = self.watched(lambda: self.client.generate(tokens, on_token=view.token, on_progress=view.progress))
        return Answer(view.finish(), len(request.prompt_ids), result, view.times)
