"""Tasks in a long text, in the manner of RULER, made here: needles, several of them, variables, common words, conversations.

Source: Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language Models?", COLM 2024, and its task
definitions (retrieval, multi-hop tracing, aggregation), in other words and with a filler of our own. An answer begins with
words that are given, as there, and its score is RULER's: the share of the wanted words that occur in it. In a conversation
what is asked later counts: `turns` as EpiCache is measured (Kim et al., 2025), `again` as LazyEviction (Zhang et al., 2025).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from launch.measure.quality.filler import sentences

KEYS = (
    "amber", "violet", "maple", "harbor", "falcon", "copper", "meadow", "winter", "garden", "silver", "thunder", "orchard",
    "castle", "pepper", "marble", "rocket", "cotton", "lemon", "tiger", "velvet", "island", "candle", "desert", "ginger",
    "pebble", "summer", "walnut", "anchor", "basket", "dragon", "forest", "guitar",
)  # fmt: skip
RARE = (
    "table", "river", "window", "pencil", "cloud", "button", "ladder", "bridge", "carpet", "engine", "flower", "hammer",
    "jacket", "kitchen", "letter", "mirror", "needle", "onion", "paper", "rabbit", "saddle", "ticket", "uncle", "valley",
    "wagon", "yellow", "zebra", "actor", "barrel", "camera", "dinner", "effort", "finger", "glass", "hotel", "ink", "jungle",
    "king", "lunch", "motor", "number", "office", "planet", "queen", "road", "sugar", "tower", "village", "wheel", "yard",
    "apple", "bottle", "circle", "doctor", "eagle", "father", "ground", "horse", "image", "judge", "knife", "lake", "money",
    "night", "ocean", "phone", "rain", "school", "train", "voice", "water", "year", "arm", "boat", "chair", "door",
)  # fmt: skip
QUERIED, KEYED, HOPS, TURNS, GAP = 3, 4, 2, 3, 12


def share_of(wanted: Sequence[str], answer: str) -> float:
    """Return the share of the wanted words that occur in an answer, as whole words, from 0 to 1."""
    words = set(re.findall(r"\w+", answer.lower()))
    return sum(word.lower() in words for word in wanted) / len(wanted)


@dataclass(frozen=True)
class Later:
    """A later turn of a conversation. text: what its message says and asks; begun, wanted: as in `Asked`."""

    text: str
    begun: str
    wanted: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """A prompt's text. instruction: before the long text; placed: sentences, each with its depth there, 0 at the start and 1
    at the end; question: behind it; begun: what the answer begins with; wanted: words of a right answer; new_tokens: that an
    answer is given; filler: what the long text is filled with; later: what is asked behind the answer, each behind the
    answers before it."""

    instruction: str
    placed: list[tuple[float, str]]
    question: str
    begun: str
    wanted: tuple[str, ...]
    new_tokens: int
    filler: Callable[[np.random.Generator], Iterator[str]] = field(default=sentences)
    later: tuple[Later, ...] = ()

    @property
    def every_wanted(self) -> list[tuple[str, ...]]:
        """Return the wanted words of each turn."""
        return [self.wanted, *(one.wanted for one in self.later)]

    def score(self, answers: Sequence[str]) -> float:
        """Return the score of the answers, one a turn, from 0 to 1: of the later turns where there are some."""
        scores = [share_of(wanted, answer) for wanted, answer in zip(self.every_wanted, answers, strict=True)]
        counted = scores[1:] or scores
        return sum(counted) / len(counted)


def _number(rng: np.random.Generator) -> str:
    return str(int(rng.integers(10000, 100000)))


def _keys(rng: np.random.Generator, count: int) -> list[str]:
    return [KEYS[n] for n in rng.permutation(len(KEYS))[:count]]


NEEDLE = "The special magic number for {key} is: {value}."
HIDDEN = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize them. I will quiz you later."
)


def single(rng: np.random.Generator, depth: float, tokens: int) -> Asked:
    """Make a prompt with one number in the text."""
    return _needles(rng, depth, 1)


def keyed(rng: np.random.Generator, depth: float, tokens: int) -> Asked:
    """Make a prompt with several numbers, one of them asked for."""
    return _needles(rng, depth, KEYED)


def _needles(rng: np.random.Generator, depth: float, count: int) -> Asked:
    keys, values = _keys(rng, count), [_number(rng) for _ in range(count)]
    depths = [depth, *rng.random(count - 1).tolist()]
    said = [NEEDLE.format(key=key, value=value) for key, value in zip(keys, values, strict=True)]
    asking = _later(keys[0], values[0])
    return Asked(HIDDEN, list(zip(depths, said, strict=True)), asking.text, asking.begun, asking.wanted, 10)


def _later(key: str, value: str, before: str = "") -> Later:
    """Return a turn that asks for a number."""
    return Later(
        f"{before}What is the special magic number for {key} mentioned in the provided text?",
        f"The special magic number for {key} mentioned in the provided text is",
        (value,),
    )


def turns(rng: np.random.Generator, depth: float, tokens: int) -> Asked:
    """Make a prompt with several numbers, which one turn after the other asks for; the first at the end, so that those that
    count are about what the prompt's own question does not ask for."""
    keys, values = _keys(rng, TURNS), [_number(rng) for _ in range(TURNS)]
    depths = [1.0, depth, *rng.random(TURNS - 2).tolist()]
    said = [NEEDLE.format(key=key, value=value) for key, value in zip(keys, values, strict=True)]
    first, *later = map(_later, keys, values)
    placed = list(zip(depths, said, strict=True))
    return Asked(HIDDEN, placed, first.text, first.begun, first.wanted, 10, later=tuple(later))


def again(rng: np.random.Generator, depth: float, tokens: int) -> Asked:
    """Make a prompt with one number, which is asked for at once and again behind a long message about other things."""
    asked = _needles(rng, depth, 1)
    text = sentences(rng)
    between = " ".join(next(text) for _ in range(GAP))
    key = asked.begun.split()[5]
    return replace(asked, later=(_later(key, asked.wanted[0], f"Thank you. Now listen. {between}\n\n"),))


def queried(rng: np.random.Generator, depth: float, tokens: int) -> Asked:
    """Make a prompt with several numbers, all asked for."""
    keys, values = _keys(rng, QUERIED), [_number(rng) for _ in range(QUERIED)]
    depths = [depth, *rng.random(QUERIED - 1).tolist()]
    said = [NEEDLE.format(key=key, value=value) for key, value in zip(keys, values, strict=True)]
    names = f"{', '.join(keys[:-1])}, and {keys[-1]}"
    return Asked(
        HIDDEN,
        list(zip(depths, said, strict=True)),
        f"What are all the special magic numbers for {names} mentioned in the provided text?",
        f"The special magic numbers for {names} mentioned in the provided text are",
        tuple(values),
        12 * QUERIED,
    )


def variables(rng: np.random.Generator, depth: float, tokens: int) -> Asked:
    """Make a prompt with a chain of assignments, the first at the depth, the others behind it; the first variable is
    given."""
    names = ["".join(chr(65 + int(n)) for n in rng.integers(0, 26, 3)) for _ in range(HOPS + 1)]
    value = _number(rng)
    said = [f"VAR {names[0]} = {value}."] + [f"VAR {b} = VAR {a}." for a, b in pairwise(names)]
    depths = [depth, *sorted((depth + (1 - depth) * rng.random(HOPS)).tolist())]
    return Asked(
        "Memorize and track the chain of variable assignment hidden in the following text.",
        list(zip(depths, said, strict=True)),
        f"Find all variables that are assigned the value {value} in the text above.",
        f"These {HOPS + 1} variables are assigned the value {value} in the text above: VAR {names[0]}, VAR",
        tuple(names[1:]),
        8 * HOPS,
    )


def common(rng: np.random.Generator, depth: float, tokens: int) -> Asked:
    """Make a prompt with a list of words, one of which comes again and again, all over it; the depth is not used."""
    key = _keys(rng, 1)[0]
    depths = rng.random(max(4, tokens // 30)).tolist()
    return Asked(
        "Read this list of words. I repeat one of them again and again.",
        [(place, f"{key},") for place in depths],
        "Which word did I repeat most?",
        "The word that you repeated most is:",
        (key,),
        6,
        rare_words,
    )


def rare_words(rng: np.random.Generator) -> Iterator[str]:
    """Yield words without end, each as often as any other."""
    while True:
        for n in rng.permutation(len(RARE)):
            yield f"{RARE[n]},"


TASKS: dict[str, Callable[[np.random.Generator, float, int], Asked]] = {
    "single": single,
    "keyed": keyed,
    "queried": queried,
    "variables": variables,
    "common": common,
    "turns": turns,
    "again": again,
}
"""By name: (generator, depth, tokens of the prompt) -> a prompt's text."""
