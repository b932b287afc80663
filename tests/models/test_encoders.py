"""The plain suite's outputs of encoders equal Hugging Face's, for random models of odd shapes."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from models.checkpoint import load_checkpoint
from models.encoder_architecture import Output
from models.encoding import EncoderInput, PlainEncoder
from tests.models import random_encoders as encoders

TOLERANCE = 1e-4
LENGTH = 13


@pytest.mark.parametrize("name", sorted(encoders.VARIANTS))
def test_outputs(name: str, tmp_path: Path) -> None:
    """Every output that the model has, with and without padding."""
    model = encoders.save(name, tmp_path)
    ids, types = encoders.text(model, LENGTH)
    wanted = encoders.outputs(model, ids, types)
    plain = PlainEncoder(load_checkpoint(tmp_path))
    seen = 0
    for output in get_args(Output):
        if output not in plain.architecture.outputs or (output == "pooled" and output not in wanted):
            continue
        seen += 1
        assert wanted[output].std() > 0.1  # the comparison below must be able to fail
        for padded in (LENGTH, LENGTH + 9):
            found = plain.output(EncoderInput(ids, types, place=2), output, padded)
            torch.testing.assert_close(found, wanted[output], atol=TOLERANCE, rtol=0)
    assert seen == len(wanted)
