"""Public masks of attention."""

from __future__ import annotations

import torch
from torch import Tensor


def causal_mask(rows: int, cached: int, window: int | None) -> Tensor | None:
    """Return the public mask [rows, cached] for the last `rows` of `cached` tokens (at the host); None when all is True.

    >>> causal_mask(2, 4, window=2).int()
    tensor([[0, 1, 1, 0],
            [0, 0, 1, 1]], dtype=torch.int32)
    """
    if rows == 1 and (window is None or cached <= window):
        return None
    query = torch.arange(cached - rows, cached)[:, None]
    key = torch.arange(cached)[None, :]
    mask = key <= query
    return mask if window is None else mask & (query - key < window)
