"""The Python interface: Hugging Face's own generation is the oracle, and its streamers are what listens."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import (
    GenerationConfig,
    GPT2LMHeadModel,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
    TextStreamer,
)

from mpcache import Cancellation, Cancelled, ConfigurationError, PeerLost, PrivateModel
from parties.client.generation_options import DEFAULT_NEW_TOKENS, read_options
from parties.client.request import GenerationRequest
from parties.client.sampling_params import SamplingParams
from tests.parties.conftest import Running
from tests.parties.deployment import Deployment
from tests.parties.letters import answer, write_letters
from tests.parties.test_faults import idle
from tests.parties.toy import slow

PROMPT = [5, 17, 2, 30]


def config_file(deployment: Deployment, folder: Path) -> Path:
    """A client's configuration file."""
    path = folder / "client.yaml"
    values = {**deployment.values("client", "client"), "certificates": str(deployment.certificates)}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    return write_letters(tmp_path_factory.mktemp("letters"), checkpoint)


@pytest.fixture(scope="module")
def model(two: Running, letters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateModel]:
    """The toy program's model."""
    file = config_file(two.deployment, tmp_path_factory.mktemp("client"))
    with PrivateModel.connect(file, tokenizer=letters, model="tiny", suite="crypten") as connected:
        yield connected


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[PrivateModel]:
    """The real program on shares."""
    with Deployment(tmp_path_factory.mktemp("real"), 2, deadline_seconds=30) as deployment:
        deployment.share(checkpoint)
        config = deployment.config("client", "client")
        with PrivateModel.connect(config, allow_logits=True) as connected:
            yield connected


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> Any:
    return GPT2LMHeadModel.from_pretrained(checkpoint).eval()


# ---- against Hugging Face -----------------------------------------------------------------------------------------------
def test_greedy_as_hugging_face(real: PrivateModel, plain: Any) -> None:
    ids = torch.tensor([PROMPT])
    wanted = plain.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=39)
    found = real.generate(ids, max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(ids))
    assert found.dtype == torch.int64
    assert torch.equal(found, wanted)
    ends = int(wanted[0, 6])
    early = plain.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=ends, pad_token_id=39)
    assert torch.equal(real.generate(input_ids=PROMPT, max_length=9, eos_token_id=ends), early)


def test_logits_processors_as_hugging_face(real: PrivateModel, plain: Any) -> None:
    class Up(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            scores = scores.clone()
            scores[:, 7] += input_ids.shape[1]
            return scores

    ids = torch.tensor([PROMPT])
    greedy = plain.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=39)
    banned = int(greedy[0, 4])
    for options in (
        {"repetition_penalty": 3.0},
        {"suppress_tokens": [banned], "no_repeat_ngram_size": 1},
        {"bad_words_ids": [[banned]]},
        {"logits_processor": LogitsProcessorList([Up()])},
    ):
        wanted = plain.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=39, eos_token_id=None, **options)
        assert torch.equal(real.generate(ids, max_new_tokens=4, eos_token_id=[], **options), wanted), options
        assert not torch.equal(wanted, greedy)


def test_logits_are_returned(real: PrivateModel, plain: Any) -> None:
    found = real.generate(PROMPT, max_new_tokens=2, eos_token_id=[], return_dict_in_generate=True, output_logits=True)
    assert found.sequences.shape == (1, 6)
    assert [tuple(row.shape) for row in found.logits] == [(1, 40)] * 2
    with torch.no_grad():
        wanted = plain(found.sequences[:, :5]).logits[0, 3:]
    assert torch.allclose(torch.cat(found.logits).float(), wanted, atol=0.02)
    assert str(found.sequences.tolist()) not in repr(found)


# ---- text, streams ------------------------------------------------------------------------------------------------------
def test_text_and_chat(model: PrivateModel, letters: Path) -> None:
    assert model.complete("ab", max_new_tokens=4) == answer("ab", 4) == "cdef"
    assert len(model.complete("a")) == DEFAULT_NEW_TOKENS
    assert model.complete("ab", max_new_tokens=9, stop_strings=["ef"]) == "cd"
    assert model.complete("zj", max_new_tokens=9) == "JKL"  # without the end-of-text token
    assert model.chat([{"role": "user", "content": "ab"}], max_new_tokens=2) == "cd"
    assert list(model.stream("ab", max_new_tokens=3)) == ["c", "d", "e"]
    ids = model.generate("ab", max_new_tokens=9, stop_strings="ef")
    assert ids.tolist() == [[1, 2, 3, 4, 5, 6]]  # as transformers: the stop string stays
    stops = model.generate("ab", max_new_tokens=9, stopping_criteria=[lambda ids, scores: ids.shape[1] >= 5])
    assert stops.shape == (1, 5)
    encoded = PreTrainedTokenizerFast.from_pretrained(letters)("ab", return_tensors="pt")
    assert model.generate(**encoded, max_new_tokens=2).tolist() == [[1, 2, 3, 4]]
    config = GenerationConfig(max_new_tokens=3, num_beams=1)
    assert model.generate("ab", config).shape == (1, 5)
    assert model.generate("ab", config, max_new_tokens=1).shape == (1, 3)


def test_ends_that_are_special_tokens(two: Running, checkpoint: Path, tmp_path: Path) -> None:
    """Token 7, "g", is special and ends the chat template's turns."""
    letters = write_letters(tmp_path / "letters", checkpoint, special="g")
    messages = [{"role": "user", "content": "ab"}]
    file = config_file(two.deployment, tmp_path)
    with PrivateModel.connect(file, tokenizer=letters, model="tiny", suite="crypten") as model:
        assert model.complete("ab", max_new_tokens=7) == "cdefhi"
        assert model.complete("ab", max_new_tokens=7, stop_strings=["g"]) == "cdef"
        assert model.complete("ab", max_new_tokens=7, stop_token_ids=5) == "cd"
        assert model.chat(messages, max_new_tokens=7) == "cdef"
        assert model.chat(messages, max_new_tokens=7, eos_token_id=39) == "cdefhi"
        assert model.generate(messages, max_new_tokens=7)[0, -5:].tolist() == [3, 4, 5, 6, 7]


def test_streamers_of_transformers(model: PrivateModel, letters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(letters)
    model.generate("ab", max_new_tokens=3, streamer=TextStreamer(tokenizer))
    assert capsys.readouterr().out == "abcde\n"
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=30)
    thread = threading.Thread(target=model.generate, args=("ab",), kwargs={"max_new_tokens": 4, "streamer": streamer})
    thread.start()
    assert "".join(streamer) == "cdef"
    thread.join(30)
    failing = TextIteratorStreamer(tokenizer, timeout=30)
    with pytest.raises(ConfigurationError):
        model.generate("ab", num_beams=2, streamer=failing)
    assert "".join(failing) == "ab"  # whoever listens does not wait for ever


def test_leaving_a_stream_ends_the_session(model: PrivateModel, two: Running) -> None:
    two.toy.before_round = slow(0.03)
    for piece in model.stream("a", max_new_tokens=30):
        assert piece == "a"
        break
    idle(two.deployment)
    cancellation = Cancellation()
    with pytest.raises(Cancelled):
        model.generate(
            "a",
            max_new_tokens=30,
            cancellation=cancellation,
            stopping_criteria=[lambda ids, scores: bool(cancellation.cancel())],
        )
    idle(two.deployment)


def test_a_party_that_comes_back_is_waited_for(model: PrivateModel, two: Running) -> None:
    two.deployment.servers["party1"].stop()
    threading.Thread(target=lambda: two.deployment.start_one("party1"), daemon=True).start()
    assert model.complete("ab", max_new_tokens=1) == "c"


# ---- refusals -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "num_beams = 4 cannot work on shares: beam search"),
        ({"num_return_sequences": 2}, "one answer a call"),
        ({"output_scores": True}, "stays shared among the parties"),
        ({"output_attentions": True}, "attention stays shared"),
        ({"past_key_values": object()}, "past_key_values = object cannot work"),
        ({"repetition_penalty": 1.2}, "repetition_penalty: needs the logits at this client; connect with allow_logits=True"),
        ({"do_sample": True, "top_k": 5, "top_p": 0.5}, "top_k, top_p: needs the logits"),
        ({"output_logits": True}, "output_logits: needs the logits"),
        ({"temperature": 0.5}, "need do_sample=True"),
        ({"seed": 1}, "used once"),
        ({"max_length": 2}, "leaves no room after a prompt of 3 tokens"),
        ({"stop_strings": [""]}, "stop_strings"),
        ({"tempersture": 1}, "'tempersture' is not an option of private generation; known: .*temperature"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_options(options, 3, False)


def test_options_that_change_nothing() -> None:
    neutral = {"num_beams": 1, "use_cache": True, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "temperature": 1.0}
    found = read_options({**neutral, "pad_token_id": 3, "output_scores": False, "guidance_scale": None}, 3, False)
    assert (found.params.decoding, found.params.temperature, found.params.adjust) == ("greedy", None, None)
    sample = read_options({"do_sample": True, "temperature": 0.3}, 3, False).params
    assert (sample.decoding, sample.temperature) == ("sample", 0.3)
    filtered = read_options({"do_sample": True, "top_k": 4, "top_p": 0.9}, 3, True).params
    assert (filtered.decoding, filtered.temperature, filtered.top_k, filtered.top_p) == ("logits", 1.0, 4, 0.9)


def test_prompts_that_cannot_work(model: PrivateModel, real: PrivateModel) -> None:
    for inputs, message in (
        (torch.zeros(2, 3, dtype=torch.int64), r"input_ids has shape \[2, 3\]; give one prompt"),
        ([], "the prompt is empty"),
        ([99], "prompt token number 1 lies outside the model's vocabulary of 40 tokens"),
        ([1.5], "no text, no list of token ids"),
        ([1] * 30, "ask for at most 3"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            model.generate(inputs, max_new_tokens=20)
    with pytest.raises(ConfigurationError, match="padding is not supported"):
        model.generate([1, 2], attention_mask=torch.tensor([[0, 1]]))
    with pytest.raises(ConfigurationError, match="token_type_ids: only zeros"):
        model.generate([1, 2], token_type_ids=torch.tensor([[0, 1]]))
    with pytest.raises(ConfigurationError, match="give the prompt once"):
        model.generate()
    with pytest.raises(ConfigurationError, match="texts need a tokenizer"):
        real.generate("a")
    with pytest.raises(ConfigurationError, match="suite 'plain' keeps nothing secret"):
        model.generate([1], suite="plain")


def test_connecting(two: Running, checkpoint: Path, letters: Path, tmp_path: Path) -> None:
    config = two.deployment.config("client", "client", connect_seconds=0.5)
    with pytest.raises(ConfigurationError, match="no model fits 'huge'; all parties hold: tiny"):
        PrivateModel.connect(config, model="huge")
    other = write_letters(tmp_path / "other", checkpoint)
    text = (other / "config.json").read_text()
    (other / "config.json").write_text(text.replace('"n_layer": 1', '"n_layer": 2'))
    with pytest.raises(ConfigurationError, match="describes another architecture than the shared model 'tiny'"):
        PrivateModel.connect(config, tokenizer=other)
    nobody = two.deployment.config(
        "client", "client", connect_seconds=0.2, parties=[{"name": f"party{i}", "address": "127.0.0.1:1"} for i in range(2)]
    )
    with pytest.raises(PeerLost, match="party0: nothing listens") as caught:
        PrivateModel.connect(nobody)
    assert caught.value.peer == "party0"


def test_sampling_params_take_the_place_of_options(model: PrivateModel) -> None:
    assert model.generate("ab", SamplingParams(3)).tolist() == [[1, 2, 3, 4, 5]]
    assert model.complete("ab", SamplingParams(9, stop=("ef",))) == answer("ab", 2)
    assert model.complete("ab", SamplingParams(7, stop_token_ids=(5,))) == answer("ab", 2)
    assert model.generate("ab", SamplingParams(2), return_dict_in_generate=True).finish_reason == "length"
    with pytest.raises(ConfigurationError, match="max_new_tokens: give SamplingParams or options, not both"):
        model.generate("ab", SamplingParams(3), max_new_tokens=2)
    with pytest.raises(ConfigurationError, match="decoding 'logits': needs the logits at this client; connect with"):
        model.generate("ab", SamplingParams(3, "logits"))


def test_that_a_client_refuses_texts_to_stop_at(model: PrivateModel) -> None:
    request = GenerationRequest([1, 2], SamplingParams(3, stop=("ef",)), model=model.reference)
    with pytest.raises(ConfigurationError, match="stop: texts need a tokenizer"):
        model.client.generate(request)
