"""Conversations as prompts, by the template of the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from models.tokenizer.chat_template import ChatTemplate
from models.tokenizer.text import TextTokenizer
from mpc.errors import CheckpointError, ConfigurationError
from tests.models.random_checkpoints import byte_tokenizer

LLAMA_LIKE = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def folder_with(tmp_path: Path, template: str | None) -> Path:
    byte_tokenizer(tmp_path)
    settings = {"bos_token": "!", **({} if template is None else {"chat_template": template})}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_as_transformers(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, LLAMA_LIKE)
    messages = [{"role": "user", "content": " Hé "}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    text = ChatTemplate.load(folder).render(messages)
    assert text == "![user]Hé[assistant]b[user]c[assistant]"
    oracle = PreTrainedTokenizerFast.from_pretrained(folder).apply_chat_template(messages, add_generation_prompt=True)
    assert TextTokenizer.load(folder, ()).encode(text, special=False) == list(oracle["input_ids"])


def test_a_template_of_its_own_file(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, None)
    with pytest.raises(CheckpointError, match=r"no chat template in tokenizer_config\.json or chat_template\.jinja"):
        ChatTemplate.load(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert ChatTemplate.load(folder).render([{"role": "user", "content": "x"}]) == "x"


def test_what_a_template_refuses(tmp_path: Path) -> None:
    template = ChatTemplate.load(folder_with(tmp_path, LLAMA_LIKE))
    with pytest.raises(ConfigurationError, match="the model's chat template refuses these messages: roles must alternate"):
        template.render([{"role": "assistant", "content": "x"}])
    with pytest.raises(ConfigurationError, match="the conversation is empty"):
        template.render([])


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.mark.parametrize(
    ("template", "ids", "texts"),
    [
        (CHATML, (301,), []),
        (CHATML.replace("<|im_end|>", " </s>"), (302,), []),
        (CHATML.replace("<|im_end|>\n", ""), (300,), []),  # the next turn's beginning is the only end there is
        (CHATML.replace("<|im_end|>", "###End"), (), ["###End"]),
        (LLAMA_LIKE, (), ["[user]"]),
        ("{% for m in messages %}{{ '\\n' + m.role }}: {{ m.content }}{% endfor %}", (), ["\nuser:"]),
        ("{% for m in messages %}{{ m.content }}\n--\n{% endfor %}", (), []),
        ("{{ messages[-1].content }}", (), []),
        ("{% if messages | length > 1 %}{{ raise_exception('one message') }}{% endif %}", (), []),
    ],
)
def test_the_end_of_a_turn(tmp_path: Path, template: str, ids: tuple[int, ...], texts: list[str]) -> None:
    folder = folder_with(tmp_path, template)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    names = {"300": "<|im_start|>", "301": "<|im_end|>", "302": "</s>", "303": "\n"}
    settings["added_tokens_decoder"] = {n: {"content": text, "special": n == "302"} for n, text in names.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    words = TextTokenizer.load(folder, ())
    found = ChatTemplate.load(folder, words).turn_end
    assert found.texts == texts
    assert [words.transformers.convert_ids_to_tokens(n) for n in found.ids] == [names[str(n)] for n in ids]


def test_a_template_stays_in_its_sandbox(tmp_path: Path) -> None:
    template = ChatTemplate.load(folder_with(tmp_path, "{{ messages.__class__.__mro__[1].__subclasses__() }}"))
    with pytest.raises(ConfigurationError, match="refuses these messages"):
        template.render([{"role": "user", "content": "x"}])
