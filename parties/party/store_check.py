"""What lies in a party's store: its models and registered prefixes, what of them is damaged, and what nothing needs.

Reads what a running party does not write: whole folders. What a crash left is removed by the next start, or by `collect`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mpc.errors import CheckpointError, ConfigurationError, EnvironmentProblem, MpcacheError
from parties.files import digest_of
from parties.party import prefix_store
from parties.party.store import StoredFiles, read_model
from parties.party.stored_folder import TEMPORARY, remove_folder
from parties.wire.manifest import ID_PATTERN

Kind = Literal["model", "prefix", "incomplete"]


@dataclass(frozen=True)
class Entry:
    """A folder of the store. size: bytes on disk. problem: why it cannot be used, empty where it can; needless: why nothing
    will ever use it, empty where something may."""

    kind: Kind
    id: str
    name: str
    owner: str
    size: int
    folder: Path
    problem: str = ""
    needless: str = ""


def entries(store: Path) -> list[Entry]:
    """Return what lies in the store, by its facts: rows and weights themselves are not read. Raises `ConfigurationError`
    where there is no store."""
    if not store.is_dir():
        raise ConfigurationError(f"there is no store {store}: `mpcache party` makes it at its first start")
    found = list(_models(store))
    nonces = {one.id: _nonce(one) for one in found}
    return [*found, *_prefixes(store / prefix_store.FOLDER, nonces), *_incomplete(store)]


def verify(entry: Entry) -> str:
    """Return why an entry is not what was stored, reading all of it; empty where it is."""
    if entry.problem or entry.kind == "incomplete":
        return entry.problem or entry.needless
    read = read_model if entry.kind == "model" else prefix_store.read
    try:
        files = read(entry.folder).files
        for name, digest in files.items():
            if digest_of(entry.folder / f"{name}.safetensors") != digest:
                return f"{name}.safetensors is not what was stored (its SHA-256 differs)"
    except (OSError, MpcacheError) as error:
        return str(error)
    return ""


def collect(entry: Entry) -> None:
    """Remove an entry that nothing needs. Raises `EnvironmentProblem` where the disk refuses."""
    try:
        gone = entry.folder if entry.kind == "incomplete" else remove_folder(entry.folder.parent, entry.folder.name)
    except OSError as error:
        raise EnvironmentProblem(f"{entry.folder} cannot be removed ({error.strerror}): check its permissions") from None
    shutil.rmtree(gone, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _models(store: Path) -> Iterator[Entry]:
    for folder in sorted(store.iterdir()):
        if ID_PATTERN.fullmatch(folder.name):
            try:
                facts = read_model(folder).facts
                yield Entry("model", folder.name, facts.name, facts.owner, _size(folder), folder)
            except CheckpointError as error:
                yield Entry("model", folder.name, "?", "?", _size(folder), folder, str(error))


def _nonce(model: Entry) -> str:
    if model.problem:
        return ""
    found: StoredFiles = read_model(model.folder)
    return found.facts.nonce


def _prefixes(root: Path, nonces: dict[str, str]) -> Iterator[Entry]:
    """Yield the prefixes. nonces: of the models' storings, by id; empty for a damaged one, which may come back."""
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if not ID_PATTERN.fullmatch(folder.name):
            continue
        try:
            facts = prefix_store.read(folder).facts
        except CheckpointError as error:
            yield Entry("prefix", folder.name, "?", "?", _size(folder), folder, str(error))
            continue
        nonce, needless = nonces.get(facts.model), ""
        if nonce is None:
            needless = "its model is not stored any more"
        elif nonce not in ("", facts.storing):
            needless = "its model was shared again since"
        yield Entry("prefix", folder.name, facts.name, facts.owner, _size(folder), folder, needless=needless)


def _incomplete(store: Path) -> Iterator[Entry]:
    for root in (store, store / prefix_store.FOLDER):
        for folder in sorted(root.glob(f"{TEMPORARY}*")):
            reason = "was left by a crash, or is being written now"
            yield Entry("incomplete", folder.name, "?", "?", _size(folder), folder, needless=reason)
