"""Prompts with answers, which a policy learns from: the model owner's own, JSON lines {"prompt": ..., "answer": ...}."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from launch.measure.quality.prefilled import PrefilledModel
from models.checkpoint import Checkpoint
from mpc.errors import ConfigurationError


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of its answer."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def read_examples(checkpoint: Checkpoint, file: Path) -> list[Example]:
    """Return the examples of a file. Raises `ConfigurationError` naming file, line and remedy."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--prompts {file}: cannot be read ({error})") from None
    found = [_example(checkpoint, f"--prompts {file}, line {n}", line) for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ConfigurationError(f'--prompts {file}: is empty; give lines {{"prompt": ..., "answer": ...}}')
    return found


def _example(checkpoint: Checkpoint, where: str, line: str) -> Example:
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    if not isinstance(values, dict) or not all(isinstance(values.get(key), str) for key in ("prompt", "answer")):
        raise ConfigurationError(f'{where}: must be {{"prompt": "...", "answer": "..."}}')
    prompt, answer = (tuple(checkpoint.tokenizer.encode(values[key])) for key in ("prompt", "answer"))
    positions = checkpoint.architecture.positions
    if not answer or len(prompt) < 2 or len(prompt) + len(answer) > positions:
        raise ConfigurationError(
            f"{where}: {len(prompt)} tokens of prompt and {len(answer)} of answer; at least 2 and 1 are needed, and no more "
            f"than the model's {positions} positions together"
        )
    return Example(prompt, answer)


@dataclass(frozen=True)
class Rows:
    """What a model computes of an example, of one layer: features [T, (H + 2G) C] of the prompt's T tokens, scores [G, R, n,
    T] of the n queries that the answer is made of, before softmax, and their probabilities over prompt and answer."""

    features: Tensor
    scores: Tensor
    attention: Tensor


@torch.no_grad()
def rows_of(model: PrefilledModel, example: Example) -> list[Rows]:
    """Return all layers' rows of an example, whose answer is given."""
    whole = [*example.prompt, *example.answer]
    seen, tokens = model.prefill(whole), len(example.prompt)
    first = tokens - 1  # the prompt's last token chooses the answer's first, its last token chooses none
    last = torch.arange(first, len(whole) - 1)
    mask = torch.arange(len(whole))[None] <= last[:, None]
    found = []
    for features, queries, keys in zip(seen.features, seen.queries, seen.keys, strict=True):
        scores = queries[:, :, first:-1] @ keys[:, None].transpose(-1, -2)
        attention = torch.softmax(scores.masked_fill(~mask, float("-inf")), -1)
        found.append(Rows(features[:tokens].clone(), scores[..., :tokens].clone(), attention.clone()))
    return found


def spread(values: Sequence[float]) -> list[float]:
    """Return values divided by their mean, rounded: what is written into a policy's text.

    >>> spread([3.0, 1.0])
    [1.5, 0.5]
    """
    mean = sum(values) / len(values)
    return [round(value / mean, 3) for value in values]
