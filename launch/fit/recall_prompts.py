"""Prompts of the shipped recall model's training set: ``python -m launch.fit.recall_prompts --out FILE``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from models.recall import questions as docs
from models.recall.documents import EOS, TRAINING, make_rng


def lines(count: int, length: int, seed: int) -> list[str]:
    """Return JSON lines of documents with question lists, of `length` tokens each, none of them a held-out one."""
    rng = make_rng(seed, TRAINING)
    cases = [docs.make_case(rng, length) for _ in range(count)]
    return [json.dumps({"prompt": case.prompt, "answer": f"{case.answer} {EOS}"}) for case in cases]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    found = [line for length in args.lengths for line in lines(args.count // len(args.lengths), length, args.seed + length)]
    args.out.write_text("\n".join(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
