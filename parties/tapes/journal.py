"""Which tapes a party has used: an append-only file that is on disk before a tape's first entry is.

One record of fixed length per event, each with a SHA-256 over the record before it, so that a changed, missing or moved
record is noticed: a journal that does not check out is refused, never guessed at. Two kinds:

    take TAPE SESSION TIME CHECK      the tape belongs to this session and to no other, for ever
    bind LOAD STORING TIME CHECK      the masks of this load are for this storing of a model, and for no other, for ever

A crash in the middle of an append leaves less than a record at the end. Nobody has acted on it, and it is cut off. Records
that somebody removed from the end, all of them included, are not noticed here; but a tape must be unused at *all* parties.
Processes take turns by `flock`, so the folder must be on a file system that has it (a local disk, say).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpc.errors import EnvironmentProblem, TapeError
from parties.events import log
from parties.files import sync_folder, write_all

LOCK_SECONDS = 10.0
_RECORD = re.compile(rb"(take|bind) ([0-9a-f]{32}) ([0-9a-f]{32}) ([0-9]{12}) ([0-9a-f]{64})\n")
RECORD_BYTES = 4 + 1 + 32 + 1 + 32 + 1 + 12 + 1 + 64 + 1


class Records:
    """The journal while it is locked."""

    def __init__(self, name: str, handle: int, owner: str) -> None:
        self._name = name
        self._handle = handle
        self._check = hashlib.sha256(f"mpcache tape journal 1 of {owner}".encode()).hexdigest()
        self._sessions: dict[str, str] = {}
        self._storings: dict[str, str] = {}
        self._size = 0
        data = self._read()
        torn = len(data) % RECORD_BYTES
        for start in range(0, len(data) - torn, RECORD_BYTES):
            self._accept(data[start : start + RECORD_BYTES], start // RECORD_BYTES)
        if torn:
            log.warning("%s: cut off %d bytes of a record that a crash left incomplete", name, torn)
            os.ftruncate(handle, self._size)
            os.fsync(handle)

    def _read(self) -> bytes:
        data = bytearray()
        while piece := os.pread(self._handle, 1 << 20, len(data)):
            data += piece
        return bytes(data)

    def _accept(self, record: bytes, number: int) -> None:
        found = _RECORD.fullmatch(record)
        if found is None or self._next_check(record[:-65]) != found[5].decode():
            raise TapeError(
                f"{self._name}: record {number + 1} is damaged, so nobody can tell which tapes were used: keep the folder, "
                "configure another (empty) one in 'tapes', and fill it by `mpcache deal`"
            )
        kind, key, value = found[1].decode(), found[2].decode(), found[3].decode()
        (self._sessions if kind == "take" else self._storings)[key] = value
        self._check = found[5].decode()
        self._size += len(record)

    def _next_check(self, body: bytes) -> str:
        return hashlib.sha256(self._check.encode() + body).hexdigest()

    def session(self, tape: str) -> str | None:
        """Return the session that has used a tape."""
        return self._sessions.get(tape)

    def storing(self, load: str) -> str | None:
        """Return the storing of a model (`parties.party.store`) that a load belongs to."""
        return self._storings.get(load)

    def take(self, tape: str, session: str, load: str, storing: str) -> None:
        """Give a tape to a session, and its load to a storing of a model: durable when this returns.

        Raises `TapeError` when the tape was used or the load is another storing's, `EnvironmentProblem` when the disk
        refuses.
        """
        if (before := self.session(tape)) is not None:
            raise TapeError(f"tape {tape} was used by session {before}: a tape serves once; deal others with `mpcache deal`")
        bound = self.storing(load)
        if bound not in (None, storing):
            raise TapeError(
                f"the masks of load {load} were used for the weights of storing {bound}, not for those of {storing}: a "
                "model that is shared again needs a new deal, by `mpcache deal`"
            )
        events = [("take", tape, session)] if bound else [("bind", load, storing), ("take", tape, session)]
        size, records = self._size, b""
        for kind, key, value in events:
            body = f"{kind} {key} {value} {int(time.time()):012d} ".encode()
            record = body + self._next_check(body).encode() + b"\n"
            self._accept(record, self._size // RECORD_BYTES)
            records += record
        try:
            os.lseek(self._handle, size, os.SEEK_SET)
            write_all(self._handle, records)
            os.fsync(self._handle)
        except OSError as error:
            raise EnvironmentProblem(
                f"{self._name} cannot be written ({(error.strerror or 'error').lower()}), so no tape is used: free disk "
                "space, or make it writable for this user"
            ) from None


class Journal:
    """The journal of `owner` (a party's name) in a file. Raises `TapeError` for another's or a damaged one."""

    def __init__(self, path: Path, owner: str) -> None:
        self.path = path
        self._owner = owner
        self._name = f"journal of {owner}'s tapes ({path.name} in its 'tapes')"  # clients see errors, not their folders

    @contextmanager
    def locked(self) -> Iterator[Records]:
        """Yield all records, while no other thread or process may read or append."""
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EnvironmentProblem(f"{self._name} cannot be opened ({error.strerror}): make it this user's own") from None
        try:
            self._lock(handle)
            if os.fstat(handle).st_size == 0:  # perhaps new: its name must outlive a crash as well
                sync_folder(self.path.parent)
            yield Records(self._name, handle, self._owner)
        finally:
            os.close(handle)

    def _lock(self, handle: int) -> None:
        limit = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > limit:
                    raise TapeError(
                        f"{self._name} is locked by another process for {LOCK_SECONDS:g} s: end that one"
                    ) from None
                time.sleep(0.01)
            except OSError as error:
                raise EnvironmentProblem(
                    f"{self._name} cannot be locked ({error.strerror}): put 'tapes' on a local file system"
                ) from None
