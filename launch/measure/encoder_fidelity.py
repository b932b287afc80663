"""How far a suite's results are from plaintext for an encoder, layer by layer.

INSECURE FOR REAL DATA BY NATURE, as `launch.measure.fidelity`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from launch.local.in_process import InProcessSuite
from launch.local.shares import Part, WeightShares, additive_shares, opened
from launch.measure.fidelity import STEPS, Measurement
from models.calibration.encoders import EncoderRecorder
from models.calibration.extremes import Extremes, Progress
from models.checkpoint import Checkpoint
from models.config import read_json
from models.encoder import Batch, StreamedEncoder
from models.encoder_architecture import EncoderArchitecture
from models.encoding import EncoderInput, EncodingPlan, PlainEncoder, padded_length, shared_rows
from models.outputs import Output
from mpc.errors import ConfigurationError, EnvironmentProblem
from protocols.plain.suite import tensor_of
from protocols.range_findings import open_flags
from protocols.suite import OutputShare, Suite, Value

TABLES = "embedding."
LAYER = "layers."


@dataclass(frozen=True)
class CheckedText:
    """A text to compare with. kind: the output that the checkpoint was trained for."""

    text: EncoderInput
    plan: EncodingPlan

    @classmethod
    def of(cls, checkpoint: Checkpoint, ids: Sequence[int], types: Sequence[int] = ()) -> CheckedText:
        """Return it for tokens, special ones included. Raises `ConfigurationError` for more than the model's positions."""
        a = checkpoint.encoder
        length = padded_length(len(ids), a.positions)
        return cls(EncoderInput(ids, types, place=len(ids) // 2), EncodingPlan((length,), a.usual_output))

    @property
    def kind(self) -> Output:
        """Return the output."""
        return self.plan.output


def plaintext(checkpoint: Checkpoint, checked: CheckedText) -> Measurement:
    """Run the suite `plain` in float64; load the checkpoint as float64. The output is among the points, as it leaves the
    program."""
    a = checkpoint.encoder
    suite = EncoderRecorder(a.layers + 1, torch.float64)
    found = Measurement()

    def note(name: str, value: Value) -> None:
        found.points[STEPS[0], name] = tensor_of(value)

    rows = shared_rows(a, checked.plan, [checked.text])
    PlainEncoder(checkpoint, torch.float64, suite).run(rows, checked.plan, note)
    found.extremes = Extremes(suite.kinds, suite.details, len(checked.text.ids))
    return found


def on_shares(
    checkpoint: Checkpoint, checked: CheckedText, roles: InProcessSuite, on_progress: Progress = lambda done, total: None
) -> Measurement:
    """Measure the same on shares, with all roles in this process; of the weights there is one layer at a time."""
    if roles.parties < 2:
        raise ConfigurationError(f"parties = {roles.parties}: at least 2 compute parties are needed")
    a, plan = checkpoint.encoder, checked.plan
    weights = WeightShares(checkpoint, roles.parties)
    shares = additive_shares(shared_rows(a, plan, [checked.text]), roles.parties)

    def program(suite: Suite, index: int | None) -> _Run:
        run = _Run(suite, a, lambda name, part: weights.share(suite, name, index, part))
        given = None if index is None else shares[index]
        run.all(plan, given, on_progress if index == 0 else lambda done, total: None)
        return run

    outputs = roles.run(program)
    found = Measurement()
    for key in outputs[0].points:
        found.points[key] = opened([run.points[key] for run in outputs])
    last = [run.points[STEPS[0], checked.kind] for run in outputs]
    flags = [share.flags for share in last if share.flags is not None]
    found.flags = open_flags(flags) if flags else None
    return found


class _Run:
    """One role's pass over a text, layer by layer. points: its shares, the output's with its flags."""

    def __init__(self, suite: Suite, architecture: EncoderArchitecture, own: Callable[[str, Part], Tensor | None]) -> None:
        self.points: dict[tuple[str, str], OutputShare] = {}
        self._suite, self._architecture, self._own = suite, architecture, own
        self._weights: dict[str, Value] = {}
        self._encoder = StreamedEncoder(suite, architecture, self._weights, self._probe)

    def _probe(self, name: str, value: Value) -> None:
        self.points[STEPS[0], name] = self._suite.output(value)

    def _load(self, names: Sequence[str]) -> None:
        self._weights.clear()
        shapes = self._architecture.weight_shapes()
        for name in names:
            self._weights[name] = self._suite.run(self._suite.weight(name, shapes[name], self._own(name, None)))

    @torch.inference_mode()
    def all(self, plan: EncodingPlan, share: Tensor | None, on_progress: Progress) -> None:
        """Run the whole encoder."""
        suite, encoder, a = self._suite, self._encoder, self._architecture
        texts = Batch.shared(suite, a, plan.batches[0], share)
        names = list(a.weight_shapes())
        self._load([name for name in names if name.startswith(TABLES)])
        rows = suite.run(encoder.embedded(texts))
        for layer in range(a.layers):
            on_progress(layer, a.layers)
            self._load([name for name in names if name.startswith(f"{LAYER}{layer}.")])
            rows = suite.run(encoder.layer(rows, texts, layer))
        self._load([name for name in names if not name.startswith((TABLES, LAYER))])
        suite.run(encoder.output(rows, texts, plan.output))
        key = STEPS[0], plan.output
        self.points[key] = replace(self.points[key], flags=suite.flags())
        on_progress(a.layers, a.layers)


def hugging_face_output(directory: Path, checked: CheckedText) -> Tensor:
    """Return the output of the package transformers, in float64, without padding."""
    try:
        import transformers
    except ImportError as error:
        raise EnvironmentProblem(f"transformers cannot be imported ({error}); `mpcache doctor` says more") from None
    transformers.utils.logging.disable_progress_bar()
    kind, text = checked.kind, checked.text
    named = (read_json(directory / "config.json").get("architectures") or ["AutoModel"])[0]
    reader: Any = transformers.AutoModel if kind == "mean" else getattr(transformers, str(named))
    model = reader.from_pretrained(directory, local_files_only=True, trust_remote_code=False, dtype=torch.float64)
    types = {"token_type_ids": torch.tensor([list(text.types)])} if any(text.types) else {}
    with torch.inference_mode():
        found = model.eval()(torch.tensor([list(text.ids)]), **types)
    if kind == "mean":
        return torch.as_tensor(found.last_hidden_state[0].mean(0, keepdim=True))
    logits = found.prediction_logits if hasattr(found, "prediction_logits") else found.logits
    if kind == "words":
        assert text.place is not None
        return torch.as_tensor(logits[0, text.place : text.place + 1])
    return torch.as_tensor(logits[0] if kind == "labels" else logits)
