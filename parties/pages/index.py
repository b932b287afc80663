"""The index of a party's pages, in LMDB: who owns pages, how large they are, and what they must be.

Rows, all of them JSON:

    store                    whose store it is, which version wrote it, and the mark of its key
    owner/KIND/ID            what is known of an owner of pages (`Owner`)
    page/KIND/ID/NAME        size and SHA-256 of a lasting page's file

A transaction is on disk when it returns, whole, or it never was (LMDB copies on write). A process opens an index once and
shares it; only one process may write (`Index.lock`), any number may read beside it.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import lmdb
from pydantic import BaseModel, ConfigDict, ValidationError

from mpc.errors import CheckpointError, ConfigurationError, EnvironmentProblem
from parties.wire.manifest import Identifier

FOLDER = "index"
LOCK = "lock"
VERSION = 1
MAP_BYTES = 1 << 30  # address space, not memory: rows of four million pages
READERS = 512
READERS_BYTES = (READERS + 8) * 128  # at least LMDB's table, a cache line or two each

Kind = Literal["prefix", "session"]


class Owner(BaseModel):
    """Whom pages belong to. bits: 128 random ones of this storing; sealed: whether its pages are encrypted; created: seconds
    since 1970; facts: its own, public."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    id: Identifier
    bits: Identifier
    sealed: bool
    created: int
    facts: dict[str, Any] = {}

    @property
    def folder(self) -> str:
        """The name of its pages' folder."""
        return f"{self.kind}-{self.id}"

    @property
    def row(self) -> bytes:
        """Its key in the index."""
        return f"owner/{self.kind}/{self.id}".encode()

    @property
    def pages(self) -> bytes:
        """What keys of its pages begin with."""
        return f"page/{self.kind}/{self.id}/".encode()


class PageRow(BaseModel):
    """A lasting page's file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int
    sha256: str


@contextmanager
def told(root: Path) -> Iterator[None]:
    """Raise `EnvironmentProblem` where the index cannot be used, in words that do not say where it lies."""
    try:
        yield
    except lmdb.MapFullError:
        raise EnvironmentProblem("the store's index is full: take prefixes away (`mpcache prefix rm`)") from None
    except (lmdb.CorruptedError, lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.PageNotFoundError):
        raise CheckpointError(
            f"the store's index ({root.name}/{FOLDER}) is damaged: remove the folder {root.name} of the store, and let "
            "model owners register their prefixes again"
        ) from None
    except (lmdb.Error, OSError) as error:
        raise EnvironmentProblem(
            f"the store's index cannot be used ({error}): free disk space at this party, or make it writable; it needs a "
            "local file system"
        ) from None


class Index:
    """The index in `root`; `Index.open` shares it within the process. Raises as `told` says."""

    _open: ClassVar[dict[Path, Index]] = {}
    _guard = threading.Lock()

    def __init__(self, root: Path, writes: bool) -> None:
        self.root = root
        self._users = 0
        self._lock = -1
        with told(root):
            folder = root / FOLDER
            if writes:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                _reserve(folder / "lock.mdb")
            self._env = lmdb.open(
                str(folder), map_size=MAP_BYTES, max_readers=READERS, readonly=not writes, mode=0o600, create=writes
            )

    @classmethod
    def open(cls, root: Path, writes: bool) -> Index:
        """Return the index of a folder; `close` gives it back."""
        root = root.resolve()
        with cls._guard:
            found = cls._open.get(root)
            if found is None:
                found = cls._open[root] = cls(root, writes)
            found._users += 1
            return found

    def close(self) -> None:
        """Give it back; with the last user it is closed."""
        with Index._guard:
            self._users -= 1
            if self._users:
                return
            del Index._open[self.root]
            self._env.close()
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    def lock(self, who: str) -> bool:
        """Be the only process that writes, until it is closed; whether it was not so before. Raises `EnvironmentProblem`
        where another one is."""
        with Index._guard, told(self.root):
            if self._lock >= 0:
                return False
            handle = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                raise EnvironmentProblem(
                    f"another process of {self.party or who} uses the store: stop it first, and start no party twice"
                ) from None
            self._lock = handle
            return True

    @property
    def locked(self) -> bool:
        """Whether a process has the right to write, this one or another."""
        with told(self.root):
            handle = os.open(self.root / LOCK, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    # ---- rows --------------------------------------------------------------------------------------------------------
    @property
    def party(self) -> str | None:
        """Whose store it is; None while nobody has claimed it."""
        held = self._get(b"store")
        return None if held is None else str(held.get("party"))

    def check_owner(self, party: str) -> None:
        """Raise `ConfigurationError` for somebody else's store, or one of another version."""
        held = self._get(b"store") or {"party": party, "version": VERSION}
        if (held.get("party"), held.get("version")) != (party, VERSION):
            raise ConfigurationError(
                f"the store belongs to party {held.get('party')} (format {held.get('version')}), this is {party} (format "
                f"{VERSION}): give every party a 'store' of its own"
            )

    def claim(self, party: str, mark: str) -> None:
        """Note whose store it is, and with which key. Raises `ConfigurationError` for somebody else's."""
        self.check_owner(party)
        held = self._get(b"store")
        if held is None:
            self._write({b"store": {"version": VERSION, "party": party, "key": mark}})
            return
        known, sealed = str(held.get("key", "")), any(owner.sealed for owner in self.owners() if owner.kind == "prefix")
        if sealed and known != mark:
            lacking = "needs its key: set 'store_key'" if not mark else "was encrypted with another key: set the right one"
            raise ConfigurationError(
                f"the store of {party} {lacking}, or remove its folder {self.root.name} and let model owners register their "
                "prefixes again"
            )
        if mark and known != mark:
            self._write({b"store": {**held, "key": mark}})

    def put(self, owner: Owner, pages: Mapping[str, PageRow]) -> None:
        """Note an owner and all its pages, at once and durably."""
        rows = {owner.pages + name.encode(): row.model_dump() for name, row in pages.items()}
        self._write({owner.row: owner.model_dump(mode="json"), **rows})

    def remove(self, owner: Owner) -> None:
        """Forget an owner and all its pages, at once and durably."""
        with told(self.root), self._env.begin(write=True) as made:
            for key in [key for key, _ in _from(made, owner.pages)]:
                made.delete(key)
            made.delete(owner.row)

    def owners(self) -> list[Owner]:
        """Return all owners. Raises `CheckpointError` for rows that nobody can read."""
        return [self._parsed(Owner, value) for _, value in self._rows(b"owner/")]

    def pages(self, owner: Owner) -> dict[str, PageRow]:
        """Return the lasting pages of an owner by name."""
        found = self._rows(owner.pages)
        return {key[len(owner.pages) :].decode(): self._parsed(PageRow, value) for key, value in found}

    def _rows(self, start: bytes) -> list[tuple[bytes, bytes]]:
        with told(self.root), self._env.begin() as made:
            return _from(made, start)

    def _parsed(self, kind: Any, value: bytes) -> Any:
        try:
            return kind.model_validate_json(value)
        except ValidationError:
            raise CheckpointError(
                f"the store's index ({self.root.name}/{FOLDER}) holds a row that this version cannot read: remove the "
                f"folder {self.root.name} of the store, and let model owners register their prefixes again"
            ) from None

    def _get(self, key: bytes) -> dict[str, Any] | None:
        with told(self.root), self._env.begin() as made:
            found = made.get(key)
        return None if found is None else dict(json.loads(bytes(found)))

    def _write(self, rows: Mapping[bytes, Mapping[str, Any]]) -> None:
        with told(self.root), self._env.begin(write=True) as made:
            for key, row in rows.items():
                made.put(key, json.dumps(row).encode())


def _reserve(path: Path) -> None:
    """Have room on disk for LMDB's table of readers, which it writes through a mapping: where the disk is full that would
    end the process by a signal, here it is an `OSError`."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(handle, 0, READERS_BYTES)
    finally:
        os.close(handle)


def _from(made: Any, start: bytes) -> list[tuple[bytes, bytes]]:
    """Return all rows whose keys begin with `start`."""
    out: list[tuple[bytes, bytes]] = []
    with made.cursor() as cursor:
        if cursor.set_range(start):
            for key, value in cursor:
                if not bytes(key).startswith(start):
                    break
                out.append((bytes(key), bytes(value)))
    return out
