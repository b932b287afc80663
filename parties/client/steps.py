"""The steps of one answer as the client counts them: one token each, or several with a draft."""

from __future__ import annotations

from collections.abc import Sequence

from models.drafting import drafted_rows, rows_that_stay
from parties.client.drafting import Draft


class Steps:
    """Which output is due, of how many rows, and which tokens it has brought. Tokens are secret, all other numbers public.

    rows: of the output that is due: the tokens that choices are awaited behind. produced: tokens of the outputs so far.
    taken: outputs so far. outputs: how many there are in all, None while that depends on choices to come.
    """

    def __init__(self, prompt_ids: Sequence[int], new_tokens: int, draft: Draft | None) -> None:
        self._text = list(prompt_ids)
        self._new_tokens = new_tokens
        self._draft = draft
        self._guess = None if draft is None else draft.begin()
        self.taken = 0
        self.rows = self._text[-1:]
        self.produced = 0
        self.outputs = new_tokens if draft is None or new_tokens == 1 else None

    @property
    def left(self) -> int:
        """Return how many tokens are still to be generated."""
        return self._new_tokens - self.produced

    def take(self, choices: Sequence[int | None]) -> int:
        """Take the choices behind the rows of an output, None where shares add up to no token; return how many of them are
        tokens of the answer, which is how many of its rows stay."""
        kept = rows_that_stay(self.rows, choices)
        self._text += [token or 0 for token in choices[:kept]]
        self.taken += 1
        self.produced += kept
        if not self.left:
            self.outputs = self.taken
        return kept

    def draft(self) -> list[int]:
        """Return the rows of the next step: the last token and guesses behind it."""
        assert self._draft is not None
        assert self._guess is not None
        self.rows = drafted_rows(self._text, self._guess, self._draft.plan.rows(self.left))
        if self.left == 1:
            self.outputs = self.taken + 1
        return self.rows
