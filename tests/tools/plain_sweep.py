"""Random checkpoints of every family in plaintext against transformers: logits, hidden states, pooled outputs, classes.

    python -m tests.tools.plain_sweep --seeds 10 [NAME ...]

Of each variant of `tests.models.random_checkpoints`, `random_encoder_decoders` and `random_encoders`, and of each seed from
--first on, a checkpoint of random sizes (`tests.models.random_sizes`); of decoders another one with random options
(`tests.models.random_options`). Some are refused by name, some transformers itself does not run. Prints a line a variant and
each reason once; exit code 1 where anything is further from transformers than 1e-4. A second a checkpoint.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import torch
from transformers.utils.logging import disable_progress_bar

from models.checkpoint import load_checkpoint
from models.encoding import EncoderInput, PlainEncoder
from models.generation import GenerationPlan, PlainModel, plain_logits
from models.outputs import Output
from mpc.errors import CheckpointError
from tests.models import random_checkpoints as checkpoints
from tests.models import random_encoder_decoders as encoder_decoders
from tests.models import random_encoders as encoders
from tests.models.random_options import options

TOLERANCE = 1e-4
LENGTH, NEW = 17, 6


def of_decoder(name: str, folder: Path, seed: int) -> Callable[[], float]:
    """Return what compares a checkpoint of random sizes with transformers."""
    model = checkpoints.save(name, folder, seed, seed)
    return lambda: logits_apart(model, folder, seed)


def of_options(name: str, folder: Path, seed: int) -> Callable[[], float]:
    """Return what compares one of random options."""
    kind, config, values = checkpoints.VARIANTS[name]
    checkpoints.VARIANTS["drawn"] = kind, config, values | options(config.model_type, seed)
    try:
        checkpoints.save("drawn", folder, seed)
        model = kind.from_pretrained(folder, attn_implementation="eager").eval()
        checkpoints.logits(model, checkpoints.prompt(model, LENGTH, seed))
    finally:
        del checkpoints.VARIANTS["drawn"]
    return lambda: logits_apart(model, folder, seed)


def logits_apart(model: Any, folder: Path, seed: int) -> float:
    """Return the largest error of a logit."""
    ids = checkpoints.prompt(model, LENGTH, seed)
    return float((plain_logits(load_checkpoint(folder), ids) - checkpoints.logits(model, ids)).abs().max())


def of_encoder_decoder(name: str, folder: Path, seed: int) -> Callable[[], float]:
    """Return what compares greedy tokens: 0 where they are equal, else infinity."""
    model = encoder_decoders.save(name, folder, seed, seed)
    ids = checkpoints.prompt(model, LENGTH, seed)

    def apart() -> float:
        found = PlainModel(load_checkpoint(folder)).generate(ids, GenerationPlan(LENGTH, NEW))
        return 0.0 if found == encoder_decoders.generated(model, ids, NEW) else float("inf")

    return apart


def of_encoder(name: str, folder: Path, seed: int) -> Callable[[], float]:
    """Return what compares every output of an encoder."""
    model = encoders.save(name, folder, seed, seed)
    ids, types = encoders.text(model, LENGTH, seed)

    def apart() -> float:
        wanted, plain = encoders.outputs(model, ids, types), PlainEncoder(load_checkpoint(folder))
        kinds = [kind for kind in get_args(Output) if kind in wanted and kind in plain.architecture.outputs]
        assert set(kinds) == set(wanted)
        errors = [plain.output(EncoderInput(ids, types, place=2), kind) - wanted[kind] for kind in kinds]
        return max(float(error.abs().max()) for error in errors)

    return apart


SWEEPS = (
    (checkpoints.VARIANTS, of_decoder),
    (checkpoints.VARIANTS, of_options),
    (encoder_decoders.VARIANTS, of_encoder_decoder),
    (encoders.VARIANTS, of_encoder),
)


def outcomes(name: str, make: Callable[[str, Path, int], Callable[[], float]], seeds: range) -> Iterator[tuple[str, str]]:
    """Yield of each seed what came out, in a word, and about it."""
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            try:
                compare = make(name, Path(folder), seed)
            except Exception as error:  # whatever transformers says of a config that it does not run
                yield "not run by transformers", str(error).strip().splitlines()[-1]
                continue
            try:
                apart = compare()
            except CheckpointError as error:
                yield "refused", str(error).replace(folder, "")
                continue
            yield ("right", "") if apart < TOLERANCE else ("WRONG", f"seed {seed}: {apart:.1e} apart")


def main() -> int:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=4)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    wrong = 0
    for variants, make in SWEEPS:
        for name in list(variants):
            if asked.names and name not in asked.names:
                continue
            found = list(outcomes(name, make, range(asked.first, asked.first + asked.seeds)))
            counts = Counter(word for word, _ in found)
            wrong += counts["WRONG"]
            print(f"{name}, {make.__name__[3:]}: {', '.join(f'{n} {word}' for word, n in counts.items())}", flush=True)
            for said in sorted({f"    {word}: {about}" for word, about in found if about}):
                print(said, flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
