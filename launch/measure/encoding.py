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
from models.encoding import EncoderInput, EncodingPlan, encode
from models.loaded import load_weights
from protocols.range_findings import RangeFinding, findings_in, open_flags
from protocols.suite import OutputShare, Suite


@dataclass(frozen=True)
class OnShares:
    """One text's output, float64 [rows, columns], and what left its declared range. rounds, sent: of a party; dealt: bytes
    of the party that receives corrections."""

    values: Tensor
    findings: tuple[RangeFinding, ...]
    rounds: int
    sent: int
    dealt: int


def encode_on_shares(
    checkpoint: Checkpoint, texts: Sequence[tuple[EncoderInput, EncodingPlan]], pair: InProcessSuite
) -> list[OnShares]:
    """Return the outputs of texts, one after the other in one session each of the same loaded weights."""
    architecture = checkpoint.encoder
    weights = WeightShares(checkpoint, pair.parties)
    shares = [additive_shares(text.rows(architecture, plan), pair.parties) for text, plan in texts]

    def program(suite: Suite, party: int | None) -> list[tuple[OutputShare, int, int, int]]:
        loaded = suite.run(load_weights(suite, architecture, lambda name: weights.share(suite, name, party)))
        found = []
        for (_, plan), parts in zip(texts, shares, strict=True):
            suite.ledger.costs.clear()
            endpoint, own = KeptShares(), None if party is None else parts[party]
            with torch.inference_mode():
                suite.run(encode(suite, Encoder(suite, architecture, loaded), plan, own, endpoint))
            total = suite.ledger.total()
            found.append((endpoint.shares[0], total.rounds, total.bytes_sent, total.offline_bytes))
        return found

    parties = pair.run(program)
    bounds = pair.spec.settings.bounds
    results = []
    for number, (text, plan) in enumerate(texts):
        outputs = [found[number][0] for found in parties]
        flags = [output.flags for output in outputs if output.flags is not None]
        findings = findings_in(open_flags(flags), 0, bounds) if flags else ()
        (_, rounds, sent, _), dealt = parties[0][number], parties[-1][number][3]
        results.append(OnShares(text.result(opened(outputs), plan.output), findings, rounds, sent, dealt))
    return results
