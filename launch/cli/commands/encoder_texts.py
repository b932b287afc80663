"""What `mpcache classify` and `mpcache embed` share: texts from arguments or a file, an encoder's folder, where it runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.commands.generate import check_combination
from launch.cli.options import suite_options
from launch.local.checks import check_device, check_suite
from launch.terminal.console import out
from launch.terminal.texts import read_text_file
from mpc.errors import ConfigurationError

if TYPE_CHECKING:
    from launch.local.encoders import EncoderFolder
    from parties.client.private_model import PrivateModel

TextsArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Texts. Other users of this machine may see them; --file keeps them private.", show_default=False),
]
TextsFileOption = Annotated[
    Path | None, typer.Option("--file", help="File with a text a line; - for standard input. A tab separates two parts.")
]
NoPolicyOption = Annotated[str | None, typer.Option("--policy", hidden=True)]


@dataclass(frozen=True)
class Asked:
    """Where encoders run: `config` of running parties, or so many of this machine."""

    model: Path
    suite: str
    suite_option: list[str] | None
    parties: int | None
    device: str | None
    config: Path | None
    name: str | None
    trust_authority: bool


def read_texts(texts: list[str] | None, file: Path | None) -> list[str | tuple[str, str]]:
    """Return the texts of arguments or of a file. Raises `ConfigurationError` where both or none are given."""
    if bool(texts) == (file is not None):
        raise ConfigurationError("give texts as arguments, or --file FILE with one a line (- for standard input)")
    if file is None:
        return list(texts or [])
    from launch.cli.options import read_prompt

    content = read_prompt(None, file) if str(file) == "-" else read_text_file(file, "--file")
    found: list[str | tuple[str, str]] = []
    for number, line in enumerate(re.split("\r\n|\r|\n", content or ""), 1):
        if not line.strip():
            continue
        parts = line.split("\t")
        if len(parts) > 2:
            raise ConfigurationError(
                f"--file {file}: line {number} has {len(parts) - 1} tabs; a text has none, a pair of texts one between them"
            )
        found.append((parts[0], parts[1]) if len(parts) == 2 else line)
    if not found:
        raise ConfigurationError(f"--file {file} holds no text; write one a line")
    return found


def opened(asked: Asked, policy: str | None) -> EncoderFolder:
    """Return the model's folder. What the model cannot do is refused before anything is started or sent."""
    from launch.local.encoders import EncoderFolder

    if policy is not None:
        raise ConfigurationError(f"--policy {policy}: an encoder reads a text in one pass and has no cache; leave it out")
    check_suite(asked.suite)
    check_combination(
        asked.config, {"--parties": asked.parties, "--device": asked.device}, asked.trust_authority, asked.name
    )
    return EncoderFolder.open(asked.model)


@contextmanager
def asking(asked: Asked, own: EncoderFolder) -> Iterator[PrivateModel]:
    """Lend the model, at parties that are started or at running ones."""
    from launch.checkpoints.calibrating import calibration_for, warn_if_never_calibrated
    from launch.local.encoders import running_encoder, started_encoder
    from models.checkpoint import load_checkpoint
    from protocols.registry import SuiteSpec

    spec = SuiteSpec(asked.suite, options=suite_options(asked.suite_option))
    if asked.config is not None:
        from launch.serve.roles import load_role

        settings = load_role(asked.config, "client", asked.trust_authority)
        with running_encoder(settings, own, spec, asked.name) as model:
            warn_if_never_calibrated(model.reference)
            yield model
        return
    checkpoint = load_checkpoint(asked.model)
    ranges = calibration_for(asked.model, spec).suites
    device = check_device(asked.device or "cpu")
    with started_encoder(checkpoint, own, spec, (asked.parties or 2, device), ranges) as model:
        yield model


def show(record: dict[str, object]) -> None:
    """Print a line of JSON."""
    out.print(json.dumps(record, ensure_ascii=False), soft_wrap=True, markup=False, highlight=False)
