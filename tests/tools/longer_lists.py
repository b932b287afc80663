"""The model of question lists for longer prompts than it is shipped for: its positions continued, trained on. A command:

    python -m tests.tools.longer_lists --out DIR [--steps 1100]
    mpcache quality --model DIR --lengths 2048 --questions 16 --seed 7 --policies "full snapkv batches|snapkv" --budgets 0.5

The position table holds sinusoids, whose periods stay as they are.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from models.recall import questions as docs
from models.recall import train_questions as training
from models.recall.train import export, load_export

SHIPPED = Path(training.__file__).parent / "gpt2_questions"
POSITIONS = 2304
LENGTH = 2160


def continued(table: torch.Tensor, positions: int) -> torch.Tensor:
    """Return the sinusoids of a position table [P, D] for more positions [positions, D]; what it holds stays."""
    old, width = table.shape
    pairs = width // 8
    periods = 4.0 * (2 * old / 4.0) ** (torch.arange(pairs, dtype=torch.float64) / (pairs - 1))
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * (2 * math.pi / periods)[None, :]
    out = torch.zeros(positions, width, dtype=torch.float64)
    out[:, 0 : 2 * pairs : 2], out[:, 1 : 2 * pairs : 2] = 0.6 * torch.sin(angles), 0.6 * torch.cos(angles)
    if (out[:old] - table.double()).abs().max() > 1e-3:
        raise ValueError("the table's first columns are not the sinusoids that this model is trained with")
    return out.float()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1100)
    wanted = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = load_export("gpt2", SHIPPED)
    table = torch.nn.Embedding(POSITIONS, model.config.n_embd)
    table.weight.data.copy_(continued(model.transformer.wpe.weight, POSITIONS))
    table.weight.requires_grad_(False)
    model.transformer.wpe, model.config.n_positions = table, POSITIONS
    training.POSITIONS = POSITIONS
    stages = (training.Stage(LENGTH, 2, wanted.steps, cluster=1.0, quiet=0.03),)
    for entry in training.train(model, stages, 0, 1.5e-3, 0.1, training.Weights()):
        print(entry, flush=True)
    export(model, wanted.out, docs.TOKEN_IDS, docs.ANSWER_TOKENS_EACH * docs.MAX_QUESTIONS)


if __name__ == "__main__":
    main()
