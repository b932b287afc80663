"""What a session costs, about and quickly: for who decides whether to begin it.

The prompt and one new token are traced (`models.costs.estimation`), with lengths rounded up to an eighth of a power of two,
so that sessions of like lengths share a trace. A new token is traced after the prompt and after all tokens but the last,
each time as after a prompt of so many tokens, and the larger cost counts for all. With a draft a token is a step of all its
rows, as if one of them stayed: the most steps that there can be. So a session is predicted a little too
high, but for policies that drop a share of the prompt and then generate many more tokens than the prompt had. Whoever deals
counts what it deals as well.

A trace looks at public numbers only. It gives up after a time limit: its work is bounded by that, and by the lengths.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from models.architecture import Architecture
from models.architectures import AnyArchitecture
from models.costs.estimation import Tracer
from models.costs.tracing import Setting
from models.prefixes import ROWS


class PredictionTooLong(Exception):
    """The time limit is over."""


@dataclass(frozen=True)
class Prediction:
    """Bytes: what the dealer deals and what a party sends to each of its peers; for the whole prompt, and for the most
    expensive new token. prompt, new: tokens. kept: what the policy keeps of the prompt in a party's memory; None where
    nothing is cached."""

    prompt: int
    new: int
    prompt_dealt: int
    prompt_sent: int
    token_dealt: int
    token_sent: int
    kept: int | None = None

    @property
    def dealt(self) -> int:
        """Return the bytes dealt in the session."""
        return self.prompt_dealt + (self.new - 1) * self.token_dealt

    @property
    def sent(self) -> int:
        """Return the bytes that a party sends in the session."""
        return self.prompt_sent + (self.new - 1) * self.token_sent

    @property
    def dealt_each(self) -> int:
        """Return the most bytes dealt for one token: a new one, or one of the prompt on average."""
        return max(self.token_dealt, self.prompt_dealt // self.prompt)

    @property
    def sent_each(self) -> int:
        """Return the most bytes sent for one token: a new one, or one of the prompt on average."""
        return max(self.token_sent, self.prompt_sent // self.prompt)


def rounded(tokens: int, most: int) -> int:
    """Return the least length from `tokens` on that has three significant bits behind its first, at most `most`."""
    unit = 1 << max(0, tokens.bit_length() - 4)
    return max(tokens, min(-(-tokens // unit) * unit, most))


class Predictor:
    """Predictions for one model in one setting; a length is traced once. Not safe for threads by itself."""

    def __init__(self, architecture: AnyArchitecture, setting: Setting) -> None:
        self._architecture = architecture
        self._limit = 0.0
        self._setting = replace(setting, check=self._check)
        self._tracers: dict[int, Tracer] = {}

    def _check(self) -> None:
        if time.perf_counter() > self._limit:
            raise PredictionTooLong

    def predict(self, prompt: int, new: int, seconds: float) -> Prediction:
        """Predict the costs of a prompt of `prompt` tokens and `new` new ones, in about `seconds` at most. Raises
        `PredictionTooLong`."""
        self._limit = time.perf_counter() + seconds
        tracer = self._tracer(prompt)
        with torch.inference_mode():
            first = tracer.step(*self._first(prompt)[:2])
            tokens = [tracer.step(*key) for key in self._later(prompt, new)]

        def most(field: str) -> int:
            return max((round(step.costs.total(field)) for step in tokens), default=0)

        return Prediction(
            prompt,
            new,
            round(first.costs.total("offline_bytes")),
            round(first.costs.total("bytes_sent")),
            most("offline_bytes"),
            most("bytes_sent"),
            first.kept,
        )

    def known(self, prompt: int, new: int) -> bool:
        """Whether `predict` has nothing to trace for these lengths."""
        keys = [self._first(prompt), *self._later(prompt, new)]
        return all(key in self._tracer(prompt).lengths for key in keys)

    def _first(self, prompt: int) -> tuple[int, int, bool]:
        """Return the step of the prompt, as `_later` does."""
        room = self._architecture.positions - self._setting.before - int(self._setting.decoding == ROWS)
        return 0, rounded(prompt, room), False

    def _cached(self, prompt: int) -> int:
        a = self._architecture
        return self._setting.cached(a, prompt) if isinstance(a, Architecture) else prompt

    def _tracer(self, prompt: int) -> Tracer:
        """Return what traces steps after such a prompt: one for each length that an encoder reads."""
        a = self._architecture
        read = rounded(prompt, a.positions) if isinstance(a, Architecture) and a.encoder is not None else 0
        return self._tracers.setdefault(read, Tracer(a, self._setting, read=read, memory=False))

    def _later(self, prompt: int, new: int) -> list[tuple[int, int, bool]]:
        """Return tokens before it, rows, and whether it is drafted, of the steps that stand for all further tokens."""
        if new == 1:
            return []
        draft, cached = self._setting.draft, self._cached(prompt)
        rows = 1 if draft is None else draft.rows(new - 1)
        most = self._architecture.positions - rows
        return [(rounded(min(n, most), most), rows, draft is not None) for n in (cached, cached + new - 2)]
