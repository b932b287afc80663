"""Folders that commands make of models: in a cache or where a person wants them, whole or not at all.

A folder is made beside its place and renamed into it, under a lock of the place's parent, so that two processes never make
the same one and nobody sees half of one. Its record (`RECORD`) names what it was made from and the size of each file: a
folder whose files have these sizes is taken as it is.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launch.terminal.console import byte_count
from launch.terminal.progress import Stage
from mpc.errors import CheckpointError, ConfigurationError, EnvironmentProblem

RECORD = "mpcache-source.json"
FORMAT = 1
WORK_PREFIX = ".mpcache-work-"
SPARE_BYTES = 64 << 20
POLL_SECONDS = 0.2


def models_cache() -> Path:
    """Return where models are kept that a command made and no `--out` was named for."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "mpcache" / "models"


def file_digest(path: Path, progress: Stage = lambda stage, done, total: None) -> str:
    """Return the SHA-256 of a file. Raises `CheckpointError` when it cannot be read."""
    digest, done = hashlib.sha256(), 0
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
                done += len(piece)
                progress("reading", done, total)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None
    return digest.hexdigest()


def holds(folder: Path, digest: str) -> bool:
    """Return whether a folder is complete and was made from the content with this SHA-256."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files = record["files"]
        same = (record["format"], record["sha256"]) == (FORMAT, digest)
        return same and all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def make_folder(
    target: Path,
    digest: str,
    needed: int,
    make: Callable[[Path, Path], dict[str, Any]],
    progress: Stage = lambda stage, done, total: None,
) -> Path:
    """Make the folder `target` unless it is there already, and return it.

    digest: SHA-256 of what it is made from. needed: bytes that making takes on its file system. make(folder, work): fills
    an empty folder, may use another one for what it needs meanwhile, and returns what the record shall say beside.

    Raises `ConfigurationError` when something else is at `target`, `EnvironmentProblem` when there is no room, no right to
    write, or no lock; whatever `make` raises passes, and nothing is left behind.
    """
    target = target.absolute()
    if holds(target, digest):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target, progress):
            if holds(target, digest):
                return target
            _check_place(target)
            _check_room(target.parent, needed)
            _build(target, digest, make)
    except OSError as error:
        where = error.filename or target
        raise EnvironmentProblem(
            f"{target} cannot be made: {where}: {error.strerror or error}; name another folder with --out "
            "(or, for all models, another cache with XDG_CACHE_HOME)"
        ) from None
    return target


def _build(target: Path, digest: str, make: Callable[[Path, Path], dict[str, Any]]) -> None:
    for left in target.parent.glob(f"{WORK_PREFIX}{target.name}-*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f"{WORK_PREFIX}{target.name}-", dir=target.parent))
    try:
        folder, scratch = work / "model", work / "scratch"
        folder.mkdir()
        scratch.mkdir()
        facts = make(folder, scratch)
        held = sorted(file for file in folder.rglob("*") if file.is_file())
        files = {file.relative_to(folder).as_posix(): file.stat().st_size for file in held}
        record = {"format": FORMAT, "sha256": digest, **facts, "files": files}
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        os.rename(folder, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _locked(target: Path, progress: Stage) -> Iterator[None]:
    """Hold the lock of the target's parent; wait for another process that has it."""
    handle = os.open(target.parent, os.O_RDONLY)
    try:
        waiting = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    progress("waiting for another process", 0, 0)
                    waiting = True
                time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(handle)


def _check_place(target: Path) -> None:
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise ConfigurationError(
            f"{target} exists and is not this model, complete; remove it, or name another folder with --out"
        )


def _check_room(parent: Path, needed: int) -> None:
    free = shutil.disk_usage(parent).free
    if free < needed + SPARE_BYTES:
        raise EnvironmentProblem(
            f"{parent} has {byte_count(free)} free, {byte_count(needed + SPARE_BYTES)} are needed; make room, or name a "
            "folder on another disk with --out (or, for all models, another cache with XDG_CACHE_HOME)"
        )
