"""Policies at equal memory: budgets by what a party's cache takes, recall and the right answer's perplexity at each.

What a cache takes is counted as on shares, by a run without content (`launch.predict.planning`): rows as their codecs hold
them, behind the prompt and one token. A policy gets the largest budget whose bytes are within a share of the full cache's;
one that evicts nothing, or whose text fixes its budget, is measured once, with what it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from launch.measure.quality.budgets import Contender, with_budget
from launch.measure.quality.metrics import perplexity
from launch.measure.quality.prefilled import Fed, PrefilledModel, Turn
from launch.measure.quality.prompts import Lists, Prompt, RecallTask
from launch.predict.planning import trace_step
from models.checkpoint import Checkpoint
from models.costs.cached import held_bytes
from models.costs.tracing import Setting
from models.policies import parse
from models.recall.questions import ANSWER_TOKENS_EACH
from models.shapes import with_positions
from mpc.errors import ConfigurationError

NEAR = 0.995
"""A budget that takes so much of what is allowed is the largest one."""
MEMORY = ("static", "budget")
"""The setting that a policy's memory depends on, of each policy the first of these that it has."""
Tell = Callable[[str], None]


@dataclass(frozen=True)
class MemorySettings:
    """What is asked for. policies: texts; shares: of the full cache's bytes; questions: prompts of each length and seed;
    turns: conversations in place of single answers."""

    policies: Sequence[str]
    shares: Sequence[float]
    lengths: Sequence[int]
    questions: int
    seeds: Sequence[int]
    suite: str = "masked"
    parties: int = 2
    device: str = "cpu"
    turns: bool = False


@dataclass(frozen=True)
class Held:
    """A policy at a length. share: of the full cache's bytes that it may take, None where it has no budget that they depend
    on; held: bytes that it takes; problem: why it cannot be measured, else empty."""

    one: Contender
    share: float | None
    held: int = 0
    problem: str = ""


@dataclass
class EqualMemory:
    """Measures what is asked for. tell: told what is going on."""

    checkpoint: Checkpoint
    task: RecallTask
    settings: MemorySettings
    tell: Tell = lambda what: None
    _bytes: dict[tuple[str, int], int] = field(default_factory=dict, init=False)

    @cached_property
    def model(self) -> PrefilledModel:
        """Return the model, which is loaded when the first prompt needs it."""
        return PrefilledModel(self.checkpoint, self.settings.device)

    def run(self) -> list[dict[str, Any]]:
        """Return a row a length, policy and share."""
        return [row for length in self.settings.lengths for row in self._of_length(length)]

    # ---- budgets ---------------------------------------------------------------------------------------------------
    def bytes_of(self, policy: str, length: int) -> int:
        """Return a party's bytes behind a prompt and a token. Raises `ConfigurationError` for what cannot be."""
        if (policy, length) not in self._bytes:
            architecture = self.checkpoint.architecture
            found = parse(policy)
            found.check(architecture, length + found.probes)
            setting = Setting(self.settings.suite, self.settings.parties, policy)
            _, cache = trace_step(with_positions(architecture, length + found.probes + 1), setting, length)
            self._bytes[policy, length] = held_bytes(cache)
        return self._bytes[policy, length]

    def held(self, text: str, length: int) -> list[Held]:
        """Return a policy at each share, or once."""
        self.tell(f"{length} tokens: budgets of {text}")
        try:
            whole = self.bytes_of(with_budget(text, 1.0, MEMORY), length)
            if whole == self.bytes_of(with_budget(text, 0.5, MEMORY), length):
                return [Held(Contender(text, text, None), None, self.bytes_of(text, length))]
        except ConfigurationError as error:
            return [Held(Contender(text, text, None), None, problem=str(error))]
        return [self._within(text, length, share) for share in self.settings.shares]

    def _within(self, text: str, length: int, share: float) -> Held:
        """Return the policy with the largest budget within a share: a search over numbers of tokens, by proportion."""
        most = int(share * self.bytes_of("full", length))
        low, taken = 0, 0
        high, too_much = length, self.bytes_of(with_budget(text, 1.0, MEMORY), length)
        best: Held | None = None
        while high - low > 1:
            tokens = low + (most - taken) * (high - low) // max(1, too_much - taken)
            tokens = min(max(tokens, low + 1), high - 1)
            policy = with_budget(text, tokens / length, MEMORY)
            try:
                takes = self.bytes_of(policy, length)
            except ConfigurationError:  # less than what always stays
                low = tokens
                continue
            if takes > most:
                high, too_much = tokens, takes
                continue
            low, taken = tokens, takes
            best = Held(Contender(text, policy, tokens / length), share, takes)
            if takes >= NEAR * most:
                break
        if best is not None:
            return best
        least = too_much / self.bytes_of("full", length)
        problem = (
            f"policy {text}: takes {least:.3g} of the full cache's bytes at least, at {length} tokens; {share:g} is less"
        )
        return Held(Contender(text, text, None), share, problem=problem)

    # ---- answers ---------------------------------------------------------------------------------------------------
    def _of_length(self, length: int) -> list[dict[str, Any]]:
        settings = self.settings
        every = [held for text in dict.fromkeys(["full", *settings.policies]) for held in self.held(text, length)]
        policies = list(dict.fromkeys(held.one.policy for held in every if not held.problem))
        found: dict[str, list[dict[str, float]]] = {policy: [] for policy in policies}
        for seed in settings.seeds:
            what = f"{length} tokens, seed {seed}"
            measured = self._conversations if settings.turns else self._answers
            for policy, one in zip(policies, measured(length, seed, policies, what), strict=True):
                found[policy].append(one | {"seed": seed})
        whole = self.bytes_of("full", length)
        return [
            {
                **vars(held.one),
                "length": length,
                "memory": held.share,
                "bytes": held.held or None,
                "share": held.held / whole if held.held else None,
                "problem": held.problem or None,
                "seeds": [] if held.problem else found[held.one.policy],
            }
            for held in every
        ]

    def _answers(self, length: int, seed: int, policies: Sequence[str], what: str) -> list[dict[str, float]]:
        """Return each policy's measures of single answers."""
        asked = self.task.prompts(length, self.settings.questions, seed)
        told = [self._prompt(prompt, policies, f"{what}, {n}") for n, prompt in enumerate(asked, 1)]
        return [_summary([one[n] for one in told], asked) for n in range(len(policies))]

    def _conversations(self, length: int, seed: int, policies: Sequence[str], what: str) -> list[dict[str, float]]:
        """Return each policy's measures of conversations: recall of what the prompt does not ask for, and of what is asked
        again at the end."""
        assert isinstance(self.task, Lists)
        later, again, asked = [0] * len(policies), [0] * len(policies), [0, 0]
        for n, prompts in enumerate(self.task.conversations(length, self.settings.questions, seed), 1):
            self.tell(f"{what}, {n}")
            most = [ANSWER_TOKENS_EACH * prompt.questions for prompt in prompts]
            given = [(), *(prompt.ids for prompt in prompts[1:])]
            turns = list(map(Turn, given, most))
            prefilled = self.model.prefill(prompts[0].ids)
            for place, answers in enumerate(self.model.conversations(prefilled, policies, turns)):
                right = [prompt.right(answer) for prompt, answer in zip(prompts, answers, strict=True)]
                later[place] += sum(right[1:-1])
                again[place] += right[-1]
            asked[0] += sum(prompt.questions for prompt in prompts[1:-1])
            asked[1] += prompts[-1].questions
        return [{"later": x / asked[0], "again": y / asked[1]} for x, y in zip(later, again, strict=True)]

    def _prompt(self, prompt: Prompt, policies: Sequence[str], what: str) -> list[tuple[int, list[Fed]]]:
        """Return of each policy the questions that it answers right, and what it says of the right answer."""
        self.tell(what)
        assert prompt.answer is not None
        prefilled = self.model.prefill(prompt.ids)
        given = self.model.answers(prefilled, policies, len(prompt.answer) + 1)
        return list(zip(map(prompt.right, given), self.model.fed(prefilled, policies, prompt.answer), strict=True))


def _summary(told: Sequence[tuple[int, list[Fed]]], asked: Sequence[Prompt]) -> dict[str, float]:
    """Return recall of what is generated, recall where the right answer is given token by token, and its perplexity."""
    questions = sum(prompt.questions for prompt in asked)
    fed = [
        all(tokens[place].likeliest for place in places)
        for (_, tokens), prompt in zip(told, asked, strict=True)
        for places in prompt.places
    ]
    losses = [token.loss for _, tokens in told for token in tokens]
    return {
        "recall": sum(right for right, _ in told) / questions,
        "fed": sum(fed) / questions,
        "perplexity": perplexity(losses),
    }
