"""A shared encoder as its user sees it, at parties of this machine that end with the block, or at running ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launch.local.deployment import local_deployment
from launch.terminal.console import err
from models.architectures import encoder_of
from models.checkpoint import Checkpoint, read_description
from models.encoder_architecture import EncoderArchitecture
from models.tokenizer.text import TextTokenizer
from parties.client.client import Client
from parties.client.private_model import PrivateModel
from parties.client.request import GenerationRequest
from parties.client.texts import TextReader
from parties.config.role_config import RoleConfig
from parties.wire.model_ranges import Ranges
from protocols.registry import SuiteSpec


@dataclass(frozen=True)
class EncoderFolder:
    """A checkpoint's folder, of which config.json and the tokenizer were read. Raises `ConfigurationError` for a decoder."""

    folder: Path
    architecture: EncoderArchitecture
    reader: TextReader
    tokenizer: TextTokenizer

    @classmethod
    def open(cls, folder: Path) -> EncoderFolder:
        """Read a folder; no weights are needed."""
        architecture = encoder_of(read_description(folder), f"--model {folder}")
        tokenizer = TextTokenizer.load(folder, ())
        return cls(folder, architecture, TextReader(architecture, tokenizer, folder), tokenizer)


@contextmanager
def started_encoder(
    checkpoint: Checkpoint, own: EncoderFolder, suite: SuiteSpec, started: tuple[int, str], ranges: Ranges | None
) -> Iterator[PrivateModel]:
    """Lend the model at compute parties, a dealer and a model owner that run as processes of this machine meanwhile.
    started: how many parties, and the device that they compute on."""
    name = checkpoint.directory.resolve().name
    with err.status("starting processes") as status, local_deployment(*started) as deployment:
        status.update("sharing the model")
        deployment.share_model(checkpoint.directory, name, ranges)
        status.stop()
        client = Client(deployment.client, keep_connections=True)
        defaults = GenerationRequest(suite=suite, model=client.find_model(name))
        with PrivateModel(client, defaults, own.tokenizer, own.folder) as model:
            yield model


@contextmanager
def running_encoder(config: RoleConfig, own: EncoderFolder, suite: SuiteSpec, name: str | None) -> Iterator[PrivateModel]:
    """Lend the model at running parties. name: its name or id, by default the folder's name."""
    wanted = name or own.folder.resolve().name
    with PrivateModel.connect(config, tokenizer=own.folder, model=wanted, suite=suite) as model:
        yield model
