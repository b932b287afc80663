"""Where a value could go around its ring unseen: from the weights alone, before they are shared.

A flag of the suite `masked` is certain up to `SURE` bounds (docs/ranges.md). The owner can do better than trust in it: rows
of the token table are what they are, and outputs of linear layers behind a norm of width D stay below sqrt(D) |W_j| + |b_j|
whatever the prompt. Bounds within which all of these fit make the flags of these kinds certain. Calibration chooses such
bounds; weights that are shared without it are checked here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from models.architecture import Architecture
from models.balancing import provable_bounds
from models.checkpoint import Checkpoint
from protocols.bounds import RANGES, Bounds
from protocols.options import OptionValue
from protocols.ranges import SURE, least_bound
from protocols.registry import SuiteSpec

SUITE = "masked"  # the rings of `crypten` are wider than any of these values


def beyond_flags(checkpoint: Checkpoint, options: Mapping[str, OptionValue]) -> str | None:
    """Return what bounds (options of the suite `masked`) leave unseen of a model's weights, in words; None where flags
    are certain.

    Reads every weight once, one layer's input weights at a time.
    """
    bounds = SuiteSpec(SUITE, options=options).settings.bounds
    for kind, place, reach in _reaches(checkpoint):
        if (text := _unseen(kind, place, reach, bounds[kind], checkpoint.description.layers)) is not None:
            return text
    return None


def _unseen(kind: str, place: int, reach: float, bounds: Bounds, layers: int) -> str | None:
    sure = 2.0 ** bounds.at(place) * (1.0 if kind == "residual" else SURE)
    if reach < sure:
        return None
    where = f"layer {place}" if place < layers else "the head"
    wanted = least_bound(kind, reach / (1.0 if kind == "residual" else SURE))
    remedy = f"{kind}={wanted}" if wanted <= RANGES[kind].high else "no option of the suite is large enough"
    return f"{RANGES[kind].what} can reach {reach:.4g} in {where}, flags are certain below {sure:g} ({remedy})"


def _reaches(checkpoint: Checkpoint) -> Iterator[tuple[str, int, float]]:
    """Return (kind, place, what no prompt can exceed). Of layers that read a stream without a norm before them nothing is
    said: what they give is flagged for certain up to `SURE` bounds alone."""
    a, weights = checkpoint.description, checkpoint.weights
    largest = float(weights["embedding.tokens"].norm(dim=-1).max())
    if not isinstance(a, Architecture) or a.learned_positions:
        tables = [name for name in ("embedding.positions", "embedding.types") if name in weights]
        largest += sum(float(weights[name].norm(dim=-1).max()) for name in tables)
    yield "residual", 0, largest
    encoder = a.encoder_layers if isinstance(a, Architecture) else 0
    if encoder:
        yield "residual", encoder, largest
    names = ["attention.qkv", "mlp.up", *(["mlp.gate"] if a.gated else [])]
    normalised = not isinstance(a, Architecture) or a.norms != "after"
    for place in range(a.layers if normalised else 0):
        crossed = ["cross.q", "cross.kv"] if encoder and place >= encoder else []
        for name in [*names, *crossed, *(["mlp.router"] if a.mixture(place) else [])]:
            yield "activation", place, _provable(checkpoint, f"layers.{place}.{name}")
    for name in ("pooler", "words", "head"):
        if f"{name}.weight" in weights:
            yield "logits", a.layers, _provable(checkpoint, name)


def _provable(checkpoint: Checkpoint, name: str) -> float:
    weights = checkpoint.weights
    return float(provable_bounds(weights[f"{name}.weight"], weights.get(f"{name}.bias")).max())
