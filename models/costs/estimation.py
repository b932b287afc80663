"""What a generation costs, without running it: the very program on tensors without content.

Suite and decoder are those of a session; the tape counts what it would deal, and openings count what they would send. So
rounds, bytes and ring products are what a party counts on the wire, for any model and length. Work is saved in two ways:

* layers that are alike are traced once and multiplied: the first one, one of each sliding window, and the last one. Exact;
* of many new tokens some lengths are traced. Among lengths that differ by multiples of 8 (so that packing to bytes rounds
  alike) costs are linear between two of them when the one in the middle says so to the byte.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch

from models.architecture import Architecture
from models.architectures import AnyArchitecture, decoder_of
from models.costs.cached import CacheBytes, cache_bytes
from models.costs.expert_ways import with_way
from models.costs.memory import Held, Memory, memory_of, most_of
from models.costs.program import CHOICE
from models.costs.tracing import Costs, Setting, trace_load, trace_prefix_load, trace_session, trace_step
from models.encoding import EncodingPlan
from models.learned import with_learned
from models.policies import parse
from models.prefixes import ROWS
from mpc.errors import ConfigurationError
from mpc.ledger import NO_OPERATION
from protocols.bounds import Bounds
from protocols.registry import suite_class

T = TypeVar("T")
LONGEST_PROMPT = 1 << 28  # query-key pairs of all heads and a batch that a policy is traced with
EACH = 40  # decoded tokens up to which each is traced
STRIDE = 8  # messages are packed to whole bytes
FILE_BYTES = 4  # an element of a checkpoint's files, at most


def file_bytes(architecture: AnyArchitecture) -> int:
    """Return what a checkpoint's files take at most, in single precision."""
    return FILE_BYTES * architecture.parameters()


def layer_elements(architecture: AnyArchitecture) -> int:
    """Return the weights of the largest layer."""
    sizes = Counter[str]()
    for name, shape in architecture.weight_shapes().items():
        if name.startswith("layers."):
            sizes[name.split(".")[1]] += math.prod(shape)
    return max(sizes.values(), default=0)


def alike(architecture: AnyArchitecture, setting: Setting) -> tuple[AnyArchitecture, Setting, list[int]]:
    """Return the model reduced to layers that differ, the setting for it, and how many layers each one stands for.

    The first and the last layer stand for themselves, or the groups that a policy puts them in (`CachePolicy.pattern`); of
    the groups between, one stands for all whose layers are of one kind (windows, positions) and have the same bounds,
    their own and those of the layers before and after each: rings of the residual stream follow from them. Where bounds
    differ, what lies beside such a group is there as well and stands for none.
    """
    count = architecture.layers
    first, period = parse(setting.policy).pattern()
    bounds = setting.spec.settings.bounds

    def bounds_at(n: int) -> tuple[int, ...]:
        return tuple(b.at(place) for b in bounds.values() for place in (n - 1, n, n + 1) if place >= 0)

    first = min(first or period, count)
    groups = [range(n, min(n + period, count)) for n in range(first, count, period)]
    between: dict[object, list[int]] = {}
    for number, group in enumerate(groups[:-1]):
        between.setdefault(tuple((architecture.kind(n), bounds_at(n)) for n in group), []).append(number)
    stands = {same[0]: len(same) for same in between.values()} | ({len(groups) - 1: 1} if groups else {})
    if any(len(set(found.values)) > 1 for found in bounds.values()):
        beside = {number + step for number in (-1, *stands) for step in (-1, 1)}
        stands |= {number: 0 for number in beside if 0 <= number < len(groups) and number not in stands}
    kept, repeats = list(range(first)), [1] * first
    for number in sorted(stands):
        kept += groups[number]
        repeats += [stands[number]] * len(groups[number])
    options = dict(setting.options)
    for kind, found in bounds.items():
        if len(set(found.values)) > 1:
            options[kind] = Bounds(tuple(found.at(n) for n in (*kept, count))).option
    return architecture.reduced(kept), replace(setting, options=options), repeats


def middle_layer(architecture: AnyArchitecture, repeats: list[int]) -> int:
    """Return the layer nearest to the middle that stands for any, of what `alike` returns; behind an encoder one of the
    decoder's."""
    first = architecture.encoder_layers if isinstance(architecture, Architecture) else 0
    middle = (first + len(repeats)) // 2
    return min((n for n, count in enumerate(repeats) if count and n >= first), key=lambda n: abs(n - middle))


class Budget:
    """Processor seconds that traces may take. Raises `ConfigurationError` as soon as they are seen to take more."""

    def __init__(self, seconds: float = math.inf) -> None:
        self._begun, self._limit = time.process_time(), seconds

    def check(self) -> None:
        """Look at the time in the middle of a trace."""
        if time.process_time() - self._begun > self._limit:
            raise ConfigurationError(
                f"--prompt and --new: tracing takes more than {self._limit:g} s; ask for a shorter prompt or fewer tokens"
            )

    def spread(self, steps: Iterable[T], count: int) -> Iterator[T]:
        """Yield the steps of a session, prompt first, of which there are `count`; those after it are taken to take alike."""
        after = 0.0
        for number, step in enumerate(steps):
            yield step
            spent = time.process_time() - self._begun
            after = spent if number == 0 else after
            each = (spent - after) / max(1, number)
            if number and (left := count - 1 - number) and spent + each * left > self._limit:
                most = 1 + max(1, int((self._limit - after) / each))
                raise ConfigurationError(
                    f"--new: tracing {count} steps, each of which counts by itself here, takes some "
                    f"{spent + each * left:,.0f} s; ask for at most {most} tokens: a further one costs about as much as "
                    "the last of them"
                )


@dataclass(frozen=True)
class Step:
    """One step's costs. layer: of the layer in the middle; working, cached: as in `Trace`; kept: bytes of all layers' rows
    behind it, where it was traced alone."""

    costs: Costs
    layer: Costs
    working: Mapping[str, int]
    cached: CacheBytes | None = None
    kept: int | None = None


class Tracer:
    """Traces steps of one model, each length once. all_layers: trace every layer and head, to compare with. read: tokens of
    the prompt that an encoder reads, 0 without one; cached tokens are then those of the answer. memory: trace what a step
    holds as well."""

    def __init__(
        self, architecture: AnyArchitecture, setting: Setting, all_layers: bool = False, read: int = 0, memory: bool = True
    ) -> None:
        self.architecture = architecture
        self.setting = setting
        self.budget = Budget()
        if setting.seconds is not None:
            self.budget = Budget(setting.seconds)
            self.setting = replace(setting, check=self.budget.check)
        self.all_layers = all_layers
        self.read = read
        self.memory = memory
        self.lengths: dict[tuple[int, int, bool], Step] = {}

    def step(self, cached: int, tokens: int = 1, drafted: bool = False) -> Step:
        """Return the costs of `tokens` tokens after `cached` ones. drafted: see `StepPlan`."""
        key = cached, tokens, drafted
        if key not in self.lengths:
            self.lengths[key] = self._whole(*key)
        return self.lengths[key]

    def follow(self, prompt: int, new: int, kept: int = 1) -> None:
        """Trace a whole session in order, for a policy. Raises `ConfigurationError` for a prompt that takes too long. kept:
        as in `Setting.steps`."""
        a = decoder_of(self.architecture, f"policy '{self.setting.policy}'")
        if max(parse(self.setting.policy).prompt_batches(prompt)) * prompt * a.heads > LONGEST_PROMPT:
            most = math.isqrt(LONGEST_PROMPT // a.heads)
            raise ConfigurationError(
                f"--prompt {prompt}: with a policy other than full, prompts of up to {most} tokens in one batch can be "
                "estimated for this model; `mpcache plan` predicts the tokens after longer ones"
            )
        every = [1] * a.layers
        drafted = self.setting.draft is not None
        steps = self.setting.steps(self.setting.cached(a, prompt), new, kept)
        keys = [(0, prompt, False), *((*step, drafted) for step in steps)]
        traced = self.budget.spread(trace_session(a, self.setting, prompt, new, kept), len(keys))
        for key, found in zip(keys, traced, strict=True):
            self.lengths[key] = Step(found.costs(every), found.layer(a.layers // 2), found.working, found.cached)

    def _whole(self, cached: int, tokens: int, drafted: bool = False) -> Step:
        """Trace a step; an encoder's session batch by batch, each size once."""
        sizes = Counter(EncodingPlan(self.setting.texts, "mean").batches if self.setting.texts else ((1, tokens),))
        found = [(self._batch(cached, length, drafted, count), times) for (count, length), times in sizes.items()]
        costs, layer = Costs(), Costs()
        for step, times in found:
            costs, layer = costs.plus(step.costs, times), layer.plus(step.layer, times)
        working: Counter[str] = Counter()
        for step, _ in found:
            working |= Counter(step.working)  # the larger one, by part
        return Step(costs, layer, working)

    def _batch(self, cached: int, tokens: int, drafted: bool, texts: int) -> Step:
        architecture, setting = self.architecture, self.setting
        reduced, repeats = architecture, [1] * architecture.layers
        if not self.all_layers:
            reduced, setting, repeats = alike(architecture, setting)
        how: dict[str, Any] = {"drafted": drafted, "read": self.read, "texts": texts, "memory": self.memory}
        found = trace_step(reduced, setting, cached, tokens, agreed=cached > 0, **how)
        middle = middle_layer(reduced, repeats)
        flags = suite_class(setting.suite).flag_bytes * (architecture.layers - reduced.layers)
        costs = found.costs(repeats)
        if flags:
            costs = costs.plus({(CHOICE, NO_OPERATION, kind): flags for kind in ("offline_bytes", "corrected_bytes")})
        kept = sum(size * count for size, count in zip(found.held, repeats, strict=True)) if found.held else None
        return Step(costs, found.layer(middle), found.working, kept=kept)

    def tokens(self, first: int, last: int) -> Costs:
        """Sum over decoded tokens with first to last tokens cached before them."""
        if last - first < EACH:
            return _sum(self.step(n).costs for n in range(first, last + 1))
        power = 1 << (first + 1).bit_length()  # ring sizes depend on the length's number of bits
        if power - 1 <= last:
            return self.tokens(first, power - 2).plus(self.tokens(power - 1, last))
        return _sum(self._strided(n, last) for n in range(first, first + STRIDE))

    def _strided(self, first: int, last: int) -> Costs:
        """Return the same over first, first + 8, ..."""
        count = (last - first) // STRIDE + 1
        lengths = [first + STRIDE * n for n in range(count)]
        if count <= 3:
            return _sum(self.step(n).costs for n in lengths)
        middle = count // 2
        low, mid, high = (self.step(lengths[n]).costs for n in (0, middle, count - 1))
        line = low.plus(low, -middle / (count - 1)).plus(high, middle / (count - 1))
        if all(abs(line.get(k, 0) - mid.get(k, 0)) < 1e-3 for k in {*line, *mid}):
            whole = low.plus(high)
            return Costs({key: value * count / 2 for key, value in whole.items()})
        return self._strided(first, lengths[middle - 1]).plus(self._strided(lengths[middle], last))


def _sum(costs: Iterable[Costs]) -> Costs:
    out = Costs()
    for one in costs:
        out = out.plus(one)
    return out


@dataclass(frozen=True)
class Estimate:
    """Costs of a generation. load_prefix: of a registered prefix's rows, once for all sessions of a load; nothing without
    one. memory: of every role. cached: what the session's cache takes. first: up to the first token; further: of all tokens
    after it, `new - 1` of them, in `steps` steps: as many, or with a draft fewer, if `kept` rows of each stay.
    """

    architecture: AnyArchitecture
    setting: Setting
    prompt: int
    new: int
    load: Costs
    load_prefix: Costs
    first: Costs
    further: Costs
    first_layer: Costs
    last_layer: Costs
    memory: Memory
    cached: CacheBytes
    lengths_traced: int
    seconds: float
    steps: int
    kept: int = 1

    @cached_property
    def total(self) -> Costs:
        """Return the costs of a session without loading the model."""
        return self.first.plus(self.further)

    @property
    def memory_bytes(self) -> int:
        """Return what a party holds at most."""
        return self.memory.peak("party")


def estimate(
    architecture: AnyArchitecture, setting: Setting, prompt: int, new: int, exhaustive: bool = False, *, kept: int = 1
) -> Estimate:
    """Return the costs of a prompt of `prompt` tokens and `new` tokens, chosen as `setting.decoding` says.

    exhaustive: trace every layer, head and token; the same counts, slowly. kept: rows of a drafted step that stay, where so
    many can. What a policy has to learn of the model is taken to be there. Raises `ConfigurationError` when the model has
    fewer positions or for an unknown suite or policy.

    >>> from models.shapes import SHAPES
    >>> found = estimate(SHAPES["tiny"], Setting("masked"), prompt=8, new=2)
    >>> found.total.total("rounds") == found.first.total("rounds") + found.further.total("rounds")
    True
    """
    if isinstance(architecture, Architecture):
        architecture = with_learned(architecture, parse(setting.policy).weight_shapes(architecture))
    setting.plan(prompt, new).check(architecture)
    if isinstance(architecture, Architecture):
        spec = with_way(setting.spec, architecture, prompt, setting.policy, setting.parties)
        setting = replace(setting, options={**setting.options, **spec.options})
    drafted, start = setting.draft is not None, time.perf_counter()
    read = isinstance(architecture, Architecture) and architecture.encoder is not None
    cached = setting.cached(architecture, prompt) if isinstance(architecture, Architecture) else prompt
    steps = list(setting.steps(cached, new, kept))
    with torch.inference_mode():
        tracer = Tracer(architecture, setting, exhaustive, prompt if read else 0)
        load_costs, weights = trace_load(architecture, setting)
        rows = trace_prefix_load(decoder_of(architecture, "a prefix"), setting) if setting.before > 0 else Costs()
        if setting.policy != "full" and setting.decoding != ROWS:
            tracer.follow(prompt, new, kept)
        first = tracer.step(0, prompt)
        if exhaustive or drafted or setting.policy != "full":
            each = (tracer.step(*step, drafted).costs for step in steps)
            further = _sum(tracer.budget.spread(each, len(steps)))
        else:
            further = tracer.tokens(cached, cached + new - 2)
        last = tracer.step(*steps[-1], drafted) if steps else first
    whole = cache_bytes(architecture, setting.behind + prompt, new)
    held = last.cached or CacheBytes(whole, whole)
    later = most_of(s.working for key, s in tracer.lengths.items() if key[0])
    of_session = held.beside(cache_bytes(architecture, setting.before, 1))
    of_checkpoint = file_bytes(architecture), setting.suite, layer_elements(architecture)
    return Estimate(
        architecture=architecture,
        setting=setting,
        prompt=prompt,
        new=new,
        load=load_costs,
        load_prefix=rows,
        first=first.costs,
        further=further,
        first_layer=first.layer,
        last_layer=last.layer,
        memory=memory_of(Held(weights, of_session, (first.working, later), *of_checkpoint)),
        cached=held,
        lengths_traced=len(tracer.lengths),
        seconds=time.perf_counter() - start,
        steps=len(steps),
        kept=kept,
    )
