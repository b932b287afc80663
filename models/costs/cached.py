"""What a session's cache takes in a party's memory."""

from __future__ import annotations

from dataclasses import dataclass

from models.architecture import Architecture
from models.architectures import AnyArchitecture
from models.cache import KVCache, LayerCache
from protocols.paging import slot_of

KEYS, VALUES, HELD = map(slot_of, ("k", "v", "held"))
VALUE_BYTES = 16  # a cached element's masked form and the share of its mask


@dataclass(frozen=True)
class CacheBytes:
    """What a session's cache takes at a party: at most, while a policy still works on a prompt's layers, and behind the last
    token."""

    most: int = 0
    last: int = 0

    def beside(self, rows: int) -> tuple[int, int]:
        """Return both with the bytes of a prefix's rows."""
        return rows + self.most, rows + self.last


def cache_bytes(architecture: AnyArchitecture, prompt: int, new: int) -> int:
    """Return the bytes of keys and values of a prompt and all new tokens but the last, if no policy drops any. Layers of
    an encoder keep none.

    >>> from models.shapes import SHAPES
    >>> cache_bytes(SHAPES["gpt2"], prompt=1000, new=25)
    301989888
    """
    if not isinstance(architecture, Architecture):
        return 0
    layers = range(architecture.encoder_layers, architecture.layers)
    kept = (min(prompt + new - 1, architecture.window(n) or prompt + new) for n in layers)
    return sum(kept) * 2 * architecture.kv_heads * architecture.head_channels * VALUE_BYTES


def held_bytes(cache: KVCache) -> int:
    """Return the bytes of all rows that a session's cache holds at a party, as its codecs hold them."""
    return sum(held_by_layer(cache))


def held_by_layer(cache: KVCache) -> list[int]:
    """Return `held_bytes` of each layer."""
    return [held_in(entry) for entry in cache.layers]


def held_in(entry: LayerCache) -> int:
    """Return `held_bytes` of one layer."""
    if not entry.length:
        return 0
    return sum(x.element_bytes * x.shape.numel() for segment in entry.segments for x in segment.rows)


class Watch:
    """The most that a cache has taken so far. Looked at often: a layer whose rows are the same values takes the same."""

    def __init__(self) -> None:
        self.most = 0
        self._known: dict[int, tuple[object, object, object, int]] = {}  # a layer's rows, and the bytes that they take

    def look(self, cache: KVCache) -> None:
        """See what the cache takes now."""
        self.most = max(self.most, sum(map(self._held, cache.layers)))

    def _held(self, entry: LayerCache) -> int:
        slots = entry.__dict__
        k, v, held = slots[KEYS], slots[VALUES], slots[HELD]
        known = self._known.get(id(entry))
        if known is not None and known[0] is k and known[1] is v and known[2] is held:
            return known[3]
        found = held_in(entry)
        self._known[id(entry)] = k, v, held, found
        return found


def kept_bytes(architecture: AnyArchitecture, prompt: int, new: int, kept: int | None) -> int:
    """Return the bytes that a session's cache takes at most. kept: what the policy keeps of the prompt, in bytes, None for
    all of it. All new tokens count, and one layer whose prompt the policy has not worked on yet.

    >>> from models.shapes import SHAPES
    >>> kept_bytes(SHAPES["gpt2"], prompt=1000, new=25, kept=10**8)
    131653888
    """
    whole = cache_bytes(architecture, prompt, new)
    if kept is None or not isinstance(architecture, Architecture):
        return whole
    layers = architecture.layers - architecture.encoder_layers
    return min(whole, kept + cache_bytes(architecture, 1, new - 1) + -(-cache_bytes(architecture, prompt, 1) // layers))
