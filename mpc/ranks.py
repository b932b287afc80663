"""Matrices whose blocks lie at the ranks of one party: processes, each with a core or a device of its own.

Rank 0 runs the party's program; the others hold blocks of matrices and multiply what rank 0 sends them. A matrix is cut
along its longer axis. Where that is the inner axis of a product, each rank gets its columns of the rows and the results are
added up; else each gets all rows, and the results are put beside each other. Both are exact modulo 2^bits (`mpc.ring`), so a
product is the same to the bit with any number of ranks.

Ranks talk by `torch.distributed`, rank 0 with each of the others (gloo between processors, NCCL between GPUs): a header of 8
integers, and tensors of sizes that follow from it; nothing is pickled. n rows times a matrix [in, out], in <= out, take 8 n
in bytes to each rank, and 8 n out bytes back from all of them together.

Leaks: what ranks exchange are shares and masked values of one party: ranks are that party, and what lies between them must
be too (docs/security.md, "Ranks of a party").
"""

from __future__ import annotations

import json
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from itertools import count, pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from mpc import ring
from mpc.device.deferred import there
from mpc.device.digits import DigitMatrix
from mpc.errors import EnvironmentProblem, ManifestMismatch
from mpc.pieced_matrix import PiecedMatrix, pays

FOR_EVER = timedelta(days=365)
HEADER = 8
MOST_TEXT = 1 << 16


class Order(IntEnum):
    """What rank 0 asks for; the first number of a header. The others: the matrix's id, and as said.

    make: rows, columns, axis, bytes of an element. put: first row, end; then the block's part of these rows. times: bits, n,
    whether the matrix is transposed; then rows [n, inner], the result [n, outer] comes back. whole: the block comes back.
    """

    make = 1
    put = 2
    times = 3
    whole = 4
    free = 5
    end = 6


def cut(size: int, ranks: int) -> list[slice]:
    """Return each rank's part of an axis.

    >>> cut(5, 2)
    [slice(0, 3, None), slice(3, 5, None)]
    """
    ends = [-(-size * rank // ranks) for rank in range(ranks + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


class Block:
    """One rank's part of a matrix [rows, columns]: the `part` of its axis, column-major, in pieces where it is deep; on a
    device as digits, and nothing else."""

    def __init__(self, shape: tuple[int, int], axis: int, part: slice, place: tuple[torch.dtype, torch.device]) -> None:
        self.axis, self.part = axis, part
        sizes = [*shape]
        sizes[axis] = part.stop - part.start
        dtype, device = place
        self.values: ring.Matrix
        if device.type == "cpu" and pays(sizes, dtype):
            self.values = PiecedMatrix.empty(sizes, dtype)
        elif device.type in ("cpu", "meta"):
            self.values = torch.empty(sizes[::-1], dtype=dtype, device=device).t()
        else:
            self.values = DigitMatrix.empty(sizes, dtype, device)

    def rows(self, rows: slice) -> slice:
        """Return which of its rows hold its part of some rows of the matrix."""
        if self.axis == 1:
            return rows
        start, end = (min(max(row - self.part.start, 0), self.values.shape[0]) for row in (rows.start, rows.stop))
        return slice(start, end)

    def put(self, rows: slice, part: Tensor) -> None:
        """Keep its part of some rows of the matrix."""
        if part.numel():
            self.values[self.rows(rows)] = part

    def words(self) -> Tensor:
        """Return its part, [rows, columns]."""
        return self.values if isinstance(self.values, Tensor) else self.values.words()

    def of(self, rows: slice, values: Tensor) -> Tensor:
        """Return its part of the values of some rows of the matrix."""
        if self.axis == 1:
            return values[:, self.part]
        start, end = (min(max(row - rows.start, 0), len(values)) for row in (self.part.start, self.part.stop))
        return values[start:end]

    def times(self, rows: Tensor, bits: int, turned: bool) -> Tensor:
        """Return rows [n, inner] times the block (transposed, if `turned`) modulo 2^bits."""
        return ring.matmul(rows, self._turned() if turned else self.values, bits)

    def _turned(self) -> Tensor | DigitMatrix:
        if isinstance(self.values, PiecedMatrix):
            self.values = self.values.words()  # from here on
        return self.values.moved(torch.t) if isinstance(self.values, DigitMatrix) else self.values.t()


@dataclass(frozen=True)
class RankFacts:
    """What the ranks of a party must have in common, by name, and who they are. party: its name."""

    party: str
    common: Mapping[str, str]

    def differing(self, other: RankFacts) -> str | None:
        """Return the first name that the other one has another value for."""
        if other.party != self.party:
            return "party"
        return next((name for name, value in self.common.items() if other.common.get(name) != value), None)

    def text(self) -> bytes:
        """Return these facts as they travel."""
        return json.dumps({"party": self.party, "common": dict(self.common)}).encode()

    @classmethod
    def read(cls, text: bytes) -> RankFacts:
        """Return the facts of a text."""
        values = json.loads(text)
        return cls(str(values["party"]), {str(k): str(v) for k, v in values["common"].items()})


class _Line:
    """Tensors to and from one other rank. Raises `EnvironmentProblem` naming it when it is gone or silent."""

    def __init__(self, rank: int, party: str, device: torch.device, patience: timedelta) -> None:
        self.rank, self.party, self.device, self.patience = rank, party, device, patience

    def send(self, tensor: Tensor) -> None:
        """Send a tensor, and wait until it is on its way."""
        self._do("to", lambda: dist.isend(there(tensor).contiguous(), self.rank))

    def receive(self, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Tensor:
        """Return the next tensor."""
        tensor = torch.empty(shape, dtype=dtype, device=self.device)
        self._do("from", lambda: dist.irecv(tensor, self.rank))
        return tensor

    def send_header(self, *numbers: int) -> None:
        """Send an order."""
        self.send(torch.tensor([*numbers, *[0] * (HEADER - len(numbers))], device=self.device))

    def send_text(self, text: bytes) -> None:
        """Send a text."""
        self.send_header(len(text))
        self.send(torch.frombuffer(bytearray(text or b" "), dtype=torch.uint8).to(self.device))

    def receive_text(self) -> bytes:
        """Return the next text."""
        size = int(self.receive((HEADER,))[0])
        if not 0 <= size <= MOST_TEXT:
            raise EnvironmentProblem(f"rank {self.rank} of {self.party} is none of this version: start all ranks together")
        return bytes(self.receive((max(1, size),), torch.uint8).tolist())[:size]

    def _do(self, way: str, begin: Callable[[], dist.Work | None]) -> None:
        try:
            work = begin()
            if work is not None:
                work.wait(self.patience)
        except RuntimeError as error:
            silent = "time" in str(error).lower() and "closed" not in str(error).lower()
            how = f"silent for {self.patience.total_seconds():g} s" if silent else "lost"
            raise EnvironmentProblem(
                f"rank {self.rank} of {self.party} is {how} (tensors {way} it): see its log, then start all ranks of "
                f"{self.party} again"
            ) from None


class Ranks:
    """Rank 0's side. Every other rank is in `serve`. Safe for threads: one product at a time.

    patience: how long a rank may be silent, in seconds. Raises `EnvironmentProblem` naming a rank that is lost, from then on
    for every call, and `ManifestMismatch` naming one that has other `facts`.
    """

    def __init__(self, facts: RankFacts, device: torch.device | str, patience: float) -> None:
        self.device = torch.device(device)
        self.count = dist.get_world_size()
        seconds = timedelta(seconds=patience)
        self._lines = [_Line(rank, facts.party, self.device, seconds) for rank in range(1, self.count)]
        self._lock = threading.Lock()
        self._ids = count(1)
        self._freed: deque[int] = deque()
        self.lost: EnvironmentProblem | None = None
        found = [RankFacts.read(line.receive_text()) for line in self._lines]
        wrong = [_verdict(facts, one, line) for line, one in zip(self._lines, found, strict=True)]
        verdict = next(filter(None, wrong), "")
        for line in self._lines:
            line.send_text(verdict.encode())
        if verdict:
            raise ManifestMismatch(verdict)

    def matrix(self, shape: tuple[int, int], dtype: torch.dtype) -> SplitMatrix:
        """Return a new matrix, to be filled. dtype: int32 or int64."""
        matrix = SplitMatrix(self, next(self._ids), shape, dtype)
        width = torch.empty((), dtype=dtype).element_size()
        with self._lock:
            for line in self._ready():
                self._ask(line, Order.make, matrix.id, *shape, matrix.axis, width)
        weakref.finalize(matrix, self._freed.append, matrix.id)
        return matrix

    def put(self, matrix: SplitMatrix, rows: slice, values: Tensor) -> None:
        """Let every rank keep its part of some rows."""
        with self._lock:
            for line in self._ready():
                self._ask(line, Order.put, matrix.id, rows.start, rows.stop)
                part = matrix.block_of(line.rank).of(rows, values)
                if part.numel():
                    self._tell(line, part)
        matrix.own.put(rows, matrix.own.of(rows, values))

    def times(self, matrix: SplitMatrix, rows: Tensor, bits: int, turned: bool) -> Tensor:
        """Return rows [n, inner] times the matrix (transposed, if `turned`) modulo 2^bits, canonical."""
        inner = matrix.axis == (1 if turned else 0)  # whether the inner axis is cut
        outer = matrix.shape[0 if turned else 1]
        n = rows.shape[0]

        def part(rank: int) -> Tensor:
            return rows[:, matrix.parts[rank]] if inner else rows

        with self._lock:
            for line in self._ready():
                self._ask(line, Order.times, matrix.id, bits, n, int(turned))
                self._tell(line, part(line.rank))
            found = [matrix.own.times(part(0), bits, turned)]
            for line in self._lines:
                width = outer if inner else matrix.width(line.rank)
                found.append(self._answer(line, (n, width)))
        return ring.reduce(torch.stack(found).sum(0), bits) if inner else torch.cat(found, 1)

    def whole(self, matrix: SplitMatrix) -> Tensor:
        """Return all of a matrix."""
        with self._lock:
            for line in self._ready():
                self._ask(line, Order.whole, matrix.id)
            dtype = matrix.own.values.dtype
            parts = [self._answer(line, tuple(matrix.block_of(line.rank).values.shape), dtype) for line in self._lines]
        return torch.cat([matrix.own.words(), *parts], matrix.axis)

    def end(self) -> None:
        """Let the other ranks end."""
        with self._lock:
            for line in self._lines if self.lost is None else []:
                try:
                    line.send_header(Order.end)
                except EnvironmentProblem:
                    continue

    def _ready(self) -> list[_Line]:
        """Return the lines, once the other ranks have given up what nobody here holds any more."""
        if self.lost is not None:
            raise self.lost
        while self._freed:
            id = self._freed.popleft()
            for line in self._lines:
                self._ask(line, Order.free, id)
        return self._lines

    def _ask(self, line: _Line, *numbers: int) -> None:
        try:
            line.send_header(*numbers)
        except EnvironmentProblem as error:
            self.lost = error
            raise

    def _tell(self, line: _Line, tensor: Tensor) -> None:
        try:
            line.send(tensor)
        except EnvironmentProblem as error:
            self.lost = error
            raise

    def _answer(self, line: _Line, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Tensor:
        try:
            return line.receive(shape, dtype)
        except EnvironmentProblem as error:
            self.lost = error
            raise


def _verdict(facts: RankFacts, other: RankFacts, line: _Line) -> str:
    """Return what is wrong with another rank, "" if nothing is."""
    if (name := facts.differing(other)) is None:
        return ""
    theirs, ours = (f.party if name == "party" else f.common.get(name, "none") for f in (other, facts))
    return (
        f"rank {line.rank} of {facts.party} has {name} '{theirs[:80]}', rank 0 has '{ours[:80]}': start all ranks with the "
        "same installation and configuration"
    )


class SplitMatrix:
    """A matrix of `Ranks`; only rank 0's block is here. Freed at the others when it is freed here."""

    def __init__(self, ranks: Ranks, id: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self._ranks, self.id, self.shape, self.dtype = ranks, id, torch.Size(shape), dtype
        self.axis = 1 if shape[1] >= shape[0] else 0
        self.parts = cut(shape[self.axis], ranks.count)
        self.own = Block(shape, self.axis, self.parts[0], (dtype, ranks.device))

    def block_of(self, rank: int) -> Block:
        """Return the form of a rank's block, without content."""
        return Block((self.shape[0], self.shape[1]), self.axis, self.parts[rank], (self.dtype, torch.device("meta")))

    def width(self, rank: int) -> int:
        """Return how much of its axis a rank has."""
        start, end = self.parts[rank].start, self.parts[rank].stop
        return int(end - start)

    def put(self, rows: slice, values: Tensor) -> None:
        """Fill some rows."""
        self._ranks.put(self, rows, values)

    def times(self, rows: Tensor, bits: int, turned: bool = False) -> Tensor:
        """Return rows [n, inner] times this matrix (transposed, if `turned`) modulo 2^bits."""
        return self._ranks.times(self, rows, bits, turned)

    def whole(self) -> Tensor:
        """Return all of it."""
        return self._ranks.whole(self)


def serve(facts: RankFacts, device: torch.device | str) -> None:
    """Do what rank 0 asks for until it says that it ends. For every rank but 0.

    Raises `ManifestMismatch` when the ranks do not have the same facts, `EnvironmentProblem` when rank 0 is lost.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    line = _Line(0, facts.party, torch.device(device), FOR_EVER)
    line.send_text(facts.text())
    if verdict := line.receive_text().decode():
        raise ManifestMismatch(verdict)
    blocks: dict[int, Block] = {}
    while True:
        order, id, *numbers = line.receive((HEADER,)).tolist()
        if order == Order.end:
            return
        if order == Order.make:
            rows, columns, axis, width = numbers[:4]
            part = cut((rows, columns)[axis], ranks)[rank]
            dtype = torch.int32 if width == 4 else torch.int64
            blocks[id] = Block((rows, columns), axis, part, (dtype, line.device))
        elif order == Order.put:
            block, all_rows = blocks[id], slice(*numbers[:2])
            here = block.rows(all_rows)
            if here.stop > here.start and block.values.shape[1]:
                received = line.receive((here.stop - here.start, block.values.shape[1]), block.values.dtype)
                block.put(all_rows, received)
        elif order == Order.times:
            bits, n, turned = numbers[:3]
            block = blocks[id]
            inner = block.values.shape[1 if turned else 0]
            line.send(block.times(line.receive((n, inner)), bits, bool(turned)))
        elif order == Order.whole:
            line.send(blocks[id].words())
        elif order == Order.free:
            del blocks[id]
