"""A load test: many sessions of one client, arriving as asked for, and what they saw.

Every session has a public random prompt of the same length and generates the same number of tokens; stop tokens end none.
Seconds are the client's, from a session's arrival: its turn is waited for in them. Costs are those that parties tell.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from mpc.errors import ConfigurationError, MpcacheError
from mpc.random import Prg, derive_seed
from parties.client.client import Client, GenerationResult
from parties.client.model_reference import ModelReference
from parties.client.request import GenerationRequest
from parties.client.sampling_params import SamplingParams
from protocols.registry import SuiteSpec

TOGETHER, IN_TURN = "together", "turn"
PERCENTILES = (50, 90, 99)
UNIFORM_BITS = 32


@dataclass(frozen=True)
class Load:
    """What is asked. sessions: how many; arrivals: "together", "turn" (each after the end of the one before),
    "every:SECONDS", or "poisson:PER_SECOND". prompt, new_tokens: of each session. Raises `ConfigurationError` naming the
    value."""

    sessions: int
    arrivals: str = TOGETHER
    prompt: int = 32
    new_tokens: int = 8
    seed: int = 1

    def __post_init__(self) -> None:
        for name, least in (("sessions", 1), ("prompt", 1), ("new_tokens", 2)):
            if getattr(self, name) < least:
                raise ConfigurationError(f"{name} must be at least {least}, got {getattr(self, name)}")
        self.times()

    def times(self) -> list[float]:
        """Return when each session arrives, in seconds from the beginning; all at 0 for "turn", which waits.

        >>> Load(3, "every:0.5").times()
        [0.0, 0.5, 1.0]
        """
        kind, _, number = self.arrivals.partition(":")
        if self.arrivals in (TOGETHER, IN_TURN):
            return [0.0] * self.sessions
        value = _positive(number)
        if kind not in ("every", "poisson") or value is None:
            raise ConfigurationError(
                f"--arrivals '{self.arrivals}' is not known: together, turn, every:SECONDS, or poisson:PER_SECOND"
            )
        if kind == "every":
            return [value * n for n in range(self.sessions)]
        drawn = Prg(derive_seed(bytes(32), "arrivals", self.seed)).ring((self.sessions,), UNIFORM_BITS)
        gaps = [-math.log((int(u) + 0.5) / (1 << UNIFORM_BITS)) / value for u in drawn]
        return [sum(gaps[:n]) for n in range(self.sessions)]

    def prompt_ids(self, session: int, vocabulary: int) -> list[int]:
        """Return a session's prompt, public: nothing that a load test computes on is secret."""
        seed = derive_seed(bytes(32), "load prompt", self.seed, session)
        return [int(token) % vocabulary for token in Prg(seed).ring((self.prompt,), UNIFORM_BITS)]


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


@dataclass(frozen=True)
class Seen:
    """One session. began, seconds to each token: from the beginning of the test, and from `began`; rounds, shared_rounds,
    bytes_sent: of one party, the first; error: its code instead of all that, and its text."""

    began: float
    token_seconds: list[float] = field(default_factory=list)
    rounds: int = 0
    shared_rounds: int = 0
    bytes_sent: int = 0
    error: str | None = None
    message: str | None = None


@dataclass(frozen=True)
class LoadResult:
    """What a load test gave. seconds: from the first arrival to the last token."""

    load: Load
    sessions: list[Seen]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return all figures. tokens_per_second: of all sessions over the whole test; decoding_tokens_per_second: from when
        each had its first token, added up while so many decode; seconds_per_token: between tokens."""
        done = [s for s in self.sessions if s.error is None]
        between = [b - a for s in done for a, b in pairwise(s.token_seconds)]
        rounds = sum(s.rounds for s in done)
        failed = [s.error for s in self.sessions if s.error is not None]
        return {
            "load": asdict(self.load),
            "seconds": self.seconds,
            "completed": len(done),
            "failed": {code: failed.count(code) for code in sorted(set(failed))},
            "tokens": sum(len(s.token_seconds) for s in done),
            "tokens_per_second": sum(len(s.token_seconds) for s in done) / self.seconds,
            "decoding_tokens_per_second": self._decoding(done),
            "first_token_seconds": percentiles([s.token_seconds[0] for s in done]),
            "seconds_per_token": percentiles(between),
            "rounds": rounds,
            "shared_rounds": sum(s.shared_rounds for s in done),
            "share_of_rounds_shared": sum(s.shared_rounds for s in done) / rounds if rounds else 0.0,
            "bytes_sent": sum(s.bytes_sent for s in done),
            "sessions": [asdict(s) for s in self.sessions],
        }

    def _decoding(self, done: Sequence[Seen]) -> float:
        """Return further tokens a second over the time in which any session decodes; sessions that decode at the same time
        share it."""
        spans = sorted((s.began + s.token_seconds[0], s.began + s.token_seconds[-1]) for s in done)
        covered, end = 0.0, -math.inf
        for start, stop in spans:
            covered += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return sum(len(s.token_seconds) - 1 for s in done) / covered if covered else 0.0


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """Return the percentiles of `PERCENTILES`: of n sorted values the one at place ceil(p n / 100); None without values.

    >>> percentiles([3.0, 1.0, 2.0])
    {'p50': 2.0, 'p90': 3.0, 'p99': 3.0}
    """
    ordered = sorted(values)
    return {f"p{p}": ordered[max(0, math.ceil(p * len(ordered) / 100) - 1)] for p in PERCENTILES} if ordered else None


@dataclass(frozen=True)
class Asked:
    """What all sessions have in common. progress(done): hears how many sessions are over."""

    client: Client
    model: ModelReference
    spec: SuiteSpec
    policy: str = "full"
    progress: Callable[[int], None] = lambda done: None


def run_load(load: Load, asked: Asked) -> LoadResult:
    """Run a load test. A session that fails is a result, not an error."""
    began = time.perf_counter()
    found: dict[int, Seen] = {}

    def session(number: int) -> None:
        found[number] = _session(load, asked, number, began)
        asked.progress(len(found))

    threads = []
    for number, at in enumerate(load.times()):
        time.sleep(max(0.0, began + at - time.perf_counter()))
        thread = threading.Thread(target=session, args=(number,), name=f"load {number}", daemon=True)
        threads.append(thread)
        thread.start()
        if load.arrivals == IN_TURN:
            thread.join()
    for thread in threads:
        thread.join()
    return LoadResult(load, [found[number] for number in range(load.sessions)], time.perf_counter() - began)


def _session(load: Load, asked: Asked, number: int, beginning: float) -> Seen:
    params = SamplingParams(load.new_tokens, ignore_eos=True)
    prompt = load.prompt_ids(number, asked.model.description.vocabulary)
    request = GenerationRequest(prompt, params, asked.spec, asked.policy, asked.model)
    began = time.perf_counter() - beginning
    try:
        result: GenerationResult = asked.client.generate(request)
        result.check_range()
    except MpcacheError as error:
        return Seen(began, error=error.code, message=str(error))
    costs = result.costs[asked.model.parties[0]]
    total = costs["total"]
    return Seen(began, result.token_seconds, total["rounds"], costs.get("shared_rounds", 0), total["bytes_sent"])
