"""What a client asks of a generation: how tokens are chosen and what ends the answer. Words are vLLM's where the meaning is.

Parties learn `max_tokens`, `decoding` and the temperature of "sample"; the rest stays with the client.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from models.generation import check_decoding, check_positive
from models.outputs import Decoding
from mpc.errors import ConfigurationError
from protocols.gumbel import check_temperature

T = TypeVar("T")
Adjust = Callable[[Tensor, Sequence[int]], Tensor]
"""(logits [V], all tokens so far) -> logits [V], before a token is chosen from them."""


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen, and what ends an answer. Raises `ConfigurationError` naming the argument and its value.

    max_tokens: the most tokens to generate. decoding: "greedy" takes the most likely token; "sample" samples at
    `temperature` (1 where it is not given) by noise that the dealer deals, and nobody learns logits; with "logits", which
    every party must grant, this client learns them and takes the most likely token, or samples at `temperature` with `top_k`
    and `top_p`. temperature: above 0 and at most 100. top_k: only the k most likely tokens are sampled. top_p: only the
    fewest most likely ones whose probabilities reach p. adjust: may change logits before the choice ("logits" only).

    stop: texts that end the answer, for callers with a tokenizer. stop_token_ids: tokens that do, besides the model's
    end-of-text tokens. ignore_eos: those end nothing. fixed_length: parties always generate `max_tokens` tokens and the
    answer is cut here; without it they learn the answer's length, and one that sends wrong shares may learn more from when
    it ends.

    seed: a sample from logits draws its noise from this number, so that it can be repeated ("logits" only).

    >>> SamplingParams(8, decoding="sample").temperature
    1.0
    >>> SamplingParams(8, stop_token_ids=(7,)).ends(eos=[2])
    frozenset({2, 7})
    >>> SamplingParams(8, top_k=5)
    Traceback (most recent call last):
    mpc.errors.ConfigurationError: top_k and top_p need decoding 'logits' (this client then learns logits), not 'greedy'
    """

    max_tokens: int = 16
    decoding: Decoding = "greedy"
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    stop: Sequence[str] | str = field(default=(), repr=False)
    stop_token_ids: Sequence[int] = field(default=(), repr=False)
    ignore_eos: bool = False
    adjust: Adjust | None = None
    fixed_length: bool = False
    seed: int | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else _checked("stop", self.stop, str))
        object.__setattr__(self, "stop_token_ids", _checked("stop_token_ids", self.stop_token_ids, int))
        if "" in self.stop:
            raise ConfigurationError("stop: an empty text would end every answer at once")
        self._check_filters()
        object.__setattr__(self, "temperature", self._checked_temperature())
        if self.adjust is not None and self.decoding != "logits":
            raise ConfigurationError(
                f"adjust needs decoding 'logits' (this client then learns logits), not '{self.decoding}'"
            )
        if self.seed is not None and self.decoding != "logits":
            raise ConfigurationError(f"seed needs decoding 'logits' (this client then draws), not '{self.decoding}'")
        check_positive("max_tokens", self.max_tokens)
        check_decoding(self.decoding)

    def _check_filters(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise ConfigurationError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigurationError(f"top_p must be above 0 and at most 1, got {self.top_p:g}")
        if self.top_k is None and self.top_p is None:
            return
        if self.decoding != "logits":
            raise ConfigurationError(
                f"top_k and top_p need decoding 'logits' (this client then learns logits), not '{self.decoding}'"
            )
        if self.temperature is None:
            raise ConfigurationError("top_k and top_p need a temperature")

    def _checked_temperature(self) -> float | None:
        """Return the temperature that applies, None for the most likely token."""
        if self.decoding == "greedy" and self.temperature is not None:
            raise ConfigurationError("temperature needs decoding 'sample' or 'logits', not 'greedy'")
        if self.decoding == "sample" and self.temperature is None:
            return 1.0
        return None if self.temperature is None else check_temperature(self.temperature)

    @property
    def agreed_temperature(self) -> float | None:
        """The temperature that the dealer's noise has; another one is this client's own affair. Public."""
        return self.temperature if self.decoding == "sample" else None

    def ends(self, eos: Sequence[int]) -> frozenset[int]:
        """Return the tokens that end an answer of a model with these end-of-text tokens."""
        return frozenset((*(() if self.ignore_eos else eos), *self.stop_token_ids))


def _checked(name: str, values: Any, kind: type[T]) -> tuple[T, ...]:
    """Return a list's members, each of this kind. Raises `ConfigurationError` naming the argument, not its secret value."""
    found = tuple(values) if isinstance(values, Sequence) and not isinstance(values, str | bytes) else None
    if found is None or not all(isinstance(value, kind) and not isinstance(value, bool) for value in found):
        raise ConfigurationError(f"{name} must be a list of {'texts' if kind is str else 'token ids'}")
    return found


GREEDY = SamplingParams()
