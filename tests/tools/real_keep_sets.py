"""Keep-sets of a policy on shares against plaintext's, on one needle prompt of a real checkpoint. A command (minutes):

    python -m tests.tools.real_keep_sets --model DIR [--layers 6] [--suite-option residual=15]

Bounds are those of the `mpcache.json` beside the checkpoint.
Every ranking is compared, head by head: what eviction keeps, which clusters each token attends to. Exit code 1 when tokens
differ, or a kept set whose exchanged scores lie further apart than --gap (a share of the ranked scores' spread), which is
more than rounding explains.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from typing import cast

import numpy as np

from launch.cli.options import options_for
from launch.local.in_process import InProcessSuite
from launch.measure.generation import generate_on_shares
from launch.measure.quality.long_prompts import Frame
from launch.measure.quality.long_tasks import TASKS
from launch.measure.selection_trace import Decision, agreement, noting
from models.checkpoint import Checkpoint, load_checkpoint
from models.generation import GenerationPlan, PlainModel
from models.shapes import with_layers
from models.tokenizer.chat_template import ChatTemplate
from mpc.errors import CheckpointError
from protocols.registry import SuiteSpec
from protocols.suite import Suite


def prompt_of(checkpoint: Checkpoint, tokens: int, seed: int) -> list[int]:
    """A needle in the middle of a text, in the model's own form."""
    try:
        template = ChatTemplate.load(checkpoint.directory)
    except CheckpointError:
        template = None
    rng = np.random.default_rng(seed)
    return Frame(checkpoint.tokenizer, template).prompt(TASKS["single"](rng, 0.5, tokens), tokens, rng)


def main() -> int:
    """One prompt with one policy."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="a checkpoint's folder")
    parser.add_argument("--tokens", type=int, default=400, help="of the prompt")
    parser.add_argument("--new", type=int, default=3, help="tokens to generate")
    parser.add_argument("--layers", type=int, help="only the first ones")
    parser.add_argument("--policy", default="mpcache")
    parser.add_argument("--suite", default="masked")
    parser.add_argument("--suite-option", action="append", default=[])
    parser.add_argument("--parties", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gap", type=float, default=1e-3)
    wanted = parser.parse_args()
    checkpoint = load_checkpoint(wanted.model)
    ids = prompt_of(checkpoint, wanted.tokens, wanted.seed)
    if wanted.layers is not None:
        checkpoint = dataclasses.replace(checkpoint, description=with_layers(checkpoint.architecture, wanted.layers))
    plan = GenerationPlan(len(ids), wanted.new, policy=wanted.policy)
    plan.check(checkpoint.architecture)
    decisions: list[Decision] = []
    model = PlainModel(checkpoint)
    plain = model.generate(ids, plan, suite=cast(Suite, noting(model.suite, decisions)))
    started = time.perf_counter()
    spec = SuiteSpec(wanted.suite, options=options_for(wanted.model, wanted.suite, wanted.suite_option))
    roles = InProcessSuite(spec, wanted.parties)
    run = generate_on_shares(checkpoint, ids, plan, roles, {"decisions"})
    secure, found = run.checked(), agreement(decisions, run.decisions)
    print(
        f"{wanted.policy}, {len(ids)} tokens, {checkpoint.architecture.layers} layers: tokens {secure[: len(plain)]}, in "
        f"plaintext {plain}; {found.equal} of {found.compared} kept sets equal, the others within "
        f"{100 * found.gap:.2g} % of what was ranked, {found.after} not compared ({time.perf_counter() - started:.0f} s)"
    )
    return 0 if secure[: len(plain)] == plain and found.gap <= wanted.gap and found.after == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
