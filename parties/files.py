"""Small files of certificates, keys and lists: read with a bound, written whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from mpc.errors import ConfigurationError

FILE_BYTES = 1 << 18


def read_file(path: Path, remedy: str) -> bytes:
    """A small file. Raises `ConfigurationError` with the remedy when it is missing, unreadable or far too large."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigurationError(f"{path} is missing: {remedy}") from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror}): {remedy}") from None
    if len(data) > FILE_BYTES:
        raise ConfigurationError(f"{path} is larger than {FILE_BYTES} bytes: {remedy}")
    return data


def write_file(path: Path, data: bytes, mode: int) -> None:
    """Write a file whole or not at all; who reads `path` finds what was there before, or all of `data`, on disk."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
