"""The generators: vectors of RFC 8439, the same stream on every device and at any byte, no block twice."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
import torch

from mpc.device import keystream
from mpc.device.keystream import Keystream, by_triton, heads
from mpc.errors import ConfigurationError
from mpc.generators import AES, CHACHA, GENERATORS, Stream, suited
from mpc.random import Prg, new_seed
from tests.mpc.test_device import interpreted

KEY = bytes(range(32))
END = 1 << 32  # blocks of a segment


def by_hand(key: bytes, counter: int, nonce: bytes) -> bytes:
    """A block of ChaCha20 as section 2.3 of RFC 8439 writes it, with Python's integers."""
    start = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key), counter, *struct.unpack("<3I", nonce)]
    x = list(start)

    def turn(a: int, b: int, c: int, d: int) -> None:
        for p, q, r, n in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[p] = (x[p] + x[q]) % 2**32
            x[r] ^= x[p]
            x[r] = (x[r] << n | x[r] >> 32 - n) % 2**32

    for _ in range(10):
        for i in range(4):
            turn(i, i + 4, i + 8, i + 12)
        for i in range(4):
            turn(i, (i + 1) % 4 + 4, (i + 2) % 4 + 8, (i + 3) % 4 + 12)
    return struct.pack("<16I", *((a + b) % 2**32 for a, b in zip(x, start, strict=True)))


def stretch(key: bytes, block: int, count: int) -> bytes:
    """Blocks of the stream by hand: the nonce is the number of the segment."""
    places = [divmod(n, END) for n in range(block, block + count)]
    return b"".join(by_hand(key, counter, segment.to_bytes(12, "little")) for segment, counter in places)


def test_the_block_of_rfc_8439_by_hand() -> None:
    nonce = bytes.fromhex("000000090000004a00000000")
    assert by_hand(KEY, 1, nonce).hex().startswith("10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4ed28264")
    assert GENERATORS[CHACHA].cipher(KEY, int.from_bytes(nonce, "little"), 1).update(bytes(64)) == by_hand(KEY, 1, nonce)


@pytest.mark.parametrize("block", [0, 1, 12345, END - 3, END - 1, END, 5 * END - 2])
def test_the_hosts_stream_is_the_one_by_hand(block: int) -> None:
    """Also over the end of a segment, whose counter would not go on."""
    stream = Stream(KEY, GENERATORS[CHACHA])
    assert stream.read(64 * block, 256).tobytes() == stretch(KEY, block, 4)
    assert stream.read(64 * (block + 4), 64).tobytes() == stretch(KEY, block + 4, 1)


@pytest.mark.parametrize("name", list(GENERATORS))
def test_a_stream_is_the_same_wherever_it_is_read(name: str) -> None:
    whole = Stream(KEY, GENERATORS[name]).read(0, 200_000)
    chance, stream = random.Random(7), Stream(KEY, GENERATORS[name])
    for _ in range(60):
        start = chance.randrange(190_000)
        count = chance.choice([0, 1, 63, 64, 65, chance.randrange(10_000)])
        assert np.array_equal(stream.read(start, count), whole[start : start + count])


@pytest.mark.parametrize("name", list(GENERATORS))
def test_every_device_gives_the_hosts_elements(device: str, name: str) -> None:
    """Whatever is asked for where: sizes around blocks and around what is made ahead."""
    seed, chance = new_seed(), random.Random(name)
    ours, theirs, there = Prg(seed, name), Prg(seed, name), torch.device(device)
    for turn in range(40):
        count, bits = chance.choice([0, 1, 8, 9, 63, 65, chance.randrange(5_000)]), chance.randrange(1, 65)
        where = there if turn % 3 else "cpu"
        assert torch.equal(ours.ring((count,), bits, where).cpu(), theirs.ring((count,), bits))
        assert torch.equal(ours.words((count, 2), bits, there).cpu(), theirs.words((count, 2), bits))
    assert ours.bytes(100) == theirs.bytes(100)


def test_a_kernel_makes_the_blocks_of_the_rfc_and_of_the_host() -> None:
    interpreted()
    assert keystream.wrong(by_triton, torch.device("cpu")) == ""


@pytest.mark.parametrize("block", [0, 77, END - 2])
def test_a_kernels_stretch_is_the_one_by_hand(block: int) -> None:
    interpreted()
    made = Keystream(KEY, torch.device("cpu")).read(64 * block, 200)
    assert made.numpy().tobytes() == stretch(KEY, block, 4)[:200]


def test_a_kernel_on_a_device_is_looked_at_first(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One that is wrong is not used: the host makes the same stream, and one warning says so."""

    def one_off(head: torch.Tensor, first: int, count: int) -> torch.Tensor:
        cipher = GENERATORS[CHACHA].cipher(head[:8].numpy().tobytes(), 0, first + 1)
        return torch.frombuffer(bytearray(cipher.update(bytes(64 * count))), dtype=torch.uint8)

    here = torch.device("cpu")
    assert keystream.wrong(one_off, here) == "it does not give the blocks of RFC 8439"
    monkeypatch.setattr(keystream, "by_triton", one_off)
    monkeypatch.setattr(keystream, "kernels", [one_off])
    keystream.works.cache_clear()
    try:
        assert [keystream.works(here), keystream.works(here)] == [False, False]
    finally:
        keystream.works.cache_clear()
    assert [r.getMessage() for r in caplog.records] == [
        "prg chacha20 is not made on cpu (it does not give the blocks of RFC 8439): the processor makes the same stream and "
        "copies it, slower"
    ]


def test_where_no_kernel_works_the_host_makes_the_same_stream(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = new_seed()
    expected = Prg(seed, CHACHA).ring((3, 70), 33)
    monkeypatch.setattr(keystream, "works", lambda where: False)
    assert torch.equal(Prg(seed, CHACHA).ring((3, 70), 33, device).cpu(), expected)


def test_no_block_is_made_for_two_entries() -> None:
    """Whatever sizes are asked for, an entry has blocks of its own, one behind the other."""
    prg, stream = Prg(KEY, CHACHA), Stream(KEY, GENERATORS[CHACHA])
    block = 0
    for count in (1, 64, 63, 65, 0, 200):
        assert prg.bytes(count) == stream.read(64 * block, count).tobytes()
        block += -(-count // 64)
    whole = [stretch(KEY, n, 1) for n in [*range(20), END - 1, END, END + 1, 2 * END]]
    assert len(set(whole)) == len(whole)  # segments do not share one either


def test_the_generators_differ_and_are_named() -> None:
    assert Prg(KEY).bytes(64) == Prg(KEY, AES).bytes(64) != Prg(KEY, CHACHA).bytes(64)
    assert (repr(Prg(KEY, CHACHA)), repr(Prg(KEY))) == ("Prg(chacha20)", "Prg(aes256-ctr)")
    assert (suited("cpu"), suited("cuda"), suited("cuda:1")) == (AES, CHACHA, CHACHA)
    with pytest.raises(ConfigurationError, match="prg 'chacha8' is unknown: write aes256-ctr or chacha20"):
        Prg(KEY, "chacha8")
    assert heads(KEY, bytes(12)).numpy().tobytes() == KEY + bytes(12)
