"""Inputs that left rings silently once: is every answer right, or flagged? A command, and the cases of a test:

    python -m tests.tools.range_cases --suite crypten [--parties 2] [--runs 20] [--case NAME]

Each run builds a small random model with one planted excursion (`range_models`), answers on shares (all roles in this
process) and compares with transformers in float64: every token is the most likely one, or closer to it than the tolerance;
logits are within it. Outcomes: *right*; *flagged* (a range flag opens to non-zero, whatever the answer is); *refused* (an
error that names the bound, before the answer); WRONG. Exit code 1 if anything is WRONG, or not right where `declared` holds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from launch.local.in_process import InProcessSuite
from launch.local.shares import KeptShares, WeightShares, additive_shares, opened
from models.calibration.certainty import beyond_flags
from models.checkpoint import Checkpoint, load_checkpoint
from models.decoder import Decoder
from models.generation import GenerationPlan, generate, token_indices
from models.loaded import load_weights
from models.outputs import Decoding
from mpc.errors import RangeError
from protocols import gumbel
from protocols.bounds import RANGE_KINDS
from protocols.range_findings import open_flags
from protocols.registry import SuiteSpec, secure_suites
from protocols.suite import OutputShare, Suite
from tests.tools import range_models

PROMPT_TOKENS, NEW_TOKENS = 11, 2
Options = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A planted excursion. build(seed): the model. declared: options whose bounds hold all of it. tolerance: of logits.

    decoding: None takes greedy and logits by turns.
    """

    build: Callable[[int], Any]
    declared: Options = field(default_factory=dict)
    decoding: Decoding | None = None
    temperature: float = 1.0
    tolerance: float = 0.01


def _outlier(family: str, size: float, residual: int) -> Case:
    declared = {} if residual == 12 else {"residual": residual}
    return Case(lambda seed: range_models.outlier(seed, family, size), declared)


CASES: dict[str, Case] = {
    "logits near -300": Case(range_models.low_logits, {"logits": 10}),
    "logits near -300, sample": Case(range_models.low_logits, {"logits": 10}, "sample"),
    **{
        f"table entry of {size:g}, {family}": _outlier(family, size, residual)
        for family in range_models.FAMILIES
        for size, residual in ((2600, 12), (3000, 12), (3900, 12), (27347, 16), (131072, 18))
    },
    "key biases 200, scores 157": Case(
        lambda seed: range_models.large_scores(seed, 157), {"score": 8, "value": 9}, tolerance=0.03
    ),
    "key biases 200, scores 1800": Case(
        lambda seed: range_models.large_scores(seed, 1800), {"score": 9, "value": 9}, tolerance=0.03
    ),
    "ten layers, key biases 210, scores 1800": Case(
        lambda seed: range_models.large_scores(seed, 1800, 210.0, 10), {"score": 9, "value": 9}, tolerance=0.03
    ),
    "cached values 240": Case(lambda seed: range_models.large_values(seed, 240), {"value": 9, "activation": 9}),
    "gates of 300": Case(lambda seed: range_models.large_gates(seed, 300), {"activation": 10}),
    # weights are shared in units of 2^-16: rows of the table are off by 0.4 % of themselves
    "token table of deviation 0.001": Case(lambda seed: range_models.small_table(seed, 0.001), tolerance=0.08),
    "temperature 100": Case(lambda seed: range_models.gated("llama", seed), {}, "sample", 100.0),
}
EXCESSES: dict[str, tuple[Case, str]] = {
    "norm of 4 900 with residual=12": (_outlier("llama", 4900, 12), "residual"),
    "norm of 131 072 with residual=16": (_outlier("llama", 131072, 16), "residual"),
    "norm of 20 000 000 with residual=18": (_outlier("llama", 2e7, 18), "residual"),
    "scores spread over 2^17": (Case(lambda seed: range_models.large_scores(seed, 4e6)), "score"),
    "cached values of 2^17": (Case(lambda seed: range_models.large_values(seed, 2.0**17)), "residual"),
    "gates of 2^20": (Case(lambda seed: range_models.large_gates(seed, 2.0**20)), "activation"),
}
"""What no option holds, or what the given options do not hold, and a kind that the suite `crypten` must flag."""


@dataclass
class Answer:
    """What the client opens: tokens or logits, and the flags [kinds, places] of all of them. noise: of "sample"."""

    tokens: list[int]
    logits: Tensor | None
    flags: Tensor
    noise: Tensor | None = None

    @property
    def flagged(self) -> set[str]:
        """Kinds with a word that is not zero."""
        return {kind for kind, row in zip(RANGE_KINDS, self.flags, strict=True) if bool((row != 0).any())}


def answer(checkpoint: Checkpoint, ids: list[int], plan: GenerationPlan, spec: SuiteSpec, parties: int) -> Answer:
    """One session, all roles in this process."""
    a = checkpoint.architecture
    weights = WeightShares(checkpoint, parties)
    prompt = additive_shares(token_indices(ids, a.vocabulary), parties)
    noise: list[Tensor] = []

    def caught(shape: Sequence[int]) -> Tensor:
        noise.append(draw(shape))
        return noise[-1]

    draw = gumbel.gumbel

    def program(suite: Suite, party: int | None) -> list[OutputShare]:
        kept = KeptShares()
        with torch.inference_mode():
            loaded = suite.run(load_weights(suite, a, lambda key: weights.share(suite, key, party)))
            decoder = Decoder(suite, a, loaded)
            suite.run(generate(suite, decoder, plan, None if party is None else prompt[party], kept))
        return kept.shares

    with patch.object(gumbel, "gumbel", caught):  # the dealer's
        outputs = InProcessSuite(spec, parties).run(program)
    flags = torch.zeros(len(RANGE_KINDS), a.layers + 1, dtype=torch.int64)
    values = []
    for shares in zip(*outputs, strict=True):
        values.append(opened(shares))
        words = [share.flags for share in shares if share.flags is not None]
        if words:
            flags |= open_flags(words)
    if plan.decoding == "logits":
        return Answer([], values[0][0], flags)
    scaled = torch.cat(noise) * plan.temperature if plan.temperature is not None else None
    return Answer([round(float(x)) for x in values], None, flags, scaled)


@torch.inference_mode()
def worst(model: Any, ids: list[int], found: Answer) -> float:
    """The largest error of logits; or how far a token's logit (and noise) is below the largest, on the answer's own way."""
    if found.logits is not None:
        return float((found.logits - model(torch.tensor([ids])).logits[0, -1]).abs().max())
    vocabulary = model.config.vocab_size
    if not all(0 <= token < vocabulary for token in found.tokens):
        return float("inf")
    rows = model(torch.tensor([ids + found.tokens])).logits[0, len(ids) - 1 : -1]
    if found.noise is not None:
        rows = rows + found.noise
    return float((rows.amax(-1) - rows.gather(1, torch.tensor(found.tokens)[:, None])[:, 0]).max())


def outcome(case: Case, seed: int, suite: str, parties: int, options: Options) -> tuple[str, float, set[str]]:
    """One run: right, flagged, refused or WRONG; its error; kinds flagged."""
    model = case.build(seed)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, range_models.VOCABULARY, (PROMPT_TOKENS,), generator=generator).tolist()
    ids[0] = range_models.OUTLIER_TOKEN
    decoding = case.decoding or ("greedy", "logits")[seed % 2]
    agreed = case.temperature if decoding == "sample" else None
    plan = GenerationPlan(len(ids), 1 if decoding == "logits" else NEW_TOKENS, decoding, temperature=agreed)
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        checkpoint, model = load_checkpoint(Path(directory), torch.float64), model.double()
        if suite == "masked" and (text := beyond_flags(checkpoint, options)) is not None:
            return "refused", 0.0, {text.split(" can ")[0]}  # as the model owner is, before the weights are shared
        try:
            found = answer(checkpoint, ids, plan, SuiteSpec(suite, options=options), parties)
        except RangeError as error:
            return f"refused ({str(error)[:60]})", 0.0, set()
    error = worst(model, ids, found)
    if found.flagged:
        return "flagged", error, found.flagged
    return "right" if error <= case.tolerance else "WRONG", error, set()


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="crypten", choices=secure_suites())
    parser.add_argument("--parties", type=int, default=2)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="seed of the first run")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    wanted = parser.parse_args(arguments)
    torch.set_num_threads(1)
    disable_progress_bar()
    failed = False
    lines: list[tuple[str, Case, str, Options]] = []
    for name, case in CASES.items():
        lines.append((name, case, "right", case.declared))
        if case.declared:
            lines.append((name, case, "any", {}))
    lines += [(name, case, "flagged", case.declared) for name, (case, _) in EXCESSES.items()]
    print("| case | options | outcomes | largest error | kinds |\n| --- | --- | --- | --- | --- |")
    for name, case, expected, options in lines:
        if wanted.case not in name:
            continue
        counts: Counter[str] = Counter()
        largest, kinds = 0.0, set[str]()
        for seed in range(wanted.first, wanted.first + wanted.runs):
            result, error, flagged = outcome(case, seed, wanted.suite, wanted.parties, options)
            counts[result] += 1
            kinds |= flagged
            largest = max(largest, error if result != "flagged" else 0.0)
            failed |= result == "WRONG" or (expected == "right" and result != "right")
            failed |= expected == "flagged" and result not in ("flagged", "refused")
        text = " ".join(f"{k}={v}" for k, v in options.items()) or "default"
        outcomes = ", ".join(f"{n} {what}" for what, n in counts.most_common())
        print(f"| {name} | {text} | {outcomes} | {largest:.2g} | {' '.join(sorted(kinds))} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
