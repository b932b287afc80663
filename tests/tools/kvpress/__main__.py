"""Compare: `python -m tests.tools.kvpress --python ENVIRONMENT/bin/python` (`pip install kvpress` in an environment of
its own: it wants other versions of transformers than this project).

Prompts of a random LLaMA with grouped queries and of the shipped one; of each layer and head the tokens, or channels, that
both keep: the same sets, but that kvpress' TOVA always keeps the last token. Exit code 1 where they differ.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.checkpoint import load_checkpoint
from models.generation import PlainModel
from models.policies import parse
from models.prefill import prefill
from protocols.plain.suite import tensor_of

SHIPPED = Path(__file__).parents[3] / "models" / "recall" / "llama"
TOKENS, PROMPTS, BUDGET, WINDOW = 200, 20, 0.25, 32
RATIO = 1 - BUDGET
PAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    f"snapkv:budget={BUDGET},window={WINDOW}": ("SnapKVPress", {"compression_ratio": RATIO, "window_size": WINDOW}),
    f"snapkv:budget={BUDGET},window=8,kernel=7": (
        "SnapKVPress",
        {"compression_ratio": RATIO, "window_size": 8, "kernel_size": 7},
    ),
    f"tova:budget={BUDGET}": ("TOVAPress", {"compression_ratio": RATIO}),
    f"streaming-llm:budget={BUDGET},sinks=4": ("StreamingLLMPress", {"compression_ratio": RATIO, "n_sink": 4}),
    f"think:keep=0.5,window={WINDOW}|full": ("ThinKPress", {"key_channel_compression_ratio": 0.5, "window_size": WINDOW}),
}


def kept(model: PlainModel, policy: str, ids: Sequence[int]) -> list[list[list[int]]]:
    """Return by layer and head what a policy keeps of a prompt: positions of tokens, or channels where all tokens stay."""

    def cache_of(text: str) -> Any:
        decoder = model.decoder(policy=parse(text))
        cache = decoder.new_cache()
        given = model.suite.indices(len(ids), torch.tensor(ids), model.architecture.vocabulary)
        model.suite.run(prefill(decoder, cache, given))
        return cache

    with torch.inference_mode():
        cache, whole = cache_of(policy), cache_of("full")
        out = []
        for few, every in zip(cache.layers, whole.layers, strict=True):
            if few.held:
                chosen = tensor_of(few.held[0].chosen)
                out.append([sorted(head.argmax(-1).tolist()) for head in chosen])
                continue
            rows, all_rows = (tensor_of(entry.keys_and_values()[0]) for entry in (few, every))
            out.append([sorted(torch.cdist(a, b).argmin(1).tolist()) for a, b in zip(rows, all_rows, strict=True)])
        return out


def grouped(folder: Path) -> Path:
    """Write a random LLaMA whose heads share keys and values."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def agree(ours: list[int], theirs: list[int], press: str) -> bool:
    """Return whether two sets are the same; TOVAPress, as it says, always keeps the last token besides the most attended,
    which the paper does not."""
    last = TOKENS - 1
    if press == "TOVAPress" and last not in ours:
        return theirs[-1] == last and set(theirs[:-1]) < set(ours) and len(ours) == len(theirs)
    return ours == theirs


def compare(name: str, folder: Path, python: str, work: Path) -> int:
    """Print what agrees of a model; return how many sets differ."""
    checkpoint = load_checkpoint(folder)
    generator = torch.Generator().manual_seed(7)
    vocabulary = checkpoint.architecture.vocabulary
    prompts = [torch.randint(0, vocabulary, (TOKENS,), generator=generator).tolist() for _ in range(PROMPTS)]
    asked, found = work / "asked.json", work / "found.json"
    asked.write_text(json.dumps({"prompts": prompts, "presses": list(PAIRS.values())}))
    subprocess.run([python, str(Path(__file__).with_name("keeps.py")), str(folder), str(asked), str(found)], check=True)
    theirs = json.loads(found.read_text())
    model, differing = PlainModel(checkpoint), 0
    for n, (policy, (press, _)) in enumerate(PAIRS.items()):
        sets = wrong = 0
        for ids, one in zip(prompts, theirs, strict=True):
            pairs = [
                (a, b) for x, y in zip(kept(model, policy, ids), one[n], strict=True) for a, b in zip(x, y, strict=True)
            ]
            sets += len(pairs)
            wrong += sum(not agree(a, b, press) for a, b in pairs)
        print(f"{name}: {policy}, {press}: {sets - wrong} of {sets} sets are the same")
        differing += wrong
    return differing


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="the interpreter of an environment with kvpress")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mpcache-kvpress-") as folder:
        work = Path(folder)
        models = {"a random LLaMA, grouped queries": grouped(work / "grouped"), "models/recall/llama": SHIPPED}
        return int(sum(compare(name, model, given.python, work) for name, model in models.items()) > 0)


if __name__ == "__main__":
    sys.exit(main())
