"""The tokenizer classes that families' checkpoints usually name load, and give a text back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers

from models.tokenizer.text import TextTokenizer
from tests.models import random_checkpoints as checkpoints

BYTE_LEVEL = [
    "GPT2TokenizerFast",  # GPT-2, OPT, GPT-J, StarCoder2, Granite, OLMo 2
    "GPTNeoXTokenizerFast",  # GPT-NeoX, Pythia, StableLM
    "Qwen2TokenizerFast",  # Qwen2 and Qwen3
    "PreTrainedTokenizerFast",  # LLaMA 3, SmolLM3, Falcon
    "LlamaTokenizerFast",  # LLaMA 2, Mistral, Phi-3
]
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]


@pytest.mark.parametrize("kind", BYTE_LEVEL)
def test_byte_level_classes(kind: str, tmp_path: Path) -> None:
    checkpoints.byte_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    tokenizer = TextTokenizer.load(tmp_path, ())
    assert tokenizer.decode(tokenizer.encode("Hello, wörld")) == "Hello, wörld"


@pytest.mark.parametrize("kind", ["GemmaTokenizer", "GemmaTokenizerFast"])
def test_gemma(kind: str, tmp_path: Path) -> None:
    pieces = [*SPECIAL, *(f"<0x{b:02X}>" for b in range(256)), "\u2581", *"Helowrd", "He", "ll"]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    model = models.BPE(vocab=vocabulary, merges=[("H", "e"), ("l", "l")], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind} | names))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2"}))
    found = TextTokenizer.load(tmp_path, ())
    assert found.decode(found.encode("Hello wörld!")) == "Hello wörld!"
