"""A party's pages on disk: safetensors files of shares and masked values, in a folder for each owner, with one index.

Owners are *prefixes*, whose pages last (`parties.party.prefix_store`), and *sessions*, whose pages are of no use to anybody
once their process is gone (`parties.pages.cache_memory`): a session is never resumed, so that no mask of it serves twice.

Order of writing, for a lasting owner: every page, flushed; the folder, flushed; then one transaction of the index with the
owner and all its pages. Before it nobody sees a page, after it all of them are there. Removing: the transaction first, then
files. A crash anywhere leaves files without an owner at most, which the next start removes, as it does sessions. A session's
owner is in the index before its first page is written; its pages are not, since nothing needs them after a crash.

Of a lasting page the index holds the SHA-256 of its file, of a session's page its own process holds sums of its words; a
page is checked whenever it is read. With a key, pages are encrypted (`parties.pages.sealing`).

Leaks, to whoever reads the disk: sizes, times, and without a key one party's shares and masked values, which say nothing
without those of all others.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor

from mpc.errors import CheckpointError, EnvironmentProblem
from parties.events import log
from parties.files import create, digest_of, sync_folder, write_all, write_new
from parties.pages.index import FOLDER as INDEX
from parties.pages.index import Index, Kind, Owner, PageRow
from parties.pages.sealing import Seal, mark_of, read_key
from parties.wire.manifest import new_id

FOLDER = "pages"
SUFFIX = ".safetensors"


def _refused(error: OSError, remedy: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"the store cannot be written ({error.strerror}): free disk space at this party, or make it writable, and {remedy}"
    )


class Incoming:
    """A lasting owner's pages while they are written; nobody sees them until `commit`. rows: what was written so far.
    Raises `EnvironmentProblem` when the disk refuses, saying what to do then (`remedy`)."""

    def __init__(self, store: PageStore, owner: Owner, remedy: str) -> None:
        self.owner = owner
        self.rows: dict[str, PageRow] = {}
        self._store, self._remedy = store, remedy
        self._seal = store.seal(owner)
        self._folder = store.root / owner.folder
        try:
            self._folder.mkdir(mode=0o700)
        except OSError as error:
            raise _refused(error, remedy) from None

    def write(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Write one page, on disk when this returns but for its name."""
        data = save(tensors)
        data = data if self._seal is None else self._seal.close(name, data)
        try:
            digest = write_new(self._folder / f"{name}{SUFFIX}", data)
        except OSError as error:
            raise _refused(error, self._remedy) from None
        self.rows[name] = PageRow(size=len(data), sha256=digest)

    def commit(self, facts: Mapping[str, Any]) -> None:
        """Make the owner and its pages visible, durably, with these facts."""
        try:
            sync_folder(self._folder)
            sync_folder(self._store.root)
        except OSError as error:
            raise _refused(error, self._remedy) from None
        self.owner = self.owner.model_copy(update={"facts": dict(facts)})
        self._store.index.put(self.owner, self.rows)

    def discard(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self._folder, ignore_errors=True)


class PageStore:
    """All pages of one party, in the folder `pages` of its store. party: its name; key: a file, None for pages that are not
    encrypted. One process at a time.

    Raises `EnvironmentProblem` where the folder cannot be used, `ConfigurationError` for somebody else's, or another key,
    `CheckpointError` where the index of what lies there is damaged or gone.
    """

    def __init__(self, store: Path, party: str, key: Path | None = None) -> None:
        self.root = store / FOLDER
        self._key = None if key is None else read_key(key)
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.root.chmod(0o700)
        except OSError as error:
            raise EnvironmentProblem(
                f"the store {store} cannot be written ({error.strerror}): choose another folder in 'store'"
            ) from None
        self.index = Index.open(self.root, writes=True)
        try:
            self.index.check_owner(party)
            first = self.index.lock(party)
            self._check_there()
            self.index.claim(party, "" if self._key is None else mark_of(self._key))
            if first:
                self._tidy()
        except BaseException:
            self.index.close()
            raise
        self._closing = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Let another process use the folder."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self.index.close()

    def _check_there(self) -> None:
        """Raise `CheckpointError` where prefixes lie beside an index that nobody has claimed: it was lost, and they would be
        taken for what a crash left."""
        if self.index.party is None and any(folder.name.startswith("prefix-") for folder in needless(self.root, set())):
            raise CheckpointError(
                f"the store's index ({self.root.name}/{INDEX}) is empty or gone, but prefixes lie beside it: put it back, "
                f"or remove the folder {self.root.name} of the store and let model owners register their prefixes again"
            )

    def _tidy(self) -> None:
        """Remove what a crash left: sessions, and folders without an owner."""
        for owner in self.owners("session"):
            self.index.remove(owner)
        known = {owner.folder for owner in self.index.owners()}
        for folder in needless(self.root, known):
            log.info("%s/%s is removed: a crash has left it", self.root.name, folder.name)
            shutil.rmtree(folder, ignore_errors=True)

    # ---- owners ------------------------------------------------------------------------------------------------------
    def owner(self, kind: Kind, id: str) -> Owner:
        """Return a new owner, which nobody knows yet."""
        return Owner(kind=kind, id=id, bits=new_id(), sealed=self._key is not None, created=int(time.time()))

    def owners(self, kind: Kind) -> list[Owner]:
        """Return all owners of a kind."""
        return [owner for owner in self.index.owners() if owner.kind == kind]

    def begin(self, id: str, remedy: str) -> Incoming:
        """Start to write the pages of a prefix."""
        return Incoming(self, self.owner("prefix", id), remedy)

    def remove(self, owner: Owner) -> None:
        """Forget an owner durably, and remove its files; what is left of them goes at the next start."""
        self.index.remove(owner)
        shutil.rmtree(self.root / owner.folder, ignore_errors=True)

    def seal(self, owner: Owner) -> Seal | None:
        """Return what encrypts an owner's pages, None where they are not encrypted."""
        if not owner.sealed:
            return None
        assert self._key is not None  # `Index.claim`
        return Seal(self._key, owner.bits)

    # ---- pages -------------------------------------------------------------------------------------------------------
    def read(self, owner: Owner, name: str, row: PageRow | None, remedy: str) -> dict[str, Tensor]:
        """Return the tensors of a lasting page. Raises `CheckpointError` with its name and the remedy where it cannot be
        read, or is not what was stored."""
        named = named_page(owner, name)
        path = self.root / owner.folder / f"{name}{SUFFIX}"
        try:
            if row is None or digest_of(path) != row.sha256:
                raise CheckpointError(f"{named} is not what was stored (its SHA-256 differs): check the disk, {remedy}")
            return read_page(path, self.seal(owner), name, named)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{named} cannot be read ({type(error).__name__}): {remedy}") from None


def named_page(owner: Owner, name: str) -> str:
    """Name a page's file for an error that a client reads as well: not where the store lies."""
    return f"{FOLDER}/{owner.folder}/{name}{SUFFIX} of the store"


def read_page(path: Path, seal: Seal | None, name: str, named: str) -> dict[str, Tensor]:
    """Return a page's tensors: mapped to memory, or decrypted. Raises `OSError`, `SafetensorError`, `CheckpointError`."""
    if seal is None:
        found: dict[str, Tensor] = load_file(path)
        return found
    return dict(load(seal.open(name, path.read_bytes(), named)))


def write_page(path: Path, seal: Seal | None, name: str, tensors: dict[str, Tensor]) -> int:
    """Write a page that does not last: into the operating system's page cache. Returns its bytes. Raises `OSError`."""
    data = save(tensors)
    data = data if seal is None else seal.close(name, data)
    handle = create(path)
    try:
        write_all(handle, data)
    finally:
        os.close(handle)
    return len(data)


def needless(root: Path, known: set[str]) -> list[Path]:
    """Return the folders of pages that nobody in the index owns."""
    found = (path for path in root.iterdir() if path.is_dir() and path.name.startswith(("prefix-", "session-")))
    return sorted(path for path in found if path.name not in known)
