"""What a checkpoint says of its head's outputs: names of classes or labels, and how logits become scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from models.config import read_json
from mpc.errors import CheckpointError, ConfigurationError

Scores = Literal["softmax", "sigmoid", "value"]
_SCORES: dict[str, Scores] = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "value",
}


@dataclass(frozen=True)
class Labels:
    """names: by number. scores: "softmax": one of them holds; "sigmoid": each by itself; "value": the logit itself."""

    names: tuple[str, ...]
    scores: Scores = "softmax"

    def score(self, logits: Tensor) -> Tensor:
        """Return the scores of logits [..., labels].

        >>> Labels(("no", "yes")).score(torch.tensor([0.0, 0.0])).tolist()
        [0.5, 0.5]
        """
        if self.scores == "softmax":
            return torch.softmax(logits, -1)
        return torch.sigmoid(logits) if self.scores == "sigmoid" else logits


def read_labels(directory: Path, count: int, names: Sequence[str] | None = None) -> Labels:
    """Return the labels of a checkpoint's config.json. names: instead of those in `id2label`.

    Raises `CheckpointError` where `id2label` does not name all `count` of them, `ConfigurationError` for other `names`.
    """
    file = directory / "config.json"
    values = read_json(file)
    kind = values.get("problem_type") or ("regression" if count == 1 else "single_label_classification")
    if kind not in _SCORES:
        raise CheckpointError(f"{file}: 'problem_type' = {kind!r}; known: {', '.join(_SCORES)}")
    if names is not None:
        if len(names) != count or len(set(names)) != count:
            raise ConfigurationError(f"labels: {len(set(names))} different names were given, the model has {count} outputs")
        return Labels(tuple(names), _SCORES[kind])
    given = values.get("id2label")
    found = [given.get(str(n)) for n in range(count)] if isinstance(given, dict) else [None] * count
    named = tuple(name for name in found if isinstance(name, str))
    if len(named) != count:
        raise CheckpointError(
            f"{file}: 'id2label' does not name the model's {count} outputs; add them there, or give the labels "
            "(labels=[...], --labels A,B)"
        )
    return Labels(named, _SCORES[kind])
