"""What a client that may see logits does with them: biases, penalties, and the probabilities that a request asks for."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.tokenizer.text import TextTokenizer
from parties.client.sampling_params import Adjust

BYTES = "bytes:"  # in front of a completion's token that is no whole text


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
class Likelihood:
    """A token with the natural logarithm of its probability. data: what it adds to a text. Secret."""

    token: int = field(repr=False)
    text: str = field(repr=False)
    data: bytes = field(repr=False)
    logprob: float = field(repr=False)

    def name(self, before: str = "") -> str:
        r"""Return its text, or as OpenAI does its bytes where they are not whole characters, with `before` in front.

        >>> Likelihood(7, "\ufffd", b"\xe2\x80", -1.0).name("bytes:")
        'bytes:\\xe2\\x80'
        """
        try:
            self.data.decode()
        except UnicodeDecodeError:
            return before + "".join(f"\\x{byte:02x}" for byte in self.data)
        return self.text

    def record(self) -> dict[str, Any]:
        """Return OpenAI's record of one token of a chat."""
        return {"token": self.name(), "logprob": self.logprob, "bytes": list(self.data)}


@dataclass(frozen=True)
class TokenProbability:
    """A token of an answer, and the likeliest tokens there, the likeliest first. Secret."""

    chosen: Likelihood = field(repr=False)
    top: list[Likelihood] = field(repr=False)

    def chat(self) -> dict[str, Any]:
        """Return OpenAI's record of a chat's token."""
        return {**self.chosen.record(), "top_logprobs": [one.record() for one in self.top]}

    def top_by_name(self) -> dict[str, float]:
        """Return the likeliest tokens of a completion's token: of several with one name the likeliest, or the chosen one."""
        found: dict[str, float] = {}
        for one in self.top:
            if one.token == self.chosen.token or one.name(BYTES) not in found:
                found[one.name(BYTES)] = one.logprob
        return found


def probability(words: TextTokenizer, token: int, logits: Tensor, top: int) -> TokenProbability:
    """Return the model's own probability (before temperature, filters and adjustments) of a token; logits [V]."""
    row = torch.log_softmax(logits.to(torch.float64), -1)

    def told(one: int) -> Likelihood:
        data = words.data(one)
        return Likelihood(one, words.hidden(one) or data.decode(errors="replace"), data, float(row[one]))

    return TokenProbability(told(token), [told(other) for other in row.topk(top).indices.tolist()])


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
    return {
        "tokens": [token.chosen.name(BYTES) for token in found],
        "token_logprobs": [token.chosen.logprob for token in found],
        "top_logprobs": [token.top_by_name() for token in found],
        "text_offset": [start + characters(found[:number]) for number in range(len(found))],
    }


def characters(found: Sequence[TokenProbability]) -> int:
    """Return how many characters these tokens are, less one at their end that is not whole."""
    reader = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return len(reader.decode(b"".join(token.chosen.data for token in found)))
