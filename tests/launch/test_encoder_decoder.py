"""An encoder-decoder at running parties, over gRPC with TLS, live and from tapes: by Python, by the gateway and by
`mpcache generate`, all with transformers' tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import yaml

from launch.serve.gateway.app import Gateway
from launch.serve.gateway.catalogue import Catalogue, Words
from launch.serve.gateway.settings import GatewaySettings
from models.checkpoint import load_tokenizer, read_architecture
from mpc.errors import TapeError
from mpcache import PrivateModel
from parties.tapes.deal import DealOrder, DealSpec, deal
from protocols.registry import SuiteSpec
from tests.launch.conftest import Command
from tests.launch.serve.gateway_harness import in_thread
from tests.models import random_encoder_decoders as checkpoints
from tests.models.random_encoders import letters
from tests.parties.deployment import Deployment

PROMPT, NEW = "abcab", 2
PENALTY = {"repetition_penalty": 3.0}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with a tokenizer of letters, and transformers' model of it."""
    folder = tmp_path_factory.mktemp("t5")
    model = checkpoints.save("t5-one-layer-each", folder)
    letters(folder)
    return folder, model


def theirs(model: Any, ids: list[int], **options: Any) -> torch.Tensor:
    """What transformers' `generate` returns, without its cache, which has layers of the encoder's number."""
    usual = {"max_new_tokens": NEW, "do_sample": False, "use_cache": False, "attention_mask": torch.ones(1, len(ids))}
    with torch.inference_mode():
        found: torch.Tensor = model.generate(torch.tensor([ids]), **usual, **options)
    return found


@pytest.mark.parametrize(("parties", "suite"), [(2, "masked"), (3, "crypten")])
def test_generations(parties: int, suite: str, tmp_path: Path, saved: tuple[Path, Any], command: Command) -> None:
    folder, hugging_face = saved
    tokenizer = load_tokenizer(folder, read_architecture(folder))
    ids = tokenizer.encode(PROMPT)
    wanted = theirs(hugging_face, ids)
    deployment = Deployment(tmp_path, parties, deadline_seconds=30)
    config = deployment.config("client", "client")
    try:
        for name in ("dealer", *deployment.names):
            deployment.start_one(name)
        deployment.share(folder, "t5")
        with PrivateModel.connect(config, tokenizer=folder, suite=suite, allow_logits=True) as model:
            if suite == "masked":
                found = model.generate(PROMPT, max_length=1 + NEW, **PENALTY)
                assert found.tolist() == theirs(hugging_face, ids, **PENALTY).tolist() != wanted.tolist()
                at_the_gateway(model, folder, len(ids), tokenizer.decode(wanted[0, 1:].tolist()))
                by_the_command(command, deployment, folder, wanted[0, 1:].tolist())
            else:
                assert model.generate(PROMPT, max_new_tokens=NEW).tolist() == wanted.tolist()
        for server in deployment.servers.values():
            server.stop()
        order = DealOrder(
            deployment.config("dealer", "dealer"),
            read_architecture(folder),
            DealSpec([len(ids)], NEW, suite=SuiteSpec(suite)),
        )
        deal(order, tmp_path / "tapes")
        for name in deployment.names:
            deployment.start_one(name, tapes=tmp_path / "tapes" / name)
        client: Any = deployment.client()
        assert client.ask(ids, NEW, suite=suite, stop_ids=()).tokens == wanted[0, 1:].tolist()
        with pytest.raises(TapeError, match=f"has no tape for a prompt of {len(ids)} tokens and {NEW} new tokens"):
            client.ask(ids, NEW, suite=suite, stop_ids=())
    finally:
        deployment.stop()


def at_the_gateway(model: PrivateModel, folder: Path, prompt_tokens: int, answer: str) -> None:
    """OpenAI's completions, and an answer that no position is left for."""
    catalogue = Catalogue(model.client, Words.load(folder), {})
    catalogue.refresh()
    with in_thread(Gateway(model.client, catalogue, GatewaySettings(SuiteSpec("masked")))) as address:
        api = openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0, timeout=60)
        said = api.completions.create(model="t5", prompt=PROMPT, max_tokens=NEW)
        assert said.choices[0].text == answer
        assert said.usage is not None
        assert (said.usage.prompt_tokens, said.usage.completion_tokens) == (prompt_tokens, NEW)
        with pytest.raises(openai.BadRequestError, match="prompt and completion may have 32768 tokens each"):
            api.completions.create(model="t5", prompt=PROMPT, max_tokens=40000)


def by_the_command(command: Command, deployment: Deployment, folder: Path, tokens: list[int]) -> None:
    """`mpcache generate --config`, and what is refused before anybody is asked."""
    file = deployment.folder / "client.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(deployment.values("client", "client"), default=str))))
    options = ("--config", file, "--model", folder, "--name", "t5", "--prompt", PROMPT, "--max-new-tokens", NEW, "--json")
    found = command("generate", *options)
    assert found.code == 0, found.err
    assert json.loads(found.out)["tokens"] == tokens
    refused = command("generate", *options, "--policy", "h2o:budget=0.5")
    assert refused.code == 2
    assert "'t5' reads its prompt with an encoder" in refused.err
