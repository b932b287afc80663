"""What a session's cache takes in a party's memory."""

from __future__ import annotations

from models.architecture import Architecture
from models.architectures import AnyArchitecture

VALUE_BYTES = 16  # a cached element's masked form and the share of its mask


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
