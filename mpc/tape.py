"""The tape: correlated randomness from the dealer to the compute parties, one entry after the other.

Dealer and parties run the same program. Wherever it needs correlated randomness, the dealer *writes* an entry and every
party *takes* the entry at the same position. Party i expands its part from its own 256-bit seed; only the last party's
part of a *dependent* value (a product of other entries, say) cannot come from a seed: for it the dealer sends a
correction. So all parties but one receive headers only, but for *common* values, which every party gets whole.

Sharing kinds: "sum" (shares add up modulo 2^bits) and "xor" (bits <= 64, shares XOR to the value).

Security: the dealer never sees an input, a message or an output. A party that knows fewer than all seeds sees uniform
values. An entry is used once by construction: both ends only move forward, and seeds are fresh for each session.
Every entry starts with a header (operation, kind, ring, shape); a party compares it with what its own program asks for and
raises `TapeError` naming both sides when they differ, before anything is opened with it.
"""

from __future__ import annotations

import functools
import hashlib
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mpc import ring
from mpc.errors import TapeError
from mpc.ledger import Ledger, current
from mpc.messages import Message, delivered, packed, unpacked, unpacked_words
from mpc.outbox import Outbox
from mpc.packing import packed_size, word_bytes
from mpc.random import Prg, canonical
from mpc.shape_tensor import shape_tensor

Shape = Sequence[int]
Bytes = bytes | bytearray | memoryview
HEADER_BYTES = 16


@functools.lru_cache(maxsize=1 << 14)
def _words(op: str, kind: str, bits: int, shape: tuple[int, ...], dependent: bool) -> str:
    how = "common" if kind == "common" else "dependent" if dependent else "random"
    kind = "value" if kind == "common" else kind
    return f"{op} {how} {kind} Z_2^{bits} {list(shape)}"


def describe(op: str, kind: str, bits: int, shape: Shape, dependent: bool) -> str:
    """Return what an entry is, in words: the text that both ends hash."""
    return _words(op, kind, bits, tuple(shape), dependent)


class Tape(ABC):
    """One end of the tape. The dealer's returns whole values, a party's returns its share of them. preprocessing: the pass
    that uses it runs before the values are there, see `mpc.preprocessing`."""

    preprocessing: ClassVar[bool] = False

    def __init__(self, ledger: Ledger | None = None, device: torch.device | str = "cpu") -> None:
        self.ledger = ledger if ledger is not None else Ledger()
        self.device = torch.device(device)
        self.position = 0

    @property
    @abstractmethod
    def dealing(self) -> bool:
        """True at the dealer."""

    @abstractmethod
    def random(self, op: str, shape: Shape, bits: int = 64, kind: str = "sum") -> Tensor:
        """Return a fresh uniform value: the dealer gets it whole, party i its share. No correction is sent."""

    @abstractmethod
    def random_shares(self, op: str, shape: Shape, bits: int = 64, kind: str = "sum", host: bool = False) -> list[Tensor]:
        """Return as `random`, but the dealer gets the list of all parties' shares; a party a list of its own one. host: they
        stay at the host, whatever the device is, for what is computed there (point functions)."""

    @abstractmethod
    def dependent(
        self, op: str, shape: Shape, value: Callable[[], Tensor] | None, bits: int = 64, kind: str = "sum"
    ) -> Tensor:
        """Return a value that the dealer computes (`value()`, called there only). Party i gets its share of it, the dealer
        the value.

        Costs packed_size(elements, bits) offline bytes for the last party.
        """

    def dependent_shares(
        self, op: str, shape: Shape, value: Callable[[], Tensor] | None, bits: int = 64, kind: str = "sum"
    ) -> list[Tensor]:
        """Return as `dependent`, but the dealer gets the list of all parties' shares; a party a list of its own one."""
        return [self.dependent(op, shape, value, bits, kind)]

    def completed(self, op: str, shape: Shape, last: Callable[[list[Tensor]], Tensor] | None, bits: int = 64) -> Tensor:
        """Return shares of any kind: each party but the last gets uniform elements, the last one what the dealer makes of
        all these (`last`, called there only). At the dealer a shape tensor.

        Costs as `dependent`."""
        return self.dependent(op, shape, None, bits)

    def table(self, op: str, shape: Shape, value: Callable[[], Tensor] | None, bits: int = 64) -> Tensor:
        """Return as `dependent`; a party gets its share in the narrowest signed integers that hold `bits`, congruent modulo
        2^bits: enough for what is looked up in, and small."""
        return self.dependent(op, shape, value, bits)

    def precompute(self, op: str, shape: Shape, compute: Callable[[], Tensor]) -> Tensor:
        """Return a tensor of `shape` that a party computes from its entries of this tape and from what it knows since the
        model was loaded, and from nothing else. Elsewhere a shape tensor; nothing is dealt."""
        return shape_tensor(shape)

    @abstractmethod
    def common(
        self, op: str, shape: Shape, value: Callable[[], Tensor] | None, bits: int = 64, host: bool = False
    ) -> Tensor:
        """Return a value that the dealer computes and every party gets whole, such as the part of a key that all of them
        share. host: as in `random_shares`.

        It must say nothing but with what a party gets otherwise from this tape. Costs packed_size(elements, bits) offline
        bytes for *every* party.
        """


class DealerTape(Tape):
    """The dealer's end. `emit(party, chunk)` is called with each party's bytes in order.

    seeds: one 256-bit seed per party, fresh for this tape, never used elsewhere, or what expands it (`Prg`).
    """

    def __init__(
        self,
        seeds: Sequence[bytes | Prg],
        emit: Callable[[int, bytes], None],
        ledger: Ledger | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(ledger, device)
        self._prgs = [Prg.of(seed) for seed in seeds]
        self._emit = Outbox(emit)
        self.flush = self._emit.flush  # at the end, and before the dealer waits for anybody

    @property
    def dealing(self) -> bool:
        return True

    def _header(self, text: str, size: int, everyone: bool = False) -> None:
        digest = hashlib.sha256(f"{self.position} {text}".encode()).digest()
        receiving = digest[: HEADER_BYTES - 8] + size.to_bytes(8, "little")
        other = receiving if everyone else digest[: HEADER_BYTES - 8] + bytes(8)
        last = len(self._prgs) - 1
        for party in range(last):
            self._emit(party, other)
        self._emit(last, receiving)
        self.position += 1

    def _combined(self, shape: Shape, bits: int, kind: str, parties: int) -> Tensor:
        """Return the XOR or sum of the first parties' expansions as narrow words, congruent modulo 2^bits."""
        parts = (prg.words(shape, bits, self.device) for prg in self._prgs[:parties])
        return functools.reduce(operator.ixor if kind == "xor" else operator.iadd, parts)

    def random(self, op: str, shape: Shape, bits: int = 64, kind: str = "sum") -> Tensor:
        """Return the sum (or XOR) of all parties' expansions."""
        self._header(describe(op, kind, bits, shape, False), 0)
        return canonical(self._combined(shape, bits, kind, len(self._prgs)), bits)

    def random_shares(self, op: str, shape: Shape, bits: int = 64, kind: str = "sum", host: bool = False) -> list[Tensor]:
        self._header(describe(op, kind, bits, shape, False), 0)
        return [prg.ring(shape, bits, "cpu" if host else self.device) for prg in self._prgs]

    def dependent(
        self, op: str, shape: Shape, value: Callable[[], Tensor] | None, bits: int = 64, kind: str = "sum"
    ) -> Tensor:
        """Compute the value, send the last party what the other expansions leave of it."""
        whole, size = self._announced(op, shape, value, bits, kind)
        self._correct(whole, self._combined(shape, bits, kind, len(self._prgs) - 1), bits, kind)
        self.ledger.offline(size)
        return whole

    def _announced(
        self, op: str, shape: Shape, value: Callable[[], Tensor] | None, bits: int, kind: str
    ) -> tuple[Tensor, int]:
        """Compute a dependent value and write its header; return it and its bytes."""
        assert value is not None
        whole = ring.reduce(value(), bits)
        if tuple(whole.shape) != tuple(shape):
            raise TapeError(f"{op}: the dealer computed shape {list(whole.shape)}, declared {list(shape)}")
        size = packed_size(math.prod(shape), bits)
        self._header(describe(op, kind, bits, shape, True), size)
        return whole, size

    def _correct(self, whole: Tensor, others: Tensor, bits: int, kind: str) -> Tensor:
        """Send the last party its share, what the others' leave of the value; return it, congruent modulo 2^bits."""
        correction = whole ^ others if kind == "xor" else whole - others
        self._emit(len(self._prgs) - 1, packed(correction, bits))
        return correction

    def dependent_shares(
        self, op: str, shape: Shape, value: Callable[[], Tensor] | None, bits: int = 64, kind: str = "sum"
    ) -> list[Tensor]:
        whole, size = self._announced(op, shape, value, bits, kind)
        others = [prg.ring(shape, bits, self.device) for prg in self._prgs[:-1]]
        total = functools.reduce(operator.xor if kind == "xor" else operator.add, others)
        self.ledger.offline(size)
        return [*others, ring.reduce(self._correct(whole, total, bits, kind), bits)]

    def completed(self, op: str, shape: Shape, last: Callable[[list[Tensor]], Tensor] | None, bits: int = 64) -> Tensor:
        """Send the last party its share."""
        assert last is not None
        size = packed_size(math.prod(shape), bits)
        self._header(describe(op, "sum", bits, shape, True), size)
        others = [ring.reduce(prg.ring(shape, bits, self.device), bits) for prg in self._prgs[:-1]]
        self._emit(len(self._prgs) - 1, packed(ring.reduce(last(others), bits), bits))
        self.ledger.offline(size)
        return shape_tensor(shape)

    def common(
        self, op: str, shape: Shape, value: Callable[[], Tensor] | None, bits: int = 64, host: bool = False
    ) -> Tensor:
        """Compute the value and send it to every party."""
        assert value is not None
        whole = ring.reduce(value(), bits)
        if tuple(whole.shape) != tuple(shape):
            raise TapeError(f"{op}: the dealer computed shape {list(whole.shape)}, declared {list(shape)}")
        payload, size = packed(whole, bits), packed_size(math.prod(shape), bits)
        self._header(describe(op, "common", bits, shape, True), size, everyone=True)
        for party in range(len(self._prgs)):
            self._emit(party, payload)
        self.ledger.offline(size)
        return whole


class PartyTape(Tape):
    """A party's end. seed: its 256-bit seed, or what expands it (`Prg`), as at the dealer. `read(n)` returns the next n
    bytes of its stream and blocks until they are there.

    Raises `TapeError` from `random` and `dependent` when the dealer's program differs from this party's.
    """

    def __init__(
        self,
        seed: bytes | Prg,
        last: bool,
        read: Chunks,
        ledger: Ledger | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(ledger, device)
        self._prg = Prg.of(seed)
        self._last = last
        self._read = read

    @property
    def dealing(self) -> bool:
        return False

    def _header(self, text: str, size: int, everyone: bool = False) -> None:
        header = bytes(self._read(HEADER_BYTES))
        digest = hashlib.sha256(f"{self.position} {text}".encode()).digest()
        due = size if self._last or everyone else 0
        if header != digest[: HEADER_BYTES - 8] + due.to_bytes(8, "little"):
            promised = int.from_bytes(header[HEADER_BYTES - 8 :], "little")
            raise TapeError(
                f"tape entry {self.position}: this party's program needs '{text}' ({current()[0] or 'session'}), the "
                f"dealer dealt something else ({promised} bytes); dealer and party must hold the same program, "
                "model and version"
            )
        self.position += 1
        self.ledger.offline(HEADER_BYTES + due)

    def random(self, op: str, shape: Shape, bits: int = 64, kind: str = "sum") -> Tensor:
        return self._random(op, shape, bits, kind, self.device)

    def _random(self, op: str, shape: Shape, bits: int, kind: str, device: torch.device | str) -> Tensor:
        self._header(describe(op, kind, bits, shape, False), 0)
        return self._prg.ring(shape, bits, device)

    def random_shares(self, op: str, shape: Shape, bits: int = 64, kind: str = "sum", host: bool = False) -> list[Tensor]:
        return [self._random(op, shape, bits, kind, "cpu" if host else self.device)]

    def dependent(
        self, op: str, shape: Shape, value: Callable[[], Tensor] | None = None, bits: int = 64, kind: str = "sum"
    ) -> Tensor:
        payload = self._correction(op, shape, bits, kind)
        if payload is None:
            return self._prg.ring(shape, bits, self.device)
        return unpacked(payload, bits, shape)

    def table(self, op: str, shape: Shape, value: Callable[[], Tensor] | None = None, bits: int = 64) -> Tensor:
        payload = self._correction(op, shape, bits, "sum")
        if payload is None:
            return self._prg.words(shape, bits, self.device)
        return unpacked_words(payload, bits, shape)

    def precompute(self, op: str, shape: Shape, compute: Callable[[], Tensor]) -> Tensor:
        return compute()

    def _correction(self, op: str, shape: Shape, bits: int, kind: str) -> Message | None:
        """Return what the dealer sent of a dependent value: nothing but for the last party."""
        size = packed_size(math.prod(shape), bits)
        self._header(describe(op, kind, bits, shape, True), size)
        return self._payload(size, False) if self._last else None

    def _payload(self, size: int, host: bool) -> Message:
        """Return the next bytes where they are needed."""
        return self._read(size) if host or self.device.type == "cpu" else delivered([self._read(size)], self.device)[0]

    def common(
        self, op: str, shape: Shape, value: Callable[[], Tensor] | None = None, bits: int = 64, host: bool = False
    ) -> Tensor:
        size = packed_size(math.prod(shape), bits)
        self._header(describe(op, "common", bits, shape, True), size, everyone=True)
        return unpacked(self._payload(size, host), bits, shape)


class Chunks:
    """A `read(n)` over an iterator of byte chunks; it raises `TapeError` when the stream ends too early.

    What lies within one chunk is not copied.
    """

    def __init__(self, stream: Iterator[Bytes]) -> None:
        self._stream = stream
        self._rest = memoryview(b"")

    def __call__(self, count: int) -> Bytes:
        if len(self._rest) >= count:
            out, self._rest = self._rest[:count], self._rest[count:]
            return out
        joined = bytearray(count)
        filled = 0
        while True:
            take = min(len(self._rest), count - filled)
            joined[filled : filled + take] = self._rest[:take]
            self._rest = self._rest[take:]
            filled += take
            if filled == count:
                return joined
            piece = next(self._stream, None)
            if piece is None:
                raise TapeError("the tape ended before the program did: the dealer stopped or dealt too few tokens")
            self._rest = memoryview(piece)


def chunks(stream: Iterator[Bytes]) -> Chunks:
    """Return a `read(n)` for a `PartyTape`."""
    return Chunks(stream)


class CountingTape(Tape):
    """A tape of shape tensors: nothing is dealt, the last party's offline bytes are counted. For cost estimation.

    >>> tape = CountingTape()
    >>> tape.dependent("product", (3, 2), None, bits=20).shape
    torch.Size([3, 2])
    >>> tape.ledger.total().offline_bytes  # a header, and 20 bits an element
    31
    """

    @property
    def dealing(self) -> bool:
        return False

    def random(self, op: str, shape: Shape, bits: int = 64, kind: str = "sum") -> Tensor:
        self.position += 1
        self.ledger.offline(HEADER_BYTES)
        return shape_tensor(shape)

    def dependent(
        self, op: str, shape: Shape, value: Callable[[], Tensor] | None = None, bits: int = 64, kind: str = "sum"
    ) -> Tensor:
        """Count the correction that the last party would receive."""
        self.position += 1
        self.ledger.offline(HEADER_BYTES + packed_size(math.prod(shape), bits))
        return shape_tensor(shape)

    def table(self, op: str, shape: Shape, value: Callable[[], Tensor] | None = None, bits: int = 64) -> Tensor:
        self.dependent(op, shape, None, bits)
        return shape_tensor(shape, word_bytes(bits))

    def common(
        self, op: str, shape: Shape, value: Callable[[], Tensor] | None = None, bits: int = 64, host: bool = False
    ) -> Tensor:
        """Count what every party would receive."""
        return self.dependent(op, shape, None, bits)

    def random_shares(self, op: str, shape: Shape, bits: int = 64, kind: str = "sum", host: bool = False) -> list[Tensor]:
        return [self.random(op, shape, bits, kind)]
