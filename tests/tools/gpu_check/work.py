"""Parts that compute on shares: steps of models, products, packing, sessions of mixed devices, plaintext, processes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from launch.local.in_process import InProcessSuite
from launch.measure.bench.plan import BenchPlan
from launch.measure.bench.run import plain_logits
from launch.measure.bench.sources import step_name
from launch.measure.generation import generate_on_shares
from models.architecture import Architecture
from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan, PlainModel
from models.shapes import find_shape, with_layers
from mpc import messages, ring
from mpc.device import keystream
from mpc.device.deferred import there as there_of
from mpc.device.keystream import Keystream
from mpc.fixed_point import decode
from mpc.generators import CHACHA, GENERATORS
from mpc.ledger import Ledger
from mpc.random import Prg, new_seed
from protocols.registry import SuiteSpec
from tests.devices import STAND_IN, computing_on
from tests.tools import transport_speed
from tests.tools.device_counts import KINDS, counted, narrow, run_roles
from tests.tools.gpu_check.digits import digits
from tests.tools.gpu_check.timing import Row, ring_elements, synchronise, timed

RECALL = Path(__file__).parents[3] / "models" / "recall"
PROMPT = [168, 99, 55, 26, 126, 9, 101, 112, 157, 197]
POLICIES = (
    "full",
    "mpcache:preset=clusters,sharing=1,sinks=1,window=2,dynamic=0.4",
    "h2o:budget=0.5",
    "snapkv:budget=0.5,window=2",
    "quest:page=2,budget=0.5",
)
CLOSE = 0.05  # of logits to the plain ones: they are of the size of 1
Lengths = tuple[int, int]
"""Tokens in the cache before a token, or of a prompt; the other one is 0."""


def plan_of(shape: Architecture, suite: str, policy: str, lengths: Lengths, device: str, repeat: int = 1) -> BenchPlan:
    """Return a step of random weights, all roles in one process."""
    return BenchPlan(
        architecture=shape.to_json(),
        suite=suite,
        policy=policy,
        cached=lengths[0],
        prefill=lengths[1],
        repeat=repeat,
        preprocessing=False,
        device=device,
    )


@contextlib.contextmanager
def unwatched(role: str, name: str, ledger: Ledger) -> Iterator[None]:
    """Watch nothing."""
    yield


def _step(name: str, shape: Architecture, policy: str, lengths: Lengths, device: str) -> Row:
    """Run a step with all roles on one device; seconds of each role, bytes, rounds, and the error of its logits."""
    took: dict[str, list[float]] = {}
    costs: Row = {}
    repeat = 3 if lengths[0] else 1
    with computing_on(device) as place:
        plan = plan_of(shape, "masked", policy, lengths, place, repeat)
        steps = {step_name(n) for n in range(repeat)}

        @contextlib.contextmanager
        def watch(role: str, segment: str, ledger: Ledger) -> Iterator[None]:
            synchronise(place)
            start, before = time.perf_counter(), ledger.total()
            yield
            synchronise(place)
            if segment in steps:
                took.setdefault(role, []).append(time.perf_counter() - start)
                after = ledger.total()
                if role == "party 1":
                    costs["rounds"] = after.rounds - before.rounds
                    costs["sent_bytes"] = after.bytes_sent - before.bytes_sent
                    costs["dealt_bytes"] = after.offline_bytes - before.offline_bytes

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        shares = run_roles(plan, watch)
    total = torch.stack([share.share.cpu() for share in shares]).sum(0)
    found = decode(ring.reduce(total, shares[0].bits), shares[0].fraction_bits, shares[0].bits)
    error = float((found - plain_logits(plan)).abs().max())
    row: Row = {"name": name, "ok": error < CLOSE, "error": error, "seconds": {role: min(t) for role, t in took.items()}}
    if torch.cuda.is_available():
        row["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    return row | costs | {"roles": "three, on one device, in one process"}


def _gpt2(small: bool) -> Architecture:
    return narrow("gpt2", 4, 2) if small else find_shape("gpt2")


def token(device: str, small: bool) -> Iterator[Row]:
    """A token of GPT-2: seconds, costs, and what the stand-in counts of it."""
    for policy in ("full", "mpcache") if not small else ("full",):
        for cached in (24,) if small else (128, 1024):
            yield _step(f"token after {cached}, {policy}", _gpt2(small), policy, (cached, 0), device)
    found = counted(plan_of(narrow("gpt2", 4, 2 if small else 12), "masked", "full", (128, 0), "cuda:0"))
    for role, counts in found.roles.items():
        yield {"name": f"counts, {role}", "rounds": found.rounds} | {kind: counts.total(role, kind) for kind in KINDS}


def prompt(device: str, small: bool) -> Iterator[Row]:
    """A prompt of GPT-2."""
    for tokens in (12,) if small else (128,):
        yield _step(f"prompt of {tokens}", _gpt2(small), "full", (0, tokens), device)


def llama(device: str, small: bool) -> Iterator[Row]:
    """Two layers of LLaMA-2-7B; multiply what is of layers by 16."""
    shape = narrow("llama-2-7b", 4, 2) if small else with_layers(find_shape("llama-2-7b"), 2)
    yield _step("token after 1024, 2 layers", shape, "full", (24 if small else 1024, 0), device)
    yield _step("prompt of 128, 2 layers", shape, "full", (0, 12 if small else 128), device)


def kernels(device: str, small: bool) -> Iterator[Row]:
    """Products by ring and shape, of words and of digits, packing, the generators: right, and how fast."""
    place = "cpu" if device == "cpu" else "cuda:0"
    shapes = (
        [(1, 64, 96), (32, 64, 96)] if small else [(1, 768, 3072), (128, 768, 3072), (1, 4096, 11008), (128, 4096, 11008)]
    )
    with computing_on(device):
        for rows, depth, columns in shapes:
            for bits in (30, 40, 48, 64):
                (a,), others = ring_elements((rows, depth), bits), ring_elements((depth, columns), bits, 2)
                there, held = a.to(place), [b.to(place) for b in others]
                right = torch.equal(ring.matmul(there, held[0], bits).cpu(), ring.matmul(a, others[0], bits))
                work = lambda n, x=there, y=held, bits=bits: ring.matmul(x, y[n % 2], bits)  # noqa: E731
                name = f"product of {rows} rows, {depth} x {columns}, 2^{bits}"
                yield timed(name, work, place, operations=2 * rows * depth * columns, ok=right)
        yield from digits(place, small)
        count = 1 << (12 if small else 24)
        for bits in (1, 20, 38, 64):
            (x,) = ring_elements((count,), bits)
            there = x.to(place)
            sent = messages.at_host(messages.packed(there, bits))
            (arrived,) = messages.delivered([sent], torch.device(place))
            right = sent == messages.at_host(messages.packed(x, bits)) and torch.equal(
                messages.unpacked(arrived, bits, (count,)).cpu(), x
            )
            pack = lambda n, x=there, bits=bits: there_of(messages.packed(x, bits))  # noqa: E731
            yield timed(f"packing, {bits} bits", pack, place, bytes=len(sent), ok=right)
        yield from _generators(count, place)


def _generators(count: int, place: str) -> Iterator[Row]:
    """Both generators at the host and on the device: the same bytes. GB/s of 64-bit elements that are used there."""
    for name in GENERATORS:
        host, there, seed = Prg(new_seed(), name), Prg(new_seed(), name), new_seed()
        sizes = (1, 4093, count // 3, count // 2)  # around blocks, and around what is made ahead
        ours, theirs = Prg(seed, name), Prg(seed, name)
        right = all(torch.equal(ours.ring((n,), 64, place).cpu(), theirs.ring((n,), 64)) for n in sizes)
        work = lambda n, prg=host: prg.ring((count,), 64)  # noqa: E731
        yield timed(f"generator {name}, host", work, "cpu", bytes=8 * count)
        used = lambda n, prg=there: there_of(prg.ring((count,), 64, place) ^ n)  # noqa: E731
        made = "made there" if name == CHACHA and place != "cpu" and keystream.works(torch.device(place)) else "by the host"
        yield timed(f"generator {name}, {place}", used, place, bytes=8 * count, ok=right, made=made)
        if made == "made there":
            stream = Keystream(new_seed(), torch.device(place))
            alone = lambda n, stream=stream: stream.read(64 * n, 8 * count)  # noqa: E731
            yield timed(f"generator {name}, {place}, blocks alone", alone, place, bytes=8 * count)


def mixed(device: str, small: bool) -> Iterator[Row]:
    """One party on the CPU, the other on the device: the same tokens as in plaintext."""
    with computing_on(device) as place:
        for name in ("gpt2", "llama"):
            checkpoint, plan = load_checkpoint(RECALL / name), GenerationPlan(len(PROMPT), 2)
            expected = PlainModel(checkpoint, torch.float64).generate(PROMPT, plan)
            for devices in (["cpu", place, place], [place, "cpu", "cpu"]):
                found = generate_on_shares(checkpoint, PROMPT, plan, InProcessSuite(SuiteSpec("masked"), 2, devices))
                right = found.tokens[: len(expected)] == expected
                yield {"name": f"{name}, {' and '.join(devices[:2])}", "ok": right, "tokens": found.tokens}


def plain(device: str, small: bool) -> Iterator[Row]:
    """Plaintext tokens of the shipped models with every kind of policy, as on the CPU."""
    with computing_on(device) as place:
        for policy in POLICIES:
            checkpoint, plan = load_checkpoint(RECALL / "gpt2"), GenerationPlan(len(PROMPT), 4, policy=policy)
            start = time.perf_counter()
            found = PlainModel(checkpoint, torch.float64, place).generate(PROMPT, plan)
            took = time.perf_counter() - start
            right = found == PlainModel(checkpoint, torch.float64).generate(PROMPT, plan)
            yield {"name": policy, "ok": right, "seconds": took, "tokens": found}


def tests(device: str, small: bool) -> Iterator[Row]:
    """The tests that have the fixture `device`."""
    kind = {"cuda": "cuda", STAND_IN: "stand-in", "cpu": "stand-in"}[device]
    paths = (
        ["tests/mpc/test_messages.py"]
        if small
        else ["tests/mpc", "tests/protocols/test_device.py", "tests/models/test_device.py"]
    )
    marked = ["-m", "cuda"] if kind == "cuda" else ["-k", kind]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--maxfail", "5", *marked, *paths]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in ended.stdout.splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith("FAILED")]
    yield {"name": "pytest", "ok": ended.returncode == 0, "summary": lines[-1] if lines else "", "failed": failed}


def processes(device: str, small: bool) -> Iterator[Row]:
    """Two parties and a dealer as processes over gRPC with TLS, all on one device."""
    if device == STAND_IN:
        yield {"name": "processes", "skip": "the stand-in lives in one process"}
        return
    for way in transport_speed.WAYS:
        for found in transport_speed.measured(way, transport_speed.FEW if small else len(transport_speed.SIZES)):
            yield {"name": f"rounds of {found['bytes']} bytes, {way}", "ok": True, **found}
    lengths = [["--cached", "24"]] if small else [["--cached", "1024"], ["--prefill", "128"]]
    for length in lengths:
        shape = "tiny" if small else "gpt2"
        command = [sys.executable, "-m", "launch.cli.main", "bench", "--shape", shape, "--device", device, "--repeat", "3"]
        ended = subprocess.run([*command, *length], capture_output=True, text=True, check=False)
        row: Row = {"name": " ".join(length), "ok": ended.returncode == 0}
        if ended.returncode:
            yield row | {"why": ended.stderr[-400:]}
        else:
            yield row | {"result": json.loads(ended.stdout.strip().splitlines()[-1])}


def only_on_a_gpu(device: str) -> str:
    """Return why a part cannot run here; empty if it can."""
    found: Any = torch.cuda.is_available()
    return "" if device != "cuda" or found else "no GPU: torch finds none (or this torch was built without CUDA)"
