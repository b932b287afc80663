"""A session on shares in one process, whose first party keeps its cache in pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from launch.local.in_process import InProcessSuite
from launch.local.shares import KeptShares, WeightShares, additive_shares, opened
from models.checkpoint import Checkpoint
from models.decoder import Decoder
from models.generation import GenerationPlan, PlainModel, generate
from models.loaded import load_weights
from models.policies import parse
from parties.pages.cache_memory import CacheMemory, SessionPager
from parties.pages.page_store import PageStore
from parties.wire.manifest import new_id
from protocols.registry import SuiteSpec
from protocols.suite import OutputShare, Suite

PROMPT = [(7 * n * n + 3 * n) % 90 + 3 for n in range(40)]


class Paged:
    """One model's weights on shares, and a store for the first party. most: bytes that it may cache in memory."""

    def __init__(self, checkpoint: Checkpoint, folder: Path, spec: SuiteSpec, most: int, key: Path | None = None) -> None:
        self.checkpoint, self.spec = checkpoint, spec
        self.store = PageStore(folder, "party0", key)
        self.schedule: list[Any] = []
        self.memory = CacheMemory(self.store, most, 1 << 30, self.schedule.append)
        self.peak = 0
        self.shelved: set[str] = set()

    def wanted(self, plan: GenerationPlan) -> list[int]:
        """The tokens in plaintext."""
        return PlainModel(self.checkpoint, policy=parse(plan.policy)).generate(PROMPT[: plan.prompt_tokens], plan)

    def answer(self, plan: GenerationPlan, paged: bool) -> tuple[list[int], list[Any]]:
        """The tokens on shares, and each party's ledger."""
        shares = WeightShares(self.checkpoint, 2)
        given = additive_shares(torch.tensor(PROMPT[: plan.prompt_tokens]), 2)

        def program(suite: Suite, party: int | None) -> tuple[list[OutputShare], Any]:
            a = self.checkpoint.architecture
            weights = suite.run(load_weights(suite, a, lambda name: shares.share(suite, name, party)))
            pager = self.pager() if paged and party == 0 else None
            suite.pager = pager
            endpoint = KeptShares()
            decoder = Decoder(suite, a, weights, parse(plan.policy))
            suite.run(generate(suite, decoder, plan, None if party is None else given[party], endpoint))
            if pager is not None:
                self.shelved = {label for _, label in pager._shelves}
                pager.close()
            return endpoint.shares, {
                name: (c.rounds, c.bytes_sent, c.offline_bytes) for name, c in suite.ledger.by_stage().items()
            }

        found = InProcessSuite(self.spec).run(program)
        steps = [[shares[step] for shares, _ in found] for step in range(plan.new_tokens)]
        return [int(opened(step).round()) for step in steps], [ledger for _, ledger in found]

    def pager(self) -> SessionPager:
        """A pager that notes how much lies in memory."""
        pager = self.memory.pager(new_id())
        assert pager is not None
        enter = pager.enter

        def entering(layer: int) -> None:
            enter(layer)
            self.peak = max(self.peak, self.memory.used_bytes)

        pager.enter = entering  # type: ignore[method-assign]
        return pager
