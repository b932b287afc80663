"""What lies in a folder of pages, read beside a running party: what owners have on disk, and what of it is not what was
stored."""

from __future__ import annotations

from pathlib import Path

from mpc.errors import EnvironmentProblem
from parties.files import digest_of
from parties.pages.index import FOLDER as INDEX
from parties.pages.index import Index, Owner
from parties.pages.page_store import FOLDER, SUFFIX, needless


class Shelves:
    """The pages in a party's store; a context. There may be none yet. party: whose store it must be, where that is said.
    Raises what `Index` does."""

    def __init__(self, store: Path, party: str | None = None) -> None:
        self.root = store / FOLDER
        self._party = party
        self._index: Index | None = None

    def __enter__(self) -> Shelves:
        if (self.root / INDEX / "data.mdb").exists():
            self._index = Index.open(self.root, writes=False)
            try:
                if self._party is not None:
                    self._index.check_owner(self._party)
            except BaseException:
                self._index.close()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._index is not None:
            self._index.close()

    @property
    def running(self) -> bool:
        """Whether a process may be writing pages."""
        return self._index is not None and self._index.locked

    def owners(self) -> list[Owner]:
        """Return all owners of pages."""
        return [] if self._index is None else self._index.owners()

    def left(self) -> list[Path]:
        """Return folders that nobody owns: a crash has left them, or they are being written."""
        return [] if self._index is None else needless(self.root, {owner.folder for owner in self.owners()})

    def problem(self, owner: Owner, whole: bool) -> str:
        """Return why a lasting owner's pages are not what was stored, in words; empty where they are. whole: reads all of
        them, otherwise only sees whether they are there."""
        if self._index is None or owner.kind == "session":
            return ""
        for name, row in self._index.pages(owner).items():
            path = self.root / owner.folder / f"{name}{SUFFIX}"
            try:
                if path.stat().st_size != row.size:
                    return f"{name}{SUFFIX} has {path.stat().st_size:,} bytes, {row.size:,} were stored"
                if whole and digest_of(path) != row.sha256:
                    return f"{name}{SUFFIX} is not what was stored (its SHA-256 differs)"
            except OSError as error:
                return f"{name}{SUFFIX} cannot be read ({error.strerror})"
        return ""


def check_stopped(store: Path, party: str) -> Index:
    """Return the index to write to, which no running party has; to be closed. Raises `EnvironmentProblem` where one has."""
    index = Index.open(store / FOLDER, writes=True)
    try:
        if not index.lock(party):
            raise EnvironmentProblem(f"another part of this process uses the store of {party}")
    except BaseException:
        index.close()
        raise
    return index
