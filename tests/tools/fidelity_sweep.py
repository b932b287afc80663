"""Generated tokens and logits on shares against plaintext, over many held-out prompts of a shipped model.

    python -m tests.tools.fidelity_sweep --family gpt2 --suite crypten --parties 3 --prompts 50 --tokens 128

All parties run as threads of this process. Prints one line a prompt that differs, and a summary; exit code 1 when a token
differs or a logit is further than the tolerance from float64.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import models.recall
from launch.local.in_process import InProcessSuite
from launch.local.shares import KeptShares, WeightShares, additive_shares, opened
from models.checkpoint import load_checkpoint
from models.decoder import Decoder
from models.generation import GenerationPlan, PlainModel, generate, token_indices
from models.loaded import load_weights
from models.recall.documents import ANSWER_TOKENS, encode, evaluation_cases
from protocols.registry import SuiteSpec
from protocols.suite import OutputShare, Suite, Value


def main() -> int:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--family", choices=["gpt2", "llama"], default="gpt2")
    parser.add_argument("--suite", default="masked")
    parser.add_argument("--parties", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--tolerance", type=float, default=0.05)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    directory = Path(models.recall.__file__).parent / wanted.family
    checkpoint = load_checkpoint(directory, torch.float64)
    architecture = checkpoint.architecture
    plain = PlainModel(checkpoint, torch.float64)
    plan = GenerationPlan(wanted.tokens, ANSWER_TOKENS)
    prompts = [encode(case.prompt) for case in evaluation_cases(wanted.tokens, wanted.prompts)]
    rows = [additive_shares(token_indices(ids, architecture.vocabulary), wanted.parties) for ids in prompts]
    held = WeightShares(checkpoint, wanted.parties)

    def program(suite: Suite, party: int | None) -> list[tuple[list[OutputShare], OutputShare]]:
        weights = suite.run(load_weights(suite, architecture, lambda name: held.share(suite, name, party)))
        found = []
        for shares in rows:
            logits: list[OutputShare] = []

            def keep(name: str, value: Value, logits: list[OutputShare] = logits) -> None:
                if name == "logits" and not logits:
                    logits.append(suite.output(value))

            endpoint = KeptShares()
            decoder = Decoder(suite, architecture, weights, probe=keep)
            suite.run(generate(suite, decoder, plan, None if party is None else shares[party], endpoint))
            found.append((endpoint.shares, logits[0]))
        return found

    results = InProcessSuite(SuiteSpec(wanted.suite), wanted.parties).run(program)
    different, worst = 0, 0.0
    for k, ids in enumerate(prompts):
        tokens = [int(opened([r[k][0][step] for r in results]).item()) for step in range(ANSWER_TOKENS)]
        expected = plain.generate(ids, plan)
        error = float((opened([r[k][1] for r in results])[-1] - plain.logits(ids)[-1]).abs().max())
        worst = max(worst, error)
        if tokens[: len(expected)] != expected:
            different += 1
            print(f"prompt {k}: tokens differ, largest logit error {error:.4f}")
    print(
        f"{wanted.family}, suite {wanted.suite}, {wanted.parties} parties, {wanted.prompts} prompts of "
        f"{wanted.tokens} tokens: {wanted.prompts - different} with equal tokens, largest logit error {worst:.4f} "
        f"(tolerance {wanted.tolerance})"
    )
    return int(different > 0 or worst > wanted.tolerance)


if __name__ == "__main__":
    sys.exit(main())
