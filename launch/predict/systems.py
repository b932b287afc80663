"""Which cache systems pay on shares: each priced on a network, for a model and a length, beside what it finds in plaintext.

A price is the program's own on tensors without content, as in `launch.predict.planning`: a prompt's work beyond the full
cache's, a token behind it, and what the session's cache takes at a party. What a system finds is measured, on a real model,
and committed (`found.json`, which `python -m tests.tools.found_needles` makes of the pages in docs/quality): of the lengths
there the nearest. Nothing here depends on data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

from launch.predict.eviction_costs import after_prompt, full_costs
from launch.predict.networks import Network
from launch.predict.planning import Lengths, trace_step
from models.architecture import Architecture
from models.costs.cached import held_bytes
from models.costs.tracing import STEP, Setting
from models.learned import with_learned
from models.policies import parse
from mpc.errors import MpcacheError
from mpc.ledger import Cost

SYSTEMS = (
    "full",
    "mpcache",
    "mpcache:preset=few-queries",
    "mpcache:preset=each-head",
    "mpcache:preset=clusters",
    "snapkv:budget=0.4",
    "cake:budget=0.4",
    "compresskv:budget=0.4",
    "lag:every=32|h2o:budget=0.4",
    "lag:every=32|tova:budget=0.4",
    "elastic:budget=0.4",
    "d2o:budget=0.4",
    "kvmerger:budget=0.4",
    "ems:budget=0.4",
    "lazyeviction:budget=0.4",
    "locret:budget=0.4",
    "attention-gate",
    "mikv",
    "cskv:rank=0.2|full",
    "think:keep=0.6|snapkv:budget=0.4",
    "streaming-llm:budget=0.4",
    "quest",
    "dynamic-top-k",
)
"""Those that are compared where nobody names others: every system once, those that drop tokens at one budget."""


@dataclass(frozen=True)
class Offer:
    """A system. token: one token behind the prompt; once: of the prompt beyond the full cache's; cache_bytes: of keys and
    values at a party behind the prompt; found: `(needles, of how many, tokens)`, None where nothing was measured; problem:
    why it cannot be used, else empty."""

    policy: str
    token: Cost = field(default_factory=Cost)
    once: Cost = field(default_factory=Cost)
    cache_bytes: int = 0
    found: tuple[int, int, int] | None = None
    problem: str = ""

    def seconds(self, network: Network) -> float:
        """Return the seconds of a token: delays and transfer."""
        return network.latency_seconds(self.token.rounds) + network.transfer_seconds(self.token.bytes_sent)

    def in_all(self, network: Network, new: int) -> float:
        """Return the seconds beyond the full cache's prompt: its own work there, and all new tokens after the first."""
        once = network.latency_seconds(self.once.rounds) + network.transfer_seconds(self.once.bytes_sent)
        return once + (new - 1) * self.seconds(network)


@cache
def _found() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(files("launch.predict").joinpath("found.json").read_text(encoding="utf-8"))
    return rows


def found(policy: str, prompt: int) -> tuple[int, int, int] | None:
    """Return what a policy was measured to find in a prompt of about that length; None where it was not."""
    rows = [row for row in _found() if row["policy"] == parse(policy).spec]
    if not rows:
        return None
    nearest = min(rows, key=lambda row: abs(row["length"] - prompt))
    return nearest["needles"], nearest["of"], nearest["length"]


def offers(
    architecture: Architecture,
    setting: Setting,
    lengths: Lengths,
    systems: Sequence[str] = SYSTEMS,
    on_progress: Callable[[str], None] = lambda policy: None,
) -> list[Offer]:
    """Price systems, in their order; what does not fit the model, the length or the suite says why.

    setting: its policy does not count. on_progress(policy): before each of them."""
    without = full_costs(architecture, setting, lengths.prompt)
    out = []
    for text in systems:
        on_progress(text)
        try:
            policy = parse(text)
            learned = with_learned(architecture, policy.weight_shapes(architecture))
            policy.check(learned, lengths.prompt)
            chosen = replace(setting, policy=text)
            ledger, held = trace_step(learned, chosen, lengths.prompt)
            once = after_prompt(learned, chosen, lengths.prompt, without)
            out.append(Offer(text, ledger.total(STEP), once, held_bytes(held), found(text, lengths.prompt)))
        except MpcacheError as error:
            out.append(Offer(text, problem=str(error)))
    return out


def as_good(offered: Sequence[Offer]) -> list[Offer]:
    """Return the systems beside the full cache that were measured to find as much as it does, but for one needle."""
    full = next((one.found for one in offered if one.policy == "full"), None)
    return [
        one
        for one in offered
        if one.policy != "full" and one.found and full and one.found[0] * full[1] >= (full[0] - 1) * one.found[1]
    ]
