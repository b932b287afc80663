"""Seeded documents of many records, and questions about one of them.

A document is a short header followed by records ``Name : d d d d ;``, every name at most once; a question
repeats one name, ``? Name :``, and its answer is that record's four digits and ``<eos>``.  All text is written
with single spaces between tokens, so the length in tokens is the number of words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

UNK = "<unk>"
EOS = "<eos>"
COLON, SEMICOLON, QUESTION, STOP = ":", ";", "?", "."
DIGITS: tuple[str, ...] = tuple("0123456789")

#: Header of a document by its number of tokens; a header of the right length makes any total length exact.
HEADERS: dict[int, str] = {
    1: "Codes",
    2: "Codes .",
    3: "The codes .",
    4: "List of codes .",
    5: "List of all codes .",
    6: "List of names and codes .",
    7: "List of all names and codes .",
}
HEADER_WORDS: tuple[str, ...] = ("Codes", "The", "codes", "List", "of", "all", "names", "and")

NAME_LIST = """
    Abel Adams Agnesi Airy Ampere Archimedes Aristotle Avogadro Babbage Bacon Banach Banks Bardeen Barrow Bayes
    Becquerel Bell Bernoulli Bessel Bethe Bohr Boltzmann Bolzano Boole Born Bose Boyle Bragg Brahe Brown Brunel
    Bunsen Cantor Carnot Carson Cartan Cassini Cauchy Cavendish Cayley Celsius Chandra Charles Chebyshev Church
    Clausius Compton Copernicus Coriolis Coulomb Cramer Crick Curie Dalton Darwin Davy Dedekind Descartes Dewar
    Diesel Dijkstra Dirac Doppler Drake Eddington Edison Ehrenfest Einstein Eratosthenes Erdos Euclid Euler
    Faraday Fermat Fermi Feynman Fibonacci Fisher Fizeau Fleming Foucault Fourier Franklin Fraunhofer Fresnel
    Frobenius Fuchs Galileo Galois Galvani Gauss Geiger Germain Gibbs Gilbert Goddard Goldbach Goodall Grassmann
    Green Hadamard Hahn Haldane Halley Hamilton Hardy Harvey Heisenberg Helmholtz Henry Hermite Herschel Hertz
    Hilbert Hipparchus Hodgkin Hooke Hopper Hubble Humboldt Hutton Huygens Hypatia Jacobi Jenner Jordan Joule
    Kelvin Kepler Khayyam Kirchhoff Klein Knuth Koch Kolmogorov Kronecker Kuiper Lagrange Lamarck Lambert Landau
    Laplace Lavoisier Lebesgue Leeuwenhoek Legendre Leibniz Levy Linnaeus Liouville Lister Lorentz Lovelace
    Lyell Mach Marconi Markov Maxwell Mayer McClintock Meitner Mendel Mendeleev Mercator Michelson Millikan
    Minkowski Mobius Morse Napier Nash Nernst Newton Nobel Noether Oersted Ohm Oort Oppenheimer Pascal Pasteur
    Pauli Pauling Pavlov Peano Penrose Perrin Planck Poincare Poisson Priestley Ptolemy Pythagoras Raman
    Ramanujan Rayleigh Riemann Rontgen Rutherford
"""
NAMES: tuple[str, ...] = tuple(NAME_LIST.split())

VOCABULARY: tuple[str, ...] = (UNK, EOS, *DIGITS, COLON, SEMICOLON, QUESTION, STOP, *HEADER_WORDS, *NAMES)
TOKEN_IDS: dict[str, int] = {token: index for index, token in enumerate(VOCABULARY)}

VALUE_TOKENS = 4
RECORD_TOKENS = VALUE_TOKENS + 3
QUESTION_TOKENS = 3
ANSWER_TOKENS = VALUE_TOKENS + 1
#: The longest document that still has distinct names.
MAX_DOCUMENT_TOKENS = len(NAMES) * RECORD_TOKENS + 1

TRAINING, HELD_OUT = 0, 1


@dataclass(frozen=True)
class Record:
    """One line of a document: a name and its digits, such as ``Kepler`` and ``7 3 5 1``."""

    name: str
    value: str

    @property
    def text(self) -> str:
        """Return the record as it stands in the document."""
        return f"{self.name} {COLON} {self.value} {SEMICOLON}"


@dataclass(frozen=True)
class Document:
    """A text of a known number of tokens and the records it holds, in order."""

    text: str
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Question:
    """A question about the record at ``index`` of a document, and the answer a model should give before <eos>."""

    text: str
    answer: str
    index: int


@dataclass(frozen=True)
class Case:
    """A prompt (document, then one question), the answer expected, and where the record lies, from 0 to 1."""

    prompt: str
    answer: str
    position: float


def make_rng(seed: int, split: int) -> np.random.Generator:
    """Return the generator of one split (``TRAINING`` or ``HELD_OUT``); the streams of different splits never meet."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(split,))))


def make_document(rng: np.random.Generator, tokens: int) -> Document:
    """Return a document of exactly ``tokens`` tokens: a header of 1 to 7, then records of 7 each."""
    if not RECORD_TOKENS + 1 <= tokens <= MAX_DOCUMENT_TOKENS:
        raise ValueError(f"a document has {RECORD_TOKENS + 1} to {MAX_DOCUMENT_TOKENS} tokens, not {tokens}")
    count = (tokens - 1) // RECORD_TOKENS
    names = rng.permutation(len(NAMES))[:count]
    values = rng.integers(0, len(DIGITS), size=(count, VALUE_TOKENS))
    records = tuple(
        Record(NAMES[int(name)], " ".join(DIGITS[int(digit)] for digit in value))
        for name, value in zip(names, values, strict=True)
    )
    header = HEADERS[tokens - count * RECORD_TOKENS]
    return Document(" ".join([header, *(record.text for record in records)]), records)


def make_question(rng: np.random.Generator, document: Document) -> Question:
    """Return a question about a record of ``document`` chosen uniformly."""
    index = int(rng.integers(len(document.records)))
    record = document.records[index]
    return Question(f"{QUESTION} {record.name} {COLON}", record.value, index)


def evaluation_cases(length: int, count: int, seed: int = 0) -> list[Case]:
    """Return ``count`` held-out cases whose prompts have exactly ``length`` tokens, each with a document of its own."""
    rng = make_rng(seed, HELD_OUT)
    cases: list[Case] = []
    for _ in range(count):
        document = make_document(rng, length - QUESTION_TOKENS)
        question = make_question(rng, document)
        position = question.index / max(1, len(document.records) - 1)
        cases.append(Case(f"{document.text} {question.text}", question.answer, position))
    return cases


def encode(text: str) -> list[int]:
    """Return token ids of a text written with spaces; the exported tokenizer gives the same ones."""
    return [TOKEN_IDS.get(word, TOKEN_IDS[UNK]) for word in text.split()]
