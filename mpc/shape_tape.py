"""A tape without content: counts what a dealer would send and returns shapes, for cost estimation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mpc.ledger import Ledger
from mpc.packing import packed_size
from mpc.tape import HEADER_BYTES, Tape


class ShapeTape(Tape):
    """Counts the last party's offline bytes; every entry is a tensor on the meta device."""

    def __init__(self, ledger: Ledger | None = None) -> None:
        super().__init__(ledger, "meta")

    @property
    def dealing(self) -> bool:
        """False: nothing is dealt and `value` is never called."""
        return False

    def random(self, op: str, shape: Sequence[int], bits: int = 64, kind: str = "sum") -> Tensor:
        """The shape of a fresh value; a header is counted."""
        self.position += 1
        self.ledger.offline(HEADER_BYTES)
        return torch.empty(tuple(shape), dtype=torch.int64, device="meta")

    def random_shares(self, op: str, shape: Sequence[int], bits: int = 64, kind: str = "sum") -> list[Tensor]:
        """The shape of one share."""
        return [self.random(op, shape, bits, kind)]

    def dependent(
        self, op: str, shape: Sequence[int], value: Callable[[], Tensor] | None, bits: int = 64, kind: str = "sum"
    ) -> Tensor:
        """The shape of a dependent value; a header and the correction are counted."""
        self.ledger.offline(packed_size(math.prod(shape), bits))
        return self.random(op, shape, bits, kind)

    def common(self, op: str, shape: Sequence[int], value: Callable[[], Tensor] | None, bits: int = 64) -> Tensor:
        """The shape of a value that every party receives; a header and the value are counted."""
        return self.dependent(op, shape, None, bits)
