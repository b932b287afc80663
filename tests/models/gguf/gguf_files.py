"""Small GGUF files of random Hugging Face models, written with the package gguf as llama.cpp's converter lays them out."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

WIDTH = 256
ROTARY = {
    "hidden_size": WIDTH,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-5,
}
GPT2 = {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 1024}
SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
SMALL_GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16}
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, ROTARY | {"tie_word_embeddings": True}),
    "llama-biases-untied": (LlamaForCausalLM, LlamaConfig, ROTARY | {"attention_bias": True, "mlp_bias": True}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, ROTARY | {"tie_word_embeddings": True}),
    "gpt2": (GPT2LMHeadModel, GPT2Config, GPT2),
    "gpt2-untied": (GPT2LMHeadModel, GPT2Config, GPT2 | {"tie_word_embeddings": False}),
}
Change = Callable[[gguf.GGUFWriter], None]

TEXTS = (
    "The cat sat on the mat, don't YOU see? It's 1234.5 cats!",
    "  two  spaces\n\n and\r\n lines\t ",
    "naïve ünïcödé € 𝄞 日本語",
    "<|end|>the<|end|> <|user|>cat",
    "x<s>the</s>",
    "a",
)
_WORDS = ("the", "cat", "sat", "on", "mat", "see", "It", "lines", "two", "12")


def byte_level(model: str = "gpt2", pre: str | None = "gpt-2") -> dict[str, Any]:
    """A byte-level vocabulary: bytes, merges to a few words with and without a space before, one control and user token.

    Every token can be reached by merges.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens, merges = list(alphabet), []
    chains = [tuple(word) for word in (*_WORDS, "ĠĠ", "ĊĊ")] + [("Ġ", word) for word in _WORDS]
    for left, *letters in chains:
        for letter in letters:
            if left + letter not in tokens:
                tokens.append(left + letter)
                merges.append(f"{left} {letter}")
            left += letter
    kinds = [1] * len(tokens) + [3, 4]
    values = {"model": model, "tokens": [*tokens, "<|end|>", "<|user|>"], "token_type": kinds, "merges": merges}
    ids = {"bos_token_id": len(tokens), "eos_token_id": len(tokens)}
    return values | ids | ({} if pre is None else {"pre": pre})


def sentencepiece() -> dict[str, Any]:
    """A sentencepiece vocabulary with bytes, letters and words, which scores order."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3, *[6] * 256]
    letters = sorted(set("".join(TEXTS)) & set("abcdefghijklmnopqrstuvwxyzTIYOU.,!?'<>/s") | {"▁"})
    pieces = ["▁t", "he", "▁the", "th", "▁c", "at", "▁cat", "▁s", "sat", "▁▁", "on", "▁on", "▁m", "mat", "ee", "see", "th"]
    pieces = list(dict.fromkeys(pieces))
    tokens += [*pieces, *letters, "<|user|>"]
    kinds += [1] * (len(pieces) + len(letters)) + [4]
    scores = [0.0] * 259 + [-float(n) for n in range(len(pieces) + len(letters))] + [0.0]
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return {"model": "llama", "tokens": tokens, "token_type": kinds, "scores": scores, **ids}


@cache
def build(name: str, vocabulary: int, small: bool = False) -> Any:
    """A model whose every parameter is far from its neutral value; copy it before you change it. small: some kilobytes."""
    torch.manual_seed(3)
    model_class, config_class, values = MODELS[name]
    values = values | (SMALL_GPT2 if name == "gpt2" else SMALL) if small else values
    model = model_class(config_class(**values, vocab_size=vocabulary, bos_token_id=1, eos_token_id=2)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            gain = parameter.dim() == 1 and key.endswith("weight")
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.05) + float(gain))
    return model


def write(
    path: Path,
    model: Any,
    words: dict[str, Any] | None,
    kinds: tuple[str, ...] = ("F32",),
    change: Change = lambda writer: None,
    leave_out: tuple[str, ...] = (),
    **values: Any,
) -> Path:
    """The file of a model. words: its vocabulary (`tokenizer.ggml.*`); kinds: types of its matrices in turn; values:
    metadata of the architecture to set, None to leave out; leave_out: tensors; change: what else to do with the writer."""
    config = model.config
    architecture = config.model_type
    writer = gguf.GGUFWriter(path, architecture)
    stated = _stated(config) | values
    for key, value in stated.items():
        if value is not None:
            _add(writer, f"{architecture}.{key}", value)
    for key, value in (words or {}).items():
        _add(writer, f"tokenizer.ggml.{key}", value)
    for number, (name, tensor) in enumerate(tensors(model).items()):
        if name not in leave_out:
            data, kind = _stored(tensor, kinds[number % len(kinds)])
            writer.add_tensor(name, data, raw_dtype=kind)
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _stated(config: Any) -> dict[str, Any]:
    if config.model_type == "gpt2":
        return {
            "context_length": config.n_positions,
            "block_count": config.n_layer,
            "embedding_length": config.n_embd,
            "feed_forward_length": 4 * config.n_embd,
            "attention.head_count": config.n_head,
            "attention.layer_norm_epsilon": float(config.layer_norm_epsilon),
        }
    return {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "rope.dimension_count": config.head_dim if config.model_type == "llama" else None,
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def tensors(model: Any) -> dict[str, Tensor]:
    """The model's tensors under GGUF's names, in GGUF's order of rows and axes."""
    config = model.config
    kind = config.model_type
    number = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    found = {}
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and tied:
            continue
        base, _, suffix = key.rpartition(".")
        if kind == "gpt2" and ".h." in key and tensor.dim() == 2:
            tensor = tensor.T
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", getattr(config, "num_key_value_heads", 0))):
            if kind == "llama" and f".{part}." in key:
                halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
                tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        found[f"{names.get_name(base)}.{suffix}"] = tensor.contiguous()
    return found


def _stored(tensor: Tensor, kind: str) -> tuple[np.ndarray[Any, Any], gguf.GGMLQuantizationType]:
    """A vector as float32, a matrix as `kind`; where the package cannot quantise to it, blocks of random bytes that stand
    for finite numbers."""
    values = tensor.detach().to(torch.float32).numpy()
    number = gguf.GGMLQuantizationType[kind if tensor.dim() == 2 else "F32"]
    try:
        return gguf.quantize(values, number), number
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[number]
        generator = np.random.default_rng(tensor.numel())
        shape = (*values.shape[:-1], values.shape[-1] // block * size)
        return generator.integers(0, 0x38, shape, dtype=np.uint8), number
