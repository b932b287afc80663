"""A benchmark's process: a compute party or the dealer. Both run the same segments of the same program."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from launch.local.memory import peak_memory
from launch.measure.bench.eviction import EvictionProgram
from launch.measure.bench.inputs import BenchInputs
from launch.measure.bench.plan import DEALER, BenchPlan
from launch.measure.bench.sources import SharedInputs, step_name
from launch.measure.bench.transport import Mesh, Segments, TapeSource
from models.cache import KVCache
from models.costs.program import (
    CACHE,
    WARM_UP,
    NoInputs,
    Source,
    fill,
    fill_layer,
    load,
    step,
)
from models.decoder import Decoder
from models.policies import parse
from mpc import timeline
from mpc.allocator import give_back
from mpc.channel import Channel
from mpc.errors import TapeError
from mpc.generators import suited
from mpc.ledger import Ledger, stage
from mpc.preprocessing import PrecomputedTape, PrecomputedValues, PreprocessingTape
from mpc.random import Prg, new_seed
from mpc.tape import DealerTape, PartyTape
from parties.transport.channel import GrpcChannel
from protocols.suite import OutputShare, Suite, Value

BACKGROUND_BYTES = 256 << 20


class Segmented:
    """The benchmark's program, cut where the tape is: weights, cache, each step, the logits."""

    def __init__(self, plan: BenchPlan, suite: Suite, source: Source) -> None:
        self.plan = plan
        self.suite = suite
        self.source = source
        self.architecture = plan.shape
        self.logits: Value
        self.weights: dict[str, Value] = {}
        self._decoder: Decoder
        self._cache: KVCache
        self._tokens: Tensor | None

    def segments(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Name and work of each segment, in order."""
        yield "weights", self._load
        yield CACHE, self._new_cache
        for layer in range(self.architecture.layers if self.plan.cached else 0):  # one by one: an eviction's tape is large
            yield CACHE, partial(self._fill, layer)
        for name in (WARM_UP, *(step_name(n) for n in range(self.plan.repeat))):
            yield name, partial(self._step, name)
        yield "logits", self._output

    def _load(self) -> None:
        self.weights = self.suite.run(load(self.suite, self.architecture, self.source))
        give_back()
        self.go_on(self.suite, self.weights)

    def go_on(self, suite: Suite, weights: dict[str, Value]) -> None:
        """Run what follows the weights with another suite of the same role."""
        self.suite = suite
        self._decoder = Decoder(suite, self.architecture, weights, parse(self.plan.policy))

    def _new_cache(self) -> None:
        self._cache = self.suite.run(fill(self._decoder, 0, self.source))
        self._tokens = self.source.tokens(self.suite, self.plan.tokens, self.plan.given_as_rows)

    def _fill(self, layer: int) -> None:
        cache, entry = self._cache, self._cache.layers[layer]
        self.suite.run(fill_layer(self._decoder, cache, layer, self.plan.cached, self.source))
        if cache.append_only:  # with room behind its rows, as a session's cache has after a token
            k, v = entry.keys_and_values()
            entry.k, entry.v = self.suite.keep_first(k, entry.length, 1), self.suite.keep_first(v, entry.length, 1)
        if layer == self.architecture.layers - 1:
            cache.seen = self.plan.cached
        give_back()

    def _step(self, name: str) -> None:
        after = self._cache.copied()
        self.logits, _ = self.suite.run(step(self._decoder, after, self.plan.step, self._tokens, name))
        if self._cache.append_only:
            self._cache.rewind(self.suite, after)

    def _output(self) -> OutputShare:
        with stage("logits"):
            return self.suite.output(self.logits)


Program = Segmented | EvictionProgram


def program_of(plan: BenchPlan, suite: Suite, source: Source) -> Program:
    """Return a role's program: a step of the decoder, or an eviction."""
    return EvictionProgram(plan, suite, source) if plan.eviction else Segmented(plan, suite, source)


class Timer:
    """Wall-clock and processor seconds of each segment."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Measure what is inside."""
        start, own = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - own


class Traced:
    """Spans of the step that a plan wants traced, the last one, by phase; none where it wants none."""

    def __init__(self, plan: BenchPlan) -> None:
        self._wanted = step_name(plan.repeat - 1) if plan.trace else None
        self.spans: dict[str, list[tuple[Any, ...]]] = {}

    @contextmanager
    def of(self, name: str, phase: str) -> Iterator[None]:
        """Record what is inside, if `name` is that step."""
        if name != self._wanted:
            yield
            return
        with timeline.recording() as line:
            yield
        self.spans[phase] = [astuple(span) for span in line.spans]


def run_party(folder: Path, index: int) -> None:
    """Run a compute party: it writes `partyN.json` (costs, seconds) and `partyN.safetensors` (its share of the logits)."""
    plan = BenchPlan.read(folder)
    torch.set_num_threads(plan.threads)
    inputs = BenchInputs(plan.shape, plan.seed, plan.parties)
    timers = {name: Timer() for name in ("online", "preparation")}
    with Mesh(folder, plan.names, index, plan.host(plan.names[index])) as mesh, torch.inference_mode():
        tapes = TapeSource(folder, mesh.identity, DEALER, mesh.session.check)
        channel = GrpcChannel(index, plan.names, mesh.links, Ledger())
        output: OutputShare | None = None
        tapes.fetch(0)
        prg = Prg(tapes.seed, suited(plan.device))
        tape = PartyTape(prg, index == plan.parties - 1, tapes.read, channel.ledger, plan.device)
        program = program_of(plan, plan.make_suite(tape, channel), SharedInputs(inputs, index))
        preparing: Iterator[tuple[str, Callable[[], Any]]] | None = None
        most = 0
        traced = Traced(plan)
        for number, (name, work) in enumerate(program.segments()):
            if number > 0:
                tapes.fetch(number)
            if number == 1 and plan.preprocessing and program.suite.preprocesses:
                store = PrecomputedValues()
                preparing = preparation(program, tape, store, channel)
            background: threading.Thread | None = None
            if preparing is not None and name == CACHE:
                background = prepare_in_background(next(preparing)[1], store)
            elif preparing is not None:
                with timers["preparation"].of(name), traced.of(name, "before"):
                    next(preparing)[1]()
                most = max(most, store.waiting_bytes)
            with stage("ready"):
                channel.exchange_all(b"\1")  # nobody's seconds include waiting for another one's preparations
            with timers["online"].of(name), traced.of(name, "online"):
                output = work()
            if background is not None:
                background.join()
                store.limit = None
            if preparing is not None and len(store):
                raise TapeError(f"segment '{name}' did not use all that was prepared for it: {len(store)} entries are left")
        assert output is not None
        tapes.close()
    save_file({"logits": output.share.cpu().contiguous()}, folder / f"{plan.names[index]}.safetensors")
    report = {
        "ledger": [[*key, vars(cost)] for key, cost in channel.ledger.costs.items()],
        "seconds": timers["online"].seconds,
        "stage_seconds": channel.ledger.seconds,
        "cpu_seconds": timers["online"].cpu,
        "prepare_seconds": timers["preparation"].seconds,
        "prepare_cpu_seconds": timers["preparation"].cpu,
        "prepared_bytes": most,
        "spans": traced.spans,
        "peak_rss_bytes": peak_memory(),
        "bits": output.bits,
        "fraction_bits": output.fraction_bits,
    }
    (folder / f"{plan.names[index]}.json").write_text(json.dumps(report), encoding="utf-8")


def prepare_in_background(work: Callable[[], Any], store: PrecomputedValues) -> threading.Thread:
    """Prepare in a thread while the party works, with a bounded store: filling a cache may take gigabytes."""
    store.limit = BACKGROUND_BYTES

    def run() -> None:
        try:
            with torch.inference_mode():
                work()
        except BaseException as error:
            store.finish(error)

    thread = threading.Thread(target=run, name="preparation", daemon=True)
    thread.start()
    return thread


def preparation(
    program: Program, tape: PartyTape, store: PrecomputedValues, channel: Channel
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Return the segments after the weights of a preprocessing pass; `program` takes what they leave in `store` from now
    on."""
    plan, weights = program.plan, program.weights
    preparing = program_of(plan, plan.make_suite(PreprocessingTape(tape, store), None), NoInputs())
    preparing.go_on(preparing.suite, weights)
    program.go_on(plan.make_suite(PrecomputedTape(store, channel.ledger, plan.device), channel), weights)
    segments = preparing.segments()
    next(segments)  # the weights
    return segments


def run_dealer(folder: Path) -> None:
    """Run the dealer: it deals a segment when the parties ask for it and writes `dealer.json`."""
    plan = BenchPlan.read(folder)
    torch.set_num_threads(plan.threads)
    seeds = [new_seed() for _ in plan.names]
    timer, traced = Timer(), Traced(plan)
    with Segments(folder, DEALER, plan.names, seeds, plan.host(DEALER)) as tapes, torch.inference_mode():
        prgs = [Prg(seed, suited(plan.device)) for seed in seeds]
        tape = DealerTape(prgs, tapes.emit, Ledger(), plan.device)
        suite = plan.make_suite(tape, None)
        for number, (name, work) in enumerate(program_of(plan, suite, NoInputs()).segments()):
            tapes.begin(number)
            with timer.of(name), traced.of(name, "dealer"):
                work()
                tape.flush()
            tapes.end()
        tapes.wait_until_fetched()
    report = {"seconds": timer.seconds, "cpu_seconds": timer.cpu, "spans": traced.spans, "peak_rss_bytes": peak_memory()}
    (folder / f"{DEALER}.json").write_text(json.dumps(report), encoding="utf-8")
