"""Encoders on shares against transformers.

`python -m tests.tools.encoders_on_shares random` runs random checkpoints of odd shapes (tests/models/random_encoders.py),
every output of each, on `masked` and `crypten` with 2 and 3 parties: embeddings within a cosine distance of 1e-5, classes
and labels equal; with `--seed N` of other sizes, drawn at random (`tests.models.random_sizes`). `python -m
tests.tools.encoders_on_shares pairs` fetches all-MiniLM-L6-v2 where it is missing and compares the cosines of the 50 pairs
of sentences in `sentence_pairs.txt` with plaintext's, within 1e-3. Exit code 1 where a figure is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from launch.checkpoints.calibrating import calibration_for
from launch.checkpoints.fetching import fetch
from launch.local.in_process import InProcessSuite
from launch.measure.encoding import OnShares, encode_on_shares
from models.checkpoint import load_checkpoint
from models.costs.estimation import estimate
from models.costs.tracing import Setting
from models.encoding import EncoderInput, EncodingPlan, padded_length
from models.outputs import Output
from parties.client.texts import TextReader, unit
from protocols.registry import SuiteSpec
from tests.models import random_encoders as encoders

PAIRS = Path(__file__).with_name("sentence_pairs.txt")
COSINE_DISTANCE = 1e-5
COSINE_ERROR = 1e-3
LENGTH, PADDED = 11, 16


def distance(found: Tensor, wanted: Tensor) -> float:
    """The largest cosine distance of two rows."""
    return float((1 - torch.cosine_similarity(found.double(), wanted.double(), dim=-1)).max())


def sweep(suites: list[str], names: list[str], seed: int) -> bool:
    """Whether every random checkpoint is right on every suite, with 2 and 3 parties."""
    right = True
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            model = encoders.save(name, Path(folder), seed, seed)
            checkpoint = load_checkpoint(folder)
            ids, types = encoders.text(model, LENGTH)
            wanted = encoders.outputs(model, ids, types)
            outputs = [kind for kind in get_args(Output) if kind in wanted and kind in checkpoint.encoder.outputs]
            texts = [([EncoderInput(ids, types, place=2)], EncodingPlan((PADDED,), kind)) for kind in outputs]
            for suite in suites:
                for parties in (2, 3):
                    found = encode_on_shares(checkpoint, texts, InProcessSuite(SuiteSpec(suite), parties))
                    where = f"{name} {suite} {parties}"
                    right &= all([compared(where, k, f, wanted[k]) for k, f in zip(outputs, found, strict=True)])
    return right


def compared(where: str, kind: str, found: OnShares, wanted: Tensor) -> bool:
    """Whether an output is right; a line about it."""
    apart, error = distance(found.values, wanted), float((found.values - wanted).abs().max())
    equal = kind not in ("classes", "labels", "words") or bool((found.values.argmax(-1) == wanted.argmax(-1)).all())
    right = apart < COSINE_DISTANCE and equal and not found.findings
    said = "right" if right else "WRONG"
    print(f"{said}  {where} {kind}: cosine distance {apart:.1e}, error {error:.1e}, {found.rounds} rounds", flush=True)
    return right


def pairs(suite: str, parties: int, most: int) -> bool:
    """Whether the cosines of pairs of sentences on shares are plaintext's."""
    from transformers import AutoModel, AutoTokenizer

    folder = fetch("minilm")
    checkpoint = load_checkpoint(folder)
    spec = SuiteSpec(suite, options=calibration_for(folder).suites.get(suite, {}))
    lines = [line.split("\t") for line in PAIRS.read_text(encoding="utf-8").splitlines()][:most]
    sentences = list(dict.fromkeys(sentence for line in lines for sentence in line))
    reader = TextReader(checkpoint.encoder, checkpoint.tokenizer, folder)
    texts = [reader.input(encoded) for encoded in reader.read(sentences)]
    lengths = [padded_length(len(text.ids), checkpoint.encoder.positions) for text in texts]
    order = sorted(range(len(texts)), key=lengths.__getitem__)
    plan = EncodingPlan(tuple(sorted(lengths)), "mean")
    began = time.perf_counter()
    (found,) = encode_on_shares(checkpoint, [([texts[n] for n in order], plan)], InProcessSuite(spec, parties))
    seconds = time.perf_counter() - began
    sentences = [sentences[n] for n in order]
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        hidden = [model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0].mean(0) for sentence in sentences]
    ours = dict(zip(sentences, (unit(one)[0] for one in found.each), strict=True))
    theirs = dict(zip(sentences, (unit(one.double()[None])[0] for one in hidden), strict=True))
    apart = max(float(1 - ours[s] @ theirs[s]) for s in sentences)
    errors = [abs(float(ours[a] @ ours[b] - theirs[a] @ theirs[b])) for a, b in lines]
    flagged = len(found.findings)
    costs = estimate(
        checkpoint.encoder,
        Setting(suite, parties, options=spec.options, decoding="mean", texts=plan.texts),
        plan.prompt_tokens,
        1,
    )
    predicted = tuple(round(costs.total.total(name)) for name in ("rounds", "bytes_sent", "offline_bytes"))
    counted = found.rounds, found.sent, found.dealt
    print(
        f"{len(lines)} pairs, {len(sentences)} sentences, suite {suite}, {parties} parties: largest error of a cosine "
        f"{max(errors):.1e}, cosine distance from plaintext {apart:.1e}, flagged {flagged}; one session of "
        f"{len(plan.batches)} batches, {seconds:.0f} s, rounds, bytes sent by a party and dealt {counted}, predicted "
        f"{predicted}"
    )
    return max(errors) < COSINE_ERROR and not flagged and (suite != "masked" or counted == predicted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["random", "pairs"])
    parser.add_argument("--suite", action="append", choices=["masked", "crypten"])
    parser.add_argument("--parties", type=int, default=2)
    parser.add_argument("--variant", action="append", choices=sorted(encoders.VARIANTS))
    parser.add_argument("--most", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    suites = given.suite or ["masked", "crypten"]
    if given.what == "random":
        right = sweep(suites, given.variant or sorted(encoders.VARIANTS), given.seed)
    else:
        right = all([pairs(suite, given.parties, given.most) for suite in suites])
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
