"""How far a suite's results are from plaintext, layer by layer.

INSECURE FOR REAL DATA BY NATURE: intermediate secrets are put together here. That is possible only because one process
makes all shares itself and runs all parties (`launch.local.in_process`); no command that talks to real parties imports this
file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from launch.local.in_process import InProcessSuite
from launch.local.shares import Part, WeightShares, additive_shares, opened
from models.architecture import Architecture
from models.attention import Rows
from models.cache import KVCache
from models.calibration.extremes import Extremes, Progress, RecordingSuite, StreamedModel, layer_weights
from models.checkpoint import Checkpoint
from models.decoder import StreamedDecoder
from models.generation import token_indices
from models.prompt_encoder import PromptEncoder
from mpc.errors import ConfigurationError, EnvironmentProblem
from protocols.range_findings import open_flags
from protocols.suite import OutputShare, Suite, Value

STEPS = ("prefill", "decode")
HEAD_COLUMNS = 1 << 14


@dataclass(frozen=True)
class ProbeError:
    """Errors at one probe point of one step. relative: the largest of a row's error's norm against the row's own norm;
    max_error, mean_error: of single values; largest: the largest plaintext value there."""

    step: str
    point: str
    shape: tuple[int, ...]
    relative: float
    max_error: float
    mean_error: float
    largest: float


@dataclass
class Measurement:
    """One run's values: `points` in order of their appearance, (step, name) -> rows. token: the most likely one after the
    last; on shares by the suite's own arg-max. flags: the range flags [kinds, places] as the client opens them, None where
    the suite has none. extremes: of the plaintext run."""

    points: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    token: int = 0
    flags: Tensor | None = None
    extremes: Extremes | None = None

    @property
    def logits(self) -> Tensor:
        """Return the logits, float64 [T, V]."""
        return torch.cat([self.points[step, "logits"] for step in STEPS if (step, "logits") in self.points])


def plaintext(checkpoint: Checkpoint, ids: Sequence[int], on_progress: Progress = lambda done, total: None) -> Measurement:
    """Run the suite `plain` in float64, one layer's weights at a time; load the checkpoint as float64."""
    token_indices(ids, checkpoint.architecture.vocabulary)
    suite = RecordingSuite(checkpoint.architecture.layers + 1, torch.float64)
    rows: dict[str, list[Tensor]] = {}
    note = lambda name, tensor: rows.setdefault(name, []).append(tensor)  # noqa: E731
    encoder = checkpoint.architecture.encoder  # its decoder is given the prompt's first token behind its own
    StreamedModel(checkpoint, suite, 1).run([list(ids)], note, on_progress)
    found = Measurement(extremes=Extremes(suite.kinds, suite.details, len(ids)))
    reading = () if encoder is None else _points_of_reading(encoder.layers)
    for step in STEPS:
        for name, pieces in rows.items():
            first = len(ids) if name in reading else len(_parts(ids)[0]) if encoder is None else 1
            whole = torch.cat(pieces)[slice(0, first) if step == STEPS[0] else slice(first, None)]
            if len(whole):
                found.points[step, name] = whole
    found.token = int(found.logits[-1].argmax())
    return found


def on_shares(
    checkpoint: Checkpoint,
    ids: Sequence[int],
    roles: InProcessSuite,
    on_progress: Progress = lambda done, total: None,
) -> Measurement:
    """Measure the same on shares, with all roles in this process; of the weights there is one layer at a time.

    The token table is cut to the rows that are asked for (the others are multiplied by 0 exactly), the head computed in
    pieces of columns, each behind the final norm: as many shares, masks and digits as they have would not fit otherwise.
    """
    architecture = checkpoint.architecture
    if roles.parties < 2:
        raise ConfigurationError(f"parties = {roles.parties}: at least 2 compute parties are needed")
    weights = WeightShares(checkpoint, roles.parties)
    used = sorted(set(ids))
    token_indices(ids, architecture.vocabulary)
    parts = _parts(ids) if architecture.encoder is None else [list(ids), list(ids[:1])]
    indices = [token_indices([used.index(i) for i in part], len(used)) for part in parts]
    prompts = [additive_shares(part, roles.parties) for part in indices]

    def program(suite: Suite, index: int | None) -> _Run:
        run = _Run(suite, architecture, lambda name, part: weights.share(suite, name, index, part), used)
        rows = [None if index is None else shares[index] for shares in prompts]
        run.all([len(part) for part in parts], rows, on_progress if index == 0 else lambda done, total: None)
        return run

    outputs = roles.run(program)
    found = Measurement()
    for key in outputs[0].points:
        found.points[key] = opened([run.points[key] for run in outputs])
    shares = [run.token for run in outputs if run.token is not None]
    found.token = round(float(opened(shares).item()))
    flags = [share.flags for share in shares if share.flags is not None]
    found.flags = open_flags(flags) if flags else None
    return found


class _Run:
    """One role's pass over a prompt and one more token, layer by layer. points: its shares; token: with its flags."""

    def __init__(
        self, suite: Suite, architecture: Architecture, own: Callable[[str, Part], Tensor | None], used: list[int]
    ) -> None:
        self.points: dict[tuple[str, str], OutputShare] = {}
        self.token: OutputShare | None = None
        self._suite, self._architecture, self._own, self._used = suite, architecture, own, used
        self._weights: dict[str, Value] = {}
        self._step = STEPS[0]
        self._decoder = StreamedDecoder(suite, architecture, self._weights, probe=self._probe)

    def _probe(self, name: str, value: Value) -> None:
        share = self._suite.output(value)
        before = self.points.get((self._step, name))  # pieces of logits
        self.points[self._step, name] = share if before is None else _side_by_side(before, share)

    def _load(self, names: Sequence[str], part: Part = None) -> None:
        """Load some weights; part: these rows of a table, these columns of the head."""
        self._weights.clear()
        shapes = self._architecture.weight_shapes()
        for name in names:
            shape = shapes[name] if part is None else tuple(torch.empty(shapes[name], device="meta")[part].shape)
            self._weights[name] = self._suite.run(self._suite.weight(name, shape, self._own(name, part)))

    @torch.inference_mode()
    def all(self, lengths: list[int], rows: Sequence[Tensor | None], on_progress: Progress) -> None:
        """Process prompt batch and last token, both in one layer before the next is loaded; then the token's arg-max. An
        encoder reads the whole prompt, and the decoder behind it its own first token and another one.

        lengths: tokens of what the client shared of both, `rows`."""
        suite, decoder, a = self._suite, self._decoder, self._architecture
        starts = [sum(lengths[:n]) for n in range(len(lengths))]
        cache = decoder.new_cache()
        streams = self._embedded(lengths, starts, rows)
        answer: list[Value] = []
        if a.encoder is not None:
            streams, answer = streams[:1], streams[1:]
        for layer in range(a.layers):
            on_progress(layer, a.layers + 1)
            if layer == a.encoder_layers and answer:
                streams = [self._read(streams[0], cache), *answer]
                lengths, starts = [1, 1], [0, 1]
            self._load(layer_weights(a, layer))
            for n, (h, start) in enumerate(zip(streams, starts, strict=False)):
                self._step, cache.seen, length = STEPS[n], start, lengths[n]
                bias = decoder.reading_bias(length) if a.reads(layer) else decoder.bias(start, length)
                angles = decoder.angles(start, length, start + length)
                streams[n] = suite.run(decoder.layer(h, cache, layer, Rows(length, angles, bias)))
            cache.layers[layer].k = cache.layers[layer].v = None
            cache.prompt.keys_and_values.clear()
        on_progress(a.layers, a.layers + 1)
        last: list[Value] = []
        heads = [name for name in a.weight_shapes() if name.startswith("head.")]
        for first in range(0, a.vocabulary, HEAD_COLUMNS):
            self._load(heads, (..., slice(first, first + HEAD_COLUMNS)))
            for n, h in enumerate(streams):
                self._step = STEPS[n]
                logits = suite.run(decoder.head(h, cache))
            last.append(logits[lengths[-1] - 1 :])
        self._choose(suite.concat(last, -1) if len(last) > 1 else last[0])
        on_progress(a.layers + 1, a.layers + 1)

    def _embedded(self, lengths: list[int], starts: list[int], rows: Sequence[Tensor | None]) -> list[Value]:
        """Return what enters the first layer: the streams of both steps; behind an encoder the second one enters the
        decoder's."""
        suite, decoder, a = self._suite, self._decoder, self._architecture
        self._load(["embedding.tokens"], (torch.tensor(self._used),))
        if a.learned_positions:
            tokens = self._weights["embedding.tokens"]
            self._load(["embedding.positions"])
            self._weights["embedding.tokens"] = tokens
        streams: list[Value] = []
        for step, length, start, share in zip(STEPS, lengths, starts, rows, strict=False):
            self._step = step
            indices = suite.indices(length, share, len(self._used))
            streams.append(suite.run(decoder.embedded(indices, start)))
        return streams

    def _read(self, h: Value, cache: KVCache) -> Value:
        """Let the cache hold what the encoder read, and return the decoder's first row."""
        self._step = STEPS[0]
        self._suite.run(self._decoder.read(h, cache))
        self._load(["embedding.start"])
        return self._decoder.started()

    def _choose(self, logits: Value) -> None:
        suite = self._suite
        indices = torch.arange(self._architecture.vocabulary, dtype=torch.int64, device=suite.device)
        one_hot = suite.run(suite.argmax(logits))
        self.token = replace(suite.output((one_hot * indices).sum(-1)), flags=suite.flags())


def hugging_face_logits(directory: Path, ids: Sequence[int], encoder: PromptEncoder | None = None) -> Tensor:
    """Return the logits [T, V] of the package transformers, in float64; of a decoder behind an encoder those after its own
    first token and after the prompt's first one, which it is given behind that."""
    try:
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
        from transformers.utils import logging
    except ImportError as error:
        raise EnvironmentProblem(f"transformers cannot be imported ({error}); `mpcache doctor` says more") from None
    logging.disable_progress_bar()
    kind = AutoModelForCausalLM if encoder is None else AutoModelForSeq2SeqLM
    model = kind.from_pretrained(directory, local_files_only=True, trust_remote_code=False, dtype=torch.float64)
    model.config._experts_implementation = "eager"  # grouped products are for float32
    given = {} if encoder is None else {"decoder_input_ids": torch.tensor([[encoder.start, ids[0]]]), "use_cache": False}
    with torch.inference_mode():
        logits: Tensor = model.eval()(input_ids=torch.tensor([list(ids)]), **given).logits[0]
    return logits.to(torch.float64)


def compare(reference: Measurement, measured: Measurement) -> list[ProbeError]:
    """Return the errors at every probe point, in the order of the computation."""
    out = []
    for step in STEPS:
        for (its, name), wanted in reference.points.items():
            if its != step:
                continue
            value = measured.points[step, name]
            error = (value - wanted).abs()
            relative = (error.norm(dim=-1) / wanted.norm(dim=-1).clamp(min=1e-30)).max().item()
            largest = wanted.abs().max().item()
            shape = tuple(value.shape)
            out.append(ProbeError(step, name, shape, relative, error.max().item(), error.mean().item(), largest))
    return out


def _parts(ids: Sequence[int]) -> list[list[int]]:
    """Return what is processed as a prompt and, when there are two tokens or more, the last one, processed as a decoded
    token."""
    return [list(ids[:-1]), list(ids[-1:])] if len(ids) > 1 else [list(ids)]


def _points_of_reading(layers: int) -> tuple[str, ...]:
    """Return the names of the points that an encoder of so many layers passes."""
    return ("embedding", *(f"layer {n}/{part}" for n in range(layers) for part in ("attention", "mlp")))


def _side_by_side(left: OutputShare, right: OutputShare) -> OutputShare:
    """Return two pieces of the same rows as one."""
    assert (left.bits, left.fraction_bits) == (right.bits, right.fraction_bits)
    return replace(left, share=torch.cat([left.share, right.share], -1))
