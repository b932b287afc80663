"""The pages of docs/families are what the registry gives, and the example of a new family works."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import load_checkpoint
from models.families import registry
from models.generation import plain_logits
from tests.models import random_checkpoints as checkpoints
from tests.tools import family_pages

PAGE = Path(__file__).parents[3] / "docs" / "architecture.md"


def test_pages() -> None:
    assert family_pages.differing() == []


def test_a_family_takes_at_most_sixty_lines() -> None:
    files = {inspect.getfile(family) for family in registry.FAMILIES.values()}
    long = {Path(file).name for file in files if len(Path(file).read_text(encoding="utf-8").splitlines()) > 60}
    assert long <= {"qwen3_moe.py", "t5.py"}


def test_the_example_of_a_new_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block of docs/architecture.md, on a LLaMA checkpoint whose parts have the example's names."""
    (block,) = re.findall(r"```python\n(.*?class Example.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(block.splitlines()) <= 60
    found: dict[str, type] = {}
    exec(block, found)
    monkeypatch.setitem(registry.FAMILIES, "example", found["Example"])
    model = checkpoints.save("llama-grouped", tmp_path)
    names = {"model.": "decoder.", "embed_tokens": "words", "layers.": "blocks.", "input_layernorm": "norm_1"}
    names |= {"post_attention_layernorm": "norm_2", "self_attn.q_proj": "attention.query", "decoder.norm": "decoder.last"}
    tensors = {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        gain = tensor.dim() == 1
        for old, new in names.items():
            name = name.replace(old, new)
        tensors[name] = tensor - 1.0 if gain else tensor
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "example", "norm_eps": config.pop("rms_norm_eps")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ids = checkpoints.prompt(model, 9)
    wanted = checkpoints.logits(model, ids)
    torch.testing.assert_close(plain_logits(load_checkpoint(tmp_path), ids), wanted, atol=1e-4, rtol=0)
