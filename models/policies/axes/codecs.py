"""Codecs: how cached rows are held, in segments of a layer's cache (`models.segments`).

Leaks: nothing; what follows from secrets is opened by no one (docs/security.md, "Policies").
"""

from __future__ import annotations

from collections.abc import Sequence

from models.cache import LayerCache
from models.segments import FewChannels, Segment, own_rows
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
