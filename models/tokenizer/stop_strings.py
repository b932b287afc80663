"""An answer's text token by token, up to the first of some stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from models.tokenizer.text import TextStream


class TextUntil:
    """Like `TextStream`, but ends before the first stop string. stopped: whether one has come.

    Stop strings are looked for in the text with its special tokens, as transformers does, though these are not part of the
    answer. Text that may be the beginning of a stop string is held back until it is clear that it is none.

    >>> from models.tokenizer.text import TextStream
    >>> class Letters(TextStream):
    ...     def __init__(self): pass
    ...     def push(self, token): return chr(token)
    ...     def hidden(self, token): return ""
    >>> answer = TextUntil(Letters(), ["cd"])
    >>> [answer.push(ord(letter)) for letter in "abcedcdx"], answer.stopped
    (['a', 'b', '', 'ce', 'd', '', '', ''], True)
    """

    def __init__(self, stream: TextStream, stops: Sequence[str] = ()) -> None:
        self._stream = stream
        self._stops = [stop for stop in stops if stop]
        self._held: list[tuple[str, bool]] = []  # characters, and whether they belong to the answer
        self.stopped = False

    def push(self, token: int) -> str:
        """Return the text that is sure after this token."""
        piece = self._stream.push(token)
        special = self._stream.hidden(token)
        if special and self._stops and not self.stopped:
            found = self._advance(piece + self._stream.pending(), special, only_stop=True)
            if self.stopped:
                return found
        return self._advance(piece, special)

    def flush(self) -> str:
        """Return the text that was still held back; the answer is over."""
        text = self._advance(self._stream.flush())
        return text + self._take(len(self._held))

    def _advance(self, piece: str, special: str = "", only_stop: bool = False) -> str:
        """Take what is sure. only_stop: take the text only if a stop string is in it."""
        if self.stopped:
            return ""
        before = len(self._held)
        self._held += [(c, True) for c in piece] + [(c, False) for c in special]
        text = "".join(c for c, _ in self._held)
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.stopped = True
            found = self._take(min(places))
            self._held.clear()
            return found
        if only_stop:
            del self._held[before:]
            return ""
        return self._take(len(text) - max((_overlap(text, stop) for stop in self._stops), default=0))

    def _take(self, count: int) -> str:
        """Return the answer's part of the first held characters, which are held no longer."""
        taken, self._held = self._held[:count], self._held[count:]
        return "".join(c for c, shown in taken if shown)


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that `stop` begins with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
