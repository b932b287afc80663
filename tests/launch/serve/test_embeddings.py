"""/v1/embeddings, asked by the package openai: vectors are those of plaintext, and what cannot work is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch

from launch.serve.gateway.app import Gateway
from launch.serve.gateway.catalogue import Catalogue, Words
from launch.serve.gateway.settings import GatewaySettings
from models.checkpoint import load_checkpoint
from models.encoding import EncoderInput, PlainEncoder
from parties.client.client import Client
from protocols.registry import SuiteSpec
from tests.launch.serve.gateway_harness import in_thread
from tests.models import random_encoders as encoders
from tests.parties.deployment import Deployment


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("encoder")
    encoders.save("distilbert", made)
    encoders.letters(made)
    return made


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[openai.OpenAI]:
    with Deployment(tmp_path_factory.mktemp("deployment"), 2, deadline_seconds=30) as deployment:
        deployment.share(folder, "sentences")
        client = Client(deployment.config("client", "client"), keep_connections=True)
        catalogue = Catalogue(client, Words.load(folder), {})
        catalogue.refresh()
        with in_thread(Gateway(client, catalogue, GatewaySettings(SuiteSpec("masked")))) as address:
            yield openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0, timeout=60)
        client.close()


def test_vectors_are_those_of_plaintext(api: openai.OpenAI, folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    plain = PlainEncoder(checkpoint)
    texts = ["ab", "dcba e"]
    for encoding in ("float", "base64"):  # the package decodes base64 itself where nothing is said
        format = {"encoding_format": encoding} if encoding == "float" else {}
        found = api.embeddings.create(model="sentences", input=texts, **format)
        assert [one.index for one in found.data] == [0, 1]
        for one, text in zip(found.data, texts, strict=True):
            ids = checkpoint.tokenizer.encode_pair(text).ids
            wanted = torch.nn.functional.normalize(plain.output(EncoderInput(ids), "mean"), dim=-1)[0]
            torch.testing.assert_close(torch.tensor(one.embedding), wanted, atol=1e-3, rtol=0)
    assert found.usage.prompt_tokens == sum(len(checkpoint.tokenizer.encode_pair(text).ids) for text in texts)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"input": "a" * 60}, "the text has .* 33 positions"),
        ({"input": [[3, 4]]}, "token ids are not read"),
        ({"input": "ab", "dimensions": 7}, "this model's embeddings have 42 dimensions"),
        ({"input": "ab", "extra_body": {"seed": 3}}, "Unrecognized request argument supplied: seed"),
    ],
)
def test_refusals(api: openai.OpenAI, values: dict[str, object], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        api.embeddings.create(model="sentences", **values)  # type: ignore[arg-type]


def test_an_encoder_completes_nothing(api: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="is an encoder, which writes no text") as found:
        api.completions.create(model="sentences", prompt="ab")
    assert found.value.param == "model"
