"""Factors of low rank for `models.policies.cskv`: those that make a model's keys and values again best.

Source: Wang et al., "CSKV", 2024, and its code: a start by singular vectors, then steps that lessen the mean squared error
of keys, after they turn, and of values, layer by layer. A turn changes no length, and of all factors of a rank those of the
leading eigenvectors V of X^T X have the least error of rows X: c = x V, x' = c V^T. So that error needs no steps. What is
different here: it counts by what reads a row, of keys the queries of their heads, of values the weights of attention's
output: with M the second moments of these, block by head, the start is that of X M^(1/2). Steps then lessen what the
answer's attention loses (`launch.fit.low_rank_steps`). In plaintext, at the model owner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from launch.fit.examples import Example
from launch.measure.quality.prefilled import PrefilledModel
from models.policies.axes.codecs import DOWN, KEYS, UP, VALUES
from models.rotary import cosines_and_sines
from mpc.errors import ConfigurationError
from protocols.plain.suite import PlainValue, tensor_of

MEASURED = 8  # examples whose largest products are looked at
LEAST = 1e-6  # of a moment's mean, for the root's inverse


Factors = Mapping[tuple[int, str], tuple[Tensor, Tensor]]


class Moments(dict[tuple[int, str], Tensor]):
    """A matrix for each layer and kind of rows."""


@torch.no_grad()
def low_rank_factors(
    model: PrefilledModel,
    shapes: Mapping[str, tuple[int, ...]],
    examples: Sequence[Example],
    progress: Callable[[int, int], None],
) -> tuple[dict[str, Tensor], float]:
    """Return the weights by canonical name, and the share of rows' squares that they lose, mean over layers and kinds.
    shapes: of the policy's parts (`models.policies.cskv.CSKV.learned`). progress(done, total): examples. Raises
    `ConfigurationError` where the examples have fewer tokens than the rank."""
    kinds = [kind for kind in (KEYS, VALUES) if f"{kind}.{DOWN}.weight" in shapes]
    rank = shapes[f"{VALUES}.{DOWN}.weight"][1]
    tokens = sum(len(one.prompt) + len(one.answer) for one in examples)
    if tokens < rank:
        raise ConfigurationError(
            f"--prompts: {tokens} tokens do not say {rank} directions of a layer's rows; give more texts"
        )
    squares, readers = _moments(model, examples, kinds, progress)
    leading, lost = {}, []
    for at, moment in squares.items():
        root, back = _roots(readers[at])
        values, vectors = torch.linalg.eigh(root @ moment @ root)
        first = vectors.flip(1)[:, :rank]
        leading[at] = root @ first, back @ first
        lost.append(1 - float(values.flip(0)[:rank].sum() / values.sum().clamp_min(1e-30)))
    return within_bounds(model, leading, examples), sum(lost) / len(lost)


@torch.no_grad()
def within_bounds(model: PrefilledModel, factors: Factors, examples: Sequence[Example]) -> dict[str, Tensor]:
    """Return factors (down, up), [G C, r] each, by canonical name, scaled so that no product is larger than the largest
    element of the rows, whose bound is declared."""
    kinds = [kind for kind in (KEYS, VALUES) if (0, kind) in factors]
    sizes = _sizes(model, examples[:MEASURED], {at: down.double() for at, (down, _) in factors.items()}, kinds)
    found = {}
    for (layer, kind), (down, up) in factors.items():
        size = sizes[layer, kind]
        found[name_of(layer, kind, DOWN)] = (down / size).float()
        found[name_of(layer, kind, UP)] = (up * size).float()
    return found


def name_of(layer: int, kind: str, way: str) -> str:
    """Return the canonical name of a factor."""
    return f"policy.layers.{layer}.{kind}.{way}.weight"


def _moments(
    model: PrefilledModel, examples: Sequence[Example], kinds: Sequence[str], progress: Callable[[int, int], None]
) -> tuple[Moments, Moments]:
    """Return by layer and kind X^T X of rows [T, G C], and the second moments of what reads them, [G C, G C], zero between
    heads, mean diagonal 1."""
    a, squares, readers = model.architecture, Moments(), Moments()
    for n, example in enumerate(examples):
        progress(n, len(examples))
        for at, x, q in _rows(model, example, kinds):
            squares[at] = squares.get(at, 0) + x.T @ x
            if at[1] == KEYS:
                readers[at] = readers.get(at, 0) + _blocks(one.T @ one for one in q)
    progress(len(examples), len(examples))
    for layer in range(a.layers):
        out = tensor_of(model.weights[f"layers.{layer}.attention.out.weight"]).double()
        heads = out.reshape(a.kv_heads, a.group, a.head_channels, -1)
        readers[layer, VALUES] = _blocks(torch.einsum("rcd,red->ce", one, one) for one in heads)
    return squares, Moments({at: one / one.diagonal().mean() for at, one in readers.items()})


def _blocks(parts: Iterable[Tensor]) -> Tensor:
    """Return a matrix that is zero outside of these on its diagonal."""
    joining: Callable[..., Tensor] = torch.block_diag
    return joining(*parts)


def _roots(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric root of a matrix, and its inverse; directions that hardly count count a thousandth."""
    values, vectors = torch.linalg.eigh(moment)
    sizes = values.clamp_min(LEAST).sqrt()
    return vectors * sizes @ vectors.T, vectors / sizes @ vectors.T


def _sizes(
    model: PrefilledModel, examples: Sequence[Example], leading: Mapping[tuple[int, str], Tensor], kinds: Sequence[str]
) -> dict[tuple[int, str], Tensor]:
    """Return what each product is divided by, [r], 1 at least."""
    most: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
    for example in examples:
        for at, x, _ in _rows(model, example, kinds):
            pair = (x @ leading[at]).abs().amax(0), x.abs().max()
            before = most.get(at, pair)
            most[at] = torch.maximum(before[0], pair[0]), torch.maximum(before[1], pair[1])
    return {at: (products / rows.clamp_min(1e-9)).clamp_min(1.0) for at, (products, rows) in most.items()}


def _rows(model: PrefilledModel, example: Example, kinds: Sequence[str]) -> Iterator[tuple[tuple[int, str], Tensor, Tensor]]:
    """Yield (layer, kind), the rows [T, G C] of an example, keys before they turn, or values, and its queries, turned back
    so, too, [G, R T, C]; float64."""
    seen = model.prefill([*example.prompt, *example.answer])
    for layer, (q, k, v) in enumerate(zip(seen.queries, seen.keys, seen.values, strict=True)):
        if KEYS in kinds:
            k, q = (turned(model, layer, x, back=True) for x in (k, q.flatten(0, 1)))
        queries = q.reshape(k.shape[0], -1, k.shape[2]).double()
        if KEYS in kinds:
            yield (layer, KEYS), k.permute(1, 0, 2).flatten(1).double(), queries
        yield (layer, VALUES), v.permute(1, 0, 2).flatten(1).double(), queries


def turned(model: PrefilledModel, layer: int, x: Tensor, back: bool = False) -> Tensor:
    """Return queries or keys [heads, T, C] as positions turn them, or as they were before."""
    rotary = model.architecture.rotary_of(layer)
    if rotary is None:
        return x
    cos, sin = cosines_and_sines(rotary, x.shape[2], 0, x.shape[1])
    return tensor_of(model.suite.run(model.suite.rotate(PlainValue(x), cos, -sin if back else sin)))
