"""One step of a model on tensors without content: costs by part of the model, operation and kind.

Suite and decoder are those of a session; the tape counts what a dealer would deal, and openings count what a party would
send. Multiply-adds are those of ring matrix products; element-wise work is not counted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from torch import Tensor

from models.architecture import Architecture
from models.architectures import AnyArchitecture
from models.cache import KVCache
from models.chunks import ChunkPlan
from models.costs.cached import CacheBytes, Watch, held_by_layer, held_bytes
from models.costs.memory import RANKING
from models.costs.products import KINDS, Products
from models.costs.program import NoInputs, StepPlan, encoding_step, fill, load, load_before, registering_step, step
from models.decoder import Decoder
from models.drafting import DraftPlan
from models.encoder import Encoder
from models.encoder_architecture import EncoderArchitecture
from models.loaded import LOAD
from models.outputs import Decoding, Output
from models.plans import AnyPlan, Leaving, Lengths, make_plan
from models.policies import parse
from models.prefix_rows import LOAD_ROWS
from models.prefixes import ROWS, PrefixPlan
from mpc.ledger import Ledger, current
from mpc.packing import word_bytes
from mpc.shape_tensor import LiveBytes, live_bytes
from mpc.tape import CountingTape
from protocols.options import OptionValue
from protocols.registry import SuiteSpec, secure_suite
from protocols.suite import Suite

STEP = "step"

Key = tuple[str, str, str]  # part of the model, operation, field


class Costs(dict[Key, float]):
    """Costs by part, operation and field; they add up and are multiplied like vectors."""

    def plus(self, other: Mapping[Key, float], factor: float = 1) -> Costs:
        """Return self + factor * other."""
        out = Costs(self)
        for key, value in other.items():
            out[key] = out.get(key, 0) + factor * value
        return out

    def total(self, name: str, part: str | None = None) -> float:
        """Sum of one field, over one part or all."""
        return sum(value for (where, _, what), value in self.items() if what == name and part in (None, where))

    def parts(self) -> list[str]:
        """Return the parts in order of appearance."""
        return list(dict.fromkeys(where for where, _, _ in self))


@dataclass(frozen=True)
class StageCosts:
    """One stage's costs for a party, in whole numbers.

    bytes_sent: sent to the other parties; offline_bytes: received from the dealer, by the party that gets corrections;
    multiply_adds: of ring matrix products.
    """

    rounds: int
    bytes_sent: int
    offline_bytes: int
    multiply_adds: int

    @classmethod
    def of(cls, costs: Costs, part: str | None = None) -> StageCosts:
        """Return the sums over one part of the model, or over all."""
        rounds, sent, dealt = (costs.total(name, part) for name in ("rounds", "bytes_sent", "offline_bytes"))
        products = sum(costs.total(kind, part) for kind in KINDS)
        return cls(round(rounds), round(sent), round(dealt), round(products))


class _Tape(CountingTape):
    """Counts, and remembers the most that the session's cache took in memory when an entry was asked for."""

    def __init__(self, check: Callable[[], None]) -> None:
        super().__init__()
        self._check = check
        self.cache: KVCache | None = None
        self.watch = Watch()
        self.work: dict[tuple[str, str, str], int] = {}

    def random(self, op: str, shape: Sequence[int], bits: int = 64, kind: str = "sum") -> Tensor:
        self._count({"entries": 1})
        return self._seen(super().random(op, shape, bits, kind))

    def dependent(
        self, op: str, shape: Sequence[int], value: Callable[[], Tensor] | None = None, bits: int = 64, kind: str = "sum"
    ) -> Tensor:
        self._count({"entries": 1, "corrected_bytes": math.prod(shape) * word_bytes(bits)})
        return self._seen(super().dependent(op, shape, value, bits, kind))

    def _count(self, work: Mapping[str, int]) -> None:
        where, op = current()
        for kind, count in work.items():
            key = where, op, kind
            self.work[key] = self.work.get(key, 0) + count

    def _seen(self, x: Tensor) -> Tensor:
        self._check()
        if self.cache is not None:
            self.watch.look(self.cache)
        return x


@dataclass(frozen=True)
class Setting:
    """What a trace depends on beside the model and the lengths.

    draft: of drafted steps, None for one token a step. behind: tokens of a registered prefix that prompts begin behind, 0
    without one; chunks: between it and them. texts: of an encoder's session of several texts the padded length of each,
    whose sum is then the prompt's. padded: as in `GenerationPlan`. check(): called at every tape entry, may raise to
    end the trace.
    prepare(suite): called with each suite that is made. seconds: processor time that an estimate may take, None for any.

    >>> Setting("masked", parties=3, policy="h2o:budget=0.2", options={"score": 8}).spec
    SuiteSpec(name='masked', fraction_bits=14, options={'score': 8})
    """

    suite: str
    parties: int = 2
    policy: str = "full"
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    decoding: Leaving = "greedy"
    temperature: float | None = None
    draft: DraftPlan | None = None
    behind: int = 0
    chunks: ChunkPlan | None = None
    texts: tuple[int, ...] = ()
    seconds: float | None = None
    padded: bool = False
    check: Callable[[], None] = field(default=lambda: None, compare=False, repr=False)
    prepare: Callable[[Suite], None] = field(default=lambda suite: None, compare=False, repr=False)

    def plan(self, prompt: int, new: int) -> AnyPlan:
        """Return the plan of a session with so many prompt and new tokens. Raises `ConfigurationError`."""
        lengths = Lengths(prompt, new, self.behind, self.chunks, self.texts, self.padded)
        return make_plan(lengths, self.decoding, self.policy, self.temperature, self.draft)

    def cached(self, architecture: Architecture, prompt: int) -> int:
        """Return the tokens that are cached when the first new one is chosen (`Architecture.cached`)."""
        return architecture.cached(prompt) + self.before

    @property
    def before(self) -> int:
        """Tokens of the prefix and of all chunks."""
        return self.behind + (0 if self.chunks is None else self.chunks.tokens)

    @property
    def spec(self) -> SuiteSpec:
        """Return the suite. Raises `ConfigurationError`, `RangeError`."""
        return SuiteSpec(self.suite, options=self.options)

    def make(self) -> tuple[Suite, _Tape]:
        """Return a suite that counts, and its tape."""
        tape = _Tape(self.check)
        suite = secure_suite(self.spec, parties=self.parties, tape=tape, channel=None)
        self.prepare(suite)
        return suite, tape

    def step(self, tokens: int = 1, drafted: bool = False) -> StepPlan:
        """Return a step of so many tokens. drafted: see `StepPlan`."""
        return StepPlan(tokens, cast(Decoding, self.decoding), self.temperature, drafted, self.padded)

    def steps(self, cached: int, new: int, kept: int = 1) -> Iterator[tuple[int, int]]:
        """Yield tokens before it and rows of each step after the first token of an answer of `new` tokens. cached: tokens
        that are when the first one is chosen (`Architecture.cached`). kept: rows of a drafted step that stay, where so many
        can; 1 is the most steps that there can be."""
        produced = 1
        while produced < new:
            rows = 1 if self.draft is None else self.draft.rows(new - produced)
            yield cached + produced - 1, rows
            produced += min(kept, rows)


@dataclass(frozen=True)
class Trace:
    """One step of a whole (perhaps reduced) model. working: bytes that it holds at most beyond what it leaves in the cache,
    by part of the model. cached: so far, of a session that is traced in order; None for a step alone, of which `held` are
    the bytes of each traced layer's rows behind it."""

    ledger: Ledger
    work: Mapping[tuple[str, str, str], int]
    working: Mapping[str, int]
    cached: CacheBytes | None = None
    held: tuple[int, ...] = ()

    def costs(self, repeats: Sequence[int]) -> Costs:
        """Return costs by part, layers together: repeats[n] is how many layers the n-th traced one stands for."""
        out = Costs()
        for (where, op), cost in self.ledger.costs.items():
            part, count = _part(where, repeats)
            values = {(part, op, name): getattr(cost, name) for name in ("rounds", "bytes_sent", "offline_bytes")}
            out = out.plus(values, count)
        for (where, op, kind), value in self.work.items():
            part, count = _part(where, repeats)
            out = out.plus({(part, op, kind): value}, count)
        return out

    def layer(self, index: int) -> Costs:
        """Return one layer's costs."""
        repeats = [int(n == index) for n in range(index + 1)]
        whole = self.costs(repeats)
        return Costs({key: value for key, value in whole.items() if key[0] in ("attention", "cross", "mlp")})


def _part(where: str, repeats: Sequence[int]) -> tuple[str, int]:
    """Return ("attention", repeats[3]) of "step/layer 3/attention"; ("head", 1) of "step/head"."""
    names = where.split("/")[1:]
    if len(names) == 2 and names[0].startswith("layer "):
        index = int(names[0].removeprefix("layer "))
        return names[1], repeats[index] if index < len(repeats) else 0
    return names[0] if names else "step", 1


def _live_bytes(memory: bool) -> AbstractContextManager[LiveBytes]:
    return live_bytes() if memory else nullcontext(LiveBytes())


def _working(live: LiveBytes, kept: int) -> dict[str, int]:
    """Return the most bytes that each part of the model holds, of which it leaves `kept` in the cache; a ranking of tokens
    is a part of its own, wherever it is asked for."""
    out: dict[str, int] = {}
    for (where, op), most in live.most.items():
        part = RANKING if op == RANKING else _part(where, ())[0]
        out[part] = max(out.get(part, 0), most - max(0, kept), 0)
    return out


def trace_step(
    architecture: AnyArchitecture,
    setting: Setting,
    cached: int,
    tokens: int = 1,
    *,
    agreed: bool = True,
    drafted: bool = False,
    read: int = 0,
    texts: int = 1,
    memory: bool = True,
) -> Trace:
    """Trace every layer of one step: `tokens` tokens after `cached` ones. Recorded as by `mpcache bench`, under "step".

    drafted: see `StepPlan`. read: see `fill`. agreed: what parties agree on once a session (seeds of zero-sharings) is not
    part of this step. texts: of an encoder's batch, of `tokens` tokens each. memory: see what the step holds (`working`),
    which takes as long again.
    """
    suite, tape = setting.make()
    asked = tokens
    weights = suite.run(load(suite, architecture, NoInputs()))
    products = Products(suite)
    if isinstance(architecture, EncoderArchitecture):
        encoder = Encoder(cast(Suite, products), architecture, weights)
        suite.ledger.costs.clear()
        tape.work.clear()
        with _live_bytes(memory) as live:
            suite.run(encoding_step(encoder, (texts, tokens), cast(Output, setting.decoding), None, STEP))
        return Trace(suite.ledger, {**products.counts, **tape.work}, _working(live, 0))
    behind = not cached and setting.before > 0
    if behind:
        weights |= suite.run(load_before(suite, architecture, setting.behind, setting.chunks, setting.policy))
        tokens += 0 if setting.chunks is None or setting.chunks.among else setting.chunks.repaired
    plan = PrefixPlan(tokens, setting.policy) if setting.decoding == ROWS else None
    decoder = Decoder(cast(Suite, products), architecture, weights, parse(setting.policy) if plan is None else plan.noting)
    begun = partial(decoder.begun, setting.behind, setting.chunks, asked)
    cache = begun() if behind else suite.run(fill(decoder, cached, NoInputs(), agreed, read, setting.padded))
    suite.ledger.costs.clear()
    products.counts.clear()
    tape.work.clear()
    before = held_bytes(cache)
    with _live_bytes(memory) as live:
        if plan is not None:
            suite.run(registering_step(decoder, plan, STEP))
        else:
            suite.run(step(decoder, cache, setting.step(tokens, drafted), None, STEP))
    working = _working(live, held_bytes(cache) - before)
    return Trace(suite.ledger, {**products.counts, **tape.work}, working, held=tuple(held_by_layer(cache)))


def trace_session(architecture: Architecture, setting: Setting, prompt: int, new: int, kept: int = 1) -> Iterator[Trace]:
    """Trace the prompt up to the first token, then each further step, one after the other: for policies, whose work on a
    token depends on the tokens before. Every layer, head and token is traced. kept: as in `Setting.steps`."""
    suite, tape = setting.make()
    weights = suite.run(load(suite, architecture, NoInputs()))
    products = Products(suite)
    if setting.before:
        weights |= suite.run(load_before(suite, architecture, setting.behind, setting.chunks, setting.policy))
    decoder = Decoder(cast(Suite, products), architecture, weights, parse(setting.policy))
    cache = tape.cache = decoder.begun(setting.behind, setting.chunks, prompt)
    drafted = setting.draft is not None
    for cached, tokens in ((0, prompt), *setting.steps(setting.cached(architecture, prompt), new, kept)):
        suite.ledger.costs.clear()
        products.counts.clear()
        tape.work.clear()
        before = held_bytes(cache)
        with live_bytes() as live:
            if cache.drafted:
                with suite.ledger.timed(STEP):
                    suite.run(decoder.keep(cache, cached - cache.seen))
            suite.run(step(decoder, cache, setting.step(tokens, drafted and cached > 0), None, STEP))
        took = held_bytes(cache)
        held = CacheBytes(max(tape.watch.most, took), took)
        working = _working(live, held.most - before)
        yield Trace(copy.deepcopy(suite.ledger), {**products.counts, **tape.work}, working, held)


def trace_load(architecture: AnyArchitecture, setting: Setting) -> tuple[Costs, list[tuple[int, int]]]:
    """Return the costs of loading all weights: once a model and its parties, not once a session; and the elements of each,
    with the bytes that one takes at a party, in the order in which they are loaded."""
    suite, tape = setting.make()
    weights = suite.run(load(suite, architecture, NoInputs()))
    return _loading(suite, tape, (LOAD, "weight")), [(x.shape.numel(), x.element_bytes) for x in weights.values()]


def trace_prefix_load(architecture: Architecture, setting: Setting) -> Costs:
    """Return the costs of loading the rows of prefix and chunks: once a prefix and its parties, not once a session."""
    suite, tape = setting.make()
    suite.run(load_before(suite, architecture, setting.behind, setting.chunks, setting.policy))
    return _loading(suite, tape, (LOAD_ROWS, "cache"))


def _loading(suite: Suite, tape: _Tape, key: tuple[str, str]) -> Costs:
    """Return what was counted of a stage of loading, as one operation."""
    cost = suite.ledger.total(key[0])
    found = Costs({(*key, name): getattr(cost, name) for name in ("rounds", "bytes_sent", "offline_bytes")})
    for (_, _, kind), count in tape.work.items():
        found = found.plus({(*key, kind): count})
    return found
