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
    """Return a row a policy and length: needles found, of how many, at all seeds together. Policies that only plaintext has
    are left out."""
    rows: dict[tuple[str, int], list[float]] = {}
    for folder in sorted((ROOT / "docs" / "quality").glob("real*")):
        for row in json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]:
            if row["problem"] or "single" not in row["scores"]:
                continue
            try:
                spec = parse(row["policy"]).spec
            except ConfigurationError:
                continue
            have = rows.setdefault((spec, row["length"]), [0.0, 0])
            have[0] += row["scores"]["single"]
            have[1] += row["prompts"]
    return [
        {"policy": spec, "length": length, "needles": int(needles), "of": int(of)}
        for (spec, length), (needles, of) in sorted(rows.items())
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
