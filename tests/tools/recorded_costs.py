"""Forty settings, each run in one process, and what it cost: rounds, bytes sent, bytes dealt, and the dealer's program.

`python -m tests.tools.recorded_costs` compares with `recorded_costs.json` beside it; `--write` replaces that file, for a
change that is meant to change costs. A change of structure alone must leave every number and every digest as it is. The
digest is of the tape's entries in order: operation, kind, ring, shape and size of each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from launch.local.in_process import run_in_process
from launch.local.shares import KeptShares
from models.architecture import Architecture
from models.config import Config
from models.decoder import Decoder
from models.families.registry import family_for
from models.generation import GenerationPlan, generate, token_indices
from models.loaded import load_weights
from models.policies import parse
from mpc.channel import MemoryChannel
from mpc.tape import DealerTape, PartyTape
from protocols.registry import SuiteSpec, secure_suite
from protocols.suite import Suite
from tests.models import random_checkpoints

RECORD = Path(__file__).with_suffix(".json")
LAYERS = 4
PROMPT = 56
MODELS = ("gpt2", "llama-grouped")
SMALL = "sinks=1,window=2,dynamic=0.4"
POLICIES = (
    "full",
    "mpcache:preset=clusters," + SMALL,
    "mpcache:preset=clusters,gathering=scores," + SMALL,
    "mpcache:preset=few-queries,fine=2," + SMALL,
    "h2o:budget=0.5",
    "snapkv:budget=0.5,window=8",
    "tova:budget=0.5",
    "quest:page=2,budget=0.5",
    "streaming-llm:budget=0.5",
    "dynamic-top-k:budget=0.5",
    "shared:layers=2|dynamic-top-k:budget=0.5",
    "chunked:tokens=4|full",
    "h2o:budget=0.5@0-0;full",
)
MASKED_OPTIONS: dict[str, Any] = {"residual": 16, "score": 8, "value": 9, "activation": 10}
Settings = dict[str, Any]


def settings() -> list[Settings]:
    """The forty settings: every suite, 2 and 3 parties, both families, every policy, decodings and options."""
    out: list[Settings] = []
    for place, policy in enumerate(POLICIES):
        out.append(_setting("masked", 2 + place % 2, MODELS[place % 2], policy))
        out.append(_setting("crypten", 2 + (place + 1) % 2, MODELS[(place + 1) % 2], policy))
    for suite in ("masked", "crypten"):
        for decoding in ("sample", "logits"):
            out.append(_setting(suite, 2, "gpt2", "full", decoding=decoding))
    out += [
        _setting("masked", 2, "llama-grouped", "full"),
        _setting("masked", 3, "gpt2", "full"),
        _setting("masked", 2, "gpt2", "full", options=MASKED_OPTIONS),
        _setting("masked", 3, "llama-grouped", "mpcache:preset=clusters," + SMALL, options=MASKED_OPTIONS),
        _setting("masked", 2, "gpt2", "full", fraction_bits=12),
        _setting("masked", 2, "mistral-window", "full"),
        _setting("masked", 2, "gpt2-relu-one-head", "full"),
        _setting("crypten", 3, "gpt2", "full"),
        _setting("crypten", 2, "gpt2", "full", options={"score": 9, "residual": 14}),
        _setting("masked", 3, "llama-rope-llama3", "mpcache:preset=paper," + SMALL),
    ]
    return out


def _setting(
    suite: str, parties: int, model: str, policy: str, decoding: str = "greedy", fraction_bits: int = 14, **more: Any
) -> Settings:
    bits = 16 if suite == "crypten" else fraction_bits
    found = {"suite": suite, "parties": parties, "model": model, "policy": policy, "decoding": decoding}
    return {**found, "fraction_bits": bits, "options": {}, **more}


class _DigestedTape(DealerTape):
    """The dealer's tape, and a digest of what it dealt: not of the values, which are random."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.digest = hashlib.sha256()

    def _header(self, text: str, size: int, everyone: bool = False) -> None:
        self.digest.update(f"{self.position} {text} {size} {everyone}\n".encode())
        super()._header(text, size, everyone)


def _architecture(name: str) -> Architecture:
    """A variant of the tests' random models, with four layers."""
    _, config, values = random_checkpoints.VARIANTS[name]
    layers = "n_layer" if "n_layer" in values else "num_hidden_layers"
    made = config(**values | {layers: LAYERS}, bos_token_id=1, eos_token_id=None)
    return family_for(Config(made.to_dict(), Path("config.json"))).describe()


def measured(setting: Settings) -> dict[str, Any]:
    """Run 56 + 3 tokens; what one setting cost. Shares are of zeros but for the prompt: costs depend on shapes alone."""
    architecture = _architecture(setting["model"])
    drawn = 0.7 if setting["decoding"] == "sample" else None
    plan = GenerationPlan(PROMPT, 3, setting["decoding"], setting["policy"], drawn)
    shapes = architecture.weight_shapes()
    prompt = token_indices([(7 * place) % 90 for place in range(PROMPT)], architecture.vocabulary)

    def program(suite: Suite, index: int | None) -> None:
        def share(name: str) -> torch.Tensor | None:
            return None if index is None else torch.zeros(shapes[name], dtype=torch.int64)

        with torch.inference_mode():
            weights = suite.run(load_weights(suite, architecture, share))
            mine = None if index is None else prompt if index == 0 else torch.zeros_like(prompt)
            decoder = Decoder(suite, architecture, weights, parse(setting["policy"]))
            suite.run(generate(suite, decoder, plan, mine, KeptShares(chosen=torch.zeros(1, dtype=torch.int64))))

    def made(tape: Any, channel: Any) -> Suite:
        spec = SuiteSpec(setting["suite"], setting["fraction_bits"], setting["options"])
        return secure_suite(spec, parties=setting["parties"], tape=tape, channel=channel)

    def party(channel: MemoryChannel, tape: PartyTape) -> list[int]:
        suite = made(tape, channel)
        program(suite, channel.party)
        total = suite.ledger.total()
        return [total.rounds, total.bytes_sent, total.offline_bytes]

    def dealer(tape: DealerTape) -> tuple[str, int]:
        program(made(tape, None), None)
        assert isinstance(tape, _DigestedTape)
        return tape.digest.hexdigest()[:16], tape.position

    costs, (digest, entries) = run_in_process(setting["parties"], party, dealer, _DigestedTape)
    return {
        "rounds": costs[0][0],
        "sent": [cost[1] for cost in costs],
        "dealt": costs[-1][2],
        "entries": entries,
        "tape": digest,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all costs are as recorded."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="replace the record")
    write = parser.parse_args(arguments).write
    found = []
    for setting in settings():
        found.append({**setting, **measured(setting)})
        print(json.dumps(found[-1]), flush=True)
    if write:
        RECORD.write_text("[\n" + ",\n".join(json.dumps(row) for row in found) + "\n]\n")
        return 0
    recorded = json.loads(RECORD.read_text())
    wrong = [(old, new) for old, new in zip(recorded, found, strict=True) if old != new]
    for old, new in wrong:
        print(f"recorded {json.dumps(old)}\n   found {json.dumps(new)}", file=sys.stderr)
    print(f"{len(found) - len(wrong)} of {len(found)} settings cost what is recorded", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
