"""ChaCha20 (RFC 8439) on a device: the bytes of `mpc.generators`, made where they are used.

A lane makes a block of 64 bytes: 80 quarter rounds in registers, 15 operations a byte. Key and nonce are read from the
device's memory, so no kernel is compiled for them; the number of the first block is public.

Before a device's first bytes, blocks of RFC 8439 and a stretch beside the host's are made there. Where Triton is not
installed, does not work, or gives other bytes, the host makes the same stream and copies it; a log says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from mpc.device import triton_launch
from mpc.generators import CHACHA, GENERATORS, Stream

BLOCK_BYTES, SEGMENT = GENERATORS[CHACHA].block, GENERATORS[CHACHA].segment
LANES = 128
Kernel = Callable[[Tensor, int, int], Tensor]
"""From key and nonce (int32 [11], on a device), the number of a block and how many: the bytes, uint8, on that device."""

# (nonce, first block, keystream): sections 2.3.2 and 2.4.2, whose key is 00 01 ... 1f
_RFC_KEY = bytes(range(32))
_RFC = (
    (
        "000000090000004a00000000",
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e",
    ),
    (
        "000000000000004a00000000",
        "224f51f3401bd9e12fde276fb8631ded8c131f823d2c06e27e4fcaec9ef3cf788a3b0aa372600a92b57974cded2b9334"
        "794cba40c63e34cdea212c4cf07d41b769a6749f3f630f4122cafe28ec4dc47e26d4346d70b98c73f3e9c53ac40c5945"
        "398b6eda1a832c89c167eacd901d7e2bf363",
    ),
)


def _quarter(a: int, b: int, c: int, d: int) -> str:
    lines = []
    for x, y, z, turned in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        lines += [f"x{x} += x{y}", f"x{z} ^= x{x}", f"x{z} = (x{z} << {turned}) | (x{z} >> {32 - turned})"]
    return "; ".join(lines)


def _text() -> str:
    """Return the kernel: of every lane one block. x0 ... x15: the state, s0 ... s15: what it starts with."""
    constants = [int.from_bytes(b"expand 32-byte k"[4 * i : 4 * i + 4], "little") for i in range(4)]
    columns = [(i, i + 4, i + 8, i + 12) for i in range(4)]
    diagonals = [(i, (i + 1) % 4 + 4, (i + 2) % 4 + 8, (i + 3) % 4 + 12) for i in range(4)]
    lines = [
        "i = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)",
        "inside = i < n1",
        "zero = (i * 0).to(tl.uint32)",
        *(f"s{w} = (zero + {value}).to(tl.uint32)" for w, value in enumerate(constants)),
        *(f"s{w + 4} = zero + tl.load(head + {w}).to(tl.uint32, bitcast=True)" for w in range(8)),
        "s12 = (i + n0).to(tl.uint32)",
        *(f"s{w + 13} = zero + tl.load(head + {w + 8}).to(tl.uint32, bitcast=True)" for w in range(3)),
        *(f"x{w} = s{w}" for w in range(16)),
        "for _ in range(10):",
        *(f"    {_quarter(*places)}" for places in columns + diagonals),
        *(f"tl.store(out + i * 16 + {w}, (x{w} + s{w}).to(tl.int32, bitcast=True), mask=inside)" for w in range(16)),
    ]
    return "def run(head, out, n0, n1, BLOCK: tl.constexpr):\n" + "".join(f"    {line}\n" for line in lines)


TEXT = _text()


def by_triton(head: Tensor, first: int, count: int) -> Tensor:
    """Return blocks `first` to `first + count - 1` of a segment, uint8 [64 count], by a kernel."""
    out = torch.empty(16 * count, dtype=torch.int32, device=head.device)
    with triton_launch.on(head.device):
        triton_launch.kernel(TEXT)[(-(-count // LANES),)](head, out, first, count, BLOCK=LANES)
    return out.view(torch.uint8)


kernels: list[Kernel] = [by_triton]
"""What makes blocks; the last one counts."""


def heads(key: bytes, nonce: bytes) -> Tensor:
    """Return key and nonce as a kernel reads them, int32 [11], at the host."""
    return torch.frombuffer(bytearray(key + nonce), dtype=torch.int32)


class Keystream:
    """A seed's ChaCha20 stream on a device, at any byte that begins a block."""

    def __init__(self, key: bytes, device: torch.device) -> None:
        self._key, self._device = key, device
        self._head: tuple[int, Tensor] | None = None  # of a segment

    def read(self, start: int, count: int) -> Tensor:
        """Return `count` bytes from byte `start` on, a multiple of 64: uint8 [count] on the device."""
        parts, end = [], start + count
        while start < end:
            segment, within = divmod(start, SEGMENT)
            size = min(end - start, SEGMENT - within)
            found = kernels[-1](self._of(segment), within // BLOCK_BYTES, -(-size // BLOCK_BYTES))
            parts.append(found[:size])
            start += size
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _of(self, segment: int) -> Tensor:
        """Return key and nonce of a segment on the device: one copy up for each."""
        if self._head is None or self._head[0] != segment:
            self._head = segment, heads(self._key, segment.to_bytes(12, "little")).to(self._device)
        return self._head[1]

    def __repr__(self) -> str:
        return f"Keystream({self._device})"


def wrong(kernel: Kernel, device: torch.device) -> str:
    """Return what is wrong with a kernel on a device, in words; empty where its bytes are those of RFC 8439 and the host."""
    for nonce, expected in _RFC:
        made = kernel(heads(_RFC_KEY, bytes.fromhex(nonce)).to(device), 1, -(-len(expected) // 128))
        if made.cpu().numpy().tobytes()[: len(expected) // 2].hex() != expected:
            return "it does not give the blocks of RFC 8439"
    count = 3 * LANES + 1  # to the last block of a segment
    first = SEGMENT // BLOCK_BYTES - count
    made = kernel(heads(_RFC_KEY, bytes(12)).to(device), first, count)
    host = Stream(_RFC_KEY, GENERATORS[CHACHA]).read(first * BLOCK_BYTES, count * BLOCK_BYTES)
    return "" if made.cpu().numpy().tobytes() == host.tobytes() else "it does not give the host's blocks"


@cache
def works(device: torch.device) -> bool:
    """Whether a device makes ChaCha20's stream itself, and makes it right; looked at once."""
    if kernels[-1] is not by_triton:
        return True
    try:
        why = wrong(by_triton, device)
    except Exception as error:  # whatever a compiler that is not there, or does not work, raises
        why = f"{type(error).__name__}: {error}".splitlines()[0]
    if why:
        logging.getLogger(__name__).warning(
            "prg %s is not made on %s (%s): the processor makes the same stream and copies it, slower", CHACHA, device, why
        )
    return not why
