"""Public masks of attention, and the places that they follow from."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Places:
    """Public places of a prompt's tokens. held: of cached rows, in their order; batch: of the tokens that are computed."""

    held: tuple[int, ...]
    batch: tuple[int, ...]

    def mask(self, rows: int) -> Tensor:
        """Return which tokens the last `rows` of the batch see, those up to their own place: bool [rows, S]."""
        every = torch.tensor((*self.held, *self.batch))
        return every[None, :] <= torch.tensor(self.batch[len(self.batch) - rows :])[:, None]
