"""Random Hugging Face encoders of odd shapes, saved to a directory: the oracle of the encoders' tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)

from tests.models.random_sizes import drawn

BERT: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 60,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 52,
    "max_position_embeddings": 40,
}
DISTIL: dict[str, Any] = {
    "vocab_size": 97,
    "dim": 42,
    "n_layers": 2,
    "n_heads": 6,
    "hidden_dim": 70,
    "max_position_embeddings": 33,
}
ROBERTA: dict[str, Any] = BERT | {"type_vocab_size": 1, "max_position_embeddings": 42}

# name -> (model class, config class, config values)
VARIANTS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert": (BertModel, BertConfig, BERT),
    "bert-classes": (BertForSequenceClassification, BertConfig, BERT | {"num_labels": 5, "hidden_act": "relu"}),
    "bert-labels-one-head": (BertForTokenClassification, BertConfig, BERT | {"num_labels": 7, "num_attention_heads": 1}),
    "bert-words": (BertForMaskedLM, BertConfig, BERT | {"layer_norm_eps": 1e-3}),
    "bert-words-untied-one-type": (
        BertForMaskedLM,
        BertConfig,
        BERT | {"tie_word_embeddings": False, "hidden_act": "gelu_new", "type_vocab_size": 1},
    ),
    "roberta": (RobertaModel, RobertaConfig, ROBERTA),
    "roberta-classes": (RobertaForSequenceClassification, RobertaConfig, ROBERTA | {"num_labels": 3}),
    "roberta-labels": (RobertaForTokenClassification, RobertaConfig, ROBERTA | {"num_labels": 4}),
    "roberta-words": (RobertaForMaskedLM, RobertaConfig, ROBERTA),
    "distilbert": (DistilBertModel, DistilBertConfig, DISTIL),
    "distilbert-classes": (DistilBertForSequenceClassification, DistilBertConfig, DISTIL | {"num_labels": 3}),
    "distilbert-labels": (DistilBertForTokenClassification, DistilBertConfig, DISTIL | {"num_labels": 6}),
    "distilbert-words": (DistilBertForMaskedLM, DistilBertConfig, DISTIL),
}


def build(name: str, seed: int = 0, sizes: int = 0) -> Any:
    """A model in evaluation mode whose every parameter, gains and offsets included, is far from its neutral value. sizes: as
    in `random_checkpoints`."""
    torch.manual_seed(seed)
    model_class, config_class, values = VARIANTS[name]
    values = drawn(values, sizes) if sizes else values
    model = model_class(config_class(**values, attn_implementation="eager")).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            gain = parameter.dim() == 1 and key.endswith("weight")
            deviation = 0.3 if parameter.dim() == 1 else 0.15
            parameter.copy_(torch.randn_like(parameter) * deviation + (1.0 if gain else 0.0))
    return model


def save(name: str, directory: Path, seed: int = 0, sizes: int = 0, **options: Any) -> Any:
    """Build and save; returns the model."""
    model = build(name, seed, sizes)
    model.save_pretrained(directory, **options)
    return model


def text(model: Any, length: int, seed: int = 1) -> tuple[list[int], list[int]]:
    """Random token ids, and token types: of a second part from the middle on, where the model has them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, model.config.vocab_size, (length,), generator=generator).tolist()
    two = getattr(model.config, "type_vocab_size", 1) > 1
    return ids, [int(two and n >= length // 2) for n in range(length)]


def outputs(model: Any, ids: list[int], types: list[int], place: int = 2) -> dict[str, Tensor]:
    """Hugging Face's outputs of an unpadded text by this project's names; "words" at one place."""
    kinds = {"token_type_ids": torch.tensor([types])} if any(types) else {}
    with torch.inference_mode():
        found = model(torch.tensor([ids]), output_hidden_states=True, **kinds)
    hidden = found.hidden_states[-1][0]
    out = {"hidden": hidden, "cls": hidden[:1], "mean": hidden.mean(0, keepdim=True)}
    if getattr(found, "pooler_output", None) is not None:
        out["pooled"] = found.pooler_output
    if hasattr(found, "logits"):
        logits, name = found.logits, type(model).__name__
        if name.endswith("ForSequenceClassification"):
            out["classes"] = logits
        elif name.endswith("ForTokenClassification"):
            out["labels"] = logits[0]
        else:
            out["words"] = logits[0, place : place + 1]
    return out


def letters(directory: Path) -> None:
    """A tokenizer of single letters with BERT's special tokens, as tokenizer.json."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    vocabulary = {text: n for n, text in enumerate([*special, *"abcdefghijklmnopqrstuvwxyz "])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    pair = "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"
    ends = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS]:0 $A:0 [SEP]:0", pair=pair, special_tokens=ends)
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(directory / "tokenizer.json"))
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (directory / "tokenizer_config.json").write_text(json.dumps(values))
