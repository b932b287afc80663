"""How far a suite's results are from plaintext, layer by layer.

INSECURE FOR REAL DATA BY NATURE: intermediate secrets are put together here. That is possible only because one process
makes all shares itself and runs all parties (`launch.in_process`); no command that talks to real parties imports this file.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from launch.deciding import noting_shares
from launch.in_process import run_in_process
from models.checkpoint import Checkpoint
from models.decoder import Decoder, load_weights
from models.generation import GenerationPlan, PlainModel, generate, one_hot_rows
from models.policies import parse
from mpc.channel import MemoryChannel
from mpc.errors import ConfigurationError, EnvironmentProblem
from mpc.fixed_point import decode, encode
from mpc.random import Prg, new_seed
from mpc.ring import reduce
from mpc.tape import DealerTape, PartyTape, Tape
from parties.failures import RangeExceeded
from protocols.plain import Recorder
from protocols.range_findings import RangeFinding, findings_in, open_flags
from protocols.registry import secure_suite
from protocols.suite import OutputShare, Suite, Value

STEPS = ("prefill", "decode")
SHARED_BITS = 16
"""Fraction bits that a model owner shares weights with by default; a suite that wants more gets zeros appended."""


@dataclass(frozen=True)
class ProbeError:
    """Absolute errors at one probe point of one step. largest: the largest plaintext value there, for scale."""

    step: str
    point: str
    shape: tuple[int, ...]
    max_error: float
    mean_error: float
    largest: float


@dataclass
class Measurement:
    """One run's values: `points` in order of their appearance, (step, name) -> tensor. findings: what left its declared
    range on the way to the logits, where the suite says so."""

    points: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    findings: tuple[RangeFinding, ...] = ()

    @property
    def logits(self) -> Tensor:
        """[T, V], float64."""
        return torch.cat([self.points[step, "logits"] for step in STEPS if (step, "logits") in self.points])


def plaintext(checkpoint: Checkpoint, ids: Sequence[int]) -> Measurement:
    """The suite `plain` in float64; load the checkpoint as float64."""
    model = PlainModel(checkpoint, torch.float64)
    recorder = Recorder()
    rows = [one_hot_rows(part, model.architecture.vocabulary) for part in _parts(ids)]
    _forward(model.suite, model.decoder(recorder), ids, list(rows))
    found = Measurement()
    for name, values in recorder.values.items():
        for step, value in zip(STEPS, values, strict=False):
            found.points[step, name] = value
    return found


def on_shares(checkpoint: Checkpoint, ids: Sequence[int], suite_name: str, parties: int, **options: Any) -> Measurement:
    """The same on shares, with all parties and the dealer in this process."""
    architecture = checkpoint.architecture
    if parties < 2:
        raise ConfigurationError(f"parties = {parties}: at least 2 compute parties are needed")
    weights = _WeightShares(checkpoint, parties)
    prompts = [_share(one_hot_rows(part, architecture.vocabulary), 0, parties) for part in _parts(ids)]

    def program(suite: Suite, index: int | None) -> tuple[list[tuple[str, OutputShare]], Tensor | None]:
        seen: list[tuple[str, OutputShare]] = []

        def probe(name: str, value: Value) -> None:
            seen.append((name, suite.output(value)))

        def own(name: str) -> Tensor | None:
            return None if index is None else weights.share(name, index, suite)

        loaded = suite.run(load_weights(suite, architecture, own))
        decoder = Decoder(suite, architecture, loaded, probe=probe)
        _forward(suite, decoder, ids, [None if index is None else shares[index] for shares in prompts])
        return seen, suite.flags()

    def suite(tape: Tape, channel: MemoryChannel | None) -> Suite:
        return secure_suite(suite_name, parties=parties, tape=tape, channel=channel, **options)

    def party(channel: MemoryChannel, tape: PartyTape) -> tuple[list[tuple[str, OutputShare]], Tensor | None]:
        return program(suite(tape, channel), channel.party)

    def dealer(tape: DealerTape) -> None:
        program(suite(tape, None), None)

    outputs, _ = run_in_process(parties, party, dealer)
    values, flags = zip(*outputs, strict=True)
    found = Measurement(findings=_findings(flags, 0, suite_name, options))
    for entries in zip(*values, strict=True):
        name = entries[0][0]
        step = STEPS[(STEPS[0], name) in found.points]
        found.points[step, name] = _open([share for _, share in entries])
    return found


def generated(
    checkpoint: Checkpoint,
    ids: Sequence[int],
    plan: GenerationPlan,
    suite_name: str,
    parties: int,
    decided: list[Tensor] | None = None,
    findings: list[RangeFinding] | None = None,
    **options: Any,
) -> list[int]:
    """Tokens generated greedily on shares, with all parties and the dealer in this process.

    decided: a list that gets what the policy kept in every decision, see `launch.deciding`. findings: a list that gets what
    left its range on the way to the first token that is not returned for that reason; without one that raises
    `RangeExceeded`.
    """
    architecture = checkpoint.architecture
    weights = _WeightShares(checkpoint, parties)
    prompts = _share(one_hot_rows(ids, architecture.vocabulary), 0, parties)

    def program(suite: Suite, index: int | None) -> tuple[list[OutputShare], list[OutputShare]]:
        loaded = suite.run(
            load_weights(suite, architecture, lambda n: None if index is None else weights.share(n, index, suite))
        )
        kept, decisions = _Kept(), list[OutputShare]()
        noting = suite if decided is None else cast(Suite, noting_shares(suite, decisions))
        decoder = Decoder(noting, architecture, loaded, parse(plan.policy))
        with torch.inference_mode():
            suite.run(generate(noting, decoder, plan, None if index is None else prompts[index], None, kept))
        return kept.shares, decisions

    def party(channel: MemoryChannel, tape: PartyTape) -> tuple[list[OutputShare], list[OutputShare]]:
        return program(secure_suite(suite_name, parties=parties, tape=tape, channel=channel, **options), channel.party)

    def dealer(tape: DealerTape) -> None:
        program(secure_suite(suite_name, parties=parties, tape=tape, channel=None, **options), None)

    outputs, _ = run_in_process(parties, party, dealer)
    tokens, decisions = zip(*outputs, strict=True)
    if decided is not None:
        decided += [_open(shares) for shares in zip(*decisions, strict=True)]
    opened: list[int] = []
    for step, shares in enumerate(zip(*tokens, strict=True)):
        if found := _findings([share.flags for share in shares], step, suite_name, options):
            if findings is None:
                raise RangeExceeded(found)
            findings += found
            break
        opened.append(round(float(_open(shares).item())))
    return opened


class _Kept:
    """An endpoint that keeps every token's share."""

    def __init__(self) -> None:
        self.shares: list[OutputShare] = []

    def emit(self, step: int, share: OutputShare) -> bool:
        """Go on."""
        self.shares.append(share)
        return True

    def next_token(self, step: int) -> None:
        """Not asked for."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Not shown."""


def hugging_face_logits(directory: Path, ids: Sequence[int]) -> Tensor:
    """Logits [T, V] of the package transformers, in float64."""
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError as error:
        raise EnvironmentProblem(f"transformers cannot be imported ({error}); `mpcache doctor` says more") from None
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False, dtype=torch.float64
    )
    with torch.inference_mode():
        logits: Tensor = model.eval()(input_ids=torch.tensor([list(ids)])).logits[0]
    return logits.to(torch.float64)


def compare(reference: Measurement, measured: Measurement) -> list[ProbeError]:
    """Errors at every probe point, in the order of the computation."""
    out = []
    for (step, name), value in measured.points.items():
        wanted = reference.points[step, name]
        error = (value - wanted).abs()
        out.append(
            ProbeError(step, name, tuple(value.shape), error.max().item(), error.mean().item(), wanted.abs().max().item())
        )
    return out


def _parts(ids: Sequence[int]) -> list[list[int]]:
    """What is processed as a prompt and, when there are two tokens or more, the last one, processed as a decoded token."""
    return [list(ids[:-1]), list(ids[-1:])] if len(ids) > 1 else [list(ids)]


def _forward(suite: Suite, decoder: Decoder, ids: Sequence[int], rows: Sequence[Tensor | None]) -> None:
    """Prompt batch, then the last token; the decoder's probe sees both."""
    cache, position = decoder.new_cache(), 0
    for part, share in zip(_parts(ids), rows, strict=True):
        shape = (len(part), decoder.architecture.vocabulary)
        with torch.inference_mode():
            suite.run(decoder.forward(suite.input(shape, share, 0), cache, position))
        position += len(part)


class _WeightShares:
    """Shares of the weights, each made when the first party asks for it, as real parties would hold them."""

    def __init__(self, checkpoint: Checkpoint, parties: int) -> None:
        self._checkpoint = checkpoint
        self._parties = parties
        self._made: dict[str, list[Tensor]] = {}
        self._lock = threading.Lock()

    def share(self, name: str, party: int, suite: Suite) -> Tensor:
        """A party's share: int64 in Z_2^64, with the fraction bits that the suite wants."""
        wanted: int = getattr(suite, "weight_fraction_bits", SHARED_BITS)
        shared = min(wanted, SHARED_BITS)
        with self._lock:
            if name not in self._made:
                self._made[name] = _share(self._checkpoint.weights[name], shared, self._parties)
            return self._made[name][party] << (wanted - shared)


def _share(x: Tensor, fraction_bits: int, parties: int) -> list[Tensor]:
    """Additive shares in Z_2^64."""
    rest = encode(x, fraction_bits).clone()
    shares = [Prg(new_seed()).ring(x.shape) for _ in range(parties - 1)]
    for share in shares:
        rest -= share
    return [*shares, rest]


def _findings(
    flags: Sequence[Tensor | None], step: int, suite_name: str, options: Mapping[str, Any]
) -> tuple[RangeFinding, ...]:
    """What the parties' shares of an output's range flags say; nothing where the suite has none."""
    shares = [share for share in flags if share is not None]
    return findings_in(open_flags(shares), step, suite_name, options) if shares else ()


def _open(shares: Sequence[OutputShare]) -> Tensor:
    total = torch.zeros_like(shares[0].share)
    for share in shares:
        total += share.share
    return decode(reduce(total, shares[0].bits), shares[0].fraction_bits, shares[0].bits)
