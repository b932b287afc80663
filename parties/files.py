"""Files that are written whole or not at all, and on disk, names included, when a caller is told so; bounded reads."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from mpc.errors import ConfigurationError

FILE_BYTES = 1 << 18  # most bytes of a file of certificates, keys or lists


def create(path: Path) -> int:
    """A descriptor of a new file that only its owner may read. Raises `OSError` when it exists."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def write_all(handle: int, data: bytes) -> None:
    """Write all of `data`."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def write_new(path: Path, data: bytes) -> str:
    """A new file with this content, on disk when this returns but for its name (`sync_folder`); SHA-256 of the content."""
    handle = create(path)
    try:
        write_all(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)
    return hashlib.sha256(data).hexdigest()


def sync_folder(folder: Path) -> None:
    """Make new, renamed and removed names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest_of(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal; reads 256 KiB at a time. Raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
