"""Fixtures of the launcher's tests: the command in this process, a tiny text model, a running local deployment."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

from launch.cli import main as cli
from launch.local import signals
from launch.local.deployment import LocalDeployment, local_deployment
from launch.local.ports import free_ports
from launch.local.supervision import SCRATCH_VARIABLE
from launch.terminal.console import Settings
from parties.identity.certificates import create_deployment
from parties.names import Role
from tests import forked
from tests.models.random_checkpoints import byte_tokenizer
from tests.parties.deployment import with_fingerprints


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `mpcache ARGUMENTS` in this process."""
    monkeypatch.setattr(signals, "install", lambda: None)
    monkeypatch.setattr(Settings, "debug", False)
    monkeypatch.setenv("TERM", "dumb")

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mpcache", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return call


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 of one layer over bytes, 48 positions, with large weights so that choices are clear."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(5)
    sizes = {"vocab_size": 256, "n_positions": 48, "n_embd": 24, "n_layer": 1, "n_head": 3}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, initializer_range=0.3)
    GPT2LMHeadModel(config).save_pretrained(folder)
    byte_tokenizer(folder)
    return folder


@pytest.fixture
def roles(tmp_path: Path) -> Path:
    """A folder with the configurations of two parties, dealer, client and model owner."""
    names = ["party0", "party1", "dealer", "client", "model-owner"]
    kinds: list[Role] = ["party", "party", "dealer", "client", "model-owner"]
    marks = create_deployment(tmp_path / "certificates", dict(zip(names, kinds, strict=True)), days=1)
    addresses = dict(zip(names[:3], (f"127.0.0.1:{port}" for port in free_ports(3)), strict=True))
    for name in names:
        values = {
            "role": "party" if name.startswith("party") else name,
            "name": name,
            "certificates": "certificates",
            "parties": [{"name": n, "address": addresses[n]} for n in names[:2]],
            "dealer": {"name": "dealer", "address": addresses["dealer"]},
            "clients": ["client"],
            "model_owners": ["model-owner"],
        }
        if name in addresses:
            values["listen"] = addresses[name]
        if name.startswith("party"):
            values |= {"store": f"store-{name}", "tapes": f"tapes-{name}"}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(with_fingerprints(values, marks)))
    return tmp_path


@pytest.fixture(scope="session")
def running(text_model: Path) -> Iterator[LocalDeployment]:
    """Two parties and a dealer that hold `text_model` under the name "tiny"."""
    with local_deployment(2) as deployment:
        deployment.share_model(text_model, "tiny")
        yield deployment


def processes_of(folder: Path) -> list[int]:
    """Ids of processes whose environment names a temporary folder below `folder` as theirs."""
    found = forked.running(SCRATCH_VARIABLE, str(folder))
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if f"{SCRATCH_VARIABLE}={folder}".encode() in environment:
            found.append(int(entry.name))
    return found
