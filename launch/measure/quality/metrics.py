"""LongBench's metrics, and which data set is measured by which.

Source: Bai et al., "LongBench: A Bilingual, Multitask Benchmark for Long Context Understanding", ACL 2024, and its code
(metrics.py, eval.py). ROUGE-L is the summary-level one over sets of words of the package `rouge` 1.0.1, code similarity the
ratio of `difflib` that the package fuzzywuzzy rounds; neither package is needed. The Chinese metrics cut words with jieba.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from importlib import import_module
from math import exp

from mpc.errors import EnvironmentProblem

Metric = Callable[[str, str, Sequence[str]], float]
"""(answer, expected answer, all classes) -> score from 0 to 1."""


CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』"
    "【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)


def _f1(given: Sequence[str], wanted: Sequence[str]) -> float:
    common = sum((Counter(given) & Counter(wanted)).values())
    if not common:
        return 0.0
    precision, recall = common / len(given), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def _plain_words(text: str) -> list[str]:
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def qa_f1(given: str, wanted: str, classes: Sequence[str] = ()) -> float:
    """Return F1 over words, without case, punctuation and articles.

    >>> qa_f1("The red house.", "a red roof")
    0.5
    """
    return _f1(_plain_words(given), _plain_words(wanted))


def rouge_l(given: str, wanted: str, classes: Sequence[str] = ()) -> float:
    """Return ROUGE-L: the union of longest common subsequences of all pairs of sentences, over sets of words."""
    sentences = [[part.split() for part in text.split(".") if part] for text in (given, wanted)]
    sizes = [len({word for sentence in text for word in sentence}) for text in sentences]
    if not all(sizes):
        return 0.0
    union = {word for ours in sentences[0] for theirs in sentences[1] for word in _common(theirs, ours)}
    precision, recall = len(union) / sizes[0], len(union) / sizes[1]
    return 2 * precision * recall / (precision + recall + 1e-8)


def _common(x: Sequence[str], y: Sequence[str]) -> list[str]:
    """Return a longest common subsequence, read back as the package `rouge` does."""
    table = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i, a in enumerate(x, 1):
        for j, b in enumerate(y, 1):
            table[i][j] = table[i - 1][j - 1] + 1 if a == b else max(table[i - 1][j], table[i][j - 1])
    found, i, j = [], len(x), len(y)
    while i and j:
        if x[i - 1] == y[j - 1]:
            found.append(x[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]


def classification(given: str, wanted: str, classes: Sequence[str] = ()) -> float:
    """Return 1 / the number of class names in the answer when the right one is among them; names inside the right one do
    not count.

    As in LongBench's code a removed name hides the next one from removal; scores can be compared with published ones.
    """
    named = [name for name in classes if name in given]
    for name in named:
        if name in wanted and name != wanted:
            named.remove(name)
    return 1 / len(named) if wanted in named else 0.0


def _share_of_numbers(given: str, wanted: str) -> float:
    numbers = re.findall(r"\d+", given)
    return numbers.count(wanted) / len(numbers) if numbers else 0.0


def retrieval(given: str, wanted: str, classes: Sequence[str] = ()) -> float:
    """Return the share of the answer's numbers that name the right paragraph, "Paragraph N"."""
    found = re.findall(r"Paragraph (\d+)", wanted)
    return _share_of_numbers(given, found[0]) if found else 0.0


def retrieval_zh(given: str, wanted: str, classes: Sequence[str] = ()) -> float:
    """Score as `retrieval` does, for Chinese paragraphs."""
    found = re.findall(r"段落(\d+)", wanted)
    return _share_of_numbers(given, found[0]) if found else 0.0


def count(given: str, wanted: str, classes: Sequence[str] = ()) -> float:
    """Return the share of the answer's numbers that are the right one."""
    return _share_of_numbers(given, wanted)


def code_similarity(given: str, wanted: str, classes: Sequence[str] = ()) -> float:
    """Return the similarity of the first line that is neither comment nor fence, rounded to percents."""
    lines = given.lstrip("\n").split("\n")
    line = next((x for x in lines if "`" not in x and "#" not in x and "//" not in x), "")
    return round(100 * SequenceMatcher(None, line, wanted).ratio()) / 100


def _cut(text: str) -> list[str]:
    try:
        jieba = import_module("jieba")
    except ImportError:
        raise EnvironmentProblem(
            "this data set's metric cuts Chinese words with the package jieba, which is not installed; "
            "run `pip install jieba`, or leave these lines out"
        ) from None
    return [str(word) for word in jieba.cut(text, cut_all=False)]


def qa_f1_zh(given: str, wanted: str, classes: Sequence[str] = ()) -> float:
    """Return F1 over Chinese words without punctuation."""
    stops = set(string.punctuation + CHINESE_PUNCTUATION)
    words = [["".join(c for c in w.lower() if c not in stops and not c.isspace()) for w in _cut(x)] for x in (given, wanted)]
    return _f1(*([w for w in side if w] for side in words))


def rouge_zh(given: str, wanted: str, classes: Sequence[str] = ()) -> float:
    """Return `rouge_l` over Chinese words."""
    return rouge_l(" ".join(_cut(given)), " ".join(_cut(wanted)))


DATA_SETS: dict[str, tuple[Metric, int]] = {
    "narrativeqa": (qa_f1, 128),
    "qasper": (qa_f1, 128),
    "multifieldqa_en": (qa_f1, 64),
    "multifieldqa_zh": (qa_f1_zh, 64),
    "hotpotqa": (qa_f1, 32),
    "2wikimqa": (qa_f1, 32),
    "musique": (qa_f1, 32),
    "dureader": (rouge_zh, 128),
    "gov_report": (rouge_l, 512),
    "qmsum": (rouge_l, 512),
    "multi_news": (rouge_l, 512),
    "vcsum": (rouge_zh, 512),
    "trec": (classification, 64),
    "triviaqa": (qa_f1, 32),
    "samsum": (rouge_l, 128),
    "lsht": (classification, 64),
    "passage_retrieval_en": (retrieval, 32),
    "passage_count": (count, 32),
    "passage_retrieval_zh": (retrieval_zh, 32),
    "lcc": (code_similarity, 64),
    "repobench-p": (code_similarity, 64),
}
"""Metric and tokens to generate, by data set; "_e" at the end of a name is the same data set."""

FIRST_LINE = ("trec", "triviaqa", "samsum", "lsht")
"""Data sets of whose answers only the first line counts."""


def check_metric(dataset: str) -> None:
    """Raise `EnvironmentProblem` when the data set's metric needs a package that is not installed."""
    if DATA_SETS[dataset][0] in (qa_f1_zh, rouge_zh):
        _cut("")


def score(dataset: str, given: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    """Return the best score over the expected answers, from 0 to 1."""
    if dataset in FIRST_LINE:
        given = given.lstrip("\n").split("\n")[0]
    return max(DATA_SETS[dataset][0](given, wanted, classes) for wanted in answers)


def perplexity(losses: Sequence[float]) -> float:
    """Return exp of the mean of -ln p."""
    return exp(sum(losses) / len(losses))
