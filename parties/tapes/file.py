"""A tape on disk: one party's part of what the dealer dealt beforehand, for the weights' load or for one session.

Three files named by the tape's random id, in a folder named by the id of its load:

* `ID.seed`: the 256 bits that the party expands its part from, mode 0600;
* `ID.tape`: what `DealerTape` emitted for this party, in chunks of 1 MiB, encrypted with AES-256-CTR under a key that is
  derived from the seed: once the seed is gone, so is what the chunks say;
* `ID.json`: the header: what the tape is for, SHA-256 of the seed and of every encrypted chunk, and the dealer's signature.

A reader checks signature and seed before anything else, the file's length when it opens it, and each chunk before it
returns a byte of it: a changed, cut off, reordered or foreign tape is refused. The header is public, seed and chunks secret.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from mpc.errors import EnvironmentProblem, PermissionRefused, TapeError
from mpc.random import SEED_BYTES, derive_seed
from mpc.tape import Chunks, chunks
from parties.files import create, sync_folder, write_all, write_new
from parties.identity.certificates import Identity
from parties.identity.trust import Peer
from parties.tapes.header import TapeHeader, seal, unseal

CHUNK = 1 << 20
HEADER_LIMIT = 64 << 20
REMEDY = "deal again with `mpcache deal`"


def _commitment(seed: bytes) -> str:
    return hashlib.sha256(b"mpcache tape seed 1" + seed).hexdigest()


def _cipher(seed: bytes, tape: str) -> CipherContext:
    key = derive_seed(seed, "tape at rest", tape)
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()


# ---- the dealer's side ---------------------------------------------------------------------------------------------
class TapeWriter:
    """Writes one tape of one party into a folder that nobody reads yet; holds about 1 MiB. Raises `OSError`."""

    def __init__(self, folder: Path, tape: str, seed: bytes) -> None:
        self._folder, self._tape, self._seed = folder, tape, seed
        self._cipher = _cipher(seed, tape)
        self._buffer = bytearray()
        self._digests: list[str] = []
        self._length = 0
        self._handle = create(folder / f"{tape}.tape")

    def append(self, data: bytes) -> None:
        """Write what `DealerTape` emits for this party."""
        self._buffer += data
        while len(self._buffer) >= CHUNK:
            self._flush(bytes(self._buffer[:CHUNK]))
            del self._buffer[:CHUNK]

    def _flush(self, piece: bytes) -> None:
        sealed = self._cipher.update(piece)
        self._digests.append(hashlib.sha256(sealed).hexdigest())
        self._length += len(sealed)
        write_all(self._handle, sealed)

    def finish(self, dealer: Identity, **facts: object) -> TapeHeader:
        """Write the rest, the seed and the signed header, durably; facts: the header's other fields."""
        if self._buffer:
            self._flush(bytes(self._buffer))
            self._buffer.clear()
        found = {"length": self._length, "seed": _commitment(self._seed), "chunks": self._digests}
        header = TapeHeader.model_validate({"tape": self._tape, "dealer": dealer.name, **found, **facts})
        os.fsync(self._handle)
        self.close()
        for suffix, data in (("seed", self._seed), ("json", seal(header, dealer))):
            write_new(self._folder / f"{self._tape}.{suffix}", data)
        return header

    def close(self) -> None:
        """Free the file; the tape is of no use unless it was finished."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


# ---- the party's side ----------------------------------------------------------------------------------------------
class TapeFile:
    """One tape of `party` on disk, checked as far as that goes without reading its chunks.

    `header`: checked and signed by `dealer`. Raises `TapeError` naming the tape, the problem and the remedy.
    """

    def __init__(self, folder: Path, tape: str, party: str, index: int, dealer: Peer, own: Identity) -> None:
        self.folder, self.tape, self.party = folder, tape, party
        self.header = self._read_header(dealer, own)
        header = self.header
        if header.tape != tape or header.load != folder.name or (header.kind == "load") != (tape == folder.name):
            raise self._error(f"it is tape {header.tape} of load {header.load} under another name: copy whole folders only")
        if header.party != party or header.index != index:
            raise self._error(
                f"it is {header.party}'s, not {party}'s: give every party its own folder; whoever holds two parties' "
                f"tapes can read what both of them mask, so {REMEDY}"
            )
        self.check()

    def __repr__(self) -> str:
        return f"TapeFile({self.tape})"

    def _error(self, problem: str) -> TapeError:
        return TapeError(f"tape {self.tape} of {self.party} (deal {self.folder.name}): {problem}")

    def path(self, suffix: str) -> Path:
        """Return one of its files."""
        return self.folder / f"{self.tape}.{suffix}"

    def _open(self, suffix: str) -> int:
        path = self.path(suffix)
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self._error(f"{path.name} is missing: copy the whole folder again, or {REMEDY}") from None
        except OSError as error:
            raise self._error(f"{path.name} cannot be read ({error.strerror}): make it this user's own") from None

    def _small(self, suffix: str, limit: int) -> bytes:
        handle = self._open(suffix)
        with os.fdopen(handle, "rb") as file:
            try:
                return file.read(limit + 1)
            except OSError as error:
                raise self._error(f"{self.tape}.{suffix} cannot be read ({error.strerror})") from None

    def _read_header(self, dealer: Peer, own: Identity) -> TapeHeader:
        try:
            header = unseal(self._small("json", HEADER_LIMIT), dealer, own)
        except PermissionRefused as error:
            raise self._error(f"{error}: use tapes of this deployment's dealer as it dealt them, or {REMEDY}") from None
        if header is None:
            raise self._error(f"its header is damaged: copy it again, or {REMEDY}")
        return header

    def check(self) -> None:
        """Whether seed and chunks are there, of the right size, and the seed is the one that was dealt."""
        self.seed()
        handle = self._open("tape")
        try:
            self._check_length(handle)
        finally:
            os.close(handle)

    def _check_length(self, handle: int) -> None:
        size, header = os.fstat(handle).st_size, self.header
        if size != header.length or len(header.chunks) != -(-header.length // CHUNK):
            raise self._error(f"its file has {size} bytes, {header.length} were dealt: copy it again, or {REMEDY}")

    def seed(self) -> bytes:
        """Return the seed. Secret."""
        seed = self._small("seed", SEED_BYTES)
        path = self.path("seed")
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise self._error(f"others may read its seed (mode {mode:04o}): {REMEDY}, and run `chmod -R go= FOLDER`")
        if len(seed) != SEED_BYTES or _commitment(seed) != self.header.seed:
            raise self._error(f"its seed is not the one that was dealt: copy the folder again, or {REMEDY}")
        return seed

    def open(self) -> OpenTape:
        """Return the tape, ready to be read once, even when its files are removed meanwhile."""
        seed = self.seed()
        handle = self._open("tape")
        try:
            self._check_length(handle)
        except BaseException:
            os.close(handle)
            raise
        return OpenTape(self, seed, handle)


def destroy(folder: Path, tape: str) -> None:
    """Overwrite a tape's seed and remove all its files, durably. Without the seed the chunks say nothing.

    A disk that writes elsewhere than it was told (flash, copy-on-write, snapshots) may keep the old block for a while.
    Raises `EnvironmentProblem` when a file cannot be removed.
    """
    try:
        seed = folder / f"{tape}.seed"
        if seed.exists():
            handle = os.open(seed, os.O_WRONLY | os.O_CLOEXEC)
            try:
                write_all(handle, bytes(SEED_BYTES))
                os.fsync(handle)
            finally:
                os.close(handle)
        for suffix in ("seed", "tape", "json"):
            (folder / f"{tape}.{suffix}").unlink(missing_ok=True)
        sync_folder(folder)
    except OSError as error:
        raise EnvironmentProblem(
            f"tape {tape} (deal {folder.name}) cannot be removed ({error.strerror}): make its folder writable for this user"
        ) from None


class OpenTape:
    """A tape that is being read: `seed` (secret) and `read(n)` for a `PartyTape`. Close it after use."""

    def __init__(self, file: TapeFile, seed: bytes, handle: int) -> None:
        self.file = file
        self.seed = seed
        self._handle = handle
        self.read: Chunks = chunks(self._pieces())

    def __repr__(self) -> str:
        return f"OpenTape({self.file.tape})"

    def _sealed(self) -> Iterator[bytes]:
        """Yield the chunks as they are on disk, each checked before it is given."""
        header = self.file.header
        for number, digest in enumerate(header.chunks):
            size = min(CHUNK, header.length - number * CHUNK)
            try:
                piece = os.pread(self._handle, size, number * CHUNK)
            except OSError as error:
                raise self._error(number, f"cannot be read ({error.strerror})") from None
            if len(piece) != size or hashlib.sha256(piece).hexdigest() != digest:
                raise self._error(number, "is not what the dealer dealt: it was damaged or changed")
            yield piece

    def _pieces(self) -> Iterator[bytes]:
        cipher = _cipher(self.seed, self.file.tape)
        for piece in self._sealed():
            yield cipher.update(piece)

    def verify(self) -> OpenTape:
        """Check all of the tape now, and return it; for a load's, which many sessions use."""
        for _ in self._sealed():
            pass
        return self

    def _error(self, number: int, problem: str) -> TapeError:
        header = self.file.header
        where = f"tape {header.tape} of {header.party}: chunk {number + 1} of {len(header.chunks)}"
        spent = (
            f"the whole deal is of no use, {REMEDY}" if header.kind == "load" else "it is spent, ask again for another one"
        )
        return TapeError(f"{where} {problem}; {spent}")

    def close(self) -> None:
        """Free the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
