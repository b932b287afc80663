"""An answer's text token by token, up to the first of some stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from models.tokenizer import TextStream


class TextUntil:
    """Like `TextStream`, but ends before the first stop string. stopped: whether one has come.

    Text that may be the beginning of a stop string is held back until it is clear that it is none.
    """

    def __init__(self, stream: TextStream, stops: Sequence[str] = ()) -> None:
        self._stream = stream
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is sure after this token."""
        return self._advance(self._stream.push(token))

    def flush(self) -> str:
        """The text that was still held back; the answer is over."""
        text = self._advance(self._stream.flush())
        held, self._held = self._held, ""
        return text + held

    def _advance(self, piece: str) -> str:
        if self.stopped:
            return ""
        text = self._held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
