"""What a decoder shows its probe, kept."""

from __future__ import annotations

from torch import Tensor

from protocols.plain.suite import tensor_of
from protocols.suite import Value


class Recorder:
    """A decoder's probe that keeps every value it is shown: `values[name]` lists them in order of their steps."""

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = {}

    def __call__(self, name: str, value: Value) -> None:
        self.values.setdefault(name, []).append(tensor_of(value).detach().clone())
