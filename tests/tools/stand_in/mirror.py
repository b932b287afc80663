"""Runs every operation of the stand-in a second time on a real device, and compares."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from tests.tools.stand_in import tensor
from tests.tools.stand_in.patches import really_to

CLOSE = 1e-9  # relative, of float64


@dataclass
class Mirror:
    """seen: "operation dtypes" -> how often. wrong: what gave another result, with its first shapes."""

    seen: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, str] = field(default_factory=dict)


@contextmanager
def mirrored(device: str) -> Iterator[Mirror]:
    """Compare all that is computed on the stand-in within."""
    found, lock = Mirror(), threading.Lock()

    def there(x: Any) -> Any:
        return really_to(x.held, device) if isinstance(x, tensor.StandIn) else x

    def as_it_lies(x: Any) -> Any:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device).copy_(x.held)

    def before(func: Any, args: Any, options: Any) -> Any:
        """Compute on the device what the stand-in is about to compute; in-place operations on copies of their own."""
        names = [str(x.dtype).removeprefix("torch.") for x in tree_flatten(args)[0] if isinstance(x, Tensor)]
        key = f"{func} {' '.join(names)}"
        with lock:
            found.seen[key] += 1
        copies = {name: device if name == "device" else value for name, value in options.items()}
        copied = as_it_lies if func._schema.name == "aten::_int_mm" else lambda x: there(x).clone()
        moved = tree_map(lambda x: copied(x) if isinstance(x, tensor.StandIn) else x, args)
        try:
            return key, func(*moved, **tree_map(there, copies)), moved
        except RuntimeError as error:
            with lock:
                found.wrong.setdefault(key, str(error).splitlines()[0][:200])
            return key, None, moved

    def after(made: Any, result: Any) -> None:
        key, theirs, _ = made
        if theirs is None:
            return
        ours = [x.held if isinstance(x, tensor.StandIn) else x for x in tree_flatten(result)[0]]
        for a, b in zip(ours, tree_flatten(theirs)[0], strict=True):
            if isinstance(a, Tensor) and isinstance(b, Tensor) and not _same(a, really_to(b, "cpu")):
                with lock:
                    found.wrong.setdefault(key, f"shape {tuple(a.shape)}")

    tensor.MIRROR = (before, after)
    try:
        yield found
    finally:
        tensor.MIRROR = None


def _same(a: Tensor, b: Tensor) -> bool:
    if a.is_floating_point():
        return bool(torch.allclose(a.double(), b.double(), rtol=CLOSE, atol=CLOSE, equal_nan=True))
    return a.shape == b.shape and bool(torch.equal(a, b))
