"""A party's folder of tapes that were dealt beforehand: what would serve a session, and taking one, once.

`FOLDER/LOAD/` holds one deal: the tape of the weights' load, named as the folder, and one tape per session. A session's tape
is *taken* by one session: the journal says so durably, then its seed is overwritten and its files are unlinked (they stay
readable to the process that has them open), and only then is its first byte used. So nothing is left to resume or to replay
after a crash, and a tape that is copied back is refused by the journal.

The load's tape masks each weight once. A party that restarts has lost the masked weights and runs the load again: the same
tape with the same shares sends the same masked weights again, nothing new. The journal holds the load and the nonce of those
shares' storing together (`parties.party.store`), so that shares of other weights, under whatever id, never get its masks. It
is removed when the last session of its deal is over. Behind the weights it masks the rows of what the deal's sessions begin
behind; then the journal holds a digest of all their storings (`Manifest.masked_with`), and both are loaded together.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from models.prefixes import ROWS
from mpc.errors import EnvironmentProblem, MpcacheError, TapeError
from parties.events import log
from parties.identity.certificates import Identity
from parties.identity.trust import Peer
from parties.tapes.file import REMEDY, OpenTape, TapeFile, destroy
from parties.tapes.header import TapeHeader
from parties.tapes.journal import Journal, Records
from parties.wire.manifest import ID_PATTERN, Manifest, ProgramFacts

OFFERED = 4096  # most tapes that are named in a greeting
COUNT_SECONDS = 30.0
LENGTHS = ("prompt_tokens", "new_tokens")
BEFORE = ("prefix tokens", "chunk tokens", "chunk again", "chunk slots")


def describe(program: ProgramFacts) -> str:
    """Return the lengths that a tape serves, in words."""
    if program.text_tokens:
        return f"{len(program.text_tokens)} texts of {min(program.text_tokens)} to {max(program.text_tokens)} tokens"
    if program.decoding == ROWS:
        return f"registering a text of {program.prompt_tokens} tokens"
    prompt = f"a {'padded ' * program.padded}prompt of {program.prompt_tokens}"
    return f"{prompt}{_before(program)} and up to {program.new_tokens} new tokens"


def _before(program: ProgramFacts) -> str:
    """Return what a prompt stands behind, in words; empty for nothing."""
    chunks = program.chunk_plan
    parts = [f"a prefix of {program.prefix_tokens}"] * bool(program.prefix_tokens)
    if chunks is not None:
        lengths = ", ".join(map(str, chunks.lengths))
        among = f", each one of {chunks.among}" * bool(chunks.among)
        parts.append(f"chunks of {lengths} ({chunks.again} computed again{among})")
    return f" behind {' and '.join(parts)}" * bool(parts)


def choice(program: ProgramFacts) -> str:
    """Return the decoding that a tape serves, in words."""
    return program.decoding if program.temperature is None else f"{program.decoding} at temperature {program.temperature}"


@dataclass
class Taken:
    """A session's tape and its load's, both open. Close it when the session is over."""

    header: TapeHeader
    session: OpenTape
    load: OpenTape

    def close(self) -> None:
        """Free both files."""
        self.session.close()
        self.load.close()


class TapeStore:
    """The tapes of party `name` in `root`, dealt by `dealer`; own(): the party's identity. most: bytes of tapes that count,
    of the oldest deals first; None: all.

    Raises `EnvironmentProblem` when the folder cannot be used, `TapeError` when its journal is damaged.
    """

    def __init__(
        self, root: Path, name: str, index: int, dealer: Peer, own: Callable[[], Identity], most: int | None = None
    ) -> None:
        self.root, self._most = root, most
        self._name, self._index, self._dealer = name, index, dealer
        self._own = own
        # whose signature was checked, by file, time and size and by what was trusted then
        self._known: dict[tuple[Path, int, int, bytes, frozenset[str]], TapeFile] = {}
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            root.chmod(0o700)
        except OSError as error:
            raise EnvironmentProblem(
                f"tape folder {root} cannot be used ({error.strerror}): choose another folder in 'tapes'"
            ) from None
        self._counted, self._counted_until = 0, 0.0
        self._journal = Journal(root / "journal", name)
        with self._journal.locked() as records:
            for folder, tape in self._found():
                if (session := records.session(tape)) is not None:
                    log.warning("%s: tape %s was used by session %s; what is left of it is removed", name, tape, session)
                    destroy(folder, tape)

    # ---- what there is ---------------------------------------------------------------------------------------------
    def _found(self) -> Iterator[tuple[Path, str]]:
        """Yield all session tapes that have a file here."""
        try:
            for folder in sorted(self.root.iterdir()):
                if ID_PATTERN.fullmatch(folder.name) and folder.is_dir():
                    for tape in sorted({file.stem for file in folder.iterdir()}):
                        if ID_PATTERN.fullmatch(tape) and tape != folder.name:
                            yield folder, tape
        except OSError as error:
            raise EnvironmentProblem(
                f"tape folder {self.root} cannot be read ({error.strerror}): make it this user's own"
            ) from None

    def _file(self, folder: Path, tape: str) -> TapeFile:
        """Return a checked tape; the signature only when the header is new. Raises `TapeError`."""
        path, own = folder / f"{tape}.json", self._own()
        try:
            stat = path.stat()
        except OSError:
            return TapeFile(folder, tape, self._name, self._index, self._dealer, own)
        key = (path, stat.st_mtime_ns, stat.st_size, own.authority, own.revoked)
        if (file := self._known.get(key)) is None:
            file = TapeFile(folder, tape, self._name, self._index, self._dealer, own)
            self._known[key] = file
        file.check()
        return file

    def _look(self, records: Records) -> tuple[list[TapeHeader], list[str]]:
        """Return headers of the unused tapes, and why others are refused."""
        good, refused, loads = [], [], dict[str, int]()
        for folder, tape in self._found():
            try:
                if (session := records.session(tape)) is not None:
                    raise TapeError(f"tape {tape} was used by session {session}: a tape serves once")
                load, header = self._file(folder, folder.name).header, self._file(folder, tape).header
                if load.program.prg != header.program.prg:
                    raise TapeError(f"tape {tape}: its seeds are expanded by another prg than those of its load: {REMEDY}")
                good.append(header)
                loads[header.load] = load.length
            except TapeError as error:
                refused.append(str(error))
        good.sort(key=lambda header: (header.created, header.load, header.number))
        within = self._within(good, loads)
        if beyond := len(good) - within:
            refused.append(
                f"the newest {beyond} of {len(good)} tapes: all together are more than the {self._most:,} bytes of "
                f"'max_tape_bytes' in the 'limits' of {self._name}: raise it, or remove a deal"
            )
        return good[:within], refused

    def _within(self, good: Sequence[TapeHeader], loads: Mapping[str, int]) -> int:
        """Return how many of the tapes, the oldest first, lie within the quota. loads: bytes of each deal's load."""
        total, counted = 0, set[str]()
        for count, header in enumerate(good):
            total += header.length + (0 if header.load in counted else loads[header.load])
            counted.add(header.load)
            if self._most is not None and total > self._most:
                return count
        return len(good)

    def stock(self) -> list[str]:
        """Return lines for a person: how many unused tapes there are, for what, and what is refused and why."""
        with self._journal.locked() as records:
            good, refused = self._look(records)
        kinds = Counter(f"{describe(h.program)} ({choice(h.program)}, suite {h.program.suite})" for h in good)
        lines = [f"{count} for {kind}" for kind, count in kinds.items()] or ["none"]
        return [*lines, *(f"refused: {reason}" for reason in refused)]

    def count(self) -> int:
        """Return how many unused tapes there are. What is in the folder is looked at once in `COUNT_SECONDS` at most."""
        now = time.monotonic()
        if now >= self._counted_until:
            self._counted_until = now + COUNT_SECONDS
            try:
                with self._journal.locked() as records:
                    self._counted = len(self._look(records)[0])
            except MpcacheError as error:
                log.warning("%s: tapes cannot be counted: %s", self._name, error)
                self._counted = 0
        return self._counted

    def offers(self, manifest: Manifest, storing: str, held: Collection[str] = ()) -> dict[str, TapeHeader]:
        """Return the tapes that would serve a session, best first: the shortest that suffices, then of loads `held`.

        storing: of the session's model, see `parties.party.store`.

        Raises `TapeError` naming what there is, and what is wrong with it, when none would.
        """
        with self._journal.locked() as records:
            good, refused = self._look(records)
            bound = {header.load: records.storing(header.load) for header in good}
        reasons = {h.tape: _unfit(h.program, manifest, bound[h.load] in (None, storing)) for h in good}
        fitting = [header for header in good if not reasons[header.tape]]
        if fitting:
            fitting.sort(key=lambda h: (h.program.new_tokens, h.load not in held, h.created, h.load, h.number))
            return {header.tape: header for header in fitting[:OFFERED]}
        counts = Counter(reason for reason in reasons.values())
        there = [f"{count} {reason}" for reason, count in counts.items()]
        there += [f"{len(refused)} refused ({refused[0]})"] if refused else []
        lengths = f"--prompt {manifest.prompt_tokens} --tokens {manifest.new_tokens} --suite {manifest.suite}"
        lengths += _options_before(manifest)
        lengths += "".join(f" --suite-option {name}={value}" for name, value in manifest.options.items())
        lengths += f" --policy '{manifest.policy}'" if manifest.policy != "full" else ""
        lengths += " --padded" * manifest.padded
        lengths += f" --decoding {manifest.decoding}" if manifest.decoding != "greedy" else ""
        lengths += f" --temperature {manifest.temperature}" if manifest.temperature is not None else ""
        raise TapeError(
            f"{self._name} has no tape for a {'padded ' * manifest.padded}prompt of {manifest.prompt_tokens} tokens"
            f"{_before(manifest)} and {manifest.new_tokens} new tokens ({choice(manifest)}, suite {manifest.suite}): it has "
            f"{', '.join(there) or 'none at all'}; ask for what there is, or run `mpcache deal {lengths}` and give every "
            "party its folder"
        )

    # ---- taking one ------------------------------------------------------------------------------------------------
    def take(self, wanted: Sequence[tuple[str, str]], session: str, storing: str) -> Taken:
        """Return the first unused of some (load, tape) pairs, now this session's for ever and unlinked; see the module.

        Raises `TapeError` naming the tape when none is unused, or when one is missing or not as it was dealt.
        """
        with self._journal.locked() as records:
            free = [(load, tape) for load, tape in wanted if records.session(tape) is None]
            load, tape = (free or wanted)[0]
            if not free:
                raise TapeError(
                    f"{self._name}: tape {tape} was used by session {records.session(tape)}: a tape serves once; give every "
                    "party new ones with `mpcache deal`"
                )
            folder = self.root / load
            file, loading = self._file(folder, tape), self._file(folder, load)
            with ExitStack() as undo:
                opened = undo.enter_context(closing(file.open()))
                weights = undo.enter_context(closing(loading.open()))
                weights.verify()
                records.take(tape, session, load, storing)
                destroy(folder, tape)
                undo.pop_all()
            self._known = {key: value for key, value in self._known.items() if value is not file}
        log.info("%s: session %s has taken tape %s", self._name, session, tape)
        return Taken(file.header, opened, weights)

    def release(self, taken: Taken) -> None:
        """Free the tape of a session that is over. The load's tape goes too when no session of its deal is left."""
        taken.close()
        folder = self.root / taken.header.load
        with self._journal.locked():
            if folder.is_dir() and not any(f == folder for f, _ in self._found()):
                destroy(folder, folder.name)
                self._known = {key: value for key, value in self._known.items() if value.folder != folder}
                if not any(folder.iterdir()):
                    folder.rmdir()


def _unfit(program: ProgramFacts, manifest: Manifest, free: bool) -> str:
    """Return why a tape of this program would not serve a session, in words; empty if it would. free: its masks of weights
    are not those of another storing."""
    wanted, dealt = manifest.model_dump(exclude={"model"}), program.model_dump()
    other = [key.replace("_", " ") for key in dealt if key not in LENGTHS and dealt[key] != wanted[key]]
    if other == ["prg"]:
        name = next(party for party in manifest.parties if program.generator(party) != manifest.generator(party))
        return (
            f"whose seed of {name} is expanded by prg {program.generator(name)}, where {manifest.generator(name)} is asked "
            f"for: deal again with the 'prg' of all roles in the entry of {name} in 'parties' of the dealer's file"
        )
    if other:
        kinds = [name for name in other if name not in BEFORE]
        before = f"dealt with{_options_before(program) or ' no prefix and no chunks'}"
        given = ", ".join(f"{name}={value}" for name, value in program.options.items()) or "none"
        sets = {"options": f"set of options ({given})", "parties": "set of parties"}
        return f"for another {', '.join(sets.get(name, name) for name in kinds)}" if kinds else before
    if program.prompt_tokens != manifest.prompt_tokens or program.new_tokens < manifest.new_tokens:
        return f"for {describe(program)}"
    if free:
        return ""
    rows = ", or other registered texts or another storing of these" * bool(manifest.blocks)
    return f"for another model's weights, or another storing of this one's{rows}"


def _options_before(program: ProgramFacts) -> str:
    """Return the options of `mpcache deal` that say what a prompt stands behind."""
    chunks, found = program.chunk_plan, f" --prefix {program.prefix_tokens}" * bool(program.prefix_tokens)
    if chunks is not None:
        found += f" --chunks {','.join(map(str, chunks.lengths))} --again {chunks.again}"
        found += f" --candidates {chunks.among}" * bool(chunks.among)
    return found
