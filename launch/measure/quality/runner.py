"""Runs of one model in plaintext: answers, losses of a given text, and what a policy attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from launch.measure.quality.probe import AttentionProbe, ProbedCache, ProbingSuite
from launch.measure.selection_trace import Decision, noting
from models.cache import KVCache
from models.checkpoint import Checkpoint
from models.decoder import Decoder
from models.episodes import probes, with_probes
from models.generation import GenerationPlan, PlainModel, token_indices
from models.policies import parse
from models.prefill import prefill
from protocols.suite import Suite, Value


@dataclass(frozen=True)
class Kept:
    """Means over the steps of one prompt. mass: attention kept, by layer; attended, kept: tokens."""

    mass: tuple[float, ...]
    attended: float
    kept: float


class Runner:
    """A checkpoint in the suite `plain`, float32, on `device`."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        self.checkpoint = checkpoint
        self.architecture = checkpoint.architecture
        self.model = PlainModel(checkpoint, torch.float32, device)

    def answer(self, ids: Sequence[int], policy: str, new_tokens: int, decided: list[Decision] | None = None) -> list[int]:
        """Return greedily generated tokens, up to and with the first end-of-text token. decided: a list that gets what
        the policy decides."""
        ids = with_probes(ids, parse(policy).probes)
        plan = GenerationPlan(len(ids), new_tokens, "greedy", policy)
        suite = None if decided is None else cast(Suite, noting(self.model.suite, decided))
        return self.model.generate(ids, plan, suite=suite)

    def losses(self, ids: Sequence[int], prompt_tokens: int, policy: str) -> list[float]:
        """Return -ln p of each token behind the prompt, given all before it; decoded one by one with the policy."""
        decoder = self.model.decoder(None, parse(policy))
        asking = probes(ids[:prompt_tokens], decoder.policy.probes)
        rows = self._forced(decoder, decoder.new_cache(), [*asking, *ids[:-1]], len(asking) + prompt_tokens)
        targets = torch.tensor(list(ids[prompt_tokens:]), device=rows.device)
        return [float(x) for x in torch.nn.functional.cross_entropy(rows.double(), targets, reduction="none")]

    def probe(self, ids: Sequence[int], answer: Sequence[int], policy: str) -> Kept | None:
        """Return what the policy attends to while the full cache decodes `answer`; None when nothing is decoded (one
        token), and for a policy that evicts within the prompt, whose later tokens are not the full cache's."""
        if len(answer) < 2 or parse(policy).evicts_within_prompt:
            return None
        probe = AttentionProbe(parse(policy))
        suite = ProbingSuite(self.model.suite.dtype, self.model.suite.device)
        decoder = Decoder(suite, self.architecture, self.model.weights, probe)
        self._forced(decoder, ProbedCache(self.architecture, probe), [*ids, *answer[:-1]], len(ids))
        mass = tuple(sum(probe.mass[n]) / len(probe.mass[n]) for n in range(self.architecture.layers))
        return Kept(mass, sum(probe.attended) / len(probe.attended), sum(probe.kept) / len(probe.kept))

    @torch.inference_mode()
    def _forced(self, decoder: Decoder, cache: KVCache, ids: Sequence[int], prompt_tokens: int) -> Tensor:
        """Return the logits [n, V] after the prompt and after each further token that is given."""
        suite, vocabulary = decoder.suite, self.architecture.vocabulary
        indices = suite.indices(len(ids), token_indices(ids, vocabulary), vocabulary)
        logits: list[Value] = [suite.run(prefill(decoder, cache, indices[:prompt_tokens]))]
        for n in range(prompt_tokens, len(ids)):
            logits.append(suite.run(decoder.forward(indices[n : n + 1], cache, True)))
        return torch.cat([suite.output(row).share for row in logits])
