"""What CrypTen's protocols need of one session: who we are, how to open, where randomness comes from.

CrypTen keeps its communicator, its provider and its generators in process-wide variables. Here each belongs to a session
and the session in force belongs to a thread, so that several parties, or several sessions of one party, live in a process.

Zero-sharings. Every pair of parties shares a 256-bit seed, drawn by the one with the higher index from the operating system
and sent to the other (one round, 32 bytes per pair, on the first use). Party i's part of a zero-sharing is the sum over
its peers of +-AES-CTR(seed), so the parts add up (or XOR) to zero. The seed of two parties outside a coalition is unknown
to it: whoever corrupts all but two parties sees uniform parts. Nobody but the two holders needs to be trusted, the dealer
does not know the seeds.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mpc import ring
from mpc.channel import Channel
from mpc.errors import ConfigurationError
from mpc.ledger import Cost, Ledger, operation
from mpc.messages import at_host, delivered, joined, packed, unpacked
from mpc.packing import packed_size
from mpc.random import SEED_BYTES, Prg, new_seed
from mpc.shape_tensor import empty, new_shape_tensor
from mpc.tape import CountingTape, Tape

_active = threading.local()
COMMON_BITS = 512  # opened bits that a common seed is made of, where there are as many


class CryptenSession:
    """One party of one session; or the dealer, or an estimate, which run the same program on tensors without content.

    channel None means that nothing is exchanged: tensors of the program have no content, and the ledger counts
    what a party would have sent. `held` turns what the dealer draws into the program's (empty) tensors: `ShapeTensor`s where
    `shape_only` is set; else what CrypTen's own functions can compute on, zeros at the dealer and meta tensors in an
    estimate.
    """

    def __init__(
        self,
        parties: int,
        tape: Tape | None,
        channel: Channel | None,
        ledger: Ledger | None = None,
        precision: int = 16,
        shape_only: bool = False,
    ) -> None:
        if parties < 2:
            raise ConfigurationError(f"parties must be at least 2, got {parties}")
        if channel is not None and channel.parties != parties:
            raise ConfigurationError(f"parties is {parties}, but the channel connects {channel.parties}")
        if channel is not None and tape is None:
            raise ConfigurationError("a compute party needs a tape from the dealer")
        if channel is not None and tape is not None and tape.dealing:
            raise ConfigurationError("the dealer has no channel to the compute parties; channel must be None")
        self.parties = parties
        self.party = channel.party if channel is not None else 0
        self.channel = channel
        if ledger is None:
            ledger = channel.ledger if channel is not None else tape.ledger if tape is not None else Ledger()
        self.ledger = ledger
        self.tape = tape if tape is not None else CountingTape(ledger)
        contentless = channel is None and (shape_only or not self.tape.dealing)
        self.device = torch.device("meta" if contentless else "cpu" if channel is None else self.tape.device)
        self.precision = precision
        self._empty: Callable[[Sequence[int]], Any] = new_shape_tensor if shape_only else empty if contentless else _zeros
        self.config: Any = None
        self.communicator: Any = None
        self.provider: Any = None
        self.ranges: Any = None
        self._opened_first = hashlib.sha256()
        self._opened_bits = 0
        self._local = Prg(new_seed())
        self._pairs: dict[int, Prg] | None = None

    @property
    def dealing(self) -> bool:
        """True at the dealer."""
        return self.tape.dealing

    # ---- correlated randomness -----------------------------------------------------------------------------------
    def held(self, x: Tensor) -> Tensor:
        """Return x as the program sees it: a party's share as it is, at the dealer an empty tensor of x's shape."""
        return x if self.channel is not None else self.without_content(x.shape)

    def without_content(self, shape: Sequence[int]) -> Tensor:
        """Return a tensor of the dealer's or the estimate's program."""
        made: Tensor = self._empty(shape)
        return made

    # ---- openings ------------------------------------------------------------------------------------------------
    def open_together(self, items: Sequence[tuple[Tensor, int, str]]) -> list[Tensor]:
        """Open several shared values in one round. Each item: this party's share, ring bits, kind ("sum" or "xor").

        Sends packed_size(elements, bits) bytes per item to every peer. The caller makes sure that every value is
        uniform whatever the inputs are.
        """
        sizes = [packed_size(x.numel(), bits) for x, bits, _ in items]
        if self.channel is None:
            everything = sum(sizes) * (self.parties - 1)
            self.count_exchange(everything, everything, self.parties - 1)
            return [self.without_content(x.shape) for x, _, _ in items]
        arrived = self.channel.exchange_all(at_host(joined([packed(x, bits) for x, bits, _ in items])))
        peers = self.channel.peers
        received = dict(zip(peers, delivered([arrived[peer] for peer in peers], self.device), strict=True))
        out = []
        start = 0
        for (x, bits, kind), size in zip(items, sizes, strict=True):
            total = x
            for peer in peers:
                part = unpacked(received[peer][start : start + size], bits, x.shape)
                total = total ^ part if kind == "xor" else total + part
            out.append(ring.reduce(total, bits))
            start += size
            if self._opened_bits < COMMON_BITS:
                self._remember(out[-1], bits)
        return out

    def _remember(self, opened: Tensor, bits: int) -> None:
        first = opened.reshape(-1)[:COMMON_BITS].contiguous().cpu()
        self._opened_first.update(first.numpy().tobytes())
        self._opened_bits += first.numel() * bits

    def common_seed(self) -> bytes:
        """Return 256 bits that all compute parties know and nobody else: SHA-256 of what was opened first. Local.

        Opened values are uniform, since their masks are, and stay among the parties. Raises `ConfigurationError` before
        there are 256 bits of them.
        """
        if self._opened_bits < 8 * SEED_BYTES:
            raise ConfigurationError(f"a common seed needs {8 * SEED_BYTES} opened bits, there are {self._opened_bits}")
        return self._opened_first.digest()

    def open(self, x: Tensor, bits: int = 64, kind: str = "sum") -> Tensor:
        """Open one shared value: one round."""
        return self.open_together([(x, bits, kind)])[0]

    def count_exchange(self, sent: int, received: int, messages: int) -> None:
        """Book one round that a party would have made, where there is no channel."""
        self.ledger.at().add(Cost(bytes_sent=sent, bytes_received=received, rounds=1, messages=messages))

    # ---- randomness that the parties make themselves -------------------------------------------------------------
    def local_ring(self, shape: Sequence[int], bits: int = 64) -> Tensor:
        """Return uniform elements that only this party knows."""
        if self.channel is None:
            return self.without_content(shape)
        return self._local.ring(shape, bits, self.device)

    def zero_sharing(self, shape: Sequence[int], kind: str = "sum") -> Tensor:
        """Return this party's part of a fresh sharing of zero in Z_2^64 (or of 64 zero bits)."""
        pairs = self.agreed_pairs()
        if self.channel is None:
            return self.without_content(shape)
        out = torch.zeros(tuple(shape), dtype=torch.int64, device=self.device)
        for peer, prg in pairs.items():
            part = prg.ring(shape, 64, self.device)
            if kind == "xor":
                out = out ^ part
            else:
                out = out + part if peer > self.party else out - part
        return out

    def agreed_pairs(self) -> dict[int, Prg]:
        """Return a generator per peer, known to the two alone. One round on the first call, none later."""
        if self._pairs is not None:
            return self._pairs
        with operation("zero-sharing seeds"):
            if self.channel is None:
                # party 0 receives a seed from every peer and sends none
                self.count_exchange(0, SEED_BYTES * (self.parties - 1), 0)
                self._pairs = {}
                return self._pairs
            drawn = {peer: new_seed() for peer in self.channel.peers if peer < self.party}
            received = self.channel.exchange(drawn, {peer: SEED_BYTES for peer in self.channel.peers if peer > self.party})
        seeds = {**drawn, **received}
        self._pairs = {peer: Prg(seeds[peer]) for peer in sorted(seeds)}
        return self._pairs


def _zeros(shape: Sequence[int]) -> Tensor:
    return torch.zeros(tuple(shape), dtype=torch.int64)


def current_session() -> CryptenSession:
    """Return the session in force in this thread. Raises `ConfigurationError` where there is none."""
    session: CryptenSession | None = getattr(_active, "session", None)
    if session is None:
        raise ConfigurationError(
            "CrypTen was called outside a session; run the program with `Suite.run`, or inside "
            "`with protocols.crypten.binding.library.use(session):`"
        )
    return session


def has_session() -> bool:
    """Whether a session is in force in this thread."""
    return getattr(_active, "session", None) is not None


@contextmanager
def use_session(session: CryptenSession) -> Iterator[CryptenSession]:
    """Make `session` the one in force in this thread."""
    outer = getattr(_active, "session", None)
    _active.session = session
    try:
        yield session
    finally:
        _active.session = outer
