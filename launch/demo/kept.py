"""Which of a prompt's tokens a cache policy keeps, found out in plaintext: for the demo alone, in which one person has both
the model and the prompt. INSECURE FOR REAL DATA BY NATURE: on shares nobody learns it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.decoder import Decoder
from models.episodes import with_probes
from models.generation import PlainModel, token_indices
from models.policies import parse
from models.prefill import prefill
from protocols.plain.suite import tensor_of


@torch.inference_mode()
def kept_tokens(model: PlainModel, ids: Sequence[int], policy: str) -> list[list[float]] | None:
    """Return by layer and token of the prompt the share of key/value heads that still hold it after the prompt, 0 to 1. None
    where the policy holds rows in another form (merged, or by a codec), or the model has an encoder in front."""
    if model.architecture.encoder is not None:
        return None
    before, after = _keys(model, ids, "full"), _keys(model, with_probes(ids, parse(policy).probes), policy)
    found: list[list[float]] = []
    for all_rows, rows in zip(before, after, strict=True):
        if rows is None or all_rows is None:
            return None
        places = torch.cdist(rows.double(), all_rows.double()).min(-1)  # G, kept
        if places.values.numel() and float(places.values.max()) > 1e-3 * float(all_rows.norm(dim=-1).max()):
            return None
        held = torch.zeros(all_rows.shape[:2]).scatter_(1, places.indices, 1.0)
        found.append([float(share) for share in held.mean(0)])
    return found


def _keys(model: PlainModel, ids: Sequence[int], policy: str) -> list[Tensor | None]:
    """Return each layer's cached keys [G, S, C] after the prompt; None where a codec holds some."""
    vocabulary = model.architecture.vocabulary
    decoder = Decoder(model.suite, model.architecture, model.weights, parse(policy))
    cache = decoder.new_cache()
    prompt = model.suite.indices(len(ids), token_indices(ids, vocabulary), vocabulary)
    model.suite.run(prefill(decoder, cache, prompt))
    return [None if layer.held or layer.k is None else tensor_of(layer.k) for layer in cache.layers]
