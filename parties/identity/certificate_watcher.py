"""An identity that is read again when its files change: a renewed certificate, or a key that was revoked, needs no restart.

The certificate's files and the list of revoked keys are looked at apart: what is wrong with the one does not keep the other
from being used.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from mpc.errors import ConfigurationError
from parties.events import log
from parties.identity.certificates import Identity, check
from parties.identity.revocation import REVOKED, read_revoked
from parties.names import AUTHORITY, Role

LOOK_SECONDS = 5.0  # how often a server looks for new files when nobody connects
SETTLE_SECONDS = 1.0  # how long new files may be unfit before it is logged: they come one after the other
RETRY_SECONDS = 5.0  # unfit files are looked at again: a certificate may become valid
WARN = timedelta(days=14)  # or the last third of a certificate that is valid for less than 42 days

State = tuple[tuple[int, int, int] | None, ...]


class CertificateWatcher:
    """The identity `name` of a certificate folder, always the newest that is fit. Safe to use from several threads.

    The first one must be fit: raises `ConfigurationError` as `certificates.check` does. Later a broken or expired file is
    logged, and the identity before it stays; a broken list of revoked keys is logged, and the list before it stays.
    """

    def __init__(self, directory: Path, name: str, role: Role | None = None) -> None:
        self.directory = directory
        self.name = name
        self._role = role
        self._files = tuple(directory / file for file in (f"{name}.crt", f"{name}.key", f"{AUTHORITY}.crt"))
        self._lock = threading.Lock()
        self._seen = _state(self._files)
        self._list = (directory / REVOKED,)
        self._listed = _state(self._list)
        self._current = check(directory, name, role)
        self._unfit: State | None = None
        self._unfit_since = 0.0
        self._retry_at = 0.0
        self._logged: State | None = None
        self._warned: tuple[Identity, int] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def current(self) -> Identity:
        """Return the newest fit identity; looks whether the files have changed."""
        with self._lock:
            self._refresh()
            return self._current

    def _refresh(self) -> None:
        self._refresh_revoked()
        state, now = _state(self._files), time.monotonic()
        if state == self._seen or (state == self._logged and now < self._retry_at):
            return
        try:
            found = check(self.directory, self.name, self._role, self._current.revoked)
        except ConfigurationError as error:
            self._refuse(state, now, error)
            return
        if _state(self._files) != state:  # replaced while it was read: the next look gets all of it
            return
        self._seen, self._current, self._unfit, self._logged = state, found, None, None
        log.info("%s: uses the new certificate, valid until %s", self.name, f"{found.expires:%Y-%m-%d %H:%M} UTC")

    def _refresh_revoked(self) -> None:
        state = _state(self._list)
        if state == self._listed:
            return
        self._listed = state
        try:
            revoked = read_revoked(self.directory)
        except ConfigurationError as error:
            log.error("%s: the list of revoked keys is not used, the one before it stays: %s", self.name, error)
            return
        self._current = replace(self._current, revoked=revoked)
        log.info("%s: %d keys are revoked", self.name, len(revoked))

    def _refuse(self, state: State, now: float, error: ConfigurationError) -> None:
        if state != self._unfit:
            self._unfit, self._unfit_since = state, now
        if now - self._unfit_since < SETTLE_SECONDS:
            return
        if state != self._logged:
            log.warning("%s: the new certificate is not used, the one before it stays: %s", self.name, error)
        self._logged, self._retry_at = state, now + RETRY_SECONDS

    def expiry_warning(self, now: datetime | None = None) -> str | None:
        """Return what to log about the certificate's end, None as long as it is far off or was said today."""
        identity = self.current
        left = identity.expires - (now if now is not None else datetime.now(UTC))
        days = left // timedelta(days=1)
        if not ending(identity, now) or self._warned == (identity, days):
            return None
        self._warned = (identity, days)
        when = f"{identity.expires:%Y-%m-%d %H:%M} UTC"
        how = f"expires on {when}, {_in_words(left)}" if left > timedelta() else f"expired on {when}: peers refuse it"
        return f"{self.name}: certificate {identity.certificate_file} {how}; renew it with `mpcache certs renew`"

    # ---- a server's watch ----------------------------------------------------------------------------------------------
    def watch(self) -> None:
        """Look for new files and warn of the end, from a thread of its own, until `stop`."""
        self._thread = threading.Thread(target=self._watch, name="certificates", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5)

    def _watch(self) -> None:
        while True:
            if (warning := self.expiry_warning()) is not None:
                log.warning("%s", warning)
            if self._stop.wait(LOOK_SECONDS):
                return


def _state(files: Sequence[Path]) -> State:
    """Return what tells whether a file was replaced: inode, time and size of each; None for a missing one."""
    found: list[tuple[int, int, int] | None] = []
    for file in files:
        try:
            facts = file.stat()
        except OSError:
            found.append(None)
        else:
            found.append((facts.st_ino, facts.st_mtime_ns, facts.st_size))
    return tuple(found)


def ends_soon(begins: datetime, expires: datetime, now: datetime | None = None) -> bool:
    """Whether a certificate is so near its end that one should be told."""
    return expires - (now if now is not None else datetime.now(UTC)) < min(WARN, (expires - begins) / 3)


def ending(identity: Identity, now: datetime | None = None) -> bool:
    """Whether an identity's certificate is so near its end that one should be told."""
    return ends_soon(x509.load_pem_x509_certificate(identity.certificate).not_valid_before_utc, identity.expires, now)


def _in_words(left: timedelta) -> str:
    if left < timedelta(days=2):
        return f"in {left / timedelta(hours=1):.0f} hours"
    return f"in {left.days} days"
