"""What a session's cache takes in a party's memory."""

from __future__ import annotations

from dataclasses import dataclass

from models.architecture import Architecture
from models.architectures import AnyArchitecture
from models.cache import KVCache

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
    held = (x for entry in cache.layers if entry.length for segment in entry.segments for x in segment.rows)
    return sum(x.element_bytes * x.shape.numel() for x in held)
