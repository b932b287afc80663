"""What arrives from one party in a session: its shares of outputs, piece by piece, and its ledger in the end."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from mpc.errors import WireError
from mpc.ledger import Cost
from mpc.packing import packed_size, unpack
from parties.wire import wire_pb2 as wire
from parties.wire.shares import BITS, COUNT_BITS, LEDGER_BYTES


class Incoming:
    """One party's messages, checked against what is due. peer: its name. step: the output that is due or arriving.

    costs: its ledger, once all of it is here.
    """

    def __init__(self, peer: str, flags_shape: tuple[int, int]) -> None:
        self.peer = peer
        self.step = 0
        self.costs: dict[str, Any] | None = None
        self._flags_shape = flags_shape
        self._header: wire.OutputHeader | None = None
        self._data = bytearray()
        self._ledger_size = 0  # announced, once the outputs are over

    @property
    def arriving(self) -> bool:
        """Whether a part of an output is missing."""
        return self._header is not None

    @property
    def in_ledger(self) -> bool:
        """Whether the outputs are over and the ledger arrives."""
        return self._ledger_size > 0

    def begin(self, header: wire.OutputHeader, shape: Sequence[int]) -> None:
        """Take an output's header. shape: of what is due. Raises `WireError` for another one."""
        if header.step != self.step or tuple(header.shape) != tuple(shape):
            raise WireError(
                f"{self.peer} sent an output of step {header.step} and shape {list(header.shape)[:8]}, expected step "
                f"{self.step} and shape {list(shape)}"
            )
        size = packed_size(math.prod(shape), header.bits) if 1 <= header.bits <= BITS else -1
        if header.size != size or header.fraction_bits >= header.bits:
            raise WireError(
                f"{self.peer} announced an output of {header.size} bytes in Z_2^{header.bits} with {header.fraction_bits} "
                f"fraction bits, which does not fit shape {list(shape)}"
            )
        words = list(self._flags_shape)
        if len(header.flags) not in (0, packed_size(words[0] * words[1], BITS)):
            raise WireError(
                f"{self.peer} sent {len(header.flags)} bytes of range flags with output {header.step}, which are none or "
                f"words of {BITS} bits of shape {words}"
            )
        if len(header.dropped) not in ((0, packed_size(1, COUNT_BITS)) if header.step == 0 else (0,)):
            raise WireError(
                f"{self.peer} sent {len(header.dropped)} bytes of a count with output {header.step}, which are none or, "
                f"with the first one, {packed_size(1, COUNT_BITS)}"
            )
        self._header = header

    def chunk(self, payload: bytes) -> tuple[wire.OutputHeader, Tensor] | None:
        """Take a piece of an output; return header and share once it is whole. Raises `WireError` for too much."""
        header = self._header
        assert header is not None
        if not payload or len(self._data) + len(payload) > header.size:
            rest = header.size - len(self._data)
            raise WireError(f"{self.peer} sent {len(payload)} bytes of an output where 1 to {rest} were expected")
        self._data += payload
        if len(self._data) < header.size:
            return None
        share = unpack(memoryview(self._data), header.bits, tuple(header.shape))
        self._header, self._data, self.step = None, bytearray(), self.step + 1
        return header, share

    def summary(self, size: int) -> None:
        """Take the announcement of a ledger of `size` bytes. Raises `WireError`."""
        self._header, self._data, self._ledger_size = None, bytearray(), size
        if not 0 < size <= LEDGER_BYTES:
            raise WireError(f"{self.peer} announced a ledger of {size} bytes, 1 to {LEDGER_BYTES} are due")

    def ledger_chunk(self, payload: bytes) -> None:
        """Take a piece of the ledger. Raises `WireError` for too much, or a whole that is none."""
        rest = self._ledger_size - len(self._data)
        if not 0 < len(payload) <= rest:
            raise WireError(f"{self.peer} sent {len(payload)} bytes of its ledger where 1 to {rest} were expected")
        self._data += payload
        if len(self._data) == self._ledger_size:
            self.costs = _ledger(self._data, self.peer)


def _ledger(text: bytearray, sender: str) -> dict[str, Any]:
    try:
        ledger: Any = json.loads(text)
    except ValueError:
        raise WireError(f"{sender} sent a ledger that is not JSON") from None
    total = ledger.get("total") if isinstance(ledger, dict) else None
    if not isinstance(total, dict) or {*total} != {one.name for one in fields(Cost)}:
        raise WireError(f"{sender} sent a ledger without totals")
    if any(type(value) not in (int, float) for value in total.values()):
        raise WireError(f"{sender} sent a ledger whose totals are no numbers")
    found: dict[str, Any] = ledger
    return found
