"""Folders of a party's store that are whole or not there: written under a temporary name, renamed when all of it is on disk.

A folder holds `FACTS.json` (public facts, SHA-256 of every other file and of these facts) and one `NAME.safetensors` a file.
Files have mode 0600, folders 0700. A crash leaves temporary names, which the next start removes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mpc.errors import CheckpointError, EnvironmentProblem
from parties.files import digest_of, sync_folder, write_new
from parties.wire.manifest import new_id

TEMPORARY = ".incoming-"
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def check_of(facts: BaseModel, files: Mapping[str, str]) -> str:
    """Return the SHA-256 of facts and files together."""
    text = json.dumps([facts.model_dump(mode="json"), dict(files)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def on_disk(what: str, remedy: str) -> Iterator[None]:
    """Raise `EnvironmentProblem` where the disk refuses, for owner and operator: it does not say where the store lies."""
    try:
        yield
    except OSError as error:
        raise EnvironmentProblem(
            f"the {what} cannot be written ({error.strerror}): free disk space at this party, or make it writable, and "
            f"{remedy}"
        ) from None


def made_root(root: Path, what: str) -> None:
    """Make the folder of all folders, without what a crash left in it. Raises `EnvironmentProblem`."""
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        root.chmod(0o700)
        for left in root.glob(f"{TEMPORARY}*"):
            shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        raise EnvironmentProblem(
            f"{what} {root} cannot be written ({error.strerror}): choose another folder in 'store'"
        ) from None


class IncomingFolder:
    """A folder that is being written; nobody sees it until `commit`. remedy: what to do when the disk has refused, in words.
    files: SHA-256 of each file's content by its name without ending. Raises `EnvironmentProblem` when the disk refuses."""

    def __init__(self, root: Path, what: str, remedy: str) -> None:
        self._root = root
        self._told = what, remedy
        self._folder = root / f"{TEMPORARY}{new_id()}"
        self.files: dict[str, str] = {}
        with on_disk(*self._told):
            self._folder.mkdir(mode=0o700)

    def write(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Write one file."""
        with on_disk(*self._told):
            self.files[name] = write_new(self._folder / f"{name}.safetensors", save(tensors))

    def commit(self, name: str, facts_file: str, facts: bytes) -> None:
        """Make the folder visible under a name. All of it is on disk when this returns."""
        with on_disk(*self._told):
            write_new(self._folder / facts_file, facts)
            sync_folder(self._folder)
            self._folder = self._folder.rename(self._root / name)
            sync_folder(self._root)

    def discard(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self._folder, ignore_errors=True)


def remove_folder(root: Path, name: str) -> Path:
    """Make a folder invisible at once, durably; return what is left to be deleted. Raises `OSError`."""
    gone = root / f"{TEMPORARY}{new_id()}"
    (root / name).rename(gone)
    sync_folder(root)
    return gone


def load_checked(path: Path, digest: str | None, named: str, remedy: str) -> dict[str, Any]:
    """Return the tensors of a file whose SHA-256 is `digest`. Raises `CheckpointError` with its name and the remedy."""
    try:
        if digest_of(path) != digest:
            raise CheckpointError(f"{named} is not what was stored (its SHA-256 differs): check the disk, {remedy}")
        found: dict[str, Any] = load_file(path)
        return found
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{named} cannot be read ({type(error).__name__}): {remedy}") from None


def checked_share(tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, named: str, remedy: str) -> Tensor:
    """Return a stored tensor. Raises `CheckpointError` for another shape or type than expected."""
    if tensor is None:
        raise CheckpointError(f"{named} cannot be read (KeyError): {remedy}")
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise CheckpointError(f"{named} holds {list(tensor.shape)} {tensor.dtype}, expected {list(shape)} {dtype}: {remedy}")
    return tensor
