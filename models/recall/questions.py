"""Seeded documents that are mostly filler, and lists of questions about a few of their records.

A document mixes sentences of common words (never asked about), records ``Kepler : harbour .`` and quotes
``Kepler ? harbour .`` of earlier records that are not asked again.  The list names some of the other records,
``Questions Kepler ? Curie ? Answers Kepler``, and the answer goes through it: ``? harbour Curie ? lantern <eos>``.
So every asked record is looked for twice, while the list is read and when its answer is due, and each answer needs
another token of the document.  All text is written with single spaces between tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.recall.documents import COLON, EOS, HELD_OUT, NAMES, QUESTION, STOP, UNK, make_rng

LIST, END = "Questions", "Answers"

DETERMINER_LIST = "the a every some this that one another"
ADJECTIVE_LIST = """
    quiet narrow old young green heavy early late common gentle distant clear broad simple busy careful bright dry warm
    long small tall round steady
"""
NOUN_LIST = """
    river valley farmer teacher road village field morning winter letter window table garden market journey story winner
    child mountain forest bridge worker reader visitor doctor driver painter season corner meeting
"""
VERB_LIST = "follows crosses visits watches leaves finds joins paints meets passes carries opens draws needs"
ADVERB_LIST = "often slowly again today quietly rarely soon twice gladly"
PREPOSITION_LIST = "near behind above below beside with without after before along"
VALUE_LIST = """
    harbour lantern anchor copper violin basket candle feather hammer island jacket kettle ladder marble needle orchid
    parcel quartz ribbon saddle tunnel urchin velvet walnut yellow zipper acorn barrel cactus dagger engine falcon goblet
    helmet iguana jigsaw kernel lobster magnet napkin oyster pepper rabbit sandal teapot umbrella vessel wagon almond
    beetle camera dragon emerald fiddle ginger hazel indigo jasmine kitten lemon mirror nutmeg olive pillow
"""
DETERMINERS, ADJECTIVES, NOUNS, VERBS, ADVERBS, PREPOSITIONS, VALUES = (
    tuple(words.split())
    for words in (DETERMINER_LIST, ADJECTIVE_LIST, NOUN_LIST, VERB_LIST, ADVERB_LIST, PREPOSITION_LIST, VALUE_LIST)
)
#: Words by their kind; a kind's number is its place here.
KINDS: tuple[tuple[str, ...], ...] = (
    (UNK,),
    (EOS,),
    (COLON,),
    (QUESTION,),
    (STOP,),
    (LIST,),
    (END,),
    DETERMINERS,
    ADJECTIVES,
    NOUNS,
    VERBS,
    ADVERBS,
    PREPOSITIONS,
    VALUES,
    NAMES,
)
K_EOS, K_COLON, K_QUESTION, K_STOP, K_LIST, K_END = range(1, 7)
K_DET, K_ADJ, K_NOUN, K_VERB, K_ADV, K_PREP, K_VALUE, K_NAME = range(7, 15)
VOCABULARY: tuple[str, ...] = tuple(word for words in KINDS for word in words)
TOKEN_IDS: dict[str, int] = {token: index for index, token in enumerate(VOCABULARY)}
#: First token id and number of words of each kind.
FIRST = np.array([TOKEN_IDS[words[0]] for words in KINDS])
COUNT = np.array([len(words) for words in KINDS])

#: Sentences by their number of tokens.
SENTENCES: dict[int, tuple[int, ...]] = {
    4: (K_DET, K_NOUN, K_VERB, K_STOP),
    5: (K_DET, K_NOUN, K_VERB, K_ADV, K_STOP),
    6: (K_DET, K_ADJ, K_NOUN, K_VERB, K_ADV, K_STOP),
    7: (K_DET, K_NOUN, K_VERB, K_PREP, K_DET, K_NOUN, K_STOP),
    8: (K_DET, K_ADJ, K_NOUN, K_VERB, K_PREP, K_DET, K_NOUN, K_STOP),
    9: (K_DET, K_ADJ, K_NOUN, K_VERB, K_PREP, K_DET, K_ADJ, K_NOUN, K_STOP),
}
SHORTEST_SENTENCE, LONGEST_SENTENCE = min(SENTENCES), max(SENTENCES)

RECORD_TOKENS = 4
MAX_QUESTIONS = 16
#: Tokens of the list beside two for each question: its first word, its last word, the first name again.
LIST_TOKENS = 3
ANSWER_TOKENS_EACH = 3
#: Tokens of held-out prompts: room for one question, and no more records than there are names.
SHORTEST = 32
LONGEST = 128 * (len(NAMES) - MAX_QUESTIONS)


@dataclass(frozen=True)
class Mixture:
    """How many questions a prompt has, and how many records and quotes its document."""

    questions: int
    records: int
    quotes: int

    @property
    def tokens(self) -> int:
        """Return the tokens of the prompt without filler."""
        return RECORD_TOKENS * (self.records + self.quotes) + 2 * self.questions + LIST_TOKENS


@dataclass(frozen=True)
class Layout:
    """What stands where in a prompt and its answer; which words stand there is drawn for each document.

    kinds: (steps,), the kind of each token.  records: (steps,), the record that a name or value belongs to, else -1.
    prompt: tokens of the prompt.  places: (records,), where each record's value stands.  Records 0 to questions - 1 are
    asked, in this order.
    """

    kinds: np.ndarray
    records: np.ndarray
    prompt: int
    places: np.ndarray
    mixture: Mixture


@dataclass(frozen=True)
class Case:
    """A prompt, the answer expected without <eos>, asked names and values in order, and where their records lie.

    positions: place of each asked value as a share of the document's tokens.
    """

    prompt: str
    answer: str
    names: tuple[str, ...]
    values: tuple[str, ...]
    positions: tuple[float, ...]


def evaluation_mixture(length: int) -> Mixture:
    """Return the mixture of held-out prompts of ``length`` tokens: at 1,024 16 questions, 24 records, 4 quotes, 86 %
    filler."""
    questions = max(1, min(MAX_QUESTIONS, length // 32))
    return Mixture(questions, questions + length // 128, length // 256)


def _sentences(rng: np.random.Generator, tokens: int) -> list[int]:
    """Return the numbers of tokens of sentences that are ``tokens`` long together; raises `ValueError` for 1, 2 and 3."""
    if 0 < tokens < SHORTEST_SENTENCE:
        raise ValueError(f"no sentence has {tokens} tokens")
    found: list[int] = []
    while tokens > LONGEST_SENTENCE:
        most = min(LONGEST_SENTENCE, tokens - SHORTEST_SENTENCE)
        found.append(int(rng.integers(SHORTEST_SENTENCE, most + 1)))
        tokens -= found[-1]
    return found + ([tokens] if tokens else [])


def make_layout(rng: np.random.Generator, length: int, mixture: Mixture, depth: float | None = None) -> Layout:
    """Return a layout whose prompt has exactly ``length`` tokens.

    depth: the asked records lie next to each other there, 0 at the document's start and 1 at its end; by default
    anywhere.  Raises `ValueError` when the mixture does not fit.
    """
    if not 1 <= mixture.questions <= mixture.records or not 0 <= mixture.quotes <= mixture.records - mixture.questions:
        raise ValueError(f"{mixture}: asked records and quoted ones are different records of the document")
    filler = length - mixture.tokens
    if filler < 0 or 0 < filler < SHORTEST_SENTENCE:
        raise ValueError(f"a prompt of {length} tokens cannot hold {mixture}")
    asked = list(range(mixture.questions))
    rest = list(range(mixture.questions, mixture.records))
    quoted = rest[: mixture.quotes]
    # Negative: a sentence of so many tokens.  A record's second mention is its quote.
    items = np.array([*rest, *quoted, *(-n for n in _sentences(rng, filler)), *(asked if depth is None else ())], dtype=int)
    rng.shuffle(items)
    if depth is not None:
        items = np.insert(items, round(depth * len(items)), rng.permutation(asked))
    kinds: list[int] = []
    records: list[int] = []
    places = np.full(mixture.records, -1)

    def add(pattern: Sequence[int], record: int) -> None:
        kinds.extend(pattern)
        records.extend(record if kind in (K_NAME, K_VALUE) else -1 for kind in pattern)

    for item in items.tolist():
        if item < 0:
            add(SENTENCES[-item], -1)
        elif places[item] < 0:
            places[item] = len(kinds) + 2
            add((K_NAME, K_COLON, K_VALUE, K_STOP), item)
        else:
            add((K_NAME, K_QUESTION, K_VALUE, K_STOP), item)
    add((K_LIST,), -1)
    for record in asked:
        add((K_NAME, K_QUESTION), record)
    add((K_END,), -1)
    for record in asked:
        add((K_NAME, K_QUESTION, K_VALUE), record)
    add((K_EOS,), -1)
    return Layout(np.array(kinds), np.array(records), length, places, mixture)


def draw(rng: np.random.Generator, layout: Layout, batch: int) -> np.ndarray:
    """Draw token ids (batch, steps) of prompts and answers: distinct names, any words and values."""
    shape = (batch, len(layout.kinds))
    ids = FIRST[layout.kinds] + rng.integers(0, COUNT[layout.kinds], size=shape)
    names = rng.permuted(np.tile(np.arange(len(NAMES)), (batch, 1)), axis=1)[:, : layout.mixture.records]
    values = rng.integers(0, len(VALUES), size=(batch, layout.mixture.records))
    for kind, table in ((K_NAME, names), (K_VALUE, values)):
        at = np.nonzero(layout.kinds == kind)[0]
        ids[:, at] = FIRST[kind] + table[:, layout.records[at]]
    return np.asarray(ids)


def make_case(rng: np.random.Generator, length: int, depth: float | None = None) -> Case:
    """Return a prompt of exactly ``length`` tokens with the evaluation's mixture."""
    if not SHORTEST <= length <= LONGEST:
        raise ValueError(f"a prompt has {SHORTEST} to {LONGEST} tokens, not {length}")
    layout = make_layout(rng, length, evaluation_mixture(length), depth)
    words = [VOCABULARY[token] for token in draw(rng, layout, 1)[0]]
    count = layout.mixture.questions
    end = length - LIST_TOKENS - 2 * count
    names = tuple(words[end + 1 : length - 2 : 2])
    values = tuple(words[place] for place in layout.places[:count])
    positions = tuple(float(place) / end for place in layout.places[:count])
    return Case(" ".join(words[:length]), " ".join(words[length:-1]), names, values, positions)


def evaluation_cases(length: int, count: int, seed: int = 0, depth: float | None = None) -> list[Case]:
    """Return ``count`` held-out cases whose prompts have exactly ``length`` tokens, each with a document of its own."""
    rng = make_rng(seed, HELD_OUT)
    return [make_case(rng, length, depth) for _ in range(count)]


def answer_tokens(length: int) -> int:
    """Return the tokens of the answer to a held-out prompt of ``length`` tokens, <eos> included."""
    return ANSWER_TOKENS_EACH * evaluation_mixture(length).questions


def recalled(names: Sequence[int], values: Sequence[int], given: Sequence[int]) -> int:
    """Return how many of the asked names (token ids) an answer names with their right values.

    The answer starts behind the first name.  Where it names one twice, the first value counts.
    """
    mark = TOKEN_IDS[QUESTION]
    found: dict[int, int] = {}
    whole = [names[0], *given]
    for name, question, value in zip(whole, whole[1:], whole[2:], strict=False):
        if question == mark:
            found.setdefault(name, value)
    return sum(found.get(name) == value for name, value in zip(names, values, strict=True))


def encode(text: str) -> list[int]:
    """Return token ids of a text written with spaces; the exported tokenizer gives the same ones."""
    return [TOKEN_IDS.get(word, TOKEN_IDS[UNK]) for word in text.split()]
