"""Public constants of the host on a device: copied once, as long as they live."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

_made: dict[int, dict[Hashable, Tensor]] = {}


def derived(x: Tensor, key: Hashable, make: Callable[[Tensor], Tensor]) -> Tensor:
    """Return make(x), computed once for a key as long as the tensor x lives, which nobody may change.

    What is asked for again must be the same object: keep it in a `functools.cache`, not make it anew."""
    kept = _made.get(id(x))
    if kept is None:
        kept = _made[id(x)] = {}
        weakref.finalize(x, _made.pop, id(x), None)
    found = kept.get(key)
    if found is None:
        found = kept[key] = make(x)
    return found


def placed(x: Tensor, device: torch.device) -> Tensor:
    """Return a constant on a device.

    >>> placed(torch.arange(3), torch.device("cpu"))
    tensor([0, 1, 2])
    """
    return x if x.device == device else derived(x, device, lambda t: t.to(device))
