"""Secure keep-sets against plaintext ones on inputs that are exact in fixed point, ties included. A command, since it is
slow:

    python -m tests.tools.keep_sets --cases 1000 [--suite masked] [--parties 2]

A case is one decision: which tokens a head (or a layer) keeps, drops or attends to. Inputs are multiples of 1/4 from few
values, so that many are equal. Both sides must leave the very same keys and values and give the same attention.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import torch

from models.architecture import Architecture
from models.policies import parse
from tests.models.policies.policy_cases import Case, tiny
from tests.models.policies.test_policies import MATRIX
from tests.protocols.suite_harness import run_plain, run_secure

STEPS = 9  # enough for a cluster of new tokens to fill up and leave the window
TOKENS = 40
SAME = 2.0**-12
CLOSE = 4e-3


def decisions(text: str, a: Architecture) -> int:
    """Decisions of one run: after the prompt and at each step, per head or per layer."""
    policy = parse(text)
    name = policy.name
    if name == "mpcache":
        static, dynamic = getattr(policy, "static") < 1, getattr(policy, "dynamic") < 1  # noqa: B009
        return int(static) + a.kv_heads * STEPS * int(dynamic)
    return {"h2o": a.kv_heads * (1 + STEPS), "tova": 1 + STEPS, "snapkv": a.kv_heads}.get(name, a.kv_heads * STEPS)


def run(text: str, suite: str, parties: int, cases: int) -> tuple[int, int]:
    """(decisions made, runs whose outcome differs)."""
    policy = parse(text)
    a = tiny(heads=8, groups=4)
    policy.check(a, TOKENS)
    made = wrong = 0
    for seed in range(10**6):
        case = Case(a, TOKENS, STEPS, seed)

        async def program(s: Any, *values: Any, case: Case = case) -> Any:
            return await case.run(policy, s, *values)

        plain = run_plain(program, case.inputs)
        found = run_secure(suite, parties, program, case.inputs)
        same = all(x.shape == y.shape for x, y in zip(plain, found, strict=True))
        same = same and all((x - y).abs().max() < SAME for x, y in zip(plain[-2:], found[-2:], strict=True))
        same = same and all((x - y).abs().max() < CLOSE for x, y in zip(plain, found, strict=True))
        wrong += not same
        made += decisions(text, a)
        if made >= cases:
            return made, wrong
    raise AssertionError("unreachable")


def main() -> int:
    """All policies that decide anything in secret."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--suite", default="masked")
    parser.add_argument("--parties", type=int, default=2)
    parser.add_argument("--policy", action="append", help="only this one; may be repeated")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    texts = wanted.policy or [t for name, many in MATRIX.items() if name not in ("full", "streaming-llm") for t in many]
    failed = 0
    for text in texts:
        start = time.perf_counter()
        made, wrong = run(text, wanted.suite, wanted.parties, wanted.cases)
        failed += wrong
        print(f"{text}: {made} decisions, {wrong} runs differ ({time.perf_counter() - start:.0f} s)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
