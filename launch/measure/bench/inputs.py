"""Weights, cached keys and values and tokens of a benchmark, and everybody's shares of them, from one public seed.

NOTHING HERE IS SECRET: every process can compute every share. That is why a generator of statistics may make the values;
it makes no randomness that protects anything. What the dealer deals and what parties open is as in every session.

Matrices and biases have standard deviation 0.02, like GPT-2 at its initialisation, and the gains of norms are 1; cached
keys and values have the deviation that a norm's output has behind such a matrix, 0.02 sqrt(D). Queries carry 1/sqrt(C).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from models.architecture import Architecture
from mpc.fixed_point import encode
from mpc.random import Prg, derive_seed

DEVIATION = 0.02
PIECE = 1 << 20


class BenchInputs:
    """Values by name; shares of them for any party."""

    def __init__(self, architecture: Architecture, seed: int, parties: int) -> None:
        self.architecture = architecture
        self.parties = parties
        self._seed = derive_seed(bytes(32), "benchmark", seed)

    def normal(self, name: str, shape: Sequence[int], deviation: float) -> Tensor:
        """Return float32 of `shape`, normally distributed."""
        generator = torch.Generator().manual_seed(int.from_bytes(derive_seed(self._seed, name)[:7], "little"))
        return torch.randn(tuple(shape), generator=generator).mul_(deviation)

    def weight(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return a canonical weight, float32."""
        out = self.normal(name, shape, DEVIATION)
        if ".attention.qkv." in name:
            queries = self.architecture.heads * self.architecture.head_channels
            out[..., :queries] *= self.architecture.head_channels**-0.5
        return out

    def cached(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return the cached keys, values or the attention mass of a prompt's queries, float32."""
        return self.normal(name, shape, DEVIATION * math.sqrt(self.architecture.width))

    def tokens(self, count: int, chosen: bool) -> Tensor:
        """Return random tokens, int64: indices [count] as a client shares them, or one-hot rows [count, V] as if parties
        chose."""
        digits = Prg(derive_seed(self._seed, "tokens")).ring((count,), 32) % self.architecture.vocabulary
        return torch.nn.functional.one_hot(digits, self.architecture.vocabulary) if chosen else digits

    def share(self, name: str, value: Tensor | None, shape: Sequence[int], fraction_bits: int, party: int) -> Tensor:
        """Return a party's additive share in Z_2^64, int64. value: needed by the last party only."""
        if party < self.parties - 1:
            return self._expanded(name, shape, party)
        assert value is not None
        rest = torch.empty(tuple(shape), dtype=torch.int64)
        pieces = zip(torch.split(rest.reshape(-1), PIECE), torch.split(value.reshape(-1), PIECE), strict=True)
        for out, piece in pieces:
            out.copy_(encode(piece, fraction_bits))  # in pieces: encoding takes several times their memory
        for other in range(self.parties - 1):
            rest -= self._expanded(name, shape, other)
        return rest

    def _expanded(self, name: str, shape: Sequence[int], party: int) -> Tensor:
        return Prg(derive_seed(self._seed, "share", name, party)).ring(shape)
