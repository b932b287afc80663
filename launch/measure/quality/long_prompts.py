"""The token ids of a task's prompt, of an exact length, with or without the model's chat template."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from launch.measure.quality.long_tasks import Asked, Later
from models.tokenizer.chat_template import ChatTemplate
from models.tokenizer.text import TextTokenizer
from mpc.errors import ConfigurationError

_MARK = "\x02"


class Frame:
    """What stands around a text: before it, between it and the answer, and between an answer and the text of the next turn.
    Token ids are put together piece by piece, so that a prompt has as many as it should have."""

    def __init__(self, tokenizer: TextTokenizer, template: ChatTemplate | None = None) -> None:
        self._tokenizer = tokenizer
        twice = tokenizer.encode("a", False) * 2
        self._gap = "" if " " in tokenizer.decode(twice).strip() else " "  # some tokenizers begin with a space by themselves
        if template is None:
            self.before, self.behind = tokenizer.encode("", True), tokenizer.encode("\n\n", False)
            self.between = self.behind
        else:
            roles = ("user", "assistant", "user")
            parts = template.render([{"role": role, "content": _MARK} for role in roles]).split(_MARK)
            if len(parts) != len(roles) + 1:
                raise ConfigurationError("the model's chat template does not show a message as it is; use --form plain")
            self.before, _, self.between, self.behind = (tokenizer.encode(part, False) for part in parts)

    def prompt(self, asked: Asked, tokens: int, rng: np.random.Generator) -> list[int]:
        """Return `tokens` ids. Raises `ConfigurationError` when they do not hold the task."""
        encode = self._tokenizer.encode
        head = [*self.before, *encode(f"{asked.instruction}\n\n", False)]
        tail = [*encode(f"\n\n{asked.question}", False), *self.behind, *encode(asked.begun, False)]
        placed = [(depth, encode(self._gap + text, False)) for depth, text in asked.placed]
        room = tokens - len(head) - len(tail) - sum(len(ids) for _, ids in placed)
        if room < 0:
            raise ConfigurationError(f"--lengths {tokens}: the task needs {tokens - room} tokens; raise it")
        return head + self._filled(asked, placed, room, rng) + tail

    def turn(self, later: Later) -> list[int]:
        """Return the ids of a later turn, from an answer to what the next one begins with."""
        encode = self._tokenizer.encode
        return [*self.between, *encode(later.text, False), *self.behind, *encode(later.begun, False)]

    def _filled(
        self, asked: Asked, placed: Sequence[tuple[float, list[int]]], room: int, rng: np.random.Generator
    ) -> list[int]:
        """Return the long text: `room` tokens of filler, whose beginning is cut off, and what is placed in it."""
        pieces: list[list[int]] = []
        filler = asked.filler(rng)
        while sum(map(len, pieces)) < room:
            pieces.append(self._tokenizer.encode(self._gap + next(filler), False))
        over = sum(map(len, pieces)) - room
        while over:
            cut = min(over, len(pieces[0]))
            pieces[0], over = pieces[0][cut:], over - cut
            pieces = pieces if pieces[0] else pieces[1:]
        ends = np.cumsum([0, *map(len, pieces)]).tolist()
        at: dict[int, list[int]] = {}
        for depth, ids in placed:
            at.setdefault(bisect_left(ends, depth * room), []).extend(ids)
        found = at.get(0, [])
        for n, piece in enumerate(pieces, 1):
            found = [*found, *piece, *at.get(n, [])]
        return found
