"""Additive shares in Z_2^64 for the wire: all parties but the last expand theirs from a seed, the last gets the rest.

With n parties, share_i = PRG(seed_i) for i < n-1 and share_{n-1} = x - sum of the others. Fewer than n shares are uniform
and independent of x. A seed serves one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mpc.errors import WireError
from mpc.packing import pack, packed_size, unpack
from mpc.random import SEED_BYTES, Prg

COUNT_BITS = 32  # ring of a count beside an output
BITS = 64
CHUNK_BYTES = 1 << 20  # most payload bytes of one message
MESSAGE_BYTES = CHUNK_BYTES + (1 << 16)  # of a whole one
WEIGHT_FRACTION_BITS = (8, 24)  # the fewest and the most that weights may be shared with
LEDGER_BYTES = 16 << 20


def corrections(rows: Iterator[Tensor], seeds: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the last party's bytes of a tensor given in consecutive pieces (int64, any shapes), in chunks of at most 1 MiB.

    seeds: the other parties' (each used for this tensor only). Secret bytes: for the last party only.

    >>> seed, secret = bytes(range(32)), torch.tensor([3, 17])
    >>> rest = unpack(b"".join(corrections(iter([secret]), [seed])), BITS, (2,))
    >>> rest + expand(seed, (2,), "client")
    tensor([ 3, 17])
    """
    prgs = [Prg(seed) for seed in seeds]
    buffer = bytearray()
    for piece in rows:
        rest = piece.clone()
        for prg in prgs:
            rest -= prg.ring(piece.shape, BITS)
        buffer += pack(rest, BITS)
        while len(buffer) >= CHUNK_BYTES:
            yield bytes(buffer[:CHUNK_BYTES])
            del buffer[:CHUNK_BYTES]
    if buffer:
        yield bytes(buffer)


def pieces(x: Tensor) -> Iterator[Tensor]:
    """Yield a tensor as consecutive flat pieces of at most 1 MiB."""
    yield from torch.split(x.reshape(-1), CHUNK_BYTES // 8)


def expand(seed: bytes, shape: Sequence[int], sender: str) -> Tensor:
    """Return a share from its seed. Raises `WireError` naming the sender for a seed of another size."""
    if len(seed) != SEED_BYTES:
        raise WireError(f"{sender} sent a seed of {len(seed)} bytes, expected {SEED_BYTES}")
    return Prg(seed).ring(shape, BITS)


def collect(what: str, shape: Sequence[int], bits: int, size: int, sender: str, receive: Callable[[], Any]) -> Tensor:
    """Return a tensor from its chunks: int64 `shape`, canonical in Z_2^bits.

    size: what the sender declared; it must be what shape and bits need, before anything is stored. receive() gives the
    next message. Raises `WireError` naming the sender, the tensor, what was expected and what came.
    """
    expected = packed_size(math.prod(shape), bits)
    if size != expected:
        raise WireError(f"{sender} announced {size} bytes for {what} {list(shape)} in Z_2^{bits}, expected {expected}")
    data = bytearray()
    while len(data) < expected:
        message = receive()
        kind = message.WhichOneof("content")
        if kind != "chunk":
            raise WireError(f"{sender} sent '{kind}' within {what}, expected {expected - len(data)} more bytes of it")
        payload = message.chunk.payload
        if not payload or len(data) + len(payload) > expected:
            raise WireError(f"{sender} sent {len(payload)} bytes of {what} where 1 to {expected - len(data)} were expected")
        data += payload
    return unpack(memoryview(data), bits, shape)
