"""Parties of two ranks as processes: started by `mpcache party` and by `torchrun`; a rank that is killed; wrong numbers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

from launch.cli.main import __file__ as MPCACHE
from launch.serve.ranks import given_place
from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan, generate_plain
from mpc.errors import ConfigurationError, MpcacheError
from parties.client.client import Client, GenerationResult
from parties.client.request import GenerationRequest
from parties.client.sampling_params import SamplingParams
from parties.config.role_config import load_config
from parties.dealer.dealer import DealerServer
from parties.model_owner.model_owner import share_model
from tests.models.random_checkpoints import byte_tokenizer

PROMPT = [3, 1, 4, 1, 5]
TOKENS = 3
Ask = Callable[..., GenerationResult]


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 of one layer, wide enough for its matrices to be split."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    torch.manual_seed(5)
    sizes = {"vocab_size": 256, "n_positions": 48, "n_embd": 132, "n_layer": 1, "n_head": 3}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, initializer_range=0.2)).save_pretrained(folder)
    byte_tokenizer(folder)
    return folder


def children(pid: int) -> list[int]:
    """Ids of the processes that a process has started."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(one) for one in found] or [int(one) for task in threads for one in (task / "children").read_text().split()]


@pytest.fixture
def parties(roles: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Both parties with two ranks, party1's started by torchrun, and a dealer in this process."""
    launched = ["-m", "torch.distributed.run", "--nproc-per-node", "2", MPCACHE]
    commands = {"party0": ["-P", "-m", "launch.cli.main"], "party1": launched}
    processes = []
    dealer = DealerServer(load_config(roles / "dealer.yaml"))
    dealer.start()
    try:
        for name, words in commands.items():
            path = roles / f"{name}.yaml"
            values = yaml.safe_load(path.read_text())
            del values["tapes"]
            path.write_text(yaml.safe_dump({**values, "workers": 2, "connect_seconds": 90, "deadline_seconds": 10}))
            command = [sys.executable, *words, "party", "--config", str(path)]
            processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(MPCACHE).parents[2]))
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.communicate(timeout=30)
        dealer.stop()


def patient(roles: Path, wide_model: Path) -> Ask:
    """Share the model once both parties serve; what asks for tokens of it."""
    owner, client = (load_config(roles / f"{name}.yaml") for name in ("model-owner", "client"))
    share_model(owner.model_copy(update={"connect_seconds": 120.0}), wide_model, "wide")
    request = GenerationRequest(PROMPT, SamplingParams(TOKENS))
    return lambda **further: Client(client).generate(request, **further)


def test_parties_of_two_ranks(roles: Path, parties: list[subprocess.Popen[str]], wide_model: Path) -> None:
    """The tokens of plaintext, twice; then rank 1 of party0 is killed behind the first token: client and log name it."""
    ask = patient(roles, wide_model)
    expected = generate_plain(load_checkpoint(wide_model), PROMPT, GenerationPlan(len(PROMPT), TOKENS))
    assert [list(ask().tokens) for _ in range(2)] == [expected] * 2
    (rank,) = children(parties[0].pid)
    began = time.monotonic()
    with pytest.raises(MpcacheError, match="rank 1 of party0"):
        ask(on_token=lambda token: os.kill(rank, signal.SIGKILL))
    assert parties[0].wait(20) == 2
    assert time.monotonic() - began < 15
    said = parties[0].stderr.read() if parties[0].stderr is not None else ""
    assert "rank 1 of party0" in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, None), ({"RANK": "1", "WORLD_SIZE": "2"}, 1), ({"RANK": "0", "WORLD_SIZE": "2"}, 0)],
)
def test_places(roles: Path, environment: dict[str, str], expected: int | None) -> None:
    config = load_config(roles / "party0.yaml").model_copy(update={"workers": 2})
    place = given_place(config, environment)
    assert (None if place is None else place.rank) == expected


def test_that_torchrun_and_the_file_must_agree(roles: Path) -> None:
    config = load_config(roles / "party0.yaml").model_copy(update={"workers": 2})
    with pytest.raises(ConfigurationError, match=r"rank 2 of party0 was started as one of 3, 'workers' .* says 2: start as"):
        given_place(config, {"RANK": "2", "WORLD_SIZE": "3"})
    assert given_place(load_config(roles / "party0.yaml"), {"RANK": "0", "WORLD_SIZE": "1"}) is None
