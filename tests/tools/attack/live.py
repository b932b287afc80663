"""A live deployment with a small model, for attacks: two parties and a dealer at 127.0.0.1, and what an adversary holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from parties.client.model_reference import ModelReference
from parties.identity.certificates import check
from parties.transport.connection import open_channel
from tests.parties.conftest import make_checkpoint
from tests.parties.deployment import Deployment

PROMPT = [3, 1, 4]
ADVERSARY = "mallory"  # a second client, with a certificate of the deployment


@contextmanager
def live(folder: Path, start: bool = True, **settings: Any) -> Iterator[Deployment]:
    """A deployment whose clients are "client" and `ADVERSARY`; settings: of all roles. Started unless asked otherwise."""
    deployment = Deployment(folder, **{"clients": ["client", ADVERSARY], "connect_seconds": 20, **settings})
    deployment.add(ADVERSARY, "client")
    try:
        yield deployment.start() if start else deployment
    finally:
        deployment.stop()


def shared(deployment: Deployment, name: str = "tiny") -> ModelReference:
    """The small model, shared among the parties."""
    return deployment.share(checkpoint(deployment), name)


def checkpoint(deployment: Deployment) -> Path:
    """The small model: GPT-2 with one layer, 40 tokens and 32 positions, random weights."""
    folder = deployment.folder / "checkpoint"
    return folder if folder.is_dir() else make_checkpoint(folder)


def channel(deployment: Deployment, server: str, name: str = ADVERSARY) -> grpc.Channel:
    """A connection to a server as `name`; the caller closes it."""
    return open_channel(check(deployment.certificates, name), deployment.peer(server))
