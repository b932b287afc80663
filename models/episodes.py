"""Episodes of a long text, found in plaintext by who owns it: which part its end is about, and probes that ask for it.

A text is cut into windows; a window is the bag of its words, the rarer a word the heavier; k-means puts windows together;
the episode is the one nearest to what the text ends with. Its windows nearest to that, and then the end itself, are the
probes of a policy that has some (`models.cache.CachePolicy.probes`). All of it is a function of the text alone.

Source: Kim et al., "EpiCache: Episodic KV Cache Management for Long Conversational Question Answering", 2025, section 3, and
its code: windows of four utterances, embedded by a small model, four episodes; here bags of words, which need none. There
probes are made before a question is known, and have none of it.

Leaks: nothing; it runs at the client, and what comes of it is shared like the rest of a prompt.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

WINDOW = 32  # tokens of a window, and of a text's end at most
EPISODES = 4
ROUNDS = 10  # of k-means


def with_probes(ids: Sequence[int], count: int) -> list[int]:
    """Return a text's tokens with `count` probes of its own in front; without any for 0.

    >>> with_probes([5, 6, 7, 8, 5, 6], 0)
    [5, 6, 7, 8, 5, 6]
    """
    return [*probes(ids, count), *ids]


def probes(ids: Sequence[int], count: int) -> list[int]:
    """Return `count` tokens: of the windows that are most like the end of a text, of the episode that this is about, again
    and again where there are not so many; the second half is the end itself, as far as it goes.

    >>> probes([1, 2, 3, 1], 3)
    [1, 2, 1]
    """
    asking = list(ids[len(ids) - min(count // 2, len(ids)) :])
    return _of_episode(ids, count - len(asking)) + asking


def _of_episode(ids: Sequence[int], count: int) -> list[int]:
    """Return `count` tokens of the windows of the episode that the end of a text is about, the most similar ones first."""
    end = max(1, min(WINDOW, len(ids) // 2))
    before = ids[: len(ids) - end] or ids
    windows = [before[n : n + WINDOW] for n in range(0, len(before), WINDOW)]
    bags = _bags([*windows, ids[len(ids) - end :]])
    asked, bags = bags[-1], bags[:-1]
    centres, of = episodes(bags, min(EPISODES, len(windows)))
    inside = (of == int((centres @ asked).argmax())).nonzero()[:, 0]
    near = bags[inside] @ asked
    ranked = [windows[int(inside[n])] for n in torch.argsort(-near, stable=True)]
    return list(itertools.islice(itertools.cycle(itertools.chain(*ranked)), count))


def _bags(windows: Sequence[Sequence[int]]) -> Tensor:
    """Return windows as bags of words, rows of length 1: counts by the logarithm of one over the share of windows that have
    the word."""
    words = {word: n for n, word in enumerate(sorted({word for window in windows for word in window}))}
    counts = torch.zeros(len(windows), len(words), dtype=torch.float64)
    for row, window in zip(counts, windows, strict=True):
        for word in window:
            row[words[word]] += 1
    rare = torch.log((1 + len(windows)) / (counts > 0).sum(0).double())
    weighed = counts * rare
    found: Tensor = weighed / weighed.norm(dim=1, keepdim=True).clamp(min=1e-9)
    return found


def episodes(bags: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the centres [E, V] of `count` episodes of bags [N, V], E <= N, rows of length 1, and each bag's episode [N]: by
    k-means with cosines, from the first bag, the one least like it, and so on."""
    first = [0]
    while len(first) < count:
        first.append(int((bags @ bags[first].T).amax(1).argmin()))
    centres = bags[first]
    of = torch.zeros(len(bags), dtype=torch.int64)
    for _ in range(ROUNDS):
        of = (bags @ centres.T).argmax(1)
        sums = torch.stack([bags[of == n].sum(0) if bool((of == n).any()) else centres[n] for n in range(count)])
        centres = sums / sums.norm(dim=1, keepdim=True).clamp(min=1e-9)
    return centres, (bags @ centres.T).argmax(1)
