"""The largest values of every declared kind by layer, of an encoder that runs in plaintext over padded texts.

What a session pads is computed on as well, so calibration pads as sessions do and counts the rows of padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models.balancing import provable_bounds
from models.calibration.extremes import PROVABLE, TABLE, Extremes, Progress, RecordingSuite
from models.checkpoint import Checkpoint
from models.encoding import EncoderInput, PlainEncoder
from protocols.plain.suite import PlainValue, tensor_of
from protocols.suite import Linear, Norm, Value


class EncoderRecorder(RecordingSuite):
    """The suite `plain`, which notes extremes of what an encoder asks of it."""

    async def post_norm(self, x: Value, norm: Norm) -> Value:
        """As in `plain`; notes the rows that enter."""
        self.note_stream(x)
        return await super().post_norm(x, norm)

    async def linear(self, x: Value, layer: Linear, residual: Value | None = None) -> PlainValue:
        """As in `plain`; notes what does not write to the residual stream. Inputs are normalised rows, or of norm sqrt(D)
        at most like them."""
        found = await super().linear(x, layer, residual)
        if residual is None:
            self.note("logits" if self.place == self.places - 1 else "activation", found.tensor)
            bias = None if layer.bias is None else tensor_of(layer.bias)
            self.note(PROVABLE, provable_bounds(tensor_of(layer.weight), bias))
        return found


def measure_encoder(
    checkpoint: Checkpoint, sequences: Sequence[Sequence[int]], on_progress: Progress = lambda done, total: None
) -> Extremes:
    """Return the extremes of an encoder (loaded as float32) on token sequences, each no longer than its positions."""
    a = checkpoint.encoder
    suite = EncoderRecorder(a.layers + 1)
    model = PlainEncoder(checkpoint, suite=suite)
    for number, ids in enumerate(sequences):
        on_progress(number, len(sequences))
        model.output(EncoderInput(ids, place=0), a.usual_output)
    suite.at(0)
    tables = ["embedding.tokens", "embedding.positions", *(["embedding.types"] if a.types > 1 else [])]
    reach = sum(tensor_of(model.weights[name]).norm(dim=-1).max() for name in tables)
    suite.note(TABLE, torch.as_tensor(reach))
    on_progress(len(sequences), len(sequences))
    return Extremes(suite.kinds, suite.details, sum(len(ids) for ids in sequences))
