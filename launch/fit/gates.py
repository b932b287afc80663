"""Training of gates (`models.policies.axes.gate`): all layers' together, by what they cost the answer.

Source: Zeng et al., "In-context KV-Cache Eviction for LLMs via Attention-Gate", 2024, section 3 (recalled): loss of the
answer where its queries see the tokens alone whose gate is above 1/2, straight through the threshold, plus alpha |mean g -
beta| of each head, beta the share to keep; the model stays as it is and gates start open. In plaintext, at the model owner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from launch.fit.examples import Example
from launch.fit.training import Learner
from launch.measure.quality.prefilled import Prefilled, PrefilledModel
from models.cache import CachePolicy, KVCache
from models.decoder import Decoder
from models.masks import causal_mask
from models.policies.axes.gate import READ, WRITE
from protocols.plain.suite import PlainSuite, PlainValue, tensor_of
from protocols.suite import Suite, Value

ALPHA, OPEN = 5.0, 2.0
MEASURED = 8


class _Gated(CachePolicy):
    """Attention of an answer's tokens, all in one step, to what `flags` leave of the prompt: [T, G] a layer, 0 or 1."""

    name: ClassVar[str] = "gated"

    def __init__(self, flags: Sequence[Tensor]) -> None:
        self.flags = flags

    def verifies(self, rows: int) -> bool:
        return True

    async def attend_drafted(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        keys, values = (tensor_of(x) for x in cache.layers[layer].keys_and_values())
        scores = tensor_of(q) @ keys.transpose(-1, -2)
        mask = causal_mask(cache.drafted, keys.shape[1], None)
        if mask is not None:
            scores = scores.masked_fill(~mask.repeat(cache.group, 1), float("-inf"))
        flags = self.flags[layer].T
        seen = torch.cat([flags, flags.new_ones(flags.shape[0], keys.shape[1] - flags.shape[1])], 1)
        weights = torch.softmax(scores, -1) * seen[:, None]
        return PlainValue((weights / weights.sum(-1, keepdim=True).clamp_min(1e-9)) @ values)


class Gates(Learner):
    """The gates of all layers. State: read [F, 3 h c] of features divided by size [F], write [h c, G], bias [G]."""

    def __init__(self, model: PrefilledModel, heads: int, channels: int, share: float) -> None:
        self.model, self.heads, self.channels, self.share = model, heads, channels, share
        self.suite = PlainSuite()

    def fresh(self, example: Example, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        g, inner = torch.Generator().manual_seed(seed), self.heads * self.channels
        groups, trained, stays = self.model.architecture.kv_heads, {}, {}
        for layer, features in enumerate(self.model.prefill(example.prompt).features):
            size = stays[f"size.{layer}"] = features.clone().std(0).clamp_min(1e-2)
            trained[f"read.{layer}"] = torch.randn(len(size), 3 * inner, generator=g) / math.sqrt(len(size))
            trained[f"write.{layer}"] = torch.randn(inner, groups, generator=g) / math.sqrt(inner)
            trained[f"bias.{layer}"] = torch.full((groups,), OPEN)
        return trained, stays

    def _gates(self, state: dict[str, Tensor], prompt: Prefilled) -> list[Tensor]:
        """Return what each layer's gates say before the sigmoid, without the bias, [T, G]."""
        found = []
        for layer, given in enumerate(prompt.features):
            features = given.clone() / state[f"size.{layer}"]
            fused = (features @ state[f"read.{layer}"]).reshape(len(features), 3 * self.heads, self.channels)
            q, k, v = torch.split(fused.permute(1, 0, 2), self.heads)
            scores = q @ k.transpose(-1, -2) / math.sqrt(self.channels)
            late = ~torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
            out = torch.softmax(scores.masked_fill(late, float("-inf")), -1) @ v
            found.append(out.permute(1, 0, 2).flatten(1) @ state[f"write.{layer}"])
        return found

    def loss(self, state: dict[str, Tensor], example: Example) -> Tensor:
        prompt = self.model.prefill(example.prompt)
        said = [z + state[f"bias.{layer}"] for layer, z in enumerate(self._gates(state, prompt))]
        gates = [torch.sigmoid(z) for z in said]
        flags = [(g > 0.5).float() + g - g.detach() for g in gates]
        open_ends = [torch.cat([torch.ones_like(f[:1]), f[1:-1], torch.ones_like(f[-1:])]) for f in flags]
        shares = torch.stack([g.mean(0) for g in gates])
        return self._answer_loss(example, prompt, open_ends) + ALPHA * (shares - self.share).abs().mean()

    def _answer_loss(self, example: Example, prompt: Prefilled, flags: Sequence[Tensor]) -> Tensor:
        """Return the mean of -ln p of the answer's tokens but the first, all of which see what the flags leave."""
        if len(example.answer) < 2:
            return torch.zeros(())
        a = self.model.architecture
        weights = {name: PlainValue(tensor_of(w).clone()) for name, w in self.model.weights.items()}
        decoder = Decoder(self.suite, a, weights, _Gated(flags))
        cache = decoder.new_cache()
        for entry, k, v in zip(cache.layers, prompt.keys, prompt.values, strict=True):
            entry.k, entry.v = PlainValue(k.clone()), PlainValue(v.clone())
        cache.seen = cache.prompt_tokens = prompt.tokens
        given = torch.tensor(example.answer)
        logits = self.suite.run(decoder.verify(self.suite.indices(len(given) - 1, given[:-1], a.vocabulary), cache))
        return functional.cross_entropy(tensor_of(logits), given[1:])

    def exported(self, state: dict[str, Tensor], examples: Sequence[Example]) -> dict[str, Tensor]:
        """As in `Learner`; each head's scores are scaled to at most 1."""
        layers, inner = range(self.model.architecture.layers), self.heads * self.channels
        most = [torch.full((self.model.architecture.kv_heads,), 1e-6) for _ in layers]
        for example in examples[:MEASURED]:
            for layer, z in enumerate(self._gates(state, self.model.prefill(example.prompt))):
                most[layer] = torch.maximum(most[layer], z.abs().amax(0))
        found = {}
        for n in layers:
            read = state[f"read.{n}"] / state[f"size.{n}"][:, None]
            scaled = torch.cat([read[:, :inner] / math.sqrt(self.channels), read[:, inner:]], 1)
            found[f"policy.layers.{n}.{READ}.weight"] = scaled
            found[f"policy.layers.{n}.{WRITE}.weight"] = state[f"write.{n}"] / most[n]
        return found
