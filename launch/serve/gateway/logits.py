"""What a client that may see logits does with them: biases, penalties, and the probabilities that a request asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.tokenizer.text import TextTokenizer
from parties.client.sampling_params import Adjust


@dataclass(frozen=True)
class Adjustment:
    """Changes logits before a token is chosen. prompt: its number of tokens.

    bias: is added to a token's logit. presence, frequency: taken off each token of the answer so far, once and for each time
    that it stands there (OpenAI's). repetition: divides positive logits of tokens of prompt and answer, and multiplies
    negative ones (Hugging Face's, vLLM's). The answer is secret, and so is what this returns.
    """

    prompt: int
    bias: Mapping[int, float] = field(default_factory=dict, repr=False)
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0

    def __call__(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        """Return changed logits, float64 [V]; tokens: of prompt and answer."""
        out = logits.to(torch.float64).clone()
        if self.repetition != 1:
            seen = torch.tensor(sorted(set(tokens)), dtype=torch.int64)
            out[seen] = torch.where(out[seen] > 0, out[seen] / self.repetition, out[seen] * self.repetition)
        said = torch.tensor(tokens[self.prompt :], dtype=torch.int64)
        counts = torch.bincount(said, minlength=len(out)).to(torch.float64)
        out -= self.frequency * counts + self.presence * (counts > 0)
        for token, value in self.bias.items():
            out[token] += value
        return out


@dataclass(frozen=True)
class TokenProbability:
    """A token of an answer with the natural logarithm of its probability, and the likeliest tokens. Secret."""

    text: str = field(repr=False)
    logprob: float = field(repr=False)
    top: list[tuple[str, float]] = field(repr=False)

    def chat(self) -> dict[str, Any]:
        """Return OpenAI's record of a chat's token."""
        return {**_record(self.text, self.logprob), "top_logprobs": [_record(*pair) for pair in self.top]}


def _record(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def probability(words: TextTokenizer, token: int, logits: Tensor, top: int) -> TokenProbability:
    """Return the model's own probability (before temperature, filters and adjustments) of a token; logits [V]."""
    row = torch.log_softmax(logits.to(torch.float64), -1)
    values, ids = row.topk(top)
    best = [(words.decode([other]), float(value)) for other, value in zip(ids.tolist(), values, strict=True)]
    return TokenProbability(words.decode([token]), float(row[token]), best)


class Seen:
    """Keeps the model's own logits of the token that is chosen next, and passes them on to `adjust`. row: [V], secret."""

    def __init__(self, adjust: Adjust | None) -> None:
        self._adjust = adjust
        self.row: Tensor | None = None

    def __call__(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        self.row = logits
        return logits if self._adjust is None else self._adjust(logits, tokens)


def chat_record(found: Sequence[TokenProbability]) -> dict[str, Any]:
    """Return OpenAI's `logprobs` of a chat's choice."""
    return {"content": [token.chat() for token in found], "refusal": None}


def completion_record(found: Sequence[TokenProbability], start: int) -> dict[str, Any]:
    """Return OpenAI's `logprobs` of a completion's choice. start: characters of the text before the answer."""
    offsets = []
    for token in found:
        offsets.append(start)
        start += len(token.text)
    return {
        "tokens": [token.text for token in found],
        "token_logprobs": [token.logprob for token in found],
        "top_logprobs": [dict(token.top) for token in found],
        "text_offset": offsets,
    }
