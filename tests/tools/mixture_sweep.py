"""Mixtures of experts on shares against transformers: random small checkpoints, several prompts each.

    python -m tests.tools.mixture_sweep --suite crypten --parties 3 --prompts 5 --tokens 20

Every variant of `tests.models.random_checkpoints` that has experts generates after each prompt; all parties run as threads
of this process. Prints a line a variant; exit code 1 where a token differs, or a logit by more than the tolerance.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from launch.local.in_process import InProcessSuite
from launch.measure.generation import generate_on_shares
from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan
from protocols.registry import SuiteSpec
from tests.models import random_checkpoints as checkpoints

MIXTURES = [name for name in checkpoints.VARIANTS if name.startswith(("mixtral", "qwen3-moe"))]


def continued(model: Any, ids: list[int], count: int) -> list[int]:
    """Return what transformers generates greedily after a prompt."""
    with torch.inference_mode():
        mask = torch.ones(1, len(ids))
        whole = model.generate(
            torch.tensor([ids]), attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0
        )
    found: list[int] = whole[0, len(ids) :].tolist()
    return found


def compare(name: str, wanted: argparse.Namespace) -> tuple[int, float]:
    """Return how many prompts of a variant get other tokens on shares, and the largest error of a first token's logits."""
    roles = InProcessSuite(SuiteSpec(wanted.suite, options={"experts": wanted.experts}), wanted.parties)
    different, worst = 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        model = checkpoints.save(name, Path(folder))
        checkpoint = load_checkpoint(folder, torch.float64)
        for number in range(wanted.prompts):
            ids = checkpoints.prompt(model, wanted.tokens, seed=number + 1)
            plan = GenerationPlan(wanted.tokens, wanted.new)
            found = generate_on_shares(checkpoint, ids, plan, roles, ["logits"])
            assert found.logits is not None
            worst = max(worst, float((found.logits[0] - checkpoints.logits(model, ids)[-1]).abs().max()))
            different += int(found.checked() != continued(model, ids, wanted.new))
    return different, worst


def main() -> int:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--suite", default="masked")
    parser.add_argument("--parties", type=int, default=2)
    parser.add_argument("--experts", default="dense")
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--new", type=int, default=4)
    parser.add_argument("--tolerance", type=float, default=0.05)
    parser.add_argument("names", nargs="*", default=MIXTURES)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    failed = 0
    for name in wanted.names:
        different, worst = compare(name, wanted)
        failed += int(different > 0 or worst > wanted.tolerance)
        print(
            f"{name}, suite {wanted.suite}, {wanted.parties} parties, {wanted.experts}: {wanted.prompts - different} of "
            f"{wanted.prompts} prompts of {wanted.tokens} tokens with equal tokens, largest logit error {worst:.4f}",
            flush=True,
        )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
