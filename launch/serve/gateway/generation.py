"""One private generation for one request: it runs in a thread of its own, its events reach the event loop in order."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from launch.serve.gateway.catalogue import Served
from launch.serve.gateway.formats import Held
from launch.serve.gateway.live import Glance
from launch.serve.gateway.logits import Seen, TokenProbability, probability
from launch.serve.gateway.patience import Patience
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
    asked for before by the same HTTP request, which OpenAI counts once. held: the format that the answer is held to."""

    served: Served
    request: GenerationRequest
    context: list[int] = field(repr=False)
    echo: str = field(repr=False)
    logprobs: int | None = None
    again: bool = False
    held: Held | None = None


@dataclass(frozen=True)
class Text:
    """A piece of answer number `index`; may be empty while text is held back. probability: of the token that it came with,
    where the request asks for it."""

    index: int
    text: str = field(repr=False)
    probability: TokenProbability | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Done:
    """Answer number `index` is over. reason: OpenAI's "stop" or "length", or "range": a value left its declared range on the
    way to the next token, and the answer ends before it. cached_tokens: of the prompt's, those of a registered prefix."""

    index: int
    reason: str
    prompt_tokens: int
    result: GenerationResult
    cached_tokens: int = 0


@dataclass
class Answer:
    """An answer as far as it is here. probabilities: of its tokens, None where the request asks for none. Secret."""

    text: str = field(default="", repr=False)
    echo: str = field(default="", repr=False)
    probabilities: list[TokenProbability] | None = field(default=None, repr=False)
    done: Done | None = None

    @classmethod
    def to(cls, asked: TextRequest) -> Answer:
        """Return the answer to a request before its first token."""
        return cls(echo=asked.echo, probabilities=None if asked.logprobs is None else [])

    def take(self, event: Text | Done) -> None:
        """Add a piece, or the end."""
        if isinstance(event, Done):
            self.done = event
            return
        self.text += event.text
        if event.probability is not None and self.probabilities is not None:
            self.probabilities.append(event.probability)


@dataclass(frozen=True)
class Failed:
    """The generation ended with an error."""

    error: MpcacheError


@dataclass(frozen=True)
class Gone:
    """Whoever asked has closed the connection."""


Event = Text | Done | Failed | Gone


@dataclass(frozen=True)
class Watch:
    """What looks at a request's generations. glance: for the page; seconds: that they wait for a peer that is gone."""

    glance: Glance
    seconds: float


class Generation:
    """The answers to one HTTP request, one after the other. `events` delivers `Text`s and one `Done` of each, or `Failed`;
    `Gone` at any time."""

    def __init__(self, client: Client, asked: Sequence[TextRequest], on_end: Callable[[float], None], watch: Watch) -> None:
        self.asked = asked
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.began = time.perf_counter()
        self._client = client
        self._on_end = on_end
        self._glance = watch.glance
        self._seconds = watch.seconds
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
            self._glance.end(None)
            self._post(Failed(public(error, "the gateway")))
        finally:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._on_end, time.perf_counter() - self.began)

    def _generate(self, index: int, asked: TextRequest) -> Done:
        words, request = asked.served.words, asked.request
        text = TextUntil(words.tokenizer.stream(asked.context), list(request.params.stop))
        ends = request.params.ends(asked.served.reference.architecture.eos)
        seen = None if asked.logprobs is None else Seen(request.params.adjust)
        if asked.echo:
            self._post(Text(index, asked.echo))

        def on_token(token: int) -> bool:
            if token in ends:
                return True
            told = None
            if asked.logprobs is not None and seen is not None and seen.row is not None:
                told = probability(words.tokenizer, token, seen.row, asked.logprobs)
            self._post(Text(index, text.push(token), told))
            return not text.stopped and (asked.held is None or not asked.held.complete(token))

        adjust = request.params.adjust if seen is None else seen
        params = replace(request.params, stop=(), adjust=adjust)  # texts are looked for here
        self._glance.begin(len(request.prompt_ids), params.max_tokens)
        result = self._client.generate(
            replace(request, params=params),
            on_token=on_token,
            on_progress=Patience(self._seconds, self._glance.progress).progress,
            on_spent=self._glance.spent,
            cancellation=self._cancellation,
        )
        self._glance.end(result)
        self._post(Text(index, text.flush()))
        cached = 0 if result.prefix is None or asked.again else result.prefix.tokens
        prompt = 0 if asked.again else len(request.prompt_ids) + (cached if request.prefix != AUTO else 0)
        return Done(index, result.finish_reason, prompt, result, cached)
