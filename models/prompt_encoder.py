"""What is public about an encoder that stands in front of a decoder, and about their relative positions.

Such a model (T5) reads the prompt with its first layers, in one pass in which every token sees every other one. Each layer
of the decoder behind it attends to what was read (cross-attention), beside its own tokens. Neither has positions of its own:
a bias is added to the scores of a head, by the bucket that the distance between the two tokens falls in. The bias is a
weight, so it is secret; which bucket a distance falls in is public.

Source: Raffel et al., "Exploring the Limits of Transfer Learning" (T5), JMLR 2020, section 2.1.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, Strict
from torch import Tensor

from models.description import Count, PublicRecord, TokenId

Starts = Annotated[
    tuple[Annotated[int, Field(ge=0, le=1 << 24)], ...], Strict(False), Field(min_length=1, max_length=1 << 12)
]


class PromptEncoder(PublicRecord):
    """layers: the first ones of the model, which read the prompt. start: the token behind which every answer begins.
    both_ways: the smallest distance of each bucket, for tokens of the prompt, before and behind each other (buckets of
    their own); back: the same for the answer's tokens, which look back only. Distances are public integers that all
    parties agree on with the description: no party takes a logarithm.

    >>> PromptEncoder(layers=2, start=0, both_ways=(0, 1), back=(0, 1, 2, 4)).places_back(first=2, tokens=1, length=4)
    tensor([[2, 1, 0, 0]])
    """

    layers: Count
    start: TokenId
    both_ways: Starts
    back: Starts

    def _check(self) -> None:
        for name, starts in (("both_ways", self.both_ways), ("back", self.back)):
            if starts[0] != 0 or list(starts) != sorted(starts):
                raise ValueError(f"'{name}' = {list(starts[:8])} must begin with 0 and not fall")

    @property
    def rows_both_ways(self) -> int:
        """Return the rows of the encoder's table of biases."""
        return 2 * len(self.both_ways)

    def places_both_ways(self, tokens: int) -> Tensor:
        """Return the rows of the encoder's table for each pair of a prompt's tokens, int64 [queries, keys] at the host."""
        ahead = torch.arange(tokens)[None, :] - torch.arange(tokens)[:, None]
        return _bucket(ahead.abs(), self.both_ways) + (ahead > 0) * len(self.both_ways)

    def places_back(self, first: int, tokens: int, length: int) -> Tensor:
        """Return the rows of the decoder's table for the answer's tokens from place `first` on, with each of `length`
        cached ones, int64 [tokens, length] at the host. Of keys behind their query, which a mask hides, the first row."""
        back = torch.arange(first, first + tokens)[:, None] - torch.arange(length)[None, :]
        return _bucket(back.clamp(min=0), self.back)


def _bucket(distances: Tensor, starts: tuple[int, ...]) -> Tensor:
    """Return the last bucket that begins at or before each distance."""
    return torch.bucketize(distances, torch.tensor(starts), right=True) - 1
