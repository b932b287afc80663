"""Messages: the same bytes wherever they are packed, in one copy a round."""

from __future__ import annotations

import pytest
import torch

from mpc import messages
from mpc.device.deferred import settle
from mpc.device_packing import pack_there, unpack_there, unpack_words_there
from mpc.errors import WireError
from mpc.packing import pack, unpack_words
from mpc.random import Prg, new_seed
from mpc.ring import reduce
from mpc.tape import CountingTape
from protocols.masked.context import BitOpening, Context
from tests.tools.stand_in.counts import counting


@pytest.mark.parametrize("count", [0, 1, 7, 8, 13])
def test_every_ring_packs_to_the_bytes_of_the_host(count: int) -> None:
    x = Prg(new_seed()).ring((count,))
    for bits in range(1, 65):
        there = pack_there(x, bits)
        assert there.numpy().tobytes() == pack(x, bits)
        # behind an odd byte, as within a message
        behind = torch.cat([torch.zeros(3, dtype=torch.uint8), there])[3:]
        assert torch.equal(unpack_there(behind, bits, (count,)), reduce(x, bits))
        assert torch.equal(unpack_words_there(behind, bits, (count,)), unpack_words(pack(x, bits), bits, (count,)))


def test_another_size_is_an_error() -> None:
    with pytest.raises(WireError, match="3 elements of 5 bits take 2 bytes, got 3"):
        unpack_there(torch.zeros(3, dtype=torch.uint8), 5, (3,))


def test_a_round_is_one_copy_down_and_one_up(device: str) -> None:
    parts = [Prg(new_seed()).ring((9,), bits) for bits in (3, 20, 64)]
    there = [x.to(device) for x in parts]
    settle()  # what earlier tests have left
    with counting() as counts:
        message = messages.joined([messages.packed(x, bits) for x, bits in zip(there, (3, 20, 64), strict=True)])
        sent = messages.at_host(message)
        (arrived,) = messages.delivered([sent], torch.device(device))
        computed = messages.sent_up(torch.arange(9), torch.device(device))  # goes up with the message
        total = there[1] + messages.unpacked(arrived[4:27], 20, (9,)) + computed
        settle()
    assert sent == b"".join(pack(x, bits) for x, bits in zip(parts, (3, 20, 64), strict=True))
    assert torch.equal(total.cpu(), 2 * parts[1] + torch.arange(9))
    if not torch.cuda.is_available():
        assert [counts.total("MainThread", kind) for kind in ("down", "up", "wait")] == [1, 1, 1]


@pytest.mark.parametrize("order", [1, -1])
def test_host_and_device_are_not_mixed(order: int) -> None:
    """Neither where messages are joined nor where bits are opened is a part left out."""
    parts: list[messages.Message] = [b"\x01", torch.ones(1, dtype=torch.uint8)]
    parts = parts[::order]
    with pytest.raises(WireError, match="1 of 2 messages lie on a device"):
        messages.joined(parts)
    with pytest.raises(WireError, match="1 of 2 messages lie on a device"):
        BitOpening(torch.ones(8, dtype=torch.int64)).decode(parts, Context(CountingTape(), None, 2))


def test_a_stream_is_the_same_on_every_device(device: str) -> None:
    """Host and device take turns: bytes that are ahead on the device are the host's next ones too."""
    seed = new_seed()
    ours, theirs = Prg(seed), Prg(seed)
    for turn, (shape, bits) in enumerate([((5,), 9), ((3, 7), 64), ((1,), 1), ((40_000,), 33), ((2,), 16)] * 2):
        where = device if turn % 3 else "cpu"
        assert torch.equal(ours.ring(shape, bits, where).cpu(), theirs.ring(shape, bits))
        assert torch.equal(ours.words(shape, bits, device).cpu(), theirs.words(shape, bits))
    assert ours.bytes(100) == theirs.bytes(100)
