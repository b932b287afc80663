"""Where a command's results go: looked at before the work, so that none is lost to a path that cannot be written."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mpc.errors import ConfigurationError


def check_output_folder(folder: Path, option: str) -> None:
    """Make the folder if need be. Raises `ConfigurationError` naming option and reason where files cannot be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _probe(folder)
    except OSError as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise ConfigurationError(f"{option} {folder} cannot be written to: {reason}; name another folder") from None


def check_output_file(file: Path, option: str) -> None:
    """Raises `ConfigurationError` naming option and reason where the file cannot be written. It stays as it is."""
    if file.is_dir():
        raise ConfigurationError(f"{option} {file} is a folder; name a file in it")
    if not file.parent.is_dir():
        raise ConfigurationError(f"{option} {file}: the folder {file.parent} does not exist; make it, or name another one")
    try:
        _probe(file.parent)
        if file.exists():
            file.open("r+b").close()
    except OSError as error:
        raise ConfigurationError(f"{option} {file} cannot be written: {error.strerror}; name another file") from None


def _probe(folder: Path) -> None:
    """Make a file in the folder that is gone at once. Raises `OSError`."""
    with tempfile.TemporaryFile(dir=folder):
        pass
