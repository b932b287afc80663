"""`python -m tests.tools.found_needles --write`: what `mpcache plan --systems` shows beside costs, from results."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from models.policies import parse
from mpc.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
WHERE = ROOT / "launch" / "predict" / "found.json"


def found() -> list[dict[str, object]]:
    """Return a row a policy and length: needles found, of how many prompts, each counted once on however many pages it
    stands. Policies that only plaintext has are left out."""
    scores: dict[tuple[str, int], dict[str, float]] = {}
    for folder in sorted((ROOT / "docs" / "quality").glob("real*")):
        record = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        for answer in record["answers"]:
            if answer["problem"] or answer["task"] != "single":
                continue
            try:
                spec = parse(answer["policy"]).spec
            except ConfigurationError:
                continue
            prompt = f"{record['settings']['seed']}, {answer['number']} of {record['settings']['prompts']}"
            scores.setdefault((spec, answer["length"]), {})[prompt] = answer["score"]
    return [
        {"policy": spec, "length": length, "needles": int(sum(each.values())), "of": len(each)}
        for (spec, length), each in sorted(scores.items())
    ]


def text() -> str:
    """Return the file's text."""
    return "[\n" + ",\n".join(f" {json.dumps(row)}" for row in found()) + "\n]\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the file")
    if parser.parse_args().write:
        WHERE.write_text(text(), encoding="utf-8")
    else:
        print(text(), end="")
