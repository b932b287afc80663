"""Files that are on disk when a caller is told so: written, flushed, and their names too."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


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
