"""What lies in a party's folder of tapes, beside its store (`parties.party.store_check`): unused tapes, loads, what of them
is not what was dealt, and what nothing will use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from mpc.errors import TapeError
from parties.config.role_config import RoleConfig
from parties.identity.certificates import Identity
from parties.identity.trust import Peer, dealer_of, own_identity
from parties.party.store_check import Entry
from parties.tapes.file import TapeFile, destroy
from parties.tapes.journal import Journal
from parties.tapes.store import choice, describe
from parties.wire.manifest import ID_PATTERN

JOURNAL = "journal"


def tape_entries(config: RoleConfig) -> list[Entry]:
    """Return what lies in a party's folder of tapes, by its headers: tapes are not read. May run beside the party. Raises
    `TapeError` for a damaged journal, `EnvironmentProblem` where the folder cannot be used."""
    root, dealer = config.tapes, dealer_of(config)
    if root is None or dealer is None or not root.is_dir():
        return []
    own = own_identity(config).current
    used: dict[str, str] = {}
    found = sorted(folder for folder in root.iterdir() if folder.is_dir() and ID_PATTERN.fullmatch(folder.name))
    tapes = {folder: sorted({file.stem for file in folder.iterdir()}) for folder in found}
    if (root / JOURNAL).exists():
        with Journal(root / JOURNAL, config.name).locked() as records:
            every = (tape for some in tapes.values() for tape in some)
            used = {tape: session for tape in every if (session := records.session(tape)) is not None}
    return [entry for folder, some in tapes.items() for entry in _entries(config, folder, some, used, dealer, own)]


def _entries(
    config: RoleConfig, folder: Path, tapes: list[str], used: dict[str, str], dealer: Peer, own: Identity
) -> Iterator[Entry]:
    alone = tapes == [folder.name]
    for tape in tapes:
        size = sum(file.stat().st_size for file in folder.glob(f"{tape}.*"))
        remove, owner = partial(destroy, folder, tape), dealer.name
        if tape in used:
            why = f"was used by session {used[tape]}; a crash left it"
            yield Entry("tape", tape, "-", owner, size, folder, needless=why, remove=remove)
            continue
        try:
            file = TapeFile(folder, tape, config.name, config.index, dealer, own)
        except TapeError as error:
            yield Entry("tape", tape, "?", owner, size, folder, str(error), remove=remove)
            continue
        load, program = file.header.kind == "load", file.header.program
        name = "masks of weights" if load else f"{describe(program)} ({choice(program)}, suite {program.suite})"
        why = "no session's tape of its deal is left" if load and alone else ""
        yield Entry("tape", tape, name, owner, size, folder, "", why, read=partial(_damage, file), remove=remove)


def _damage(file: TapeFile) -> str:
    """Return why a tape is not what was dealt, reading all of it; empty where it is. None of it is used by that."""
    try:
        with closing(file.open()) as opened:
            opened.verify()
    except TapeError as error:
        return str(error)
    return ""
