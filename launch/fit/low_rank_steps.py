"""Steps that train factors of low rank (`launch.fit.low_rank`) by what the answer's attention loses.

Loss: for each layer by itself, the squared error of what attention gives the queries of the answer, where all but the last
rows before them are made again, as a share of its square. In plaintext, at the model owner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from launch.fit.examples import Example
from launch.fit.low_rank import name_of, turned, within_bounds
from launch.fit.training import Learner
from launch.measure.quality.prefilled import PrefilledModel
from models.policies.axes.codecs import DOWN, KEYS, UP, VALUES


class LowRankFactors(Learner):
    """The factors of all layers, by canonical name. start: what they are before the first step; window: last rows that stay
    whole."""

    def __init__(self, model: PrefilledModel, start: Mapping[str, Tensor], window: int) -> None:
        self.model, self.start, self.window = model, start, window
        self.kinds = [kind for kind in (KEYS, VALUES) if name_of(0, kind, DOWN) in start]

    def fresh(self, example: Example, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {name: x.clone() for name, x in self.start.items()}, {}

    def loss(self, state: dict[str, Tensor], example: Example) -> Tensor:
        seen, first = self.model.prefill([*example.prompt, *example.answer]), len(example.prompt) - 1
        rows, places = torch.arange(first, seen.tokens)[:, None], torch.arange(seen.tokens)
        late, recent = places > rows, places > rows - self.window
        losses = []
        for layer, kept in enumerate(zip(seen.queries, seen.keys, seen.values, strict=True)):
            q, k, v = (x.clone() for x in kept)
            q = q[:, :, first:]
            low_k, low_v = self._again(state, layer, k, v)
            near, far = (q @ x[:, None].transpose(-1, -2) for x in (k, low_k))
            whole, low = (torch.softmax(x.masked_fill(late, -torch.inf), -1) for x in (near, torch.where(recent, near, far)))
            wanted = whole @ v[:, None]
            found = (low * recent) @ v[:, None] + (low * ~recent) @ low_v[:, None]
            losses.append((found - wanted).square().sum() / wanted.square().sum().clamp_min(1e-9))
        return torch.stack(losses).mean()

    def _again(self, state: Mapping[str, Tensor], layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [G, T, C] as they are made again."""

        def again(x: Tensor, kind: str) -> Tensor:
            groups, tokens, channels = x.shape
            flat = x.permute(1, 0, 2).reshape(tokens, groups * channels)
            low = flat @ state[name_of(layer, kind, DOWN)] @ state[name_of(layer, kind, UP)].T
            return low.reshape(tokens, groups, channels).permute(1, 0, 2)

        if KEYS in self.kinds:
            k = turned(self.model, layer, again(turned(self.model, layer, k, back=True), KEYS))
        return k, again(v, VALUES)

    def exported(self, state: dict[str, Tensor], examples: Sequence[Example]) -> dict[str, Tensor]:
        layers = range(self.model.architecture.layers)
        every = {(n, kind): tuple(state[name_of(n, kind, way)] for way in (DOWN, UP)) for n in layers for kind in self.kinds}
        return within_bounds(self.model, {at: (down, up) for at, (down, up) in every.items()}, examples)
