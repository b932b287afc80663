"""Folders of tokenizers of all kinds, made on the spot from a few lines of text."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LINES = [
    "The quick brown fox jumps over the lazy dog. It didn't, he said; we've seen none!",
    "Zürich, Ærø, naïve café — 漢字 and 🤖👩‍🚀 are characters of several bytes.",
    "Don't they 're-read' what I'm writing ? Yes , they do . She 's here n't there ' s",
    "  two spaces, then\ttabs\nand lines\n\n",
] * 3
TEXTS = [
    *LINES[:4],
    "",
    " ",
    " leading",
    "a<|im_end|>b <|im_start|> c<x>d",
    " <x> <sep>a <sep> b",
    "<s>hello</s> [UNK] ö\ufffd",
    "<0x41><0xE4> <unk>",
]
SPECIALS = ["<unk>", "<s>", "</s>"]


def describe(folder: Path, model_type: str = "llama", **settings: Any) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def byte_level(folder: Path) -> None:
    """As GPT-2 and Qwen2, with a few merges."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=330, special_tokens=["<|im_end|>"], initial_alphabet=alphabet)
    )
    made.save(str(folder / "tokenizer.json"))
    describe(folder, "qwen2", tokenizer_class="PreTrainedTokenizerFast", eos_token="<|im_end|>")


def sentencepiece_model(folder: Path, kind: str, **options: Any) -> None:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=written,
        model_type=kind,
        vocab_size=360,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=9,
        **options,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())


def sentencepiece_bpe(folder: Path) -> None:
    """As LLaMA 2: no tokenizer.json."""
    sentencepiece_model(folder, "bpe")
    describe(folder, tokenizer_class="LlamaTokenizer", add_bos_token=True, add_eos_token=False, legacy=False)


def sentencepiece_unigram(folder: Path) -> None:
    sentencepiece_model(folder, "unigram", user_defined_symbols=["<x>"])
    describe(folder, "qwen2", tokenizer_class="PreTrainedTokenizerFast")


def word_piece(folder: Path) -> None:
    """As BERT, whose decoded text is cleaned up."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(cleanup=False)
    made.train_from_iterator(LINES, trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]", "[CLS]"]))
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    made.save(str(folder / "tokenizer.json"))
    describe(folder, tokenizer_class="TokenizersBackend", clean_up_tokenization_spaces=True, unk_token="[UNK]")


def vocabulary_and_merges(folder: Path) -> None:
    """As old GPT-2 folders: no tokenizer.json, no class."""
    byte_level(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))


def in_python(folder: Path) -> None:
    """A tokenizer that is not the package tokenizers': a token says whether the next one continues it."""
    words = ["<unk>", "a", "the", "o@@", "n@@", "n</w>", "e</w>", "s</w>", "a</w>", "x@@"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\no n</w>\n")
    describe(folder, tokenizer_class="CTRLTokenizer", unk_token="<unk>")


def added_in_the_settings(folder: Path) -> None:
    """Tokens that stand in tokenizer_config.json alone, with all their flags."""
    byte_level(folder)
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": False}
    added = {
        "330": {**flags, "content": "<|im_start|>", "special": True},
        "331": {**flags, "content": "<x>", "single_word": True},
        "332": {**flags, "content": "<sep>", "lstrip": True, "rstrip": True, "special": True},
        "333": {**flags, "content": "fox", "normalized": True},
    }
    describe(folder, "qwen2", tokenizer_class="PreTrainedTokenizerFast", added_tokens_decoder=added, add_prefix_space=True)


def added_in_their_own_file(folder: Path) -> None:
    """added_tokens.json and special_tokens_map.json, as transformers 4 wrote them."""
    vocabulary_and_merges(folder)
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_start|>": 330, "<sep>": 331}))
    named = {"eos_token": "<|im_start|>", "additional_special_tokens": ["<sep>"], "unk_token": "<|im_end|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    describe(folder, "gpt2", tokenizer_class="GPT2Tokenizer")


def named_only(folder: Path) -> None:
    """Special tokens that are nothing but a name in tokenizer_config.json."""
    byte_level(folder)
    describe(
        folder,
        "llama",
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token="<s>",
        eos_token={"__type": "AddedToken", "content": "</s>", "lstrip": True, "special": True},
        additional_special_tokens=["<sep>"],
        add_bos_token=True,
        add_eos_token=True,
    )


def llama_from_json(folder: Path) -> None:
    """A tokenizer.json whose class makes its own pre-tokenizer."""
    sentencepiece_bpe(folder)
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    made.add_tokens([AddedToken("<x>", lstrip=True), AddedToken("<|im_end|>", special=True)])
    (folder / "tokenizer.model").unlink()
    made.save(str(folder / "tokenizer.json"))
    describe(folder, tokenizer_class="LlamaTokenizerFast", add_prefix_space=False, add_eos_token=True)


def t5_sentencepiece(folder: Path) -> None:
    """As T5: spiece.model, a prompt that ends with </s>, tokens that stand for what is left out."""
    sentencepiece_model(folder, "unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (folder / "tokenizer.model").rename(folder / "spiece.model")
    describe(
        folder, "t5", tokenizer_class="T5Tokenizer", extra_ids=3, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def t5_from_json(folder: Path) -> None:
    """The same as tokenizer.json, as transformers writes it."""
    t5_sentencepiece(folder)
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    (folder / "spiece.model").unlink()


FOLDERS: dict[str, Callable[[Path], None]] = {
    made.__name__: made
    for made in (
        byte_level,
        sentencepiece_bpe,
        sentencepiece_unigram,
        word_piece,
        vocabulary_and_merges,
        in_python,
        added_in_the_settings,
        added_in_their_own_file,
        named_only,
        llama_from_json,
        t5_sentencepiece,
        t5_from_json,
    )
}
