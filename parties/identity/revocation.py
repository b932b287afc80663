"""Keys that a role trusts no more: `revoked.txt` in its certificate folder, one fingerprint a line, `#` begins a comment.

The list is the role's own. It is not signed by the authority, which could otherwise decide whom others refuse; whoever
learns of a stolen key passes its fingerprint on, and every role lists it for itself (`mpcache certs revoke`). It is read
again whenever it changes: no call of that key begins then, no connection is made to it, and sessions with it end.
"""

from __future__ import annotations

from pathlib import Path

from mpc.errors import ConfigurationError
from parties.files import read_file, write_file
from parties.names import read_fingerprint

REVOKED = "revoked.txt"
HEAD = "# Fingerprints of keys that are trusted no more, one a line; read again whenever this file changes.\n"


def read_revoked(directory: Path) -> frozenset[str]:
    """Return the fingerprints that `directory` lists; none without a list. Raises `ConfigurationError` naming a bad line."""
    path = directory / REVOKED
    if not path.exists():
        return frozenset()
    found = set()
    for number, line in enumerate(read_file(path, "restore it").decode("utf-8", "replace").splitlines(), 1):
        if text := line.partition("#")[0].strip():
            try:
                found.add(read_fingerprint(text))
            except ValueError as error:
                raise ConfigurationError(f"{path}, line {number}: {error}") from None
    return frozenset(found)


def revoke(directory: Path, mark: str, why: str = "") -> bool:
    """Add a fingerprint to the list of `directory`. False when it is there already. Raises `ConfigurationError`."""
    path = directory / REVOKED
    if mark in read_revoked(directory):
        return False
    before = read_file(path, "restore it").decode() if path.exists() else HEAD
    comment = f"  # {' '.join(why.split())}" if why.strip() else ""
    write_file(path, f"{before}{'' if before.endswith(chr(10)) else chr(10)}{mark}{comment}\n".encode(), 0o644)
    return True
