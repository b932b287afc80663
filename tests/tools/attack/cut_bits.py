"""Client and one party ask the same question again and again: does what is cut of a logit show in what is opened?

A party knows the low bits of its share, and of what is opened masked. A truncation by chance rounds up where they are below
what is cut: opened logits then fall, on average, as these bits grow, and every session compares the cut bits with another
known number. So the figure is the correlation, over all logits and sessions, between those bits and how far an opened logit
lies above its own mean.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from protocols.masked.suite import MaskedSuite
from tests.parties.deployment import Deployment
from tests.tools.attack.contract import Verdict

PROMPT, VOCABULARY, SESSIONS = [3, 17], 4000, 8
KEPT_BITS = 14
LIMIT = 5.0  # standard deviations; a chance of one in a million


class CutBitsOfOutputs:
    """See the module."""

    name: ClassVar[str] = "cut-bits-of-outputs"
    who: ClassVar[str] = "a client that is granted logits, with one party"
    what: ClassVar[str] = "asks one question many times to learn what is cut of logits, bit by bit"

    def run(self, folder: Path) -> Verdict:
        """The same question in `SESSIONS` sessions, seen by the client and by party 0."""
        view = _View()
        with Deployment(folder) as deployment, patch.object(MaskedSuite, "released", view.watch(MaskedSuite.released)):
            model = deployment.share(_checkpoint(folder / "model"))
            for _ in range(SESSIONS):
                result = deployment.client().ask(PROMPT, 1, model=model, suite="masked", decoding="logits", stop_ids=())
                assert result.logits is not None
                view.logits.append(result.logits[0])
        scores = {
            what: _score(coins, view.logits) for what, coins in (("its share", view.own), ("what it opened", view.opened))
        }
        shown = ", ".join(f"{score:.1f} with the low bits of {what}" for what, score in scores.items())
        return Verdict(
            all(abs(score) < LIMIT for score in scores.values()),
            f"correlation of opened logits, in standard deviations: {shown}; below {LIMIT:g} is chance",
            f"{SESSIONS} sessions of {VOCABULARY} logits, party 0's view and the client's output.",
        )


class _View:
    """What party 0 and the client see. own, opened: the bits below `KEPT_BITS`, as a part of one, [V] a session."""

    def __init__(self) -> None:
        self.own: list[Tensor] = []
        self.opened: list[Tensor] = []
        self.logits: list[Tensor] = []

    def watch(self, released: Callable[..., Any]) -> Callable[..., Any]:
        """`released`, with party 0 looking on: its share, and the first opening of the logits."""

        async def watched(suite: MaskedSuite, x: Any) -> Any:
            if not suite.context.first:
                return await released(suite, x)
            excess = x.frac - KEPT_BITS
            self.own.append(_low(suite.convert.tensor(x).as_shared().x, excess))
            found: list[Tensor] = []
            suite.context.observer = lambda m, bits: found.append(_low(m, excess)) if m.numel() == VOCABULARY else None
            try:
                return await released(suite, x)
            finally:
                suite.context.observer = None
                self.opened.append(found[0])

        return watched


def _low(x: Tensor, bits: int) -> Tensor:
    return (x.reshape(-1) & ((1 << bits) - 1)).double() / 2.0**bits


def _score(coins: list[Tensor], logits: list[Tensor]) -> float:
    """Correlation of the coins [V] of all sessions with the logits' distances from their means, times sqrt(count)."""
    a, b = torch.stack(coins), torch.stack(logits)
    a, b = (a - a.mean(0)).reshape(-1), (b - b.mean(0)).reshape(-1)
    free = a.numel() * (1 - 1 / SESSIONS)
    return float((a * b).sum() / (a.norm() * b.norm()) * free**0.5)


def _checkpoint(folder: Path) -> Path:
    torch.manual_seed(1)
    sizes = {"vocab_size": VOCABULARY, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 1}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=1, initializer_range=0.4)).save_pretrained(folder)
    return folder
