"""Systems that merge, by their definitions in numpy: what a layer holds after an eviction. k, v [G, T, C]."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


def order(x: Array, k: int) -> Index:
    """Places of the k largest, ties to the earlier, in order of position."""
    return np.sort(np.argsort(-x, axis=-1, kind="stable")[..., :k], -1)


def take(x: Array, places: Index) -> Array:
    """Rows [G, T, C] at places [G, n]."""
    return np.take_along_axis(x, places[..., None], 1)


def unit(x: Array) -> Array:
    """Rows of length 1."""
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def nearest(x: Array, places: Index, start: int, stop: int) -> Array:
    """Rows at `places`, those of start..stop-1 averaged into the nearest of them, of two the left one: [T, C] -> [n, C]."""
    gone = np.setdiff1d(np.arange(start, stop), places)
    to = places[np.abs(places[None] - gone[:, None]).argmin(1)]
    sums, counts = x.copy(), np.ones(len(x))
    np.add.at(counts, to, 1)
    np.add.at(sums, to, x[gone])
    return np.asarray((sums / counts[:, None])[places])


def similar(k: Array, v: Array, kept: Index, gone: Index, tau: float | None = None) -> tuple[Array, Array, Array, Array]:
    """D2O: kept [G, B], gone [G, E] -> merged keys and values, the largest similarities [G, E], who joins [E]."""
    out = [take(x, kept).copy() for x in (k, v)]
    near = unit(take(k, gone)) @ unit(take(k, kept)).transpose(0, 2, 1)
    best, at = near.max(-1), near.argmax(-1)
    tau = best.mean() if tau is None else tau
    joins = best.mean(0) >= tau - 1e-12
    for y, x in zip(out, (k, v), strict=True):
        for g in range(len(k)):
            counts = np.ones(y.shape[1])
            for e in np.where(joins)[0]:
                y[g, at[g, e]] += best[g, e] * x[g, gone[g, e]]
                counts[at[g, e]] += 1
            y[g] /= counts[:, None]
    return out[0], out[1], best, joins


def runs(
    k: Array, v: Array, a: Array, sets: int, longest: int, weigh: Callable[[Array, Array], Array]
) -> tuple[Array, Array]:
    """KVMerger, one head: k, v [T, C] -> weighted means of runs, cut where neighbours are least similar. weigh: what rows of
    a run count, by their keys and what its tokens received."""
    cuts = -(unit(k)[:-1] * unit(k)[1:]).sum(-1).round(9)
    if longest:
        longest = max(longest, 2 * -(-len(k) // sets))
        cuts[longest - 1 :: longest] += 3
    ends = order(cuts, sets - 1)
    parts = np.split(np.arange(len(k)), ends + 1)
    weights = [weigh(k[p], a[p]) for p in parts]
    return tuple(  # type: ignore[return-value]
        np.array([w @ x[p] / w.sum() for w, p in zip(weights, parts, strict=True)]) for x in (k, v)
    )


def received(k: Array, a: Array) -> Array:
    """The weights of a run by what its tokens received."""
    return a + 2.0**-7


def gaussian(k: Array, a: Array) -> Array:
    """The weights of a run by the distance to the key of the first of those that received most."""
    away = ((k - k[a.argmax()]) ** 2).sum(-1)
    return np.asarray(np.exp(-away * len(k) / (2 * (away.sum() + 2.0**-4))))


def elastic(k: Array, v: Array, score: Array, budget: int, sinks: int = 4) -> tuple[Array, Array]:
    """One set a layer, by score [T]; the last token stays."""
    count = k.shape[1]
    anchors = sinks + order(score[sinks : count - 1], budget - sinks - 1)
    keep = np.r_[:sinks, anchors, count - 1]
    found = []
    for x in (k, v):
        middle = np.stack([nearest(one, anchors, sinks, count - 1) for one in x])
        y = x[:, keep].copy()
        y[:, sinks : len(keep) - 1] = middle
        found.append(y)
    return found[0], found[1]


def balanced(total: Array, late: Array, queries: int, window: int) -> Array:
    """EMS: what tokens [T] got from all queries and from the last ones, in means over queries, whichever is larger."""
    return np.asarray(np.maximum(total / queries, late / window))


def classes(k: Array, v: Array, s: Array, centres: Index, candidates: Index, tau: float) -> tuple[Array, Array, Index]:
    """EMS, one head: k, v [T, C], weights s [T] -> keys, values, and the class of each candidate, 0 for none."""
    near = unit(k[candidates]) @ unit(k[centres]).T
    of = np.concatenate([np.full((len(candidates), 1), tau), near.round(9)], 1).argmax(1)
    keys, values = [], []
    for n, centre in enumerate(centres):
        members = np.r_[centre, candidates[of == n + 1]]
        weights = s[members] / s[members].sum()
        turned = weights @ unit(k[members])
        keys.append(turned / np.linalg.norm(turned) * np.linalg.norm(k[centre]))
        values.append(weights @ v[members])
    return np.array(keys), np.array(values), of
