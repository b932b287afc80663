"""A small program that needs every connection of a session, quick and with a known answer: for faults and counting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from models.architecture import Architecture
from models.generation import Endpoint, GenerationPlan
from parties.program import Program
from protocols.bounds import RANGE_KINDS
from protocols.suite import OutputShare, Suite

ELEMENTS = 300


def expected(prompt: list[int], new_tokens: int, vocabulary: int) -> list[int]:
    """What the toy generates: the sum of the prompt plus the step, which must stay inside the vocabulary."""
    tokens = [sum(prompt) + step for step in range(new_tokens)]
    assert tokens[-1] < vocabulary
    return tokens


class Flags:
    """Range flags of one output: a random word at each of `marks` (kind, place), zero elsewhere. `step` None: all clean."""

    def __init__(self, step: int | None, marks: Sequence[tuple[str, int]] = (), places: int = 2) -> None:
        self.step, self.marks, self.places = step, marks, places

    def share(self, party: int, parties: int, step: int) -> Tensor | None:
        """A party's XOR share of the words of an output, int64 [kinds, places]; None at the dealer."""
        if party < 0:
            return None
        random = torch.Generator().manual_seed(step)

        def words() -> Tensor:
            return torch.randint(-(2**63), 2**63 - 1, (len(RANGE_KINDS), self.places), generator=random)

        drawn, opened = [words() for _ in range(parties - 1)], torch.zeros(len(RANGE_KINDS), self.places, dtype=torch.int64)
        for kind, place in self.marks if step == self.step else ():
            opened[RANGE_KINDS.index(kind), place] = words()[0, 0]
        return reduce(lambda a, b: a ^ b, [*drawn, opened]) if party == parties - 1 else drawn[party]


class Toy:
    """Loads by opening masked shares of all weights; a token is `rounds` exchanges and a number that depends on the prompt.

    before_round(role, step, round): called at every role, so that tests can stop, kill or slow one.
    before_load(role): the same before each weight. flags: of the outputs, see `Flags`.
    """

    def __init__(self, rounds: int = 3, elements: int = ELEMENTS) -> None:
        self.rounds = rounds
        self.elements = elements
        self.before_round: Callable[[int, int, int], None] = lambda party, step, round: None
        self.before_load: Callable[[int], None] = lambda party: None
        self.flags: Flags | None = None
        self.after_share: Callable[[int, OutputShare], OutputShare] = lambda party, share: share
        self.loads = 0
        self._lock = threading.Lock()

    @property
    def program(self) -> Program:
        """For servers."""
        return Program(self._load, self._run)

    def _load(self, suite: Suite, architecture: Architecture, shares: Callable[[str], Tensor | None]) -> dict[str, Any]:
        session: Any = getattr(suite, "session", None) or suite.context  # type: ignore[attr-defined]
        with self._lock:
            self.loads += session.channel is None
        out: dict[str, Any] = {}
        for name, shape in architecture.weight_shapes().items():
            self.before_load(-1 if session.channel is None else session.channel.party)
            share = shares(name)
            mask = session.tape.random("weight", shape)
            if session.channel is not None:
                assert share is not None
                out[name] = sum(_open(session.channel, share - mask))
        return out

    def _run(
        self,
        suite: Suite,
        architecture: Architecture,
        weights: dict[str, Any],
        plan: GenerationPlan,
        prompt: Tensor | None,
        endpoint: Endpoint,
    ) -> int:
        session: Any = getattr(suite, "session", None) or suite.context  # type: ignore[attr-defined]
        channel, tape, vocabulary = session.channel, session.tape, architecture.vocabulary
        party = -1 if channel is None else channel.party
        total = None if prompt is None else prompt.sum()
        for step in range(plan.new_tokens):
            for round in range(self.rounds):
                self.before_round(party, step, round)
                shape = (self.elements,)
                zero = tape.dependent("toy", shape, lambda shape=shape: torch.zeros(shape, dtype=torch.int64))
                if channel is not None and int(torch.stack(_open(channel, zero)).sum(0).abs().sum()) != 0:
                    raise RuntimeError("the shares of zero do not add up")
            if plan.decoding == "logits":
                share = (
                    torch.zeros((1, vocabulary), dtype=torch.int64) if total is None else _logits(total, step, vocabulary)
                )
                output = OutputShare(share, 64, 0)
            else:
                share = torch.zeros(1, dtype=torch.int64) if total is None else (total + step * (party == 0)).reshape(1)
                output = OutputShare(share, 64, 0)
            if self.flags is not None:
                output = replace(output, flags=self.flags.share(party, suite.parties, step))
            more = endpoint.emit(step, self.after_share(party, output))
            endpoint.progress("tokens", step + 1, plan.new_tokens)
            if not more or step + 1 == plan.new_tokens:
                return step + 1
            if plan.draft is not None:
                return self._drafted(party, plan, total, endpoint)
            if plan.decoding == "logits":
                chosen = endpoint.next_tokens(step, 1)
                if chosen is not None:
                    total = chosen.sum()
        raise AssertionError("unreachable")

    def _drafted(self, party: int, plan: GenerationPlan, total: Tensor | None, endpoint: Endpoint) -> int:
        """The same tokens, several a step: each row's choice does not depend on the guesses before it."""
        assert plan.draft is not None
        produced, step = 1, 0
        while True:
            rows = plan.draft.rows(plan.new_tokens - produced)
            endpoint.next_tokens(step, rows)
            step += 1
            places = torch.arange(produced, produced + rows) * (party == 0)
            share = torch.zeros(rows, dtype=torch.int64) if total is None else total + places
            more = endpoint.emit(step, self.after_share(party, OutputShare(share, 64, 0)))
            produced += endpoint.kept(step, rows) if more and rows > 1 else 1
            endpoint.progress("tokens", produced, plan.new_tokens)
            if not more or produced == plan.new_tokens:
                return produced


def _logits(total: Tensor, step: int, vocabulary: int) -> Tensor:
    """Logits in which index i holds total * (i + 1): largest at the last index if the total is positive."""
    return (total * (torch.arange(vocabulary) + 1)).reshape(1, -1)


def _open(channel: Any, share: Tensor) -> list[Tensor]:
    data = share.numpy().tobytes()
    return [torch.frombuffer(bytearray(d), dtype=torch.int64).reshape(share.shape) for d in channel.exchange_all(data)]


def slow(seconds: float) -> Callable[[int, int, int], None]:
    """A `before_round` that sleeps."""
    return lambda party, step, round: time.sleep(seconds)
