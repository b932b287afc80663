"""Writes the tapes of one deal into folders that nobody reads yet: the dealer's program without a network.

A load's tape is written once. Whoever deals sessions of it elsewhere (`read_load`) expands the same masks from the seeds of
that tape, which it reads from the dealer's own folder, and writes nothing with them: each session's tape has its own seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mpc.errors import ConfigurationError, TapeError
from mpc.random import SEED_BYTES, Prg, new_seed
from mpc.tape import DealerTape
from parties.identity.certificates import Identity
from parties.program import SessionProgram
from parties.tapes.file import TapeWriter
from parties.wire.manifest import ProgramFacts, new_id
from protocols.suite import OutputShare

Progress = Callable[[str, int, int], None]


def no_progress(stage: str, done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class LoadFacts:
    """What all tapes of a deal have in common. load: its id; created: Unix seconds; parties: their names in order."""

    load: str
    created: int
    parties: tuple[str, ...]

    def folders(self, root: Path) -> list[Path]:
        """Return each party's folder of the deal below `root`."""
        return [root / name / self.load for name in self.parties]

    def make_folders(self, root: Path) -> list[Path]:
        """Make them, for this user alone. Raises `OSError`."""
        made = self.folders(root)
        for folder in made:
            folder.parent.mkdir(mode=0o700)
            folder.mkdir(mode=0o700)
        return made


class TapeDealing:
    """Writes tapes, signed by `identity`. It is the `Endpoint` of the generation program as well."""

    def __init__(self, identity: Identity, facts: LoadFacts, on_progress: Progress = no_progress) -> None:
        self._identity, self._facts, self._on_progress = identity, facts, on_progress

    def write_load(self, program: SessionProgram, folders: Sequence[Path]) -> dict[str, Any]:
        """Deal the load under fresh seeds; return the dealer's side of the weights, and of the rows that sessions begin
        behind."""
        self._on_progress("weights", 0, 0)
        seeds, load = [new_seed() for _ in folders], self._facts.load
        with ExitStack() as writers:
            tapes = [writers.enter_context(closing(w)) for w in _writers(folders, load, seeds)]
            weights = _load(program, _tape(program, seeds, lambda party, data: tapes[party].append(data)))
            self._finish(program, tapes, 0)
        return weights

    def read_load(self, program: SessionProgram, folders: Sequence[Path]) -> dict[str, Any]:
        """Return the dealer's side of the weights of the load in these folders; nothing is written.

        Raises `TapeError` for a load whose seeds are not there.
        """
        load = self._facts.load
        try:
            seeds = [(folder / f"{load}.seed").read_bytes() for folder in folders]
        except OSError as error:
            raise TapeError(
                f"the seeds of deal {load} cannot be read in {folders[0].parent.parent} ({error.strerror}): every dealer "
                "needs the dealer's folder at the same path"
            ) from None
        if any(len(seed) != SEED_BYTES for seed in seeds):
            raise TapeError(f"the seeds of deal {load} in {folders[0].parent.parent} are damaged: deal again")
        return _load(program, _tape(program, seeds, lambda party, data: None))

    def write_session(self, program: SessionProgram, weights: dict[str, Any], number: int, folders: Sequence[Path]) -> str:
        """Deal one session's tape under fresh seeds into each party's folder; return its id."""
        seeds, tape = [new_seed() for _ in folders], new_id()
        with ExitStack() as writers:
            tapes = [writers.enter_context(closing(w)) for w in _writers(folders, tape, seeds)]
            end = _tape(program, seeds, lambda party, data: tapes[party].append(data))
            program.run(program.suite(end, None), weights, None, self)
            end.flush()
            self._finish(program, tapes, number)
        return tape

    def _finish(self, program: SessionProgram, tapes: Sequence[TapeWriter], number: int) -> None:
        facts: dict[str, object] = {
            "kind": "session" if number else "load",
            "load": self._facts.load,
            "number": number,
            "created": self._facts.created,
            "program": ProgramFacts.model_validate(program.manifest.model_dump(exclude={"model", "prefix", "chunks"})),
        }
        for index, (writer, party) in enumerate(zip(tapes, self._facts.parties, strict=True)):
            writer.finish(self._identity, party=party, index=index, **facts)

    # ---- the endpoint ------------------------------------------------------------------------------------------------
    def emit(self, step: int, share: OutputShare) -> bool:
        return True

    def next_tokens(self, step: int, count: int) -> Tensor | None:
        return None

    def kept(self, step: int, rows: int) -> int:
        """Raise `ConfigurationError`: nobody knows that before the session."""
        raise ConfigurationError("a draft needs a dealer that runs: what is dealt depends on how many rows stay")

    def progress(self, stage: str, done: int, total: int) -> None:
        """Tell who watches."""
        self._on_progress(stage, done, total)


def _writers(folders: Sequence[Path], tape: str, seeds: Sequence[bytes]) -> Iterator[TapeWriter]:
    for folder, seed in zip(folders, seeds, strict=True):
        yield TapeWriter(folder, tape, seed)


def _tape(program: SessionProgram, seeds: Sequence[bytes], emit: Callable[[int, bytes], None]) -> DealerTape:
    """Return the dealer's end of a tape: each party's seed is expanded as the program's manifest says."""
    manifest = program.manifest
    prgs = [Prg(seed, manifest.generator(name)) for name, seed in zip(manifest.parties, seeds, strict=True)]
    return DealerTape(prgs, emit, device=program.device)


def _load(program: SessionProgram, tape: DealerTape) -> dict[str, Any]:
    suite = program.suite(tape, None)
    weights = program.load(suite, lambda name: None)
    if program.reads_rows:
        weights = {**weights, **program.load_rows(suite, lambda number, name: None)}
    tape.flush()
    return weights
