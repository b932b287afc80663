"""Where a command writes to, looked at before its work: an hour's result is not lost to a folder that is none."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mpc.errors import ConfigurationError


def make_writable_folder(folder: Path, option: str = "--out") -> Path:
    """Make a folder, with those above it, and return it. Raises `ConfigurationError` naming the option where it cannot be
    made or a file cannot be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigurationError(f"{option} {folder} cannot be made: a file is there; name another folder") from None
    except OSError as error:
        raise ConfigurationError(f"{option} {folder} cannot be made: {error.strerror}; name another folder") from None
    _check_inside(folder, f"{option} {folder}: it", "name another folder")
    return folder


def check_writable_file(file: Path, option: str = "--out") -> None:
    """Raise `ConfigurationError` naming the option where a file cannot be written, or written over."""
    if file.is_dir():
        raise ConfigurationError(f"{option} {file} is a folder; name a file")
    if not file.parent.is_dir():
        raise ConfigurationError(f"{option} {file}: the folder {file.parent} does not exist; make it, or name another file")
    if file.exists():
        try:
            file.open("ab").close()
        except OSError as error:
            raise ConfigurationError(f"{option} {file} cannot be written: {error.strerror}; name another file") from None
    else:
        _check_inside(file.parent, f"{option} {file}: the folder {file.parent}", "name another file")


def _check_inside(folder: Path, what: str, remedy: str) -> None:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigurationError(f"{what} cannot be written to ({error.strerror}); {remedy}") from None
