"""Layer profiles and retrieval heads: averages over the model owner's prompts, public, in the text of policies.

* `answers`: share of the answers' attention that a layer pays to the prompt outside of its first 4 and last 32 tokens.
* `cake`: preference, entropy times variance of what the prompt's last 32 queries give (Qin et al., "CAKE", ICLR 2025, and
  its code; both temperatures 1).
* `d2o`: e^-variance of what tokens receive in all, each head's from 0 to 1 (Wan et al., "D2O", ICLR 2025, and its code).
* `errors`: error of attention's output for the answer where a layer keeps the 32 tokens that the last 8 queries look at, and
  these 8 (Lin et al., "CompressKV", 2025, and its code).

Retrieval heads: where an answer's token occurs at most 3 times in the prompt, a head's score grows by its attention on these
places and 2 tokens around each ("CompressKV"; there the needles' places are known). Plaintext, at the owner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from launch.fit.examples import Example, spread
from launch.measure.quality.prefilled import PrefilledModel

SINKS, WINDOW, VOTERS, SMALL = 4, 32, 8, 32
OFTEN, AROUND, WEAK = 3, 2, 0.05
KINDS = ("answers", "cake", "d2o", "errors")


@dataclass
class Profile:
    """Sums over examples. layers: by kind a number a layer. heads [L, H]."""

    layers: dict[str, list[float]] = field(default_factory=dict)
    heads: Tensor | None = None

    def add(self, kind: str, layer: int, value: float, count: int) -> None:
        """Add a layer's number, of `count` layers."""
        self.layers.setdefault(kind, [0.0] * count)[layer] += value

    def weights(self, kind: str) -> str:
        """Return the setting `weights` of the wrapper `layers`."""
        return " ".join(f"{max(value, 0.001):g}" for value in spread(self.layers[kind]))

    def retrieval(self, most: int) -> str:
        """Return the setting `heads`: the up to `most` best of each layer, none below a twentieth of the best."""
        assert self.heads is not None
        found = []
        for layer, row in enumerate(self.heads):
            order = row.argsort(descending=True, stable=True)[:most].tolist()
            found += [f"{layer}.{head}" for head in sorted(order) if float(row[head]) >= WEAK * float(self.heads.max())]
        return " ".join(found)


@torch.no_grad()
def profile_of(model: PrefilledModel, examples: Sequence[Example], progress: Callable[[int, int], None]) -> Profile:
    """Return the profile of a model. progress(done, total): examples."""
    found, a = Profile(heads=torch.zeros(model.architecture.layers, model.architecture.heads)), model.architecture
    for n, example in enumerate(examples):
        progress(n, len(examples))
        whole, tokens = [*example.prompt, *example.answer], len(example.prompt)
        seen, places = model.prefill(whole), _places(example)
        for layer, (q, k, v) in enumerate(zip(seen.queries, seen.keys, seen.values, strict=True)):
            p = probabilities(q, k)
            of_prompt, of_answer = p[:, :, :tokens, :tokens], p[:, :, tokens - 1 : -1]
            found.add("answers", layer, float(of_answer[..., SINKS : max(SINKS + 1, tokens - WINDOW)].sum()), a.layers)
            found.add("cake", layer, preference(of_prompt[:, :, -WINDOW:]), a.layers)
            found.add("d2o", layer, float(torch.exp(-received_variance(of_prompt))), a.layers)
            found.add("errors", layer, error(p, v, tokens), a.layers)
            assert found.heads is not None
            found.heads[layer] += (of_answer * places).sum((2, 3)).flatten()
    progress(len(examples), len(examples))
    return found


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    """Return causal probabilities [G, R, T, T] of queries [G, R, T, C] and keys [G, T, C]."""
    scores = q @ k[:, None].transpose(-1, -2)
    return torch.softmax(scores.masked_fill(~torch.ones(scores.shape[-2:]).tril().bool(), float("-inf")), -1)


def preference(p: Tensor) -> float:
    """Return CAKE's preference of a layer, of the last w queries' probabilities [G, R, w, T]."""
    a = p[..., : -p.shape[2]]
    entropy = -(a * torch.log(a + 1e-10)).sum()
    return float(entropy * a.var(2, unbiased=True).sum())


def received_variance(p: Tensor) -> Tensor:
    """Return D2O's variance of what tokens receive, mean over heads, of probabilities [G, R, T, T]."""
    received = p.sum(2).flatten(0, 1)
    low, high = received.amin(-1, keepdim=True), received.amax(-1, keepdim=True)
    return ((received - low) / (high - low).clamp_min(1e-9)).var(-1).mean()


def error(p: Tensor, v: Tensor, tokens: int) -> float:
    """Return ||O' - O|| / ||O|| of the answer's queries with a small cache of the prompt's `tokens` tokens, of probabilities
    [G, R, T, T] of all and values [G, T, C]."""
    older = tokens - VOTERS
    if older <= SMALL:
        return 0.0
    votes = functional.avg_pool1d(p[:, :, older:tokens, :older].sum((1, 2)), 5, 1, 2)
    kept = torch.ones(v.shape[:2], dtype=torch.bool)
    kept[:, :older] = False
    kept.scatter_(1, votes.topk(SMALL, -1).indices, True)
    of_answer = p[:, :, tokens - 1 : -1]
    small = of_answer * kept[:, None, None]
    whole, cut = (x @ v[:, None] for x in (of_answer, small / small.sum(-1, keepdim=True).clamp_min(1e-9)))
    return float((cut - whole).norm() / whole.norm().clamp_min(1e-9))


def _places(example: Example) -> Tensor:
    """Return where each of the answer's n tokens is looked for, 0 or 1 [n, T] of prompt and answer."""
    prompt = torch.tensor(example.prompt)
    found = torch.zeros(len(example.answer), len(prompt) + len(example.answer))
    for n, token in enumerate(example.answer):
        at = (prompt == token).nonzero().flatten().tolist()
        for place in at if len(at) <= OFTEN else ():
            found[n, max(0, place - AROUND) : min(len(prompt), place + AROUND + 1)] = 1
    return found
