"""Pages that are encrypted on disk: AES-256-GCM under a key that is derived for one owner of pages.

A party's key file holds 256 bits. Each owner of pages (`parties.pages.page_store`) has a key of its own, derived from them
and from 128 random bits that are drawn when its first page is written and lie in the index. Under that key the n-th page
that is written has nonce n. A crash ends the owner's writing for good, and whoever begins again draws new bits: so no nonce
serves twice, whatever happens. A page's name is authenticated with it: pages cannot be swapped.

What is encrypted: rows of caches and of registered prefixes. Not: the index (names, sizes, ids of public texts), and a
party's shares of models.
"""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mpc.errors import CheckpointError, ConfigurationError
from mpc.random import SEED_BYTES, derive_seed
from parties.files import read_file

HEX = 2 * SEED_BYTES
NONCE_BYTES = 12
REMEDY = "make one with `mpcache store key FILE`"


def read_key(path: Path) -> bytes:
    """Return the key in a file, 64 hexadecimal digits. Raises `ConfigurationError` naming the file and what to do."""
    text = read_file(path, f"{REMEDY}, or leave 'store_key' out").strip()
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ConfigurationError(f"others may read the store's key {path} (mode {mode:04o}): run `chmod 600 {path}`")
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != SEED_BYTES or len(text) != HEX:
        raise ConfigurationError(f"store_key: {path} does not hold {HEX} hexadecimal digits: {REMEDY}")
    return key


def mark_of(key: bytes) -> str:
    """Return what tells keys apart and says nothing of them."""
    return hashlib.sha256(b"mpcache store key 1" + derive_seed(key, "mark")).hexdigest()[:32]


class Seal:
    """Encrypts and decrypts the pages of one owner. bits: 128 random ones of it, hexadecimal."""

    def __init__(self, key: bytes, bits: str) -> None:
        self._cipher = AESGCM(derive_seed(key, "pages", bits))
        self._written = 0

    def close(self, name: str, data: bytes) -> bytes:
        """Return a page's content, encrypted."""
        nonce = self._written.to_bytes(NONCE_BYTES, "big")
        self._written += 1
        return nonce + self._cipher.encrypt(nonce, data, name.encode())

    def open(self, name: str, data: bytes, named: str) -> bytes:
        """Return a page's content. Raises `CheckpointError` naming it where it is not what was written under this key."""
        try:
            return self._cipher.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], name.encode())
        except (InvalidTag, ValueError):
            raise CheckpointError(
                f"{named} is not what was stored, or was stored with another key: check the disk and 'store_key'"
            ) from None
