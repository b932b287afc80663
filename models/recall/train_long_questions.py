"""Continue the model of question lists to 4,096 tokens: ``python -m models.recall.train_long_questions --out DIR``.

The shipped model's position table holds sinusoids; more of them follow, with the same periods.  Then it is trained on
longer documents of the same kind, 2,160 and then 4,240 tokens.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch

from models.recall import questions as docs
from models.recall import train_questions as training
from models.recall.train import export, load_export

SHIPPED = Path(__file__).parent / "gpt2_questions"
POSITIONS = 4352
STAGES: tuple[training.Stage, ...] = (
    training.Stage(2160, 2, 900, cluster=1.0, quiet=0.03),
    training.Stage(4240, 1, 900, cluster=1.0, quiet=0.03),
)


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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    model = load_export("gpt2", SHIPPED)
    table = torch.nn.Embedding(POSITIONS, model.config.n_embd)
    table.weight.data.copy_(continued(model.transformer.wpe.weight, POSITIONS))
    table.weight.requires_grad_(False)
    model.transformer.wpe, model.config.n_positions = table, POSITIONS
    training.POSITIONS = POSITIONS
    log = []
    for entry in training.train(model, STAGES, args.seed, args.rate, args.decay, training.Weights()):
        log.append(entry)
        print(f"stage done: {json.dumps(entry)}", flush=True)
        export(model, args.out, docs.TOKEN_IDS, docs.ANSWER_TOKENS_EACH * docs.MAX_QUESTIONS)
        record = {"arguments": {n: v for n, v in vars(args).items() if n != "out"}, "stages": log}
        (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
