"""What a client guesses of its answer, in the clear and on its own machine, for the parties to verify (`models.drafting`).

Guesses come from the text itself (`NGrams`), or from a small public checkpoint (`parties.client.draft_model`). Parties learn
how many there are and how many of them were right; not what they are, and not where they come from.

Source: Saxena, "Prompt Lookup Decoding", 2023 (n-grams); Leviathan et al., ICML 2023 (a small model).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from models.architecture import Architecture
from models.drafting import DraftPlan, Guess
from models.tokenizer.text import TextTokenizer
from mpc.errors import ConfigurationError

LONGEST = 3


@dataclass(frozen=True)
class Draft:
    """How a client drafts. plan: what parties learn. begin(): returns the guesses of one session. vocabulary, tokenizer: of
    the checkpoint that guesses, None where guesses come from the text itself. source: what it was made of, for errors."""

    plan: DraftPlan
    begin: Callable[[], Guess] = field(repr=False)
    vocabulary: int | None = None
    tokenizer: TextTokenizer | None = field(default=None, repr=False)
    source: str = "ngram"

    def check(self, architecture: Architecture, tokenizer: TextTokenizer | None = None) -> None:
        """Raise `ConfigurationError` unless guesses are tokens of this model. tokenizer: the model's, where there is one:
        the same number must then stand for the same text."""
        remedy = "guesses would be other tokens; give a checkpoint with the model's own tokenizer, or draft 'ngram'"
        if self.vocabulary is not None and self.vocabulary != architecture.vocabulary:
            raise ConfigurationError(
                f"draft = {self.source}: its vocabulary has {self.vocabulary} tokens, the model's "
                f"{architecture.vocabulary}: {remedy}"
            )
        if self.tokenizer is not None and tokenizer is not None and not self.tokenizer.same_tokens(tokenizer):
            raise ConfigurationError(f"draft = {self.source}: its tokenizer is not the model's: {remedy}")


@dataclass(frozen=True)
class NGrams:
    """Guesses what followed the same words before. longest: tokens that must be the same, where so many are; fewer, down
    to one, where no more are.

    >>> NGrams(longest=2)([1, 2, 3, 4, 1, 2], 3)
    [3, 4, 1]
    >>> NGrams(longest=2)([1, 2, 3], 3)
    []
    """

    longest: int = LONGEST

    def __call__(self, text: Sequence[int], count: int) -> list[int]:
        """Return up to `count` guesses: what stood behind the latest of the longest matches, and so on behind it."""
        known, start = list(text), len(text)
        while len(known) - start < count:
            place = self._match(known)
            if place is None:
                break
            known += known[place : place + count - (len(known) - start)]
        return known[start:]

    def _match(self, text: list[int]) -> int | None:
        """Return the place behind the latest match of the text's end, None without one."""
        for length in range(min(self.longest, len(text) - 1), 0, -1):
            end = text[-length:]
            for place in range(len(text) - 1, length - 1, -1):
                if text[place - 1] == end[-1] and text[place - length : place] == end:
                    return place
        return None
