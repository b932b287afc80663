"""Random small checkpoints of every family on shares against transformers: tokens, logits, range flags.

    python -m tests.tools.family_sweep qwen3 gemma2 --suite masked --parties 3 --prompts 5 --tokens 20
    nice -n 10 python -m tests.tools.family_sweep --record tests/tools/family_sweep.jsonl      # hours; goes on where it was

Without names, all of `tests.models.random_checkpoints.VARIANTS` and of `tests.models.random_encoder_decoders`; without
--suite or --parties, both suites, 2 and 3 parties. --seed N, above 0: other sizes, drawn at random
(`tests.models.random_sizes`). All parties run as threads of this process. Bounds are those of a calibration on the prompts;
tokens count up to the first that differs at a tie. Prints a line a checkpoint; exit code 1 when a token differs or a flag is
set. --record: a file of JSON lines that results are added to, and what is right there is not run again; `make families` puts
them into the pages of docs/families.
"""

from __future__ import annotations

import argparse
import functools
import json
import operator
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from launch.local.in_process import InProcessSuite
from launch.local.shares import KeptShares, WeightShares, additive_shares, opened
from models.calibration.choice import chosen
from models.calibration.extremes import measure
from models.checkpoint import Checkpoint, load_checkpoint
from models.decoder import Decoder
from models.generation import GenerationPlan, capped, generate, token_indices
from models.loaded import load_weights
from models.policies import parse
from protocols.registry import SuiteSpec
from protocols.suite import OutputShare, Suite, Value
from tests.models import random_checkpoints as checkpoints
from tests.models import random_encoder_decoders as encoder_decoders

SETTINGS = tuple((suite, parties) for parties in (2, 3) for suite in ("masked", "crypten"))
LENGTH = 7
TIE = 0.005  # logits on shares are off by less


def on_shares(
    checkpoint: Checkpoint, prompts: list[list[int]], plan: GenerationPlan, spec: SuiteSpec, parties: int
) -> list[tuple[list[int], torch.Tensor, bool]]:
    """Return of each prompt the generated tokens, the logits [V] after it, and whether any range flag was set."""
    architecture = checkpoint.architecture
    held = WeightShares(checkpoint, parties)
    rows = [additive_shares(token_indices(ids, architecture.vocabulary), parties) for ids in prompts]

    def program(suite: Suite, party: int | None) -> list[tuple[list[OutputShare], OutputShare]]:
        weights = suite.run(load_weights(suite, architecture, lambda name: held.share(suite, name, party)))
        found = []
        for shares in rows:
            logits: list[OutputShare] = []
            endpoint = KeptShares()

            def keep(name: str, value: Value, logits: list[OutputShare] = logits, endpoint: KeptShares = endpoint) -> None:
                if name == "logits" and not endpoint.shares:  # of the prompt, its last batch
                    logits.append(suite.output(value))

            decoder = Decoder(suite, architecture, weights, parse(plan.policy), keep)
            suite.run(generate(suite, decoder, plan, None if party is None else shares[party], endpoint))
            found.append((endpoint.shares, logits[-1]))
        return found

    results = InProcessSuite(spec, parties).run(program)
    out = []
    for k in range(len(prompts)):
        steps = [[r[k][0][step] for r in results] for step in range(plan.new_tokens)]
        flags = [functools.reduce(operator.xor, [s.flags for s in step if s.flags is not None]) for step in steps]
        logits = capped(architecture, opened([r[k][1] for r in results])[-1])
        out.append(([round(float(opened(step).item())) for step in steps], logits, any(bool(f.any()) for f in flags)))
    return out


def logits_after(model: Any, ids: list[int], answer: list[int]) -> torch.Tensor:
    """Return transformers' logits [V] after a prompt and what was answered so far."""
    if model.config.is_encoder_decoder:
        return encoder_decoders.logits(model, ids, answer)[-1]
    return checkpoints.logits(model, ids + answer)[-1]


def expected(model: Any, ids: list[int], count: int) -> list[int]:
    """Return transformers' greedy tokens."""
    if model.config.is_encoder_decoder:
        return encoder_decoders.generated(model, ids, count)
    with torch.inference_mode():
        whole = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
    tokens: list[int] = whole[0, len(ids) :].tolist()
    return tokens


def differs(model: Any, ids: list[int], found: list[int], wanted: list[int]) -> bool:
    """Whether tokens differ first where transformers' choice was no tie."""
    first = next((n for n, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b), None)
    if first is None:
        return False
    best = logits_after(model, ids, wanted[:first]).topk(2).values
    return bool(best[0] - best[1] > TIE)


@dataclass(frozen=True)
class Cell:
    """One checkpoint on one suite. seed: of its weights and, above 0, of its sizes."""

    name: str
    suite: str
    parties: int
    policy: str = "full"
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """equal, flagged: of so many prompts of so many tokens each; error: the largest of a logit."""

    prompts: int
    tokens: int
    equal: int
    flagged: int
    error: float

    @property
    def right(self) -> bool:
        """Whether every prompt's tokens are equal and no range flag was set."""
        return self.equal == self.prompts and not self.flagged


def sweep(cell: Cell, prompts: int, tokens: int) -> Outcome:
    """Return what a checkpoint gives on shares against transformers."""
    plan = GenerationPlan(LENGTH, tokens, policy=cell.policy)
    with tempfile.TemporaryDirectory() as folder:
        oracle = encoder_decoders if cell.name in encoder_decoders.VARIANTS else checkpoints
        model = oracle.save(cell.name, Path(folder), cell.seed, cell.seed)
        checkpoint = load_checkpoint(folder)
        texts = [checkpoints.prompt(model, plan.prompt_tokens, seed) for seed in range(1, prompts + 1)]
        wanted = [expected(model, ids, plan.new_tokens) for ids in texts]
        extremes = measure(checkpoint, [ids + more for ids, more in zip(texts, wanted, strict=True)])
        spec = SuiteSpec(cell.suite, options=chosen(cell.suite, extremes))
        found = on_shares(checkpoint, texts, plan, spec, cell.parties)
        errors = [float((f[1] - logits_after(model, ids, [])).abs().max()) for f, ids in zip(found, texts, strict=True)]
        cases = zip(texts, found, wanted, strict=True)
        different = sum(differs(model, ids, f[0], tokens) for ids, f, tokens in cases)
    return Outcome(prompts, tokens, prompts - different, sum(f[2] for f in found), max(errors))


def cells(names: Sequence[str], policy: str, seed: int) -> Iterator[Cell]:
    """Yield every checkpoint on every suite; each one comes once before any comes again, with another suite than its
    neighbours, so that a sweep that is ended early has seen them all."""
    for turn in range(len(SETTINGS)):
        for place, name in enumerate(names):
            yield Cell(name, *SETTINGS[(place + turn) % len(SETTINGS)], policy, seed)


def kind_of(name: str) -> str:
    """Return the `model_type` of a variant."""
    oracle = encoder_decoders if name in encoder_decoders.VARIANTS else checkpoints
    return str(oracle.VARIANTS[name][1].model_type)


def recorded(file: Path) -> dict[Cell, Outcome]:
    """Return what a record holds, the last outcome of each cell."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    values = [json.loads(line) for line in lines]
    return {Cell(**value["cell"]): Outcome(**value["outcome"]) for value in values}


def main() -> int:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=[])
    parser.add_argument("--suite")
    parser.add_argument("--policy", default="full")
    parser.add_argument("--parties", type=int)
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    names = asked.names or (*checkpoints.VARIANTS, *encoder_decoders.VARIANTS)
    bad = 0
    for cell in cells(names, asked.policy, asked.seed):
        if asked.suite not in (None, cell.suite) or asked.parties not in (None, cell.parties):
            continue
        known = recorded(asked.record).get(cell) if asked.record else None
        if known is not None and known.right and (known.prompts, known.tokens) == (asked.prompts, asked.tokens):
            continue
        outcome = sweep(cell, asked.prompts, asked.tokens)
        bad += not outcome.right
        print(
            f"{cell.name}, {cell.suite}, {cell.parties} parties: {outcome.equal} of {outcome.prompts} prompts of "
            f"{outcome.tokens} tokens equal, {outcome.flagged} flagged, largest logit error {outcome.error:.4f}",
            flush=True,
        )
        if asked.record:
            with asked.record.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"cell": asdict(cell), "outcome": asdict(outcome)}) + "\n")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
