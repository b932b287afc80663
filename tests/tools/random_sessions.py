"""Sessions drawn at random, on shares: tokens against plaintext's with the same policy, flags, and costs as predicted.

    python -m tests.tools.random_sessions --cases 20 --seed 7       # half a minute a case

A case is a family's random checkpoint with sizes drawn at random, a cache system or two together with settings drawn at
random, a suite, 2 or 3 parties, lengths of prompt and answer, and how the suite chooses between forms (`prefer`). What is
refused before it begins is drawn again; everything else must set no flag, cost the rounds, sent and dealt bytes that
`estimate` says, to the byte (else WRONG), and give plaintext's tokens. Other tokens are DIFFERENT, which is for a person to
judge: of logits, or of a policy's scores, that are nearly equal rounding decides, and `mikv` and `demote` round by chance.
Exit code 1 when a case is WRONG; `--only N` runs one case again.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from launch.local.in_process import InProcessSuite
from launch.local.shares import KeptShares, WeightShares, additive_shares, opened
from models.calibration.choice import chosen
from models.calibration.extremes import measure
from models.checkpoint import Checkpoint, load_checkpoint
from models.costs.estimation import estimate
from models.costs.tracing import Setting
from models.decoder import Decoder
from models.generation import GenerationPlan, generate, generate_plain, token_indices
from models.loaded import load_weights
from models.policies import parse
from mpc.errors import MpcacheError
from protocols.registry import SuiteSpec
from protocols.suite import Suite
from tests.models import random_checkpoints as checkpoints
from tests.models.policies.learned_weights import save_random

SYSTEMS = (
    "full",
    "mpcache",
    "mpcache:static={b},observed={w},following=2,dynamic=1",
    "mpcache:preset=clusters,sinks=1,window=2,dynamic={b}",
    "mpcache:preset=few-queries,fine=2,sinks=1,window=2,dynamic={b}",
    "mpcache:preset=paper,sinks=1,window=2,dynamic={b}",
    "h2o:budget={b}",
    "snapkv:budget={b},window={w}",
    "tova:budget={b}",
    "quest:page=2,budget={b},skip=0",
    "streaming-llm:budget={b}",
    "dynamic-top-k:budget={b}",
    "cake:budget={b},window={w}",
    "compresskv:budget={b},window={w}",
    "lazyeviction:budget={b},every=2,observed=2",
    "elastic:budget={b}",
    "d2o:budget={b},every=2,candidates=3",
    "kvmerger:budget={b}",
    "ems:budget={b},window={w},every=2",
    "epicache:budget={b},probe_tokens=3,last=2",
    "mikv:budget={b},every=2",
    "think:keep={b},window={w}|full",
    "cskv",
    "locret:budget={b},channels=4",
    "attention-gate:budget={b},heads=1,channels=4",
)
WRAPPERS = (
    "{p}",
    "{p}",
    "{p}",
    "{p}",
    "lag:every=2|{p}",
    "chunked:tokens=5|{p}",
    "batches:tokens=6|{p}",
    "layers:weights=1 2|{p}",
    "merge:how=nearest|{p}",
    "demote:fraction_bits=3|{p}",
    "think:keep=0.5,window=2|{p}",
)


@dataclass(frozen=True)
class Case:
    """What is drawn; see the module."""

    number: int
    model: str
    policy: str
    suite: str
    parties: int
    prompt: int
    new: int
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = " ".join(f"{key}={value}" for key, value in self.options.items())
        lengths = f"{self.prompt}+{self.new} tokens"
        return f"case {self.number}: {self.model}, {self.suite} {self.parties}p {options}, {lengths}, '{self.policy}'"


def drawn(number: int) -> Case:
    """Return a case, the same for the same number."""
    draw = random.Random(number)
    system = draw.choice(SYSTEMS).format(b=draw.choice((0.2, 0.4, 0.5, 0.7)), w=draw.choice((1, 2, 4)))
    policy = draw.choice(WRAPPERS).format(p=system)
    suite = draw.choice(("masked", "masked", "crypten"))
    prefer = draw.choice(("", "rounds", "bytes")) if suite == "masked" else ""
    options = {"prefer": prefer} if prefer else {}
    model = draw.choice(tuple(checkpoints.VARIANTS))
    return Case(
        number,
        model,
        policy,
        suite,
        draw.choice((2, 3)),
        draw.choice((draw.randrange(1, 40), draw.randrange(40, 62))),
        draw.randrange(1, 7),
        options,
    )


def on_shares(checkpoint: Checkpoint, case: Case, ids: list[int], spec: SuiteSpec) -> tuple[list[int], bool, list[int]]:
    """Return the tokens, whether a flag was set, and rounds, bytes sent and bytes dealt of the last party."""
    architecture = checkpoint.architecture
    held = WeightShares(checkpoint, case.parties)
    prompt = additive_shares(token_indices(ids, architecture.vocabulary), case.parties)
    plan = GenerationPlan(case.prompt, case.new, policy=case.policy)

    def program(suite: Suite, party: int | None) -> Any:
        weights = suite.run(load_weights(suite, architecture, lambda name: held.share(suite, name, party)))
        suite.ledger.costs.clear()
        endpoint = KeptShares()
        decoder = Decoder(suite, architecture, weights, parse(case.policy))
        suite.run(generate(suite, decoder, plan, None if party is None else prompt[party], endpoint))
        total = suite.ledger.total()
        return endpoint.shares, [total.rounds, total.bytes_sent, total.offline_bytes]

    found = InProcessSuite(spec, case.parties).run(program)
    steps = [[shares[step] for shares, _ in found] for step in range(case.new)]
    tokens = [round(float(opened(step).item())) for step in steps]
    flags = [step[0].flags.clone() for step in steps if step[0].flags is not None]
    for n, step in enumerate([step for step in steps if step[0].flags is not None]):
        for share in step[1:]:
            assert share.flags is not None
            flags[n] ^= share.flags
    return tokens, any(bool(f.any()) for f in flags), found[-1][1]


def run(case: Case) -> str:
    """Return what a case comes to: "right", "refused: ..." or what is wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = checkpoints.save(case.model, folder, 1 + case.number % 5, case.number)
        try:
            if any(word in case.policy for word in ("locret", "gate", "cskv")):
                save_random(folder, case.policy)
            checkpoint = load_checkpoint(folder)
            plan = GenerationPlan(case.prompt, case.new, policy=case.policy)
            plan.check(checkpoint.architecture)
            ids = checkpoints.prompt(model, case.prompt, case.number)
            wanted = generate_plain(checkpoint, ids, plan)
        except MpcacheError as error:
            return f"refused: {error}"
        spec = SuiteSpec(case.suite, options=chosen(case.suite, measure(checkpoint, [ids + wanted[:-1]])) | case.options)
        setting = Setting(case.suite, case.parties, case.policy, spec.options)
        predicted = estimate(checkpoint.architecture, setting, case.prompt, case.new).total
        tokens, flagged, costs = on_shares(checkpoint, case, ids, spec)
    expected = [round(predicted.total(name)) for name in ("rounds", "bytes_sent", "offline_bytes")]
    if costs != expected:
        return f"WRONG costs: counted {costs}, predicted {expected}"
    if flagged:
        return "WRONG: flagged"
    if tokens != wanted:
        return f"DIFFERENT tokens: {tokens}, plaintext's {wanted}"
    return "right"


def main() -> int:
    """Run cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int)
    asked = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    count = {"right": 0, "WRONG": 0, "DIFFERENT": 0, "refused": 0}
    number = asked.only if asked.only is not None else 1000 * asked.seed
    while sum(count.values()) - count["refused"] < (1 if asked.only is not None else asked.cases):
        case = drawn(number)
        try:
            found = run(case)
        except Exception as error:
            found = f"WRONG: {type(error).__name__}: {error}"
        count[found.partition(":")[0].partition(" ")[0]] += 1
        if not found.startswith("refused") or asked.only is not None:
            print(f"{case}: {found}", flush=True)
        if asked.only is not None:
            break
        number += 1
    print(", ".join(f"{n} {kind}" for kind, n in count.items()))
    return 1 if count["WRONG"] else 0


if __name__ == "__main__":
    sys.exit(main())
