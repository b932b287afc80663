"""`python -m tests.tools.attack [NAME ...]`: run the attacks against live deployments and print what was caught.

Exit code 1 when one succeeded. Without names all run, in less than ten minutes on two cores.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.tools.attack.attacks import ATTACKS


def main(names: list[str]) -> int:
    """Run the named attacks, by default all; returns the exit code."""
    known = {attack.name: attack for attack in ATTACKS}
    if unknown := [name for name in names if name not in known]:
        print(f"unknown attack '{unknown[0]}'; known: {', '.join(known)}", file=sys.stderr)
        return 2
    succeeded = 0
    for attack in [known[name] for name in names] or ATTACKS:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            verdict = attack.run(Path(folder))
        succeeded += not verdict.caught
        outcome = "caught" if verdict.caught else "SUCCEEDED"
        print(f"{attack.name} ({attack.who}: {attack.what}): {outcome} in {time.perf_counter() - began:.0f} s")
        print(f"    {verdict.shown}\n    {verdict.detail}", flush=True)
    return 1 if succeeded else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
