"""Codecs: how cached rows are held, in segments of a layer's cache (`models.segments`).

Leaks: nothing; what follows from secrets is opened by no one (docs/security.md, "Policies").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from models.cache import LayerCache
from models.rotary import cosines_and_sines
from models.segments import FewChannels, LowRank, Segment, own_rows
from protocols.suite import Suite, Value


async def hold_few_channels(suite: Suite, entry: LayerCache, count: int, recent: int) -> None:
    """Hold the `count` channels of keys that say most of scores, in secret and other ones for each head, of all rows but
    the `recent` last, which stay exact with all that is appended; values stay whole.

    Channels are ranked by the mean square of the noted queries times that of the cached keys. Rounds, bytes: a ranking of C
    channels a head, and a fresh mask for the keys that are left.
    """
    k, v = entry.keys_and_values()
    stop = entry.length - recent
    assert entry.queries is not None
    energies, bound = await suite.channel_energies(entry.queries, k)
    chosen = await suite.mask_for_reuse(await suite.top_k(energies, count, bound))
    few = await suite.choose(chosen, k[:, :stop].transpose(1, 2))
    held = await suite.mask_for_cache(few.transpose(1, 2))
    entry.held = (FewChannels(held, own_rows(suite, v[:, :stop]), chosen),)
    entry.k, entry.v = own_rows(suite, k[:, stop:]), own_rows(suite, v[:, stop:])
    entry.queries = None


async def hold_few_bits(suite: Suite, entry: LayerCache, rows: Sequence[Value], fraction_bits: int) -> None:
    """Hold keys and values [G, n, C] rounded to so few fraction bits, behind the rows of the layer that are held so already.

    Rounds, bytes: a fresh mask for the rows, in rings as small as the suite has (`Suite.hold`).
    """
    k, v = await suite.together(suite.hold(rows[0], fraction_bits, "keys"), suite.hold(rows[1], fraction_bits, "values"))
    if entry.held:
        (before,) = entry.held
        k, v = suite.concat([before.k, k], 1), suite.concat([before.v, v], 1)
    entry.held = (Segment(k, v),)


KEYS, VALUES = "low_rank.keys", "low_rank.values"
DOWN, UP = "down", "up"
Angles = tuple[Tensor, Tensor]


async def hold_low_rank(suite: Suite, entry: LayerCache, recent: int, low_keys: bool) -> None:
    """Hold products of low rank with learned weights in place of values, and of keys where `low_keys`, of all rows but the
    `recent` last, behind those that are held so already; the others stay exact. All heads' channels x [n, G C] of a token
    become x W [n, r], W = `low_rank.{keys, values}.down`; `up`, [G C, r] too, makes them again.

    Keys that positions turn are turned back first: rows must be those of positions 0, 1, ... Rounds: 1 where keys turn, and
    2 or 3; bytes: a fresh mask for n (r + r') elements.
    """
    k, v = entry.keys_and_values()
    count = entry.length - recent
    before = entry.held[0] if entry.held else None
    assert before is None or isinstance(before, LowRank)
    turning = entry.rotary if low_keys else None
    new = None
    if turning is not None:
        new = cosines_and_sines(turning, k.shape[2], 0 if before is None else before.length, count)

    async def behind(old: Value | None, rows: Value, kind: str | None = None) -> Value:
        return await (suite.mask_for_cache(rows, kind) if old is None else suite.append(old, rows, 1, kind))

    async def keys() -> Value:
        rows = k[:, :count]
        if low_keys:
            rows = rows if new is None else await suite.rotate(rows, new[0], -new[1])
            rows = await _reduced(suite, entry, rows, KEYS)
        return await behind(None if before is None else before.k, rows)

    async def values() -> Value:
        rows = await _reduced(suite, entry, v[:, :count], VALUES)
        return await behind(None if before is None else before.v, rows, "value")

    low_k, low_v = await suite.together(keys(), values())
    if before is None:
        made_values = _made_again(entry, VALUES, k.shape[0]).permute(0, 2, 1)
        made_keys = _made_again(entry, KEYS, k.shape[0]) if low_keys else None
        entry.held = (LowRank(low_k, low_v, made_values, made_keys, new),)
        entry.k, entry.v = own_rows(suite, k[:, count:]), own_rows(suite, v[:, count:])
    else:
        entry.held = (replace(before, k=low_k, v=low_v, angles=_joined(before.angles, new)),)
        entry.k, entry.v = k[:, count:], v[:, count:]


def _joined(before: Angles | None, new: Angles | None) -> Angles | None:
    """Return the angles of all rows; local."""
    if before is None or new is None:
        return None
    return torch.cat([before[0], new[0]]), torch.cat([before[1], new[1]])


async def _reduced(suite: Suite, entry: LayerCache, rows: Value, part: str) -> Value:
    """Return the products [1, n, r] of rows [G, n, C]."""
    groups, count, channels = rows.shape
    flat = rows.permute(1, 0, 2).reshape(count, groups * channels)
    low = await suite.linear(flat, entry.learned.linear(f"{part}.{DOWN}"))
    return low.reshape(1, *low.shape)


def _made_again(entry: LayerCache, part: str, groups: int) -> Value:
    """Return the weights [G, C, r] that make rows of what is left of them; local."""
    up = entry.learned.linear(f"{part}.{UP}").weight
    return up.reshape(groups, up.shape[0] // groups, up.shape[1])
