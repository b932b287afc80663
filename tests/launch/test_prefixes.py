"""Registered prefixes as people use them: `mpcache prefix`, `generate --prefix`, `store`, in Python and at the gateway."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from launch.local.deployment import LocalDeployment, local_deployment
from launch.serve.gateway.app import Gateway
from launch.serve.gateway.catalogue import Catalogue, Words
from launch.serve.gateway.settings import GatewaySettings
from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan, PlainModel
from parties.client.client import Client
from parties.client.private_model import PrivateModel
from tests.launch.conftest import Command
from tests.launch.serve.gateway_harness import in_thread

TEXT, PROMPT, NEW = "Terms of service: ", "may I?", 4


@pytest.fixture(scope="module")
def held(text_model: Path) -> Iterator[LocalDeployment]:
    """Parties that hold `text_model` under the name "tiny"."""
    with local_deployment(2) as deployment:
        deployment.share_model(text_model, "tiny")
        yield deployment


@pytest.fixture
def plain(text_model: Path) -> Any:
    """(text) -> the tokens that follow it in plaintext."""
    checkpoint = load_checkpoint(text_model)
    model = PlainModel(checkpoint)

    def tokens(text: str) -> list[int]:
        ids = checkpoint.tokenizer.encode(text)
        return model.generate(ids, GenerationPlan(len(ids), NEW))

    return tokens


def add(command: Command, held: LocalDeployment, text_model: Path, name: str, *more: object) -> str:
    given = ["--tokenizer", text_model, "--name", name, "--text", TEXT, *more]
    done = command("prefix", "add", "--config", held.folder / "model-owner.yaml", *given)
    assert done.code == 0, done.err
    return done.out


def test_commands(command: Command, held: LocalDeployment, text_model: Path, plain: Any, tmp_path: Path) -> None:
    client, owner = held.folder / "client.yaml", held.folder / "model-owner.yaml"
    for left in json.loads(command("prefix", "ls", "--config", client, "--json").out)["prefixes"]:  # by other tests
        assert command("prefix", "rm", "--config", owner, left["prefix"]).code == 0
    assert f"terms is registered: {len(TEXT)} tokens, its text is public" in add(command, held, text_model, "terms")
    assert "its text is shared among the parties" in add(command, held, text_model, "hidden", "--secret")
    listed = json.loads(command("prefix", "ls", "--config", client, "--json").out)["prefixes"]
    assert [(one["prefix"], one["tokens"], one["public"]) for one in listed] == [
        ("terms", len(TEXT), True),
        ("hidden", len(TEXT), False),
    ]
    assert "terms" in command("prefix", "ls", "--config", owner).out
    asked = ["--config", client, "--model", text_model, "--name", "tiny", "--max-new-tokens", NEW, "--json"]
    for given in (["--prefix", "terms", "--prompt", PROMPT], ["--prefix", "auto", "--prompt", TEXT + PROMPT]):
        answer = json.loads(command("generate", *asked, *given).out)
        assert (answer["tokens"], answer["prefix"]) == (plain(TEXT + PROMPT), "terms")
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT)
    hidden = json.loads(command("generate", *asked, "--prefix", "hidden", "--prompt-file", file).out)
    assert hidden["tokens"] == plain(TEXT + PROMPT)
    refused = command("generate", *asked, "--prefix", "none", "--prompt", PROMPT)
    assert refused.code == 2
    assert "prefix 'none': 0 of model 'tiny' fit; all parties hold: terms, hidden" in " ".join(refused.err.split())
    assert command("prefix", "rm", "--config", owner, "hidden").code == 0
    add(command, held, text_model, "parts", "--split", "8")
    assert "parts.2" in command("prefix", "ls", "--config", client).out
    assert command("prefix", "rm", "--config", owner, "parts.*").code == 0
    assert [one["prefix"] for one in json.loads(command("prefix", "ls", "--config", client, "--json").out)["prefixes"]] == [
        "terms"
    ]
    wrong = command("prefix", "rm", "--config", client, "terms")
    assert "role is 'client', not 'model-owner'; give the file of a model owner" in wrong.err
    served = command("serve", "--config", client, "--tokenizer", text_model, "--listen", "127.0.0.1:0", "--prefix", "none")
    assert (served.code, "--prefix 'none': no model that is offered has it; registered: terms" in served.err) == (2, True)
    assert "need --config" in command("generate", "--model", text_model, "--prefix", "x", "--prompt", "y").err


def test_a_partys_store(command: Command, held: LocalDeployment, text_model: Path, tmp_path: Path) -> None:
    add(command, held, text_model, "kept")
    party = held.folder / "party1.yaml"
    found = json.loads(command("store", "ls", "--config", party, "--json").out)
    names = {(one["kind"], one["name"]) for one in found["entries"]}
    assert {("model", "tiny"), ("prefix", "kept")} <= names
    assert 0 < found["prefix_bytes"] < found["max_prefix_bytes"]
    assert "are what was stored" in command("store", "verify", "--config", party).out
    assert "nothing is needless" in command("store", "gc", "--config", party).out
    copy = tmp_path / "copy"
    shutil.copytree(held.folder / "store-party1", copy)
    settings = tmp_path / "party1.yaml"
    settings.write_text(party.read_text().replace(str(held.folder / "store-party1"), str(copy)))
    rows = next(iter(sorted((copy / "pages").glob("prefix-*/0000.safetensors"))))
    rows.write_bytes(rows.read_bytes()[:-1] + b"?")
    checked = command("store", "verify", "--config", settings)
    assert checked.code == 1
    said = (
        "0000.safetensors is not what was stored (its SHA-256 differs); take it away and register it again (`mpcache prefi"
    )
    assert said in checked.out
    stranger = tmp_path / "party0.yaml"
    stranger.write_text((held.folder / "party0.yaml").read_text().replace(str(held.folder / "store-party0"), str(copy)))
    for words in ("ls", "verify", "gc"):
        refused = command("store", words, "--config", stranger)
        assert refused.code == 2
        assert "the store belongs to party party1 (format 1), this is party0" in refused.err
    for folder in [one for one in copy.iterdir() if one.name != "pages"]:
        shutil.rmtree(folder)
    (copy / "pages" / "prefix-left").mkdir()
    assert "would remove prefix" in command("store", "gc", "--config", settings, "--dry-run").out
    assert command("store", "gc", "--config", settings).code == 0
    assert sorted(one.name for one in (copy / "pages").iterdir()) == ["index", "lock"]


def test_in_python(command: Command, held: LocalDeployment, text_model: Path, plain: Any) -> None:
    add(command, held, text_model, "python")
    with PrivateModel.connect(held.client, tokenizer=text_model, model="tiny", prefix="python") as model:
        wanted = plain(TEXT + PROMPT)
        assert model.generate(PROMPT, max_new_tokens=NEW)[0, len(PROMPT) :].tolist() == wanted
        whole = model.generate(TEXT + PROMPT, max_new_tokens=NEW, prefix="auto", return_dict_in_generate=True)
        assert whole.result.prefix is not None
        assert whole.sequences[0, len(TEXT + PROMPT) :].tolist() == wanted
        assert model.generate(PROMPT, max_new_tokens=NEW, prefix=None)[0, len(PROMPT) :].tolist() == plain(PROMPT)


def test_at_the_gateway(command: Command, held: LocalDeployment, text_model: Path, plain: Any) -> None:
    add(command, held, text_model, "served")
    client, words = Client(held.client, keep_connections=True), Words.load(text_model)
    catalogue = Catalogue(client, words, {})
    catalogue.refresh()
    gateway = Gateway(client, catalogue, GatewaySettings(prefix="auto"))
    wanted = words.tokenizer.decode(plain(TEXT + PROMPT))
    try:
        with in_thread(gateway) as address:
            api = OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0)

            def ask(prompt: str, **more: Any) -> Any:
                return api.completions.create(model="tiny", prompt=prompt, max_tokens=NEW, temperature=0, **more)

            for more in ({}, {"extra_body": {"prefix": "served"}}):
                found = ask(TEXT + PROMPT, **more)
                assert found.choices[0].text == wanted
                assert found.usage.prompt_tokens == len(TEXT + PROMPT)
                assert found.usage.prompt_tokens_details.cached_tokens == len(TEXT)
            assert ask(TEXT + PROMPT, extra_body={"prefix": "off"}).usage.prompt_tokens_details is None
            with pytest.raises(openai.BadRequestError, match="does not begin with this prefix's text and go on"):
                ask(PROMPT, extra_body={"prefix": "served"})
            with pytest.raises(openai.NotFoundError, match=r"no such prefix of this model is registered: .*served"):
                ask(PROMPT, extra_body={"prefix": "other"})
            with pytest.raises(openai.BadRequestError, match="prefix"):
                ask(PROMPT, extra_body={"prefix": ""})
    finally:
        client.close()


def test_documents_between_prefix_and_prompt_from_the_command_line(
    command: Command, held: LocalDeployment, text_model: Path
) -> None:
    """The model of these tests has learned positions, so chunks reach it and are refused by name."""
    for name in ("document", "another"):
        add(command, held, text_model, name)
    asked = ["--config", held.folder / "client.yaml", "--model", text_model, "--name", "tiny", "--prompt", PROMPT]
    done = command("generate", *asked, "--chunks", "document", "--repair", "0.5", "--max-new-tokens", NEW)
    assert done.code == 2
    assert "has learned positions: a chunk's rows are right at their own place alone" in " ".join(done.err.split())
