"""Text up to a stop string, whatever the pieces it comes in."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from models.tokenizer.stop_strings import TextUntil
from models.tokenizer.text import TextStream, TextTokenizer
from tests.models import random_checkpoints as checkpoints


class Pieces(TextStream):
    """A stream whose tokens are the numbers of given pieces."""

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = pieces

    def push(self, token: int) -> str:
        return self._pieces[token]

    def flush(self) -> str:
        return ""

    def hidden(self, token: int) -> str:
        return ""


def run(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    text = TextUntil(Pieces(pieces), stops)
    out = []
    for token in range(len(pieces)):
        out.append(text.push(token))
        if text.stopped:
            break
    return [*out, text.flush()], text.stopped


@given(some.lists(some.text("abc", max_size=4), max_size=6), some.lists(some.text("abc", max_size=3), max_size=3))
def test_against_the_whole_text(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    found, stopped = run(pieces, stops)
    places = [whole.find(stop) for stop in stops if stop and stop in whole]
    assert stopped == bool(places)
    said = "".join(found)
    if not stopped:
        assert said == whole
    else:  # a longer stop string may be complete only after a shorter, later one has ended the answer
        assert whole.startswith(said)
        assert any(whole[len(said) :].startswith(stop) for stop in stops if stop)
        assert not any(stop in said for stop in stops if stop)


def test_only_what_may_begin_a_stop_string_waits() -> None:
    assert run(["a", "\n", "b", "\n", "\n", "c"], ["\n\n"]) == (["a", "", "\nb", "", "", ""], True)
    assert run(["a", "b"], ["bc"]) == (["a", "", "b"], False)
    assert run(["a", "b"], []) == (["a", "b", ""], False)


@pytest.mark.parametrize("stop", ["漢", "b"])
def test_with_characters_of_several_tokens(tmp_path: Path, stop: str) -> None:
    checkpoints.byte_tokenizer(tmp_path)
    tokenizer = TextTokenizer.load(tmp_path, ())
    text = TextUntil(tokenizer.stream(), [stop])
    said = "".join(text.push(token) for token in tokenizer.encode("aé漢b"))
    assert said + text.flush() == "aé漢b".split(stop)[0]
