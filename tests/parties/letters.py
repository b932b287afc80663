"""A tokenizer of 40 single characters for the toy program: letters count from 1, everything else is token 0.

The toy answers a prompt with the sum of its tokens and the numbers after it, so the answer to "ab" is "cdef...".
"""

from __future__ import annotations

import json
import string
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

LETTERS = "·" + string.ascii_lowercase + string.ascii_uppercase[:13]
TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('unknown role') }}{% endif %}<{{ m.content }}>{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


def write_letters(folder: Path, checkpoint: Path, chat: bool = True, special: str = "") -> Path:
    """A tokenizer's folder: tokenizer.json, the checkpoint's config.json and (chat) a template.

    special: a letter that is a special token and ends the assistant's turns; a longer text takes the place of "g".
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = [special if len(special) > 1 and c == "g" else c for c in LETTERS]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="·"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    if special:
        made.add_special_tokens([special])
    made.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "·"}
    if chat:
        end = "{% if m.role == 'assistant' %}" + special + "{% endif %}"
        settings["chat_template"] = TEMPLATE.replace(">{% endfor %}", end + ">{% endfor %}")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def answer(prompt: str, tokens: int) -> str:
    """What the toy says."""
    first = sum(max(0, LETTERS.find(c)) for c in prompt)
    return LETTERS[first : first + tokens]
