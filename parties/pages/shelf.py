"""One session's pages on disk, and the shelf of one cached value: pages of rows that were written once, and a rest.

A value's rows are cut into pages of about two MiB, counted from the first row that lay there. Rows that others were only
appended to are on disk already when the value leaves memory again, so nothing is written but full pages that are new; the
rest stays in memory, less than a page. Where rows moved, or were given up and written anew, their pages are dropped.
"""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from mpc.errors import CheckpointError, EnvironmentProblem, MpcacheError
from parties.events import log
from parties.pages.index import Owner
from parties.pages.page_store import SUFFIX, PageStore, named_page, read_page, write_page
from protocols.row_tensors import RowTensors

PAGE_BYTES = 1 << 21
LEAST_ROWS, MOST_ROWS = 16, 4096
LOST = "ask again: nothing but this session needs it"

Sums = tuple[int, ...]


class SessionPages:
    """The pages of one session, which end with it. book(bytes): told of every page that is written or removed, may refuse.
    Raises `EnvironmentProblem` when the disk refuses, `CheckpointError` for a page that is not what was written."""

    def __init__(self, store: PageStore, id: str, book: Callable[[int], None]) -> None:
        self._store = store
        self._owner: Owner = store.owner("session", id)
        self._folder = store.root / self._owner.folder
        self._seal = store.seal(self._owner)
        self._book = book
        self._sizes: dict[str, int] = {}
        self._known = False  # whether the index has the owner

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{SUFFIX}"

    def write(self, name: str, tensors: list[Tensor]) -> Sums:
        """Write a page; returns the sums of its tensors' words, by which it is known when it is read."""
        size = sum(t.nbytes for t in tensors)
        self._book(size)
        self._sizes[name] = size
        parts = {str(number): t.detach().cpu().contiguous() for number, t in enumerate(tensors)}
        try:
            if not self._known:
                self._store.index.put(self._owner, {})
                self._known = True
                self._folder.mkdir(mode=0o700)
            write_page(self._path(name), self._seal, name, parts)
        except OSError as error:
            self.drop(name)
            raise EnvironmentProblem(
                f"the store cannot be written ({error.strerror}), so the session has no room for its cache: free disk space "
                "at this party, or lower 'max_paged_bytes' in its 'limits'"
            ) from None
        return _sums(list(parts.values()))

    def read(self, name: str, sums: Sums) -> list[Tensor]:
        """Return a page's tensors."""
        named = named_page(self._owner, name)
        try:
            found = read_page(self._path(name), self._seal, name, named)
            tensors = [found[str(number)] for number in range(len(found))]
        except (OSError, SafetensorError, KeyError) as error:
            raise CheckpointError(f"{named} cannot be read ({type(error).__name__}): check the disk, and {LOST}") from None
        if _sums(tensors) != sums:
            raise CheckpointError(f"{named} is not what was stored: check the disk, and {LOST}")
        return tensors

    def expect(self, name: str) -> None:
        """Have the operating system read a page ahead."""
        try:
            handle = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return  # whoever reads it will say so
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(handle)

    def drop(self, name: str) -> None:
        """Remove a page."""
        self._book(-self._sizes.pop(name))
        with suppress(OSError):  # what is left goes with the session
            self._path(name).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove all pages. What the disk refuses is left to the next start, so that the session ends in any case."""
        self._book(-sum(self._sizes.values()))
        self._sizes.clear()
        if self._known:
            shutil.rmtree(self._folder, ignore_errors=True)
            try:
                self._store.index.remove(self._owner)
            except MpcacheError as error:
                log.warning("pages of session %s stay in the index until the next start: %s", self._owner.id, error)


def _sums(tensors: list[Tensor]) -> Sums:
    """Return the sum of each tensor's words, modulo 2^64: a page that a disk has damaged has others."""
    return tuple(int(t.sum(dtype=torch.int64)) for t in tensors)


class Shelf:
    """Where one value's rows lie while they are not in memory. label: begins the names of its pages."""

    def __init__(self, pages: SessionPages, label: str) -> None:
        self._pages = pages
        self._label = label
        self._source: Callable[[], object | None] = _nobody
        self._origin = 0  # the place in the source that pages are counted from
        self._rows = LEAST_ROWS  # of a page
        self._sums: dict[int, tuple[int, Sums]] = {}  # by page: its first rows that are missing, and sums
        self._rest: list[Tensor] = []
        self._away: RowTensors | None = None
        self.length = 0

    def _name(self, page: int) -> str:
        return f"{self._label}-{page:08d}"

    @property
    def kept_bytes(self) -> int:
        """Bytes that stay in memory while the value is away."""
        return sum(t.nbytes for t in self._rest)

    def put(self, rows: RowTensors) -> None:
        """Take a value's rows out of memory, as soon as the caller holds none of them."""
        if self._source() is not rows.source or rows.first < self._origin:
            self._forget(rows)
        first, length, size = rows.first, rows.tensors[0].shape[1], self._rows
        changed, begin, end = rows.changed(), (first - self._origin) // size, (first + length - self._origin) // size
        for page in list(self._sums):
            over = changed is not None and self._origin + (page + 1) * size > changed
            if page < begin or page >= end or over:
                self._drop(page)
        for page in range(begin, end):
            if page not in self._sums:
                start = self._origin + page * size - first
                missing = max(0, -start)
                part = [t.narrow(1, start + missing, size - missing) for t in rows.tensors]
                self._sums[page] = missing, self._pages.write(self._name(page), part)
        start = max(0, self._origin + end * size - first)
        self._rest = [t[:, start:].clone() for t in rows.tensors]
        self._origin -= first  # of the rows that will be there again
        self.length = length
        self._away = RowTensors(None, 0, (), rows.empty)
        self._source = _nobody

    def get(self) -> Any:
        """Return the value, in memory again."""
        assert self._away is not None
        tensors, made = self._away.empty(self.length)
        for page in sorted(self._sums):
            missing, sums = self._sums[page]
            start = self._origin + page * self._rows + missing
            for there, found in zip(tensors, self._pages.read(self._name(page), sums), strict=True):
                part = found[:, max(0, -start) :]
                there.narrow(1, max(0, start), part.shape[1]).copy_(part)
        for there, part in zip(tensors, self._rest, strict=True):
            there.narrow(1, self.length - part.shape[1], part.shape[1]).copy_(part)
        value = made(0)
        self._source = weakref.ref(value.row_tensors().source)
        self._away, self._rest = None, []
        return value

    def expect(self) -> None:
        """Have its pages read ahead."""
        for page in self._sums:
            self._pages.expect(self._name(page))

    def _forget(self, rows: RowTensors) -> None:
        for page in list(self._sums):
            self._drop(page)
        self._origin = rows.first
        row = sum(t[:, :1].nbytes for t in rows.tensors)
        self._rows = max(LEAST_ROWS, min(MOST_ROWS, 1 << max(0, (PAGE_BYTES // max(1, row)).bit_length() - 1)))

    def _drop(self, page: int) -> None:
        del self._sums[page]
        self._pages.drop(self._name(page))


def _nobody() -> object | None:
    return None
