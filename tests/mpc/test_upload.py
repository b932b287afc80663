"""What goes up: the same bytes, in one copy a launch, whatever waits; cut for the buffers of locked memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mpc import messages
from mpc.device import upload
from mpc.device.deferred import Deferred, settle
from mpc.generators import AES, CHACHA
from mpc.random import Prg, new_seed
from mpc.tape import DealerTape, PartyTape, Tape, chunks
from tests.tools.stand_in.counts import Counts, counting


def ups(counts: Counts) -> int:
    return counts.total("MainThread", "up")


def test_parts_of_every_kind_lie_aligned_in_one_copy(device: str) -> None:
    settle()  # what earlier tests have left
    words = [Prg(new_seed()).words((n,), bits) for n, bits in ((3, 8), (5, 13), (0, 64), (2, 32), (7, 64))]
    with counting() as counts:
        there = [messages.sent_up(x.reshape(-1, 1), torch.device(device)) for x in words]
        settle()
    for x, found in zip(words, there, strict=True):
        assert isinstance(found, Deferred)
        assert found.dtype == x.dtype
        assert found.node.held is not None
        assert found.node.held.storage_offset() * x.element_size() % upload.ALIGNED == 0
        assert torch.equal((found + 1).cpu(), x.reshape(-1, 1) + 1)
    if not torch.cuda.is_available():
        assert ups(counts) == 1


def test_what_is_large_does_not_wait_for_a_launch(device: str) -> None:
    with counting() as counts:
        small = messages.sent_up(torch.arange(8), torch.device(device))
        large = messages.delivered([bytes(upload.AT_ONCE)], torch.device(device))[0]
    assert isinstance(small, Deferred)
    assert isinstance(large, Deferred)
    assert (small.node.held is None, large.node.held is None) == (True, False)
    if not torch.cuda.is_available():
        assert ups(counts) == 1


def test_bytes_are_cut_for_the_buffers_wherever_parts_begin() -> None:
    parts = [np.frombuffer(Prg(new_seed()).bytes(n), np.uint8) for n in (5, 16, 0, 40, 1)]
    starts, size = [0, 16, 32, 32, 80], 96
    whole = np.zeros(size, np.uint8)
    for part, start in zip(parts, starts, strict=True):
        whole[start : start + part.size] = part
    for step in (7, 16, 96):
        found = np.zeros(size, np.uint8)
        for first in range(0, size, step):
            last = min(first + step, size)
            for at, piece in upload.pieces(parts, starts, first, last):
                assert at + piece.size <= last - first
                found[first + at : first + at + piece.size] = piece
        assert np.array_equal(found, whole)


@pytest.mark.parametrize("prg", [AES, CHACHA])
def test_a_tapes_entries_go_up_together_and_a_gpu_makes_its_own(device: str, prg: str) -> None:
    settle()
    seeds, emitted = [new_seed(), new_seed()], bytearray()

    def program(tape: Tape) -> list[torch.Tensor]:
        a = tape.random("a", (5, 3))
        return [a, *(tape.dependent(f"b{n}", (5, 3), lambda n=n: a * n, 40) for n in range(4))]  # type: ignore[misc]

    whole = program(DealerTape([Prg(s, prg) for s in seeds], lambda party, piece: emitted.extend(piece * (party == 1))))
    with counting() as counts:
        tape = PartyTape(Prg(seeds[1], prg), True, chunks(iter([bytes(emitted)])), device=device)
        shares = program(tape)
        settle()
    if not torch.cuda.is_available():
        assert ups(counts) == (1 if prg == AES else 2)  # of ChaCha20 the key and the number of the segment
    first = Prg(seeds[0], prg)
    for n, (share, value) in enumerate(zip(shares, whole, strict=True)):
        bits = 40 if n else 64
        total = share.cpu() + first.ring((5, 3), bits)
        assert torch.equal(total & (1 << bits) - 1 if n else total, value)
