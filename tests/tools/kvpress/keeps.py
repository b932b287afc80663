"""What presses of kvpress keep. Run by an interpreter that has kvpress, alone: ``python keeps.py MODEL ASKED FOUND``.

ASKED: JSON, {"prompts": lists of token ids, "presses": [[class, arguments], ...]}. FOUND: JSON, for each prompt and press
a list by layer and key/value head of the positions that stay, or, of a press that keeps channels, of channels.
"""

from __future__ import annotations

import importlib
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch


def keys_of(model: Any, ids: Any, press: Any) -> list[Any]:
    """Return the keys of every layer [heads, tokens, channels] behind a prompt."""
    from transformers import DynamicCache

    cache = DynamicCache()
    with torch.no_grad(), press(model) if press is not None else nullcontext():
        model(ids, past_key_values=cache, cache_position=torch.arange(ids.shape[1]))
    return [layer.keys[0].clone() for layer in cache.layers]


def positions(kept: Any, whole: Any) -> list[list[int]]:
    """Return by head the positions of the rows of `whole` that are in `kept`, or where it has all rows its channels."""
    if kept.shape == whole.shape:
        return [(head != 0).any(0).nonzero()[:, 0].tolist() for head in kept]
    return [sorted(torch.cdist(few, every).argmin(1).tolist()) for few, every in zip(kept, whole, strict=True)]


def main() -> None:
    """Run the command line."""
    from transformers import AutoModelForCausalLM

    kvpress: Any = importlib.import_module("kvpress")
    folder, asked, found = map(Path, sys.argv[1:])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    order = json.loads(asked.read_text())
    out = []
    for prompt in order["prompts"]:
        ids = torch.tensor([prompt])
        whole = keys_of(model, ids, None)
        presses = [getattr(kvpress, name)(**arguments) for name, arguments in order["presses"]]
        kept = [keys_of(model, ids, press) for press in presses]
        out.append([[positions(k, w) for k, w in zip(one, whole, strict=True)] for one in kept])
    found.write_text(json.dumps(out))


if __name__ == "__main__":
    main()
