"""`mpcache.json`: a checkpoint's calibration, beside it. Written atomically, believed only if it fits the weights.

It stays with the model owner: digest and extremes would let others test a guess at the weights. Only the chosen bounds
(`Calibration.suites`) go to parties and clients, as the owner's public settings.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.architecture import Architecture
from models.architectures import AnyArchitecture
from models.calibration.choice import Excess, chosen, excesses
from models.calibration.encoders import measure_encoder
from models.calibration.extremes import Extremes, Progress, as_json, measure
from models.calibration.sequences import read_text, sequences, text_digest
from models.checkpoint import Checkpoint, load_checkpoint, load_tokenizer
from models.digest import model_digest, weight_files
from mpc.errors import CheckpointError, ConfigurationError
from protocols.bounds import RANGES
from protocols.options import OptionValue
from protocols.ranges import checked_ranges
from protocols.registry import secure_suites

FILE = "mpcache.json"
MOST_BYTES = 1 << 22
WORTH_NOTING = 1 << 28  # bytes of weights whose digest takes long enough to note their files' times again

Options = dict[str, dict[str, int | str]]


class Record(BaseModel):
    """The file. stamps: size and time of each file that the digest covers: where all are the same, it is not made again."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1]
    version: Annotated[str, Field(max_length=64)]
    model_digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    stamps: dict[str, tuple[int, int]] = Field(strict=False)
    text_digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    tokens: Annotated[int, Field(ge=1)]
    suites: dict[str, dict[str, int | str]]
    extremes: dict[str, list[float]]
    details: dict[str, list[float]]


@dataclass(frozen=True)
class Calibration:
    """Chosen options by suite, the extremes that they come from, and where they are: `file` is None where the folder cannot
    be written. state: "found" in the file, "made" because there was none, "stale": made because it did not fit. text: a
    text was read; without a tokenizer none is, but ids spread over the vocabulary."""

    suites: Options
    extremes: Extremes = field(repr=False)
    digest: str
    file: Path | None
    state: Literal["found", "made", "stale"]
    text: bool = True

    def excesses(self, suite: str, options: Mapping[str, OptionValue] | None = None) -> list[Excess]:
        """Return what does not fit the bounds that `options` over the chosen ones declare."""
        return excesses(suite, {**self.suites.get(suite, {}), **(options or {})}, self.extremes)


def _stamps(directory: Path) -> dict[str, tuple[int, int]]:
    try:
        return {file.name: (s.st_size, s.st_mtime_ns) for file in weight_files(directory) for s in [file.stat()]}
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}") from None


def read_record(directory: Path) -> Record | None:
    """Return what the file says, whether it fits or not; None where there is none, or none of this format."""
    file = directory / FILE
    try:
        if file.stat().st_size > MOST_BYTES:
            return None
        record = Record.model_validate_json(file.read_bytes())
        checked_ranges(record.suites, str(file))
    except (OSError, ValidationError, ConfigurationError):
        return None
    if set(record.extremes) != set(RANGES) or len({len(v) for v in record.extremes.values()}) != 1:
        return None
    return record


def find(directory: Path, architecture: AnyArchitecture) -> Calibration | None:
    """Return the calibration beside a checkpoint if it fits it, else None."""
    record = read_record(directory)
    if record is None or any(len(values) != architecture.layers + 1 for values in record.extremes.values()):
        return None
    has_text = record.text_digest != text_digest(None)
    if not has_text and _has_tokenizer(directory, architecture):
        return None  # which reads a text better than ids that no text has
    stamps = _stamps(directory)
    if stamps != record.stamps:
        if model_digest(directory) != record.model_digest:
            return None
        if sum(size for size, _ in stamps.values()) >= WORTH_NOTING:
            _write(directory, record.model_copy(update={"stamps": stamps}))
    extremes = Extremes(record.extremes, record.details, record.tokens)
    return Calibration(record.suites, extremes, record.model_digest, directory / FILE, "found", has_text)


def _has_tokenizer(directory: Path, description: AnyArchitecture) -> bool:
    try:
        load_tokenizer(directory, description)
    except CheckpointError:
        return False
    return True


def make(
    directory: Path, text: Path | None = None, write: bool = True, on_progress: Progress = lambda done, total: None
) -> Calibration:
    """Calibrate a checkpoint on a text, and write the file if `write` and the folder can be written."""
    state: Literal["made", "stale"] = "stale" if (directory / FILE).exists() else "made"
    checkpoint: Checkpoint = load_checkpoint(directory, torch.float32)
    words = read_text(text, checkpoint)
    measured = measure if isinstance(checkpoint.description, Architecture) else measure_encoder
    extremes = measured(checkpoint, sequences(checkpoint, words), on_progress)
    suites = {suite: chosen(suite, extremes) for suite in secure_suites()}
    digest = model_digest(directory)
    from importlib.metadata import version

    record = Record(
        format=1,
        version=version("mpcache"),
        model_digest=digest,
        stamps=_stamps(directory),
        text_digest=text_digest(words),
        tokens=extremes.tokens,
        suites=suites,
        extremes=as_json(extremes.kinds),
        details=as_json(extremes.details),
    )
    file = directory / FILE if write and _write(directory, record) else None
    return Calibration(
        suites, Extremes(record.extremes, record.details, extremes.tokens), digest, file, state, words is not None
    )


def calibrated(
    directory: Path, on_make: Callable[[], None] = lambda: None, on_progress: Progress = lambda done, total: None
) -> Calibration:
    """Return the calibration beside a checkpoint; made on the built-in text where there is none that fits."""
    found = find(directory, load_checkpoint(directory).description)
    if found is not None:
        return found
    on_make()
    return make(directory, on_progress=on_progress)


def _write(directory: Path, record: Record) -> bool:
    """Write all of it or nothing: beside, then renamed. False where the folder cannot be written."""
    try:
        handle, name = tempfile.mkstemp(prefix=".mpcache-", suffix=".json", dir=directory)
    except OSError:
        return False
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(_text(record))
        os.chmod(name, 0o644)
        os.replace(name, directory / FILE)
    except OSError:
        Path(name).unlink(missing_ok=True)
        return False
    return True


def _text(record: Record) -> str:
    """Return the JSON with a line for each list."""
    values = record.model_dump(mode="json")
    nested = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items() if key not in nested]
    for key, value in nested.items():
        inner = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items())
        lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
