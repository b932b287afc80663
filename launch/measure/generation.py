"""Generation on shares with all roles in this process, and what only one process can put together: logits and decisions.

INSECURE FOR REAL DATA BY NATURE, as `launch.local.in_process`: one process makes and holds all shares.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor

from launch.local.in_process import InProcessSuite
from launch.local.shares import KeptShares, WeightShares, additive_shares, opened
from launch.measure.selection_trace import noting_shares
from models.checkpoint import Checkpoint
from models.decoder import Decoder
from models.generation import GenerationPlan, generate, prompt_indices
from models.loaded import load_weights
from models.policies import parse
from parties.errors import RangeExceeded
from protocols.range_findings import RangeFinding, findings_in, open_flags
from protocols.suite import OutputShare, Suite, Value

Secret = Literal["logits", "decisions"]


@dataclass(frozen=True)
class GeneratedOnShares:
    """Tokens chosen by the secure arg-max. findings: what left its range on the way to the token that would have followed,
    which is not among `tokens` for that reason. logits: float64 [tokens, V]; decisions: what the policy kept in every
    decision, see `launch.measure.selection_trace`. Both only where they were asked for. dropped_choices: as in
    `GenerationResult`."""

    tokens: list[int]
    findings: tuple[RangeFinding, ...] = ()
    logits: Tensor | None = None
    decisions: list[Tensor] = field(default_factory=list)
    dropped_choices: int | None = None

    def checked(self) -> list[int]:
        """Return the tokens. Raises `RangeExceeded` when something left its range."""
        if self.findings:
            raise RangeExceeded(self.findings)
        return self.tokens


def generate_on_shares(
    checkpoint: Checkpoint,
    ids: Sequence[int],
    plan: GenerationPlan,
    roles: InProcessSuite,
    secrets: Collection[Secret] = (),
) -> GeneratedOnShares:
    """Generate greedily after the prompt `ids`. secrets: what is opened beside the tokens."""
    architecture = checkpoint.architecture
    weights = WeightShares(checkpoint, roles.parties)
    prompts = additive_shares(prompt_indices(ids, plan, architecture.vocabulary), roles.parties)

    def program(suite: Suite, party: int | None) -> tuple[KeptShares, list[OutputShare], list[OutputShare]]:
        loaded = suite.run(load_weights(suite, architecture, lambda name: weights.share(suite, name, party)))
        kept, logits, decisions = KeptShares(), list[OutputShare](), list[OutputShare]()

        def probe(name: str, value: Value) -> None:
            if name == "logits" and "logits" in secrets:
                logits.append(suite.output(value))

        noting = cast(Suite, noting_shares(suite, decisions)) if "decisions" in secrets else suite
        decoder = Decoder(noting, architecture, loaded, parse(plan.policy), probe)
        with torch.inference_mode():
            suite.run(generate(noting, decoder, plan, None if party is None else prompts[party], kept))
        return kept, logits, decisions

    outputs = roles.run(program)
    kept, logits, decisions = zip(*outputs, strict=True)
    tokens: list[int] = []
    found: tuple[RangeFinding, ...] = ()
    for step, shares in enumerate(zip(*(own.shares for own in kept), strict=True)):
        if found := _findings(shares, step, roles):
            break
        tokens.append(round(float(opened(shares).item())))
    rows = [opened(shares) for shares in zip(*logits, strict=True)]
    decided = [opened(shares) for shares in zip(*decisions, strict=True)]
    counts = [own.shares[0].dropped for own in kept]
    dropped = round(float(opened([c for c in counts if c is not None]).item())) if counts[0] is not None else None
    return GeneratedOnShares(tokens, found, torch.cat(rows) if rows else None, decided, dropped)


def _findings(shares: Sequence[OutputShare], step: int, roles: InProcessSuite) -> tuple[RangeFinding, ...]:
    """Return what the parties' shares of an output's range flags say; nothing where the suite has none."""
    flags = [share.flags for share in shares if share.flags is not None]
    return findings_in(open_flags(flags), step, roles.spec.settings.bounds) if flags else ()
