"""Drafted tokens: what is public about them, and how a client checks its guesses against the parties' choices.

Whoever knows a text so far may guess its next tokens. A step then runs several rows behind the cache in the rounds of one:
the token that was chosen last, and the guesses behind it. After each row the most likely token is chosen. Guesses that are
equal to the choice before them were right, so their rows stay in the cache; the others are dropped. The tokens are exactly
those of greedy decoding, one by one.

With agreement a (the chance that a guess is right when those before it were) a step of g guesses gives
(1 - a^(g + 1)) / (1 - a) tokens on average, and g + 1 for a = 1.

Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", ICML 2023, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpc.errors import ConfigurationError

Guess = Callable[[Sequence[int], int], Sequence[int]]
"""(text so far, count) -> at most so many guesses of the tokens that follow. Runs at the client, in the clear."""

MOST_GUESSES = 16


@dataclass(frozen=True)
class DraftPlan:
    """What is public about drafting. tokens: guesses of a step, 1 to `MOST_GUESSES`, each of which is one more row.

    Raises `ConfigurationError` naming the setting and its value.

    >>> DraftPlan(tokens=4).rows(left=9), DraftPlan(tokens=4).rows(left=2)
    (5, 2)
    """

    tokens: int

    def __post_init__(self) -> None:
        if not isinstance(self.tokens, int) or isinstance(self.tokens, bool) or not 1 <= self.tokens <= MOST_GUESSES:
            raise ConfigurationError(
                f"draft: tokens = {self.tokens!r} must be a whole number from 1 to {MOST_GUESSES}: the guesses of a step"
            )

    def rows(self, left: int) -> int:
        """Return the rows of a step: one more than guesses, and no more than tokens that are `left` to be generated."""
        return min(self.tokens + 1, left)


def drafted_rows(text: Sequence[int], guess: Guess, rows: int) -> list[int]:
    """Return the tokens of a step's rows: the last one of the text and guesses behind it. Where there are too few, that
    last token stands in for a guess, since the number of rows is public."""
    guesses = [int(token) for token in guess(text, rows - 1)][: rows - 1] if rows > 1 else []
    return [text[-1], *guesses, *[text[-1]] * (rows - 1 - len(guesses))]


def rows_that_stay(rows: Sequence[int], choices: Sequence[int | None]) -> int:
    """Return how many of a step's rows were right: the first one, and guesses up to the first that was not chosen.

    choices: what was chosen after each row, None where that is no token.

    >>> rows_that_stay([7, 1, 2, 9], choices=[1, 2, 3, 4])
    3
    """
    pairs = zip(rows[1:], choices, strict=False)
    return next((n for n, (guess, choice) in enumerate(pairs, 1) if guess != choice), len(rows))
