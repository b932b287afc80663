"""One private generation for one request: it runs in a thread of its own, its events reach the event loop in order."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from launch.serve.gateway.catalogue import Served
from launch.serve.gateway.live import Live
from launch.serve.gateway.logits import TokenProbability, probabilities
from models.tokenizer.stop_strings import TextUntil
from mpc.errors import MpcacheError
from parties.client.cancellation import Cancellation
from parties.client.client import Client, GenerationResult
from parties.client.prefixes import AUTO
from parties.client.request import GenerationRequest
from parties.wire.error_codec import public


@dataclass(frozen=True)
class TextRequest:
    """A generation whose answer is text. context: the tokens that the text continues. echo: what it begins with. Secret.
    logprobs: that many of the likeliest tokens are told with each, None for no probabilities. again: the same prompt was
    asked for before by the same HTTP request, which OpenAI counts once."""

    served: Served
    request: GenerationRequest
    context: list[int] = field(repr=False)
    echo: str = field(repr=False)
    logprobs: int | None = None
    again: bool = False


@dataclass(frozen=True)
class Text:
    """A piece of answer number `index`; may be empty while text is held back."""

    index: int
    text: str = field(repr=False)


@dataclass(frozen=True)
class Done:
    """Answer number `index` is over. reason: OpenAI's "stop" or "length", or "range": a value left its declared range on the
    way to the next token, and the answer ends before it. cached_tokens: of the prompt's, those of a registered prefix. echo:
    what its text begins with."""

    index: int
    reason: str
    prompt_tokens: int
    result: GenerationResult
    cached_tokens: int = 0
    probabilities: list[TokenProbability] | None = field(default=None, repr=False)
    echo: str = field(default="", repr=False)


def usage(all_of_them: Sequence[Done]) -> dict[str, Any]:
    """Return OpenAI's counts of tokens; an end-of-text token counts."""
    prompt = sum(done.prompt_tokens for done in all_of_them)
    new = sum(len(done.result.tokens) for done in all_of_them)
    counts = {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
    cached = sum(done.cached_tokens for done in all_of_them)
    return {**counts, "prompt_tokens_details": {"cached_tokens": cached}} if cached else counts


@dataclass(frozen=True)
class Failed:
    """The generation ended with an error."""

    error: MpcacheError


@dataclass(frozen=True)
class Gone:
    """Whoever asked has closed the connection."""


Event = Text | Done | Failed | Gone


class Generation:
    """The answers to one HTTP request, one after the other. `events` delivers `Text`s and one `Done` of each, or `Failed`;
    `Gone` at any time."""

    def __init__(self, client: Client, asked: Sequence[TextRequest], on_end: Callable[[float], None], live: Live) -> None:
        self.asked = asked
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.began = time.perf_counter()
        self._client = client
        self._on_end = on_end
        self._live = live
        self._loop = asyncio.get_running_loop()
        self._cancellation = Cancellation()

    def start(self) -> None:
        """Begin. on_end(seconds) is called in the event loop when the parties are free again."""
        self.began = time.perf_counter()
        threading.Thread(target=self._work, name="generate", daemon=True).start()

    def cancel(self) -> None:
        """End it at once, here and at the parties."""
        self._cancellation.cancel()

    def gone(self) -> None:
        """End it because whoever asked has closed the connection, and say so among the events."""
        self.cancel()
        self.events.put_nowait(Gone())

    def _post(self, event: Event) -> None:
        with suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)

    def _work(self) -> None:
        try:
            for index, asked in enumerate(self.asked):
                self._post(self._generate(index, asked))
        except Exception as error:
            self._live.end(None)
            self._post(Failed(public(error, "the gateway")))
        finally:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._on_end, time.perf_counter() - self.began)

    def _generate(self, index: int, asked: TextRequest) -> Done:
        words, request = asked.served.words, asked.request
        text = TextUntil(words.tokenizer.stream(asked.context), list(request.params.stop))
        ends = request.params.ends(asked.served.reference.architecture.eos)
        if asked.echo:
            self._post(Text(index, asked.echo))

        def on_token(token: int) -> bool:
            if token not in ends:
                self._post(Text(index, text.push(token)))
            return not text.stopped

        tokens = replace(request, params=replace(request.params, stop=()))  # texts are looked for here
        self._live.begin(len(request.prompt_ids), request.params.max_tokens)
        result = self._client.generate(
            tokens, on_token=on_token, on_progress=self._live.progress, cancellation=self._cancellation
        )
        self._live.end(result)
        self._post(Text(index, text.flush()))
        told = None
        if asked.logprobs is not None and result.logits is not None:
            kept = [token for token in result.tokens if token not in ends]
            told = probabilities(words.tokenizer, kept, result.logits, asked.logprobs)
        cached = 0 if result.prefix is None or asked.again else result.prefix.tokens
        prompt = 0 if asked.again else len(request.prompt_ids) + (cached if request.prefix != AUTO else 0)
        return Done(index, result.finish_reason, prompt, result, cached, told, asked.echo)
