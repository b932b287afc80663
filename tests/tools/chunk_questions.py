"""Ten questions on each of some documents in 8 chunks: which rule for the tokens that are computed again, and what it saves.

`python -m tests.tools.chunk_questions --documents 5`. Right answers of the shipped recall model, in float torch and apart
from this project's decoder, where chunks' rows were computed on their own and a share of tokens again, by three rules:

* `first`: the first tokens of each chunk, as sessions do it (public places);
* `outward`: Cache-Craft's tokens, those of each chunk that attend to other chunks most, in the whole document in plaintext;
* `craft`: these, and of each chunk the share that its context impact says: sigmoid(a / b) times alpha, a its attention to
  other chunks and b to itself, each by pairs of tokens; alpha makes the mean share the one that is given.

`aligned`: chunks of 5 whole records behind their document's header; `cut`: chunks of 32 tokens, wherever records end. Then
the bytes of ten questions on one document to their first tokens, loading included, as `models.costs` predicts them and
parties count them (`tests/models/test_chunk_choice.py`), against recomputing all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor
from transformers import DynamicCache

from models.architecture import Architecture
from models.checkpoint import read_architecture
from models.chunks import ChunkPlan
from models.costs.estimation import estimate
from models.costs.tracing import Setting
from models.recall import documents as docs
from models.recall.evaluate import load_model

RECALL = Path(docs.__file__).parent
CHUNKS, QUESTIONS = 8, 10
SHARES = (0.0, 0.04, 0.1, 0.2)
RULES = ("first", "outward", "craft")
CASES = {"aligned": 35, "cut": 32}


@dataclass(frozen=True)
class Asked:
    """A document, prefix first, and questions with their answers, as token ids."""

    prefix: list[int]
    chunks: list[list[int]]
    questions: list[tuple[list[int], list[int]]]


def asked(kind: str, rng: np.random.Generator) -> Asked:
    """Return a document of 8 chunks, and ten questions on it."""
    length = CASES[kind]
    document = docs.make_document(rng, CHUNKS * length + (1 if kind == "aligned" else 0))
    ids = docs.encode(document.text)
    start = len(ids) - CHUNKS * length
    cut = [ids[start + n * length : start + (n + 1) * length] for n in range(CHUNKS)]
    found = [docs.make_question(rng, document) for _ in range(QUESTIONS)]
    return Asked(ids[:start], cut, [(docs.encode(one.text), docs.encode(one.answer)) for one in found])


class Rows:
    """What a session holds of a document: rows that chunks had on their own, and which tokens' attention says what."""

    def __init__(self, model: Any, given: Asked) -> None:
        self.model, self.given = model, given
        self.starts = np.cumsum([len(given.prefix), *map(len, given.chunks)]).tolist()
        alone = [self._alone(given.prefix, 0), *map(self._alone, given.chunks, self.starts)]
        self.rows = [tuple(torch.cat(both, 2) for both in zip(*layer, strict=True)) for layer in zip(*alone, strict=True)]
        ids = [*given.prefix, *(token for chunk in given.chunks for token in chunk)]
        self.ids = torch.tensor(ids)
        with torch.no_grad():
            layers = model(self.ids[None], output_attentions=True).attentions
        mass = torch.stack([layer[0].mean(0) for layer in layers])  # [layers, T, T]
        self.outward, self.impact = self._read(mass)

    def _alone(self, ids: list[int], start: int) -> list[tuple[Tensor, Tensor]]:
        if not ids:
            return [(torch.zeros(1, 2, 0, 32), torch.zeros(1, 2, 0, 32)) for _ in self.model.model.layers]
        cache = DynamicCache()
        with torch.no_grad():
            places = torch.arange(start, start + len(ids))[None]
            self.model(torch.tensor(ids)[None], position_ids=places, past_key_values=cache)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _read(self, mass: Tensor) -> tuple[list[Tensor], list[float]]:
        """Return how much each token of a chunk attends to what stands before its chunk, and each chunk's context impact."""
        outward, impact = [], []
        for start, stop in zip(self.starts, self.starts[1:], strict=False):
            size = stop - start
            before = mass[:, start:stop, :start]
            outward.append(before.sum((0, 2)))
            inter = float(before.sum((1, 2)).mean()) / (size * start) if start else 0.0
            intra = float(mass[:, start:stop, start:stop].sum((1, 2)).mean()) / size**2
            impact.append(1 / (1 + float(np.exp(-inter / intra))))
        return outward, impact

    def again(self, rule: str, share: float) -> list[int]:
        """Return the places of the tokens that are computed again."""
        sizes = [len(chunk) for chunk in self.given.chunks]
        parts = [share] * CHUNKS if rule != "craft" else (np.array(self.impact) * share / np.mean(self.impact)).tolist()
        found: list[int] = []
        for start, size, outward, part in zip(self.starts, sizes, self.outward, parts, strict=False):
            count = min(size, int(np.ceil(part * size - 1e-9)))
            chosen = torch.arange(count) if rule == "first" else outward.topk(count).indices.sort().values
            found += (start + chosen).tolist()
        return found

    @torch.no_grad()
    def right(self, again: list[int]) -> int:
        """Return how many questions are answered right."""
        held = torch.tensor([n for n in range(len(self.ids)) if n not in set(again)], dtype=torch.int64)
        count = 0
        for question, answer in self.given.questions:
            ends = range(len(self.ids), len(self.ids) + len(question) + len(answer) - 1)
            places = torch.tensor([*again, *ends])
            tokens = torch.cat([self.ids[again], torch.tensor([*question, *answer[:-1]])])
            cache = DynamicCache()
            for layer, (keys, values) in enumerate(self.rows):
                cache.update(keys[:, :, held], values[:, :, held], layer)
            seen = torch.cat([held, places])[None, :] <= places[:, None]
            mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
            logits = self.model(tokens[None], attention_mask=mask, position_ids=places[None], past_key_values=cache).logits
            count += int(logits[0, -len(answer) :].argmax(-1).tolist() == answer)
        return count


def recalls(model: Any, kind: str, documents: int) -> Iterator[tuple[str, float, int]]:
    """Yield rule, share and right answers, of all questions on all documents; the whole prompt last."""
    rng = docs.make_rng(7, docs.HELD_OUT)
    held = [Rows(model, asked(kind, rng)) for _ in range(documents)]
    for rule in RULES:
        for share in SHARES:
            if share or rule == RULES[0]:
                yield rule, share, sum(one.right(one.again(rule, share)) for one in held)
    yield "whole prompt", 1.0, sum(one.right(one.again("first", 1.0)) for one in held)


def prompt_work(
    a: Architecture, length: int, share: float, question: int, candidates: int
) -> dict[str, tuple[float, float]]:
    """Return bytes sent and dealt of ten questions to their first tokens behind a prefix of one token, all loads included:
    recomputed, by chunks in public, and by chunks chosen in secret."""
    plans = {
        "recomputed": (question + CHUNKS * length, None),
        "chunks": (question, ChunkPlan((length,) * CHUNKS, int(np.ceil(share * length)))),
        "chunks, secret": (question, ChunkPlan((length,) * CHUNKS, int(np.ceil(share * length)), candidates)),
    }
    found = {}
    for name, (prompt, chunks) in plans.items():
        costs = estimate(a, Setting("masked", behind=1, chunks=chunks), prompt, 1)
        sent, dealt = (
            QUESTIONS * costs.first.total(what) + costs.load_prefix.total(what) for what in ("bytes_sent", "offline_bytes")
        )
        found[name] = sent, dealt
    return found


def main(
    documents: Annotated[int, typer.Option(min=1)] = 5,
    candidates: Annotated[int, typer.Option(min=8, help="Among which chunks are chosen in secret.")] = 64,
) -> None:
    """Right answers by rule and share, and what ten questions cost."""
    model = load_model(RECALL / "llama")
    model.set_attn_implementation("eager")
    for kind in CASES:
        print(f"{kind}: right answers of {documents * QUESTIONS}")
        for rule, share, right in recalls(model, kind, documents):
            print(f"  {rule:12} {share:5.2f} {right:5}", flush=True)
    a = read_architecture(RECALL / "llama")
    assert isinstance(a, Architecture)
    for share in SHARES[2:]:
        work = prompt_work(a, CASES["aligned"], share, docs.QUESTION_TOKENS, candidates)
        sent, dealt = work["recomputed"]
        for name, (one, other) in work.items():
            shares = f"({one / sent:.1%}), dealt {other / 1e6:8.2f} MB ({other / dealt:.1%})"
            print(f"  again {share:g}, {name:15} sent {one / 1e6:8.2f} MB {shares}")


if __name__ == "__main__":
    typer.run(main)
