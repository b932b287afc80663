"""A small public checkpoint at the client that guesses its next tokens, in plaintext. Nothing of it leaves the client."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from models.architectures import without_encoder
from models.cache import KVCache
from models.checkpoint import load_checkpoint
from models.drafting import DraftPlan
from models.generation import PlainModel, token_indices
from mpc.errors import ConfigurationError
from parties.client.drafting import Draft


class _Guesses:
    """One session's guesses: a greedy continuation, with a cache of the text that was seen so far."""

    def __init__(self, model: PlainModel) -> None:
        self._model = model
        self._decoder = model.decoder()
        self._cache: KVCache = self._decoder.new_cache()
        self._ids: list[int] = []

    @torch.inference_mode()
    def __call__(self, text: Sequence[int], count: int) -> list[int]:
        """Return up to `count` guesses; fewer where this model has no more positions."""
        room = self._model.architecture.positions - len(text)
        out: list[int] = []
        while len(out) < min(count, room):
            out.append(self._next([*text, *out]))
        return out

    def _next(self, text: list[int]) -> int:
        """Return the most likely token after a text. What the cache holds of it is not computed again."""
        suite, vocabulary = self._model.suite, self._model.architecture.vocabulary
        if self._ids != text[: len(self._ids)] or len(self._ids) == len(text):
            self._forget(text)
        new = text[len(self._ids) :]
        inputs = suite.indices(len(new), token_indices(new, vocabulary), vocabulary)
        logits = suite.run(self._decoder.forward(inputs, self._cache, True))
        self._ids = text
        return int(suite.output(logits).share[0].argmax())

    def _forget(self, text: list[int]) -> None:
        """Drop from the cache what is not the text without its last token; all of it where a window has moved on."""
        pairs = zip(self._ids, text[:-1], strict=False)
        same = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(self._ids), len(text) - 1))
        whole = all(entry.length == len(self._ids) for entry in self._cache.layers)
        if not whole or not same:
            self._cache, self._ids = self._decoder.new_cache(), []
            return
        for entry in self._cache.layers:
            k, v = entry.keys_and_values()
            entry.k, entry.v = k[:, :same], v[:, :same]
        self._cache.seen, self._ids = same, self._ids[:same]


def model_draft(folder: str, plan: DraftPlan) -> Draft:
    """Return the draft of a checkpoint's folder. Raises `ConfigurationError` where there is none, `CheckpointError` for one
    that cannot be read."""
    if not Path(folder).is_dir():
        raise ConfigurationError(
            f"draft = {folder[:200]!r} is neither 'off', 'ngram' (with settings such as ngram:tokens=4) nor the folder of a "
            "checkpoint"
        )
    checkpoint = load_checkpoint(Path(folder))
    without_encoder(checkpoint.architecture, f"draft {folder}")
    model = PlainModel(checkpoint)
    vocabulary = checkpoint.architecture.vocabulary
    return Draft(plan, lambda: _Guesses(model), vocabulary, checkpoint.tokenizer, folder)
