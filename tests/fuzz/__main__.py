"""`python -m tests.fuzz [--cases 100000] [--only NAME]`: every decoder, many cases (minutes)."""

from __future__ import annotations

import argparse
import logging
import sys
import time

from tests.fuzz.run import FuzzFailure, fuzz
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Exit code 1 when a decoder failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000, help="of each decoder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=sorted(TARGETS), help="this decoder; may be repeated")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    failed = 0
    print(f"{'decoder':<26}{'cases':>9}{'accepted':>10}{'slowest':>11}{'memory':>11}{'seconds':>9}")
    for name in args.only or TARGETS:
        start = time.perf_counter()
        try:
            o = fuzz(name, args.cases, args.seed)
        except FuzzFailure as error:
            failed += 1
            print(f"{name:<26}FAILED: {error}", flush=True)
            continue
        seconds = time.perf_counter() - start
        row = f"{args.cases:>9}{o.accepted:>10}{1e3 * o.slowest:>8.1f} ms{o.growth / 1e6:>8.1f} MB{seconds:>9.0f}"
        print(f"{name:<26}{row}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
