"""The generator: AES-256-CTR from 256-bit seeds."""

from __future__ import annotations

import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from mpc.errors import RangeError
from mpc.random import _FEW, Prg, canonical, derive_seed, new_seed
from mpc.ring import reduce


def test_stream_is_aes_256_ctr() -> None:
    seed = bytes(range(32))
    expected = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor().update(bytes(100))
    prg = Prg(seed)
    assert prg.bytes(37) + prg.bytes(63) == expected


def test_same_seed_same_elements() -> None:
    seed = new_seed()
    a, b = Prg(seed), Prg(seed)
    for shape, bits in [((3, 4), 64), ((5,), 1), ((2, 2), 13), ((7,), 32), ((0,), 64), ((9,), 64)]:
        x, y = a.ring(shape, bits), b.ring(shape, bits)
        assert torch.equal(x, y)
        assert x.shape == shape
        assert x.dtype == torch.int64
        if bits < 64 and x.numel():
            assert 0 <= int(x.min()) <= int(x.max()) < 2**bits


@pytest.mark.parametrize("bits", [1, 4, 8, 11, 32, 64])
def test_elements_are_uniform(bits: int) -> None:
    x = Prg(new_seed()).ring((64_000,), bits)
    top = (x >> max(0, bits - 4)) & (2 ** min(bits, 4) - 1)
    counts = torch.bincount(top, minlength=2 ** min(bits, 4)).double()
    expected = 64_000 / len(counts)
    assert float(((counts - expected) ** 2 / expected).sum()) < len(counts) + 10 * len(counts) ** 0.5 + 10


def test_seeds_differ() -> None:
    seeds = {new_seed() for _ in range(100)}
    assert len(seeds) == 100
    assert all(len(s) == 32 for s in seeds)


def test_derived_seeds_depend_on_every_label() -> None:
    seed = new_seed()
    derived = [derive_seed(seed), derive_seed(seed, "a"), derive_seed(seed, "ab"), derive_seed(seed, "a", "b"),
               derive_seed(seed, 1), derive_seed(new_seed(), "a"), derive_seed(seed, "", "ab")]  # fmt: skip
    assert len(set(derived)) == len(derived)
    assert derive_seed(seed, "a", 1) == derive_seed(seed, b"a", "1")


def test_seed_length_is_checked() -> None:
    with pytest.raises(ValueError, match="32 bytes, got 31"):
        Prg(b"x" * 31)


def test_seed_is_not_shown() -> None:
    seed = b"s" * 32
    assert "sss" not in repr(Prg(seed))


@pytest.mark.parametrize("bits", range(1, 65))
def test_narrow_words_are_cut_as_wide_ones(bits: int) -> None:
    """The elements of a ring are its words modulo 2^bits, words of all bits and of none among them."""
    words = Prg(bytes(32)).words((257,), bits)
    words[0], words[1], words[2] = -1, 0, 1
    expected = reduce(words.to(torch.int64), bits)
    assert torch.equal(canonical(words.clone(), bits), expected)
    assert torch.equal(Prg(bytes(32)).ring((257,), bits)[3:], expected[3:])


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 5), (_FEW,), (_FEW + 1,)], ids=str)
def test_few_elements_are_those_of_many(shape: tuple[int, ...]) -> None:
    """What is cut as numpy words is what is cut as torch's, and the stream goes on at the same byte."""
    ours, theirs = Prg(b"\5" * 32), Prg(b"\5" * 32)
    for bits in range(1, 65):
        found = ours.ring(shape, bits)
        assert found.dtype == torch.int64
        assert torch.equal(found, canonical(theirs.words(shape, bits), bits))
    assert ours.bytes(16) == theirs.bytes(16)
    with pytest.raises(RangeError, match="between 1 and 64, got 65"):
        ours.ring(shape, 65)
