"""What lies in a party's store: its models and registered prefixes, pages of sessions, what of them is damaged, and what
nothing needs.

Reads what a running party does not write: whole folders of models, and the index of pages.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mpc.errors import CheckpointError, ConfigurationError, EnvironmentProblem, MpcacheError
from parties.files import digest_of
from parties.pages.index import Owner
from parties.pages.inspection import Shelves, check_stopped
from parties.party.prefix_store import read
from parties.party.store import StoredFiles, read_model
from parties.party.stored_folder import TEMPORARY, remove_folder
from parties.wire.manifest import ID_PATTERN

Kind = Literal["model", "prefix", "session", "tape", "incomplete"]
CRASHED = "was left by a crash"


@dataclass(frozen=True)
class Entry:
    """A folder of the store. size: bytes on disk. problem: why it cannot be used, empty where it can; needless: why nothing
    will ever use it, empty where something may. pages: whose they are, where they are pages. read() says why it is not what
    was stored, remove() takes it away, where neither is a folder's or pages' usual way."""

    kind: Kind
    id: str
    name: str
    owner: str
    size: int
    folder: Path
    problem: str = ""
    needless: str = ""
    pages: Owner | None = None
    read: Callable[[], str] | None = None
    remove: Callable[[], None] | None = None


def entries(store: Path, party: str) -> list[Entry]:
    """Return what lies in a party's store, by its facts: rows and weights themselves are not read. Raises
    `ConfigurationError` where there is no store, and for another party's."""
    if not store.is_dir():
        raise ConfigurationError(f"there is no store {store}: `mpcache party` makes it at its first start")
    found = list(_models(store))
    nonces = {one.id: _nonce(one) for one in found}
    with Shelves(store, party) as shelves:
        return [*found, *_pages(shelves, nonces), *_incomplete(store, shelves)]


def verify(entry: Entry) -> str:
    """Return why an entry is not what was stored, reading all of it; empty where it is."""
    if entry.problem or entry.kind in ("incomplete", "session"):
        return entry.problem or entry.needless
    try:
        if entry.read is not None:
            return entry.read()
        if entry.pages is not None:
            with Shelves(entry.folder.parent.parent) as shelves:
                return shelves.problem(entry.pages, whole=True)
        for name, digest in read_model(entry.folder).files.items():
            if digest_of(entry.folder / f"{name}.safetensors") != digest:
                return f"{name}.safetensors is not what was stored (its SHA-256 differs)"
    except (OSError, MpcacheError) as error:
        return str(error)
    return ""


def collect(store: Path, party: str, found: list[Entry]) -> None:
    """Remove entries that nothing needs. Raises `EnvironmentProblem` where the party runs, or the disk refuses."""
    index = check_stopped(store, party)
    try:
        for entry in found:
            try:
                if entry.remove is not None:
                    entry.remove()
                    continue
                if entry.pages is not None:
                    index.remove(entry.pages)
                    gone = entry.folder
                else:
                    whole = entry.kind != "incomplete"
                    gone = remove_folder(entry.folder.parent, entry.folder.name) if whole else entry.folder
            except OSError as error:
                raise EnvironmentProblem(
                    f"{entry.folder} cannot be removed ({error.strerror}): check its permissions"
                ) from None
            shutil.rmtree(gone, ignore_errors=True)
    finally:
        index.close()


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


def _pages(shelves: Shelves, nonces: dict[str, str]) -> Iterator[Entry]:
    """Yield prefixes and sessions. nonces: of the models' storings, by id; empty for a damaged one, which may come back."""
    for owner in shelves.owners():
        folder = shelves.root / owner.folder
        size = _size(folder) if folder.is_dir() else 0
        if owner.kind == "session":
            needless = "" if shelves.running else CRASHED
            yield Entry("session", owner.id, "-", "-", size, folder, needless=needless, pages=owner)
            continue
        try:
            facts = read(owner)
        except CheckpointError as error:
            yield Entry("prefix", owner.id, "?", "?", size, folder, str(error), "nobody can read it", pages=owner)
            continue
        nonce, needless = nonces.get(facts.model), ""
        if nonce is None:
            needless = "its model is not stored any more"
        elif nonce not in ("", facts.storing):
            needless = "its model was shared again since"
        problem = shelves.problem(owner, whole=False)
        yield Entry("prefix", owner.id, facts.name, facts.owner, size, folder, problem, needless, owner)


def _incomplete(store: Path, shelves: Shelves) -> Iterator[Entry]:
    reason = "was left by a crash, or is being written now"
    for folder in [*sorted(store.glob(f"{TEMPORARY}*")), *shelves.left()]:
        yield Entry("incomplete", folder.name, "?", "?", _size(folder), folder, needless=reason)
