"""The command; with `--child` a part of it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.devices import NAMES
from tests.tools.gpu_check.packages import collect, provided
from tests.tools.gpu_check.parts import PARTS
from tests.tools.gpu_check.runner import Runner


def parser() -> argparse.ArgumentParser:
    """Return the arguments."""
    out = argparse.ArgumentParser(prog="python -m tests.tools.gpu_check", description="Check and measure shares on a GPU.")
    out.add_argument("--out", type=Path, default=Path("gpu_check.json"), help="JSON, whole after each row")
    out.add_argument("--seconds", type=float, default=450.0, help="for all parts; what does not fit is skipped")
    out.add_argument("--only", choices=list(PARTS), action="append", help="a part; more than once for several")
    out.add_argument("--device", choices=NAMES, default="cuda")
    out.add_argument("--small", action="store_true", help="tiny models and sizes, to try the program")
    out.add_argument("--wheels", type=Path, help="folder of packages for a machine without a network")
    out.add_argument("--collect", type=Path, help="download those packages into a folder, and end")
    out.add_argument("--child", choices=list(PARTS), help=argparse.SUPPRESS)
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    asked = parser().parse_args(arguments)
    if asked.collect is not None:
        return collect(asked.collect)
    if asked.child is not None:
        for row in PARTS[asked.child].rows(asked.device, asked.small):
            print(json.dumps(row), flush=True)
        return 0
    with provided(asked.wheels) as folder:
        return Runner(asked.out, asked.device, asked.small, folder).run(asked.only or list(PARTS), asked.seconds)


if __name__ == "__main__":
    sys.exit(main())
