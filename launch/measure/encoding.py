"""Encoders on shares with all roles in this process, to be compared with plaintext.

INSECURE FOR REAL DATA BY NATURE, as `launch.local.in_process`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from launch.local.in_process import InProcessSuite
from launch.local.shares import KeptShares, WeightShares, additive_shares, opened
from models.checkpoint import Checkpoint
from models.encoder import Encoder
from models.encoding import EncoderInput, EncodingPlan, encode, results, shared_rows
from models.loaded import load_weights
from protocols.range_findings import RangeFinding, findings_in, open_flags
from protocols.suite import OutputShare, Suite


@dataclass(frozen=True)
class OnShares:
    """The outputs of a session's texts, float64 [rows, columns] each, and what left its declared range. rounds, sent: of a
    party; dealt: bytes of the party that receives corrections."""

    each: list[Tensor]
    findings: tuple[RangeFinding, ...]
    rounds: int
    sent: int
    dealt: int

    @property
    def values(self) -> Tensor:
        """Return the output of the only text."""
        (found,) = self.each
        return found


def encode_on_shares(
    checkpoint: Checkpoint, sessions: Sequence[tuple[Sequence[EncoderInput], EncodingPlan]], pair: InProcessSuite
) -> list[OnShares]:
    """Return the outputs of each session's texts, one after the other with the same loaded weights."""
    architecture = checkpoint.encoder
    weights = WeightShares(checkpoint, pair.parties)
    shares = [additive_shares(shared_rows(architecture, plan, texts), pair.parties) for texts, plan in sessions]

    def program(suite: Suite, party: int | None) -> list[tuple[list[OutputShare], int, int, int]]:
        loaded = suite.run(load_weights(suite, architecture, lambda name: weights.share(suite, name, party)))
        found = []
        for (_, plan), parts in zip(sessions, shares, strict=True):
            suite.ledger.costs.clear()
            endpoint, own = KeptShares(), None if party is None else parts[party]
            with torch.inference_mode():
                suite.run(encode(suite, Encoder(suite, architecture, loaded), plan, own, endpoint))
            total = suite.ledger.total()
            found.append((endpoint.shares, total.rounds, total.bytes_sent, total.offline_bytes))
        return found

    parties = pair.run(program)
    bounds = pair.spec.settings.bounds
    measured = []
    for number, (texts, plan) in enumerate(sessions):
        batches: list[list[OutputShare]] = [list(one) for one in zip(*(found[number][0] for found in parties), strict=True)]
        findings: list[RangeFinding] = []
        for outputs in batches:
            flags = [output.flags for output in outputs if output.flags is not None]
            findings += findings_in(open_flags(flags), 0, bounds) if flags else ()
        (_, rounds, sent, _), dealt = parties[0][number], parties[-1][number][3]
        each = results([opened(outputs) for outputs in batches], plan, texts)
        measured.append(OnShares(each, tuple(findings), rounds, sent, dealt))
    return measured
