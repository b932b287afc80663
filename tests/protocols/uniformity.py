"""Everything that is opened in a generation, and chi-square tests of whether it could be anything but uniform.

What is tested. An opened element is m in Z_2^k, and should be uniform and independent of all others. Taken are its lowest
and its highest digit of 1 and of 4 bits, of

* the element itself (a missing, short or biased mask shows here),
* the difference of neighbours in an opening (one mask for several elements), and
* the difference with the opening of the same size and ring before it (a mask used twice, a generator that starts again).

Pairs are disjoint, so under the null hypothesis all differences are independent too. Each is counted by operation and over
everything.

Threshold. With N tests each must have p >= FALSE_POSITIVES / N (Bonferroni), so a right suite fails with probability
FALSE_POSITIVES at most, however the tests depend on each other. p is chi-square's upper tail, which is asymptotic; it is
trusted down to 1e-12 because cells have an expected count of at least 50: a cell that alone gives such a p is off by 9.5
deviations, whose probability by Chernoff's bound for Poisson counts is below 1e-14. Operations with less data are counted
over everything only.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from launch.local.in_process import run_in_process
from launch.local.shares import KeptShares, opened
from models import encoding
from models.checkpoint import Checkpoint, load_checkpoint
from models.decoder import Decoder
from models.encoder import Encoder
from models.encoding import EncoderInput, EncodingPlan, encode, shared_rows
from models.generation import GenerationPlan, generate, token_indices
from models.loaded import load_weights
from models.outputs import Decoding
from models.prefix_rows import load_rows
from models.prefixes import PrefixPlan, register
from mpc import fixed_point, ring
from protocols.masked.magnitudes import WEIGHT_BITS
from protocols.masked.shuffle import Handover, Reveal
from protocols.masked.suite import MaskedSuite
from protocols.masked.values import MaskedTensor
from protocols.masked.wide import WideOpening
from protocols.suite import OutputShare, Value
from tests.protocols.masked.harness import additive

FALSE_POSITIVES = 1e-9
CELL = 50  # least expected count of a cell
WIDTHS = (1, 4)
EVERYTHING = "everything"
SHIPPED = Path(__file__).parents[2] / "models" / "recall" / "gpt2"


@dataclass(frozen=True)
class Opened:
    """One opening as a compute party sees it: m in Z_2^bits."""

    operation: str
    m: Tensor
    bits: int


@dataclass(frozen=True)
class Result:
    """One test. p: the probability of a statistic at least as large, for uniform values."""

    name: str
    count: int
    p: float


def chi_square_p(counts: Tensor) -> float:
    """Upper tail of Pearson's statistic of counts against equal probabilities."""
    n, cells = float(counts.sum()), counts.numel()
    statistic = ((counts - n / cells) ** 2 / (n / cells)).sum().double()
    half = torch.tensor((cells - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half, statistic / 2))


def _disjoint(x: Tensor) -> Tensor:
    return x[1::2] - x[: x.numel() // 2 * 2 : 2]


def _derived(seen: Iterable[Opened]) -> Iterator[tuple[str, str, Tensor, int]]:
    """(operation, what, elements of Z_2^bits, bits)."""
    waiting: dict[tuple[int, int], Tensor] = {}
    for one in seen:
        m, bits = one.m.reshape(-1), one.bits
        yield one.operation, "element", m, bits
        yield one.operation, "neighbours", ring.reduce(_disjoint(m), bits), bits
        before = waiting.pop((m.numel(), bits), None)
        if before is None:
            waiting[m.numel(), bits] = m
        else:
            yield one.operation, "openings", ring.reduce(m - before, bits), bits


def results(seen: Iterable[Opened]) -> list[Result]:
    """All tests with enough data."""
    tables: dict[tuple[str, str], Tensor] = {}
    for operation, what, x, bits in _derived(seen):
        for width in WIDTHS:
            if width > bits or (bits == 1 and width > 1):
                continue
            for place, digit in (("low", x & ((1 << width) - 1)), ("high", ring.shift_right(x, bits - width, bits))):
                counts = torch.bincount(digit, minlength=1 << width).double()
                for name in (operation, EVERYTHING):
                    key = name, f"{what}, {place} {width} bits"
                    tables[key] = tables[key] + counts if key in tables else counts
    return [
        Result(f"{operation}: {what}", int(counts.sum()), chi_square_p(counts))
        for (operation, what), counts in tables.items()
        if float(counts.sum()) / counts.numel() >= CELL
    ]


def failures(found: Sequence[Result]) -> list[Result]:
    """Tests below the threshold."""
    return [r for r in found if not r.p >= FALSE_POSITIVES / len(found)]


class _Watch:
    """Collects what a party sees arrive, by operation. Anything that is revealed in the clear is an error here."""

    def __init__(self, suite: MaskedSuite, shuffles: bool = False) -> None:
        self.seen: list[Opened] = []
        self._shuffles = shuffles
        self._round: list[tuple[Tensor, int]] = []
        self._flush = suite.context.flush
        suite.context.observer = lambda m, bits: self._round.append((m.clone(), bits))  # of wide values both words
        suite.context.revealed = self._revealed
        suite.context.flush = self._watched  # type: ignore[method-assign]

    def _watched(self, requests: list[Any]) -> Any:
        self._round.clear()
        out = self._flush(requests)
        keys = []
        for request, found in zip(requests, out, strict=True):
            many = 1 + isinstance(request, WideOpening)
            if isinstance(request, Handover):  # a party that receives nothing gets its own tensors back
                many = 0 if found is request.tensors else len(found)
            keys += [request.key[1]] * (0 if isinstance(request, Reveal) else many)
        assert len(self._round) == len(keys), "an opening was not observed"
        self.seen += [Opened(key, m, bits) for key, (m, bits) in zip(keys, self._round, strict=True)]
        return out

    def _revealed(self, m: Tensor, bits: int) -> None:
        assert self._shuffles, "something was revealed in a generation with a full cache"


def shipped() -> Checkpoint:
    """The shipped GPT-2."""
    return load_checkpoint(SHIPPED, torch.float64)


def observed_generation(
    checkpoint: Checkpoint,
    prompt: Sequence[int],
    new_tokens: int,
    parties: int = 2,
    decoding: Decoding = "greedy",
    temperature: float | None = None,
) -> tuple[list[Opened], list[int]]:
    """What party 0 sees from loading the model to the last token, and the generated tokens (of logits: the likeliest)."""
    a = checkpoint.architecture
    plan = GenerationPlan(len(prompt), new_tokens, decoding, temperature=temperature)
    weights = {name: additive(fixed_point.encode(w, WEIGHT_BITS), parties) for name, w in checkpoint.weights.items()}
    rows = additive(token_indices(prompt, a.vocabulary), parties)

    def main(suite: MaskedSuite, party: int | None) -> list[OutputShare]:
        held = suite.run(load_weights(suite, a, lambda name: None if party is None else weights[name][party]))
        endpoint = KeptShares()
        share = None if party is None else rows[party]
        suite.run(generate(suite, Decoder(suite, a, held), plan, share, endpoint))
        return endpoint.shares

    seen, found = _observed(parties, main)
    tokens = []
    for parts in zip(*found, strict=True):
        total = torch.stack([p.share for p in parts]).sum(0)
        value = fixed_point.decode(ring.reduce(total, parts[0].bits), parts[0].fraction_bits, parts[0].bits)
        tokens.append(int(value.argmax()) if decoding == "logits" else int(value.round()))
    return seen, tokens


def observed_prefix(checkpoint: Checkpoint, prompt: Sequence[int], behind: int) -> tuple[list[Opened], list[list[int]]]:
    """What party 0 of two sees while a prefix is registered, loaded twice, and begun behind by two sessions of one load; and
    their first tokens."""
    a, prompts = checkpoint.architecture, [list(prompt[behind:]), list(reversed(prompt[behind:]))]
    weights = {name: additive(fixed_point.encode(w, WEIGHT_BITS), 2) for name, w in checkpoint.weights.items()}
    given = [additive(token_indices(ids, a.vocabulary), 2) for ids in (prompt[:behind], *prompts)]

    def main(suite: MaskedSuite, party: int | None) -> list[OutputShare]:
        def shares(number: int) -> Tensor | None:
            return None if party is None else given[number][party]

        held = suite.run(load_weights(suite, a, lambda name: None if party is None else weights[name][party]))
        stored: dict[str, Tensor] = {}
        endpoint, plan = KeptShares(), PrefixPlan(behind)
        suite.run(register(suite, Decoder(suite, a, held), plan, shares(0), endpoint, stored.__setitem__))
        own = stored if party is not None else {}
        rows = [suite.run(load_rows(suite, a, behind, own.get)) for _ in range(2)]
        for number in (1, 2):
            plan_behind = GenerationPlan(len(prompts[0]), 1, behind=behind)
            decoder = Decoder(suite, a, {**held, **rows[0]})
            suite.run(generate(suite, decoder, plan_behind, shares(number), endpoint))
        return endpoint.shares

    seen, found = _observed(2, main)
    steps = list(zip(*found, strict=True))[1:]
    return seen, [[int(opened(parts).round())] for parts in steps]


def observed_rows(index: Tensor, table: Tensor, parties: int) -> list[Opened]:
    """What party 0 sees while the rows of a table [V, D] at places [T] are looked up, the table's loading left out."""
    held, places = additive(fixed_point.encode(table, WEIGHT_BITS), parties), additive(index, parties)

    def main(suite: MaskedSuite, party: int | None) -> list[OutputShare]:
        weight = suite.run(suite.weight("embedding.tokens", table.shape, None if party is None else held[party]))
        shared = suite.indices(len(index), None if party is None else places[party], len(table))
        found: MaskedTensor = suite.run(_looked_up(suite, shared, weight))
        return [suite.output(found)]

    seen, outputs = _observed(parties, main)
    assert torch.equal(opened([shares[0] for shares in outputs]), table[index])
    return [one for one in seen if one.operation == "embed"]


async def _looked_up(suite: MaskedSuite, index: Value, table: Value) -> MaskedTensor:
    return await suite.look_up(index, table)


def observed_encoding(checkpoint: Checkpoint, texts: list[EncoderInput], plan: EncodingPlan) -> tuple[list[Opened], Tensor]:
    """What party 0 of two sees from loading an encoder to its output, and the output."""
    a = checkpoint.encoder
    weights = {name: additive(fixed_point.encode(w, WEIGHT_BITS), 2) for name, w in checkpoint.weights.items()}
    rows = additive(shared_rows(a, plan, texts), 2)

    def main(suite: MaskedSuite, party: int | None) -> list[OutputShare]:
        held = suite.run(load_weights(suite, a, lambda name: None if party is None else weights[name][party]))
        endpoint = KeptShares()
        suite.run(encode(suite, Encoder(suite, a, held), plan, None if party is None else rows[party], endpoint))
        return endpoint.shares

    seen, found = _observed(2, main)
    batches = [opened(list(shares)) for shares in zip(*found, strict=True)]
    return seen, torch.cat(encoding.results(batches, plan, texts))


def observed_program(
    parties: int, program: Callable[..., Awaitable[object]], inputs: Sequence[Tensor], input_bits: int = 16
) -> list[Opened]:
    """What party 0 sees of program(suite, *inputs); what is revealed behind a shuffle has tests of its own."""
    shares = [additive(fixed_point.encode(x, input_bits), parties) for x in inputs]

    def main(suite: MaskedSuite, party: int | None) -> list[OutputShare]:
        async def run() -> None:
            given = [None if party is None else share[party] for share in shares]
            await program(suite, *(suite.input(x.shape, y, input_bits) for x, y in zip(inputs, given, strict=True)))

        suite.run(run())
        return []

    return _observed(parties, main, shuffles=True)[0]


def _observed(
    parties: int, main: Callable[[MaskedSuite, int | None], list[OutputShare]], shuffles: bool = False
) -> tuple[list[Opened], list[list[OutputShare]]]:
    """What party 0 sees of a program, and all parties' output shares."""
    watches: list[_Watch] = []
    lock = threading.Lock()

    def at_party(channel: Any, tape: Any) -> list[OutputShare]:
        with torch.inference_mode():
            suite = MaskedSuite(parties=parties, tape=tape, channel=channel)
            if channel.party == 0:
                with lock:
                    watches.append(_Watch(suite, shuffles))
            return main(suite, channel.party)

    def at_dealer(tape: Any) -> None:
        with torch.inference_mode():
            main(MaskedSuite(parties=parties, tape=tape, channel=None), None)

    found, _ = run_in_process(parties, at_party, at_dealer)
    return watches[0].seen, found
