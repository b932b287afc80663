"""Secret routing to experts, and the places of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.vectors.independent import order, softmax, wide
from tests.vectors.independent.formats import U, Words
from tests.vectors.independent.linear import multiply, open_cut, truncate
from tests.vectors.independent.lookup import one_hot, suffix
from tests.vectors.independent.results import by_rank, close, exact, flagged
from tests.vectors.independent.rows import Flags
from tests.vectors.independent.world import Masked, Shared, Steps, World, together


def route(w: World, x: Masked, chosen: int, renormalised: bool, compared: int, score: int) -> Steps:
    """Marks and gates of logits [T, E]; score: log2 of the spread's bound."""
    tokens, experts = x.shape
    bits, flags = 28 + experts.bit_length() + 2, Flags(w)

    def marked() -> Steps:
        return (yield from w.open((yield from order.top_k(w, x.to(compared), chosen, bits, "indicator"))))

    scaled = x.each(lambda t: t.reshape(-1) * U(7879))
    flat = truncate(w, Masked(scaled.m, scaled.lam, x.bits, x.frac + 13), 13)
    marks, e = yield from together(marked(), softmax.exponentials(w, flat, tokens, score + 1, (28, bits), flags))
    every = e.each(lambda t: t.reshape(tokens, experts))

    def kept() -> Steps:
        return (yield from w.open(multiply(w, every, marks)))

    def inverse(p: Masked) -> Steps:
        found = yield from softmax.inverse_sum(w, p.each(lambda t: t.reshape(-1)), tokens)
        excess = found.frac - 26
        return (yield from open_cut(w, found.to(40 + excess), excess))

    if renormalised:
        part = yield from kept()
        divided = yield from inverse(part)
    else:
        part, divided = yield from together(kept(), inverse(every))
    gates = wide.multiply(w, "gates", part, divided.each(lambda t: t[..., None]), 64)
    return marks.shared, gates, flags.take()


def slots(w: World, marks: Masked, capacity: int, bits: int) -> tuple[Shared, Shared]:
    """Rows of places [E, capacity, T], the last token first, and how many marks have none."""
    width = max(1, marks.shape[0].bit_length())
    counts = marks.each(lambda t: np.cumsum(np.swapaxes(np.flip(t, 0), 0, 1), 1, dtype=t.dtype)).to(width)
    hot = one_hot(w, counts, 0, width, bits)

    def rows(t: Words) -> Words:
        reached = np.swapaxes(suffix(t)[..., 1 : capacity + 1], -1, -2)
        found = reached - np.concatenate([np.zeros_like(reached[..., :1]), reached[..., :-1]], -1)
        return np.flip(found, -1)

    def beyond(t: Words) -> Words:
        more = np.maximum(np.arange(t.shape[-1]) - capacity, 0).astype(t.dtype)
        return np.asarray((t[..., -1, :] * more).sum((-1, -2), dtype=t.dtype)[..., None])

    return hot.each(rows), hot.each(beyond)


# ---- what the results must be ----------------------------------------------------------------------------------------
def gates_of(x: np.ndarray, chosen: int, renormalised: bool, **_: Any) -> list[Any]:
    """Marks at the largest, the softmax there."""
    marks = np.zeros_like(x)
    np.put_along_axis(marks, by_rank(x)[..., :chosen], 1.0, -1)
    e = np.exp(x - x.max(-1, keepdims=True))
    gates = marks * e / (marks * e if renormalised else e).sum(-1, keepdims=True)
    return [exact(marks), close(gates, 2.0**-11), flagged(False)]


def places_of(marks: np.ndarray, capacity: int, **_: Any) -> list[Any]:
    """Token by token, from the last one on."""
    tokens, experts = marks.shape
    rows, taken, dropped = np.zeros((experts, capacity, tokens)), [0] * experts, 0
    for t in range(tokens - 1, -1, -1):
        for e in np.flatnonzero(marks[t]):
            if taken[e] < capacity:
                rows[e, taken[e], t] = 1
                taken[e] += 1
            else:
                dropped += 1
    return [exact(rows), exact(np.array([dropped]))]
