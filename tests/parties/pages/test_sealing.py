"""Encrypted pages: a nonce for each page, a key for each owner, names that are part of what is authenticated."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mpc.errors import CheckpointError
from mpc.random import derive_seed
from parties.pages.sealing import NONCE_BYTES, Seal

KEY, BITS, DATA = bytes(range(32)), "a" * 32, b"rows of a cache" * 9


def test_no_nonce_serves_twice() -> None:
    """Pages written again under their name, too: equal content never looks alike."""
    seal = Seal(KEY, BITS)
    written = [seal.close(name, DATA) for name in ("0000-k", "0001-k", "0000-k") * 100]
    assert len({page[:NONCE_BYTES] for page in written}) == len({page[NONCE_BYTES:] for page in written}) == 300
    plain = AESGCM(derive_seed(KEY, "pages", BITS)).decrypt(written[1][:NONCE_BYTES], written[1][NONCE_BYTES:], b"0001-k")
    assert plain == seal.open("0001-k", written[1], "the page") == DATA


def test_owners_have_keys_of_their_own() -> None:
    """So that two owners, who both count from 0, never share a key stream."""
    one, other = Seal(KEY, BITS).close("0000-k", DATA), Seal(KEY, "b" * 32).close("0000-k", DATA)
    assert one[:NONCE_BYTES] == other[:NONCE_BYTES]
    assert one[NONCE_BYTES:] != other[NONCE_BYTES:]


def test_what_was_not_written_so_is_refused() -> None:
    page = Seal(KEY, BITS).close("0000-k", DATA)
    damaged = page[:-1] + bytes([page[-1] ^ 1])
    for key, bits, name, data in (
        (KEY, BITS, "0001-k", page),
        (KEY, "b" * 32, "0000-k", page),
        (KEY[::-1], BITS, "0000-k", page),
        (KEY, BITS, "0000-k", damaged),
        (KEY, BITS, "0000-k", page[:5]),
    ):
        with pytest.raises(CheckpointError, match="the page is not what was stored, or was stored with another key"):
            Seal(key, bits).open(name, data, "the page")
