"""GGUF files: tensors, configuration and token ids as transformers reads them from the same file, or refused by name."""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from models.checkpoint import load_checkpoint
from models.families.registry import FAMILIES
from models.generation import plain_logits
from models.gguf import conversion
from models.gguf.configuration import _CLASSES
from models.gguf.conversion import GgufModel
from models.gguf.header import read_header
from models.gguf.weights import read_array
from mpc.errors import CheckpointError
from tests.models import random_checkpoints as checkpoints
from tests.models.gguf import gguf_files as files

WORDS = files.byte_level()
VOCABULARY = len(WORDS["tokens"])
KINDS = {
    "llama": ("Q4_1", "Q8_0", "Q6_K", "Q4_K", "F16", "BF16", "IQ4_XS"),
    "llama-biases-untied": ("Q5_1", "Q5_K", "F32"),
    "qwen2": ("Q4_0", "Q3_K", "Q2_K", "Q5_0"),
    "gpt2": ("Q8_0", "Q4_K"),
    "gpt2-untied": ("F16", "Q4_1"),
}

needs_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="transformers loads GGUF files with accelerate, which is missing"
)


def converted(path: Path) -> Path:
    folder = path.parent / "converted"
    folder.mkdir()
    GgufModel.open(path).write(folder)
    return folder


@needs_accelerate
@pytest.mark.parametrize("name", sorted(files.MODELS))
def test_as_transformers_loads_the_same_file(name: str, tmp_path: Path) -> None:
    path = files.write(tmp_path / "m.gguf", files.build(name, VOCABULARY), WORDS, KINDS[name])
    folder = converted(path)
    wanted = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    state = found.state_dict()
    compared = wanted.state_dict()
    if "biases" in name:  # transformers reads no biases of this family from GGUF files: they are compared below
        compared = {key: tensor for key, tensor in compared.items() if key in state}
    assert compared.keys() <= state.keys()
    for key, tensor in compared.items():
        assert torch.equal(state[key], tensor), key
    if "biases" not in name:
        ids = checkpoints.prompt(wanted, 9)
        torch.testing.assert_close(
            plain_logits(load_checkpoint(folder), ids), checkpoints.logits(wanted, ids), atol=1e-3, rtol=0
        )


@pytest.mark.parametrize("name", sorted(files.MODELS))
def test_an_unquantised_file_gives_the_model_back(name: str, tmp_path: Path) -> None:
    model = files.build(name, VOCABULARY)
    folder = converted(files.write(tmp_path / "m.gguf", model, WORDS))
    found = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    wanted = model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    ids = checkpoints.prompt(model, 9)
    torch.testing.assert_close(plain_logits(load_checkpoint(folder), ids), checkpoints.logits(model, ids), atol=1e-3, rtol=0)
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] == model.config.tie_word_embeddings
    assert config.get("rms_norm_eps", config.get("layer_norm_epsilon")) == 1e-5


def test_sixteen_bit_tensors_keep_their_type_and_large_models_are_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = files.build("qwen2", VOCABULARY)
    path = files.write(tmp_path / "m.gguf", model, WORDS, ("F16", "BF16"))
    monkeypatch.setattr(conversion, "SHARD_BYTES", 400_000)
    folder = converted(path)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    stored = load_checkpoint(folder).weights
    assert len(stored) > 0
    found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    names = [name for name, tensor in files.tensors(model).items() if tensor.dim() == 2]
    kinds = {read_header(path).tensors[name].kind for name in names}
    assert kinds == {gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16}
    wanted = model.state_dict()
    for key, tensor in found.items():
        rounded = [wanted[key], wanted[key].half().float(), wanted[key].bfloat16().float()]
        assert any(torch.equal(tensor, one) for one in rounded), key


def test_every_type_that_the_package_reads(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
    generator, wanted = np.random.default_rng(0), {}
    for kind, (_, size) in gguf.GGML_QUANT_SIZES.items():
        raw = generator.integers(0, 0x38, (5, 2 * size), dtype=np.uint8)
        try:
            wanted[kind.name] = gguf.dequantize(raw, kind)
        except NotImplementedError:
            continue
        writer.add_tensor(kind.name, raw, raw_shape=raw.shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(tmp_path / "t.gguf")
    assert len(header.tensors) == len(wanted) > 20
    for name, tensor in header.tensors.items():
        np.testing.assert_array_equal(read_array(header, tensor), wanted[name])
    reader = gguf.GGUFReader(tmp_path / "t.gguf")
    for stored in reader.tensors:
        mine = header.tensors[stored.name]
        assert (mine.start, mine.size, mine.shape) == (
            stored.data_offset,
            stored.n_bytes,
            tuple(stored.shape[::-1].tolist()),
        )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt2", files.byte_level()),
        ("gpt2", files.byte_level(pre=None)),
        ("llama", files.byte_level(pre="llama-bpe") | {"add_bos_token": True}),
        ("qwen2", files.byte_level(pre="qwen2")),
        ("llama", files.byte_level(pre="tekken") | {"add_bos_token": False}),
        ("llama", files.sentencepiece()),
        ("llama", files.sentencepiece() | {"add_bos_token": False, "add_eos_token": True}),
    ],
)
def test_token_ids_as_transformers_reads_the_same_file(name: str, words: dict[str, Any], tmp_path: Path) -> None:
    files.write(tmp_path / "m.gguf", files.build(name, len(words["tokens"])), words)
    folder = converted(tmp_path / "m.gguf")
    wanted = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    found = load_checkpoint(folder).tokenizer
    again = AutoTokenizer.from_pretrained(folder)
    for text in files.TEXTS:
        ids = wanted.encode(text)
        assert found.encode(text) == again.encode(text) == ids, text
        assert found.decode(ids) == wanted.decode(ids, skip_special_tokens=True), text
        plain = wanted.encode(text, add_special_tokens=False)
        assert found.encode(text, special=False) == plain


def test_digits_stand_alone_where_the_file_says_so(tmp_path: Path) -> None:
    """smollm's own tokenizer.json splits digits off before GPT-2's pattern sees the spaces in front of them."""
    words = files.byte_level(pre="smollm")
    folder = converted(files.write(tmp_path / "m.gguf", files.build("llama", VOCABULARY), words))
    merges = [tuple(merge.split(" ")) for merge in words["merges"]]
    wanted = Tokenizer(BPE(vocab={token: n for n, token in enumerate(words["tokens"])}, merges=merges))
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    wanted.pre_tokenizer = pre_tokenizers.Sequence(steps)
    wanted.decoder = decoders.ByteLevel()
    found = load_checkpoint(folder).tokenizer
    for text in ("two  12 on 1234", "the   7", *files.TEXTS[:3]):
        assert found.encode(text) == wanted.encode(text).ids
    assert found.encode("  1") != load_checkpoint(folder).tokenizer.encode("  o")
    assert len(found.encode("on 1212")) == 6


def test_a_whole_piece_is_taken_before_merges(tmp_path: Path) -> None:
    words = files.byte_level(pre="llama-bpe")
    words["merges"] = [merge for merge in words["merges"] if merge != "ca t"]
    folder = converted(files.write(tmp_path / "m.gguf", files.build("llama", VOCABULARY), words))
    tokenizer = load_checkpoint(folder).tokenizer
    assert tokenizer.encode("cat") == [words["bos_token_id"], words["tokens"].index("cat")]


def test_ends_of_turns_end_a_generation_and_the_template_comes_along(tmp_path: Path) -> None:
    words = WORDS | {"eot_token_id": 7, "eom_token_id": VOCABULARY + 5, "padding_token_id": 3}
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    path = files.write(
        tmp_path / "m.gguf",
        files.build("llama", VOCABULARY),
        words,
        change=lambda writer: writer.add_chat_template(template),
    )
    folder = converted(path)
    assert load_checkpoint(folder).architecture.eos == (WORDS["eos_token_id"], 7)
    assert (folder / "chat_template.jinja").read_text() == template
    again = AutoTokenizer.from_pretrained(folder)
    assert (again.chat_template, again.pad_token, again.eos_token) == (template, words["tokens"][3], "<|end|>")


@pytest.mark.parametrize(
    ("values", "rope"),
    [
        ({}, {"rope_type": "default", "rope_theta": 10000.0}),
        ({"rope.scaling.type": "none"}, {"rope_type": "default", "rope_theta": 10000.0}),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 2.5, "rope.freq_base": 500.0},
            {"rope_type": "linear", "factor": 2.5, "rope_theta": 500.0},
        ),
        ({"rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}),
    ],
)
def test_scaled_positions(values: dict[str, Any], rope: dict[str, Any], tmp_path: Path) -> None:
    folder = converted(files.write(tmp_path / "m.gguf", files.build("llama", VOCABULARY), WORDS, **values))
    assert AutoConfig.from_pretrained(folder).rope_parameters == rope


def test_llama3_positions_from_their_factors(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = deepcopy(files.build("llama", VOCABULARY))
    model.config.rope_parameters = rope
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, "cpu")
    plain = 1.0 / 500000.0 ** (torch.arange(0, 64, 2) / 64)
    factors = (plain / scaled).numpy().astype(np.float32)
    assert 1 < len(np.unique(factors.round(2))) < 32
    path = tmp_path / "m.gguf"
    files.write(path, model, WORDS, change=lambda writer: writer.add_tensor("rope_freqs.weight", factors))
    assert AutoConfig.from_pretrained(converted(path)).rope_parameters == rope
    factors[5] *= 1.1
    files.write(path, model, WORDS, change=lambda writer: writer.add_tensor("rope_freqs.weight", factors))
    with pytest.raises(CheckpointError, match=r"'rope_freqs.weight' holds factors that are not LLaMA 3's"):
        GgufModel.open(path)


def test_a_window_makes_it_mistral(tmp_path: Path) -> None:
    values = {"attention.sliding_window": 5}
    folder = converted(files.write(tmp_path / "m.gguf", files.build("llama", VOCABULARY), WORDS, **values))
    config = AutoConfig.from_pretrained(folder)
    assert (config.model_type, config.sliding_window) == ("mistral", 5)
    assert load_checkpoint(folder).architecture.windows == (5, 5)


def metadata(key: str, value: Any) -> Callable[[gguf.GGUFWriter], None]:
    return lambda writer: files._add(writer, key, value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"change": metadata("split.count", 3)}, "is one of 3 pieces of a model; join them first"),
        ({"change": metadata("general.type", "adapter")}, "'general.type' = 'adapter' is not a model"),
        ({"expert_count": 8}, "'llama.expert_count' = 8: mixture-of-experts layers are not supported"),
        ({"attention.scale": 0.5}, "'llama.attention.scale' = 0.5: what it asks for is not supported"),
        ({"block_count": None}, "'llama.block_count' is missing"),
        ({"block_count": 3}, "tensor 'blk.2.attn_norm.weight' is missing"),
        ({"block_count": 1}, "tensor 'blk.1.attn_q.weight' is not part of the model"),
        ({"feed_forward_length": 500}, r"tensor 'blk.0.ffn_gate.weight' has sizes \[512, 256\], its metadata describe"),
        ({"vocab_size": 9}, "'llama.vocab_size' = 9, but 'token_embd.weight' has"),
        ({"rope.dimension_count": 32, "attention.key_length": 64}, "'llama.rope.dimension_count' = 32"),
        ({"attention.head_count": 3}, "heads' = 3 must be a multiple of"),
        ({"attention.head_count_kv": [2, 2]}, "'llama.attention.head_count_kv' must be a whole number, one for all layers"),
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0}, "'llama.rope.scaling.type' = 'longrope'"),
        ({"leave_out": ("blk.1.attn_k.weight",)}, "tensor 'blk.1.attn_k.weight' is missing"),
        (
            {"change": lambda writer: writer.add_tensor("blk.0.attn_q_norm.weight", np.ones(64, np.float32))},
            "tensor 'blk.0.attn_q_norm.weight' is not part of the model",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = files.write(tmp_path / "m.gguf", files.build("llama", VOCABULARY), WORDS, **options)
    with pytest.raises(CheckpointError, match=message) as found:
        GgufModel.open(path)
    assert str(path) in str(found.value)


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        CheckpointError, match=r"'general.architecture' = 'mamba' is not supported; supported: gpt2, llama, qwen2"
    ):
        GgufModel.open(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (None, r"has no tokenizer \('tokenizer.ggml.model' and '.tokens'\)"),
        (WORDS | {"model": "bert"}, "'tokenizer.ggml.model' = 'bert' is not supported; supported: gpt2, llama"),
        (WORDS | {"pre": "grok-2"}, "'tokenizer.ggml.pre' = 'grok-2' is not supported"),
        (files.byte_level(pre=None), "'tokenizer.ggml.pre' is missing: how it splits a text is not known"),
        (WORDS | {"merges": ["ab"]}, "'tokenizer.ggml.merges' has 'ab'"),
        (WORDS | {"merges": ["xx yy"]}, "its tokenizer cannot be made"),
        (WORDS | {"tokens": ["a"] * VOCABULARY}, "'tokenizer.ggml.tokens' has 'a' twice"),
        (WORDS | {"tokens": [*WORDS["tokens"], "more"]}, "but the model has"),
        (WORDS | {"token_type": [1]}, "'tokenizer.ggml.token_type' has 1 entries"),
        (WORDS | {"add_bos_token": True, "bos_token_id": 10**6}, "'tokenizer.ggml.bos_token_id' names no token"),
        (WORDS | {"remove_extra_whitespaces": True}, "'tokenizer.ggml.remove_extra_whitespaces' = True is not supported"),
        (files.sentencepiece() | {"scores": [1.0]}, "'tokenizer.ggml.scores' must have an entry"),
    ],
)
def test_tokenizers_that_cannot_be_made(words: dict[str, Any] | None, message: str, tmp_path: Path) -> None:
    size = len(files.sentencepiece()["tokens"]) if words and "scores" in words else VOCABULARY
    path = files.write(tmp_path / "m.gguf", files.build("llama", size), words)
    with pytest.raises(CheckpointError, match=message):
        converted(path)


def test_numbers_that_are_none(tmp_path: Path) -> None:
    model = deepcopy(files.build("llama", VOCABULARY))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    path = files.write(tmp_path / "m.gguf", model, WORDS, ("F16",))
    with pytest.raises(CheckpointError, match=r"tensor 'blk.1.ffn_up.weight' holds infinities or NaN"):
        converted(path)


def head(version: int = 3, tensors: int = 0, values: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values) + rest


def key(kind: int, content: bytes) -> bytes:
    return struct.pack("<Q", 1) + b"k" + struct.pack("<I", kind) + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a GGUF file"),
        (b"PK" * 20, "is not a GGUF file"),
        (head(version=1), "of version 1 is not read"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian is not read"),
        (head(tensors=1 << 60), "states 1152921504606846976 tensors; at most 65536 are read"),
        (head(values=1 << 60), "metadata values; at most 4096 are read"),
        (head(values=1, rest=struct.pack("<Q", 1 << 62)), "bytes of text; at most 256 are read"),
        (head(values=1, rest=key(8, struct.pack("<Q", 1 << 62))), "'k' states 4611686018427387904 bytes of text"),
        (head(values=1, rest=key(8, struct.pack("<Q", 1 << 20))), "'k' ends before it is complete"),
        (head(values=1, rest=key(9, struct.pack("<IQ", 0, 1 << 60))), "'k' states 1152921504606846976 items"),
        (head(values=1, rest=key(9, struct.pack("<IQ", 12, 1 << 20))), "'k' ends before it is complete"),
        (head(values=1, rest=key(9, struct.pack("<IQ", 9, 1))), "'k' is of type 9, which is not read"),
        (head(values=1, rest=key(99, b"")), "'k' is of type 99"),
        (head(values=2, rest=key(4, bytes(4)) * 2), "'k' is there twice"),
        (head(values=1, rest=key(8, struct.pack("<Q", 1) + b"\xff")), "'k' holds text that is not UTF-8"),
        (head(tensors=1, rest=struct.pack("<Q1sI", 1, b"t", 5)), "tensor 't' states 5 dimensions"),
        (head(tensors=1, rest=struct.pack("<Q1sIQQ", 1, b"t", 2, 1 << 40, 1 << 40)), "tensor 't' has sizes"),
        (head(tensors=1, rest=struct.pack("<Q1sIQIQ", 1, b"t", 1, 32, 77, 0)), "tensor 't' is of type 77"),
        (head(tensors=1, rest=struct.pack("<Q1sIQIQ", 1, b"t", 1, 33, 2, 0)), "tensor 't' has rows of 33 elements"),
        (head(tensors=1, rest=struct.pack("<Q1sIQIQ", 1, b"t", 1, 32, 0, 1 << 40)), "tensor 't' lies outside the file"),
    ],
)
def test_forged_heads(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content.ljust(24, b"\0") if content else content)
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


def test_truncated_files(tmp_path: Path) -> None:
    path = files.write(tmp_path / "m.gguf", files.build("llama", VOCABULARY), WORDS, ("Q4_0",))
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 4000, 100):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"ends before it is complete|lies outside the file"):
            GgufModel.open(path)
    with pytest.raises(CheckpointError, match="no such file"):
        GgufModel.open(tmp_path / "none.gguf")


def test_that_a_family_of_checkpoints_is_not_one_of_files_by_itself() -> None:
    """A file's family needs a class and a vocabulary of its own; every one that there is can be loaded."""
    assert set(_CLASSES) <= set(FAMILIES)
