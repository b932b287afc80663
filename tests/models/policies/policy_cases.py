"""A policy on one layer's cache: prompt, some tokens, and everything that it leaves; the same program for every suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.architecture import Architecture
from models.cache import CachePolicy, KVCache
from models.config import Config
from models.costs.program import told
from models.families.registry import family_for
from models.observation import Observation, Seen
from protocols.suite import Suite, Value


def tiny(heads: int = 2, groups: int = 2, channels: int = 4, layers: int = 4, positions: int = 512) -> Architecture:
    """A LLaMA-like architecture of given heads."""
    values = {
        "model_type": "llama",
        "hidden_size": heads * channels,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": channels,
        "num_hidden_layers": layers,
        "intermediate_size": 8,
        "vocab_size": 11,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    return family_for(Config(values, Path("config.json"))).describe()


def grid(*shape: int, span: int, step: float, generator: torch.Generator) -> Tensor:
    """Multiples of `step`: exact in every suite, with many ties."""
    return torch.randint(-span, span + 1, shape, generator=generator).double() * step


def told_of(s: Suite, a: Architecture, asked: Observation, mass: Value) -> Seen:
    """What is told of S cached tokens: a mass [G, S], or for heads by themselves its rows, each turned by its number."""

    def value(name: str, shape: tuple[int, ...]) -> Value:
        if shape == tuple(mass.shape):
            return mass
        turned = [turn + 1 + (name != "attention mass") for turn in range(shape[0])]
        rows = [mass[turn % a.kv_heads : turn % a.kv_heads + 1] for turn in turned]
        return s.concat([s.concat([x[:, i:], x[:, :i]], 1) for x, i in zip(rows, turned, strict=True)], 0)

    return told(a, asked, mass.shape[1], value)


class Case:
    """Inputs for one layer, exact in fixed point. steps: tokens after the prompt."""

    def __init__(self, a: Architecture, tokens: int, steps: int, seed: int, step: float = 0.25) -> None:
        g = torch.Generator().manual_seed(seed)
        self.architecture, self.tokens, self.steps = a, tokens, steps
        shape = (a.kv_heads, tokens + steps, a.head_channels)
        self.k = grid(*shape, span=6, step=step, generator=g)
        self.v = grid(*shape, span=6, step=step, generator=g)
        self.q = grid(steps, a.kv_heads, a.group, a.head_channels, span=4, step=step, generator=g)
        self.mass = torch.randint(0, 9, (a.kv_heads, tokens), generator=g).double() * 0.125

    @property
    def inputs(self) -> list[Tensor]:
        """What the program takes."""
        return [self.k, self.v, self.q, self.mass]

    def told(self, policy: CachePolicy, s: Suite, mass: Value) -> Seen:
        """What a policy is told of the prompt, of a mass [G, T]."""
        return told_of(s, self.architecture, policy.observation(self.tokens, 0), mass)

    async def run(self, policy: CachePolicy, s: Suite, k: Value, v: Value, q: Value, mass: Value) -> Any:
        """All steps' attention [steps, G, R, C], then the keys and values that are left [G, S, C]."""
        cache = KVCache(self.architecture, policy)
        n = self.tokens
        await cache.append(s, 0, k[:, :n], v[:, :n])
        await policy.after_prefill(s, cache, 0, self.told(policy, s, mass))
        cache.seen = n
        outputs = []
        for step in range(self.steps):
            await cache.append(s, 0, k[:, n + step : n + step + 1], v[:, n + step : n + step + 1])
            await policy.after_append(s, cache, 0)
            outputs.append(await policy.attend(s, cache, 0, await s.mask_queries(q[step])))
            await cache.settle()
            cache.seen += 1
        left = cache.layers[0].keys_and_values()
        return [*outputs, *left]
