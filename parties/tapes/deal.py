"""Dealing to disk: the dealer's program without a network, so that the dealer may be offline when the parties compute.

A deal is a load (the masks of one model's weights) and tapes for sessions that use it. It is written next to its target
under a temporary name and renamed when all of it is on disk; memory stays at about 1 MiB a party beside the program's own.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.architectures import AnyArchitecture
from models.plans import Leaving, Lengths, make_plan
from mpc.errors import ConfigurationError, EnvironmentProblem
from mpc.random import new_seed
from mpc.tape import DealerTape
from parties.config.role_config import RoleConfig
from parties.files import sync_folder
from parties.identity.certificates import Identity, check
from parties.program import MODEL, Program, SessionProgram
from parties.tapes.file import TapeWriter
from parties.wire.manifest import Manifest, ProgramFacts, new_id
from protocols.registry import USUAL, SuiteSpec
from protocols.suite import OutputShare, Suite

MOST_SESSIONS = 1000
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Deal:
    """What was dealt. folders: party -> its folder; sizes: party -> bytes on disk; seconds: load, then each session."""

    load: str
    folders: dict[str, Path]
    sizes: dict[str, int]
    prompts: tuple[int, ...]
    new_tokens: int
    sessions: int
    load_seconds: float
    session_seconds: list[float]


@dataclass(frozen=True)
class DealSpec:
    """What to deal: `sessions` tapes for every prompt length of `prompts`, each for up to `new_tokens` new tokens.

    A tape serves one session whose prompt has exactly its length, and whose temperature is the one that its noise was dealt
    for (decoding "sample"). policy: the cache policy's text. program: what the sessions compute.
    """

    prompts: Sequence[int]
    new_tokens: int
    sessions: int = 1
    suite: SuiteSpec = USUAL
    decoding: Leaving = "greedy"
    temperature: float | None = None
    policy: str = "full"
    program: Program = MODEL

    @property
    def tapes(self) -> int:
        """How many sessions' tapes there will be."""
        return self.sessions * len(self.prompts)

    def check(self) -> None:
        """Raise `ConfigurationError`, naming the option, for lengths or numbers that cannot be."""
        if not self.prompts or len(set(self.prompts)) != len(self.prompts):
            given = ", ".join(map(str, self.prompts)) or "none"
            raise ConfigurationError(f"--prompt: give each prompt length once, got {given}")
        if not 1 <= self.tapes <= MOST_SESSIONS:
            raise ConfigurationError(
                f"--sessions: 1 to {MOST_SESSIONS} tapes a deal, got {self.sessions} x {len(self.prompts)}"
            )

    def programs(self, load: str, architecture: AnyArchitecture, config: RoleConfig) -> list[SessionProgram]:
        """Return the program of each prompt length. load: its id, which stands for the model's: which one that is is decided
        when the load is used. Raises `ConfigurationError`."""
        plans = [
            make_plan(Lengths(prompt, self.new_tokens), self.decoding, self.policy, self.temperature, None)
            for prompt in self.prompts
        ]
        manifests = [Manifest.of(load, architecture, self.suite, plan, config.party_names) for plan in plans]
        return [SessionProgram.of(self.program, manifest, architecture, config.device) for manifest in manifests]


def deal(
    config: RoleConfig,
    architecture: AnyArchitecture,
    spec: DealSpec,
    out: Path,
    on_progress: Progress = lambda stage, done, total: None,
) -> Deal:
    """Deal what `spec` says into `out/PARTY`. config: the dealer's.

    Raises `ConfigurationError` for arguments that cannot work or an `out` that is not empty, `EnvironmentProblem` when the
    disk is full or refuses; then nothing is left.
    """
    if config.role != "dealer":
        raise ConfigurationError(f"configuration is for role '{config.role}', not for 'dealer'")
    spec.check()
    load = new_id()
    programs = spec.programs(load, architecture, config)
    identity = check(config.certificates, config.name, config.role)
    with _folder(out) as folder, torch.no_grad():
        dealing = _Dealing(identity, config.party_names, folder, load, on_progress)
        began = time.perf_counter()
        weights = dealing.load(programs[0])
        load_seconds, seconds = time.perf_counter() - began, []
        for number in range(spec.tapes):
            began = time.perf_counter()
            dealing.session(programs[number // spec.sessions], weights, number + 1)
            seconds.append(time.perf_counter() - began)
            on_progress("sessions", number + 1, spec.tapes)
        sizes = {name: _size(folder / name) for name in config.party_names}
    folders = {name: out / name for name in config.party_names}
    return Deal(load, folders, sizes, tuple(spec.prompts), spec.new_tokens, spec.sessions, load_seconds, seconds)


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """Make a folder that becomes `out` when the block ends well, and is removed when it does not."""
    temporary = out.parent / f".{out.name}.dealing-{new_id()[:8]}"
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigurationError(f"--out {out} exists and is not an empty folder: choose another one")
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir(mode=0o700)
        try:
            yield temporary
            for folder in [*(f for f in temporary.rglob("*") if f.is_dir()), temporary]:
                sync_folder(folder)
            temporary.rename(out)
            sync_folder(out.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        reason = (error.strerror or "error").lower()
        raise EnvironmentProblem(
            f"tapes cannot be written to {out} ({reason}): nothing was dealt; free space or permit it"
        ) from None


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


class _Dealing:
    """One deal. It is the `Endpoint` of the generation program as well."""

    def __init__(self, identity: Identity, parties: Sequence[str], folder: Path, load: str, on_progress: Progress) -> None:
        self._identity, self._parties, self._load, self._on_progress = identity, parties, load, on_progress
        self._created = int(time.time())
        self._folders = [folder / name / load for name in parties]
        for one in self._folders:
            one.parent.mkdir(mode=0o700)
            one.mkdir(mode=0o700)

    def load(self, program: SessionProgram) -> dict[str, Any]:
        """Deal the load; return the dealer's side of the weights."""
        self._on_progress("weights", 0, 0)
        weights: dict[str, Any] = self._write(program, self._load, 0, lambda suite: program.load(suite, lambda name: None))
        return weights

    def session(self, program: SessionProgram, weights: dict[str, Any], number: int) -> None:
        """Deal one session's tape."""
        self._write(program, new_id(), number, lambda suite: program.run(suite, weights, None, self))

    def _write(self, program: SessionProgram, tape: str, number: int, run: Callable[[Suite], Any]) -> Any:
        seeds = [new_seed() for _ in self._folders]
        writers: list[TapeWriter] = []
        try:
            for folder, seed in zip(self._folders, seeds, strict=True):
                writers.append(TapeWriter(folder, tape, seed))
            end = DealerTape(seeds, lambda party, data: writers[party].append(data), device=program.device)
            result = run(program.suite(end, None))
            facts: dict[str, object] = {
                "kind": "session" if number else "load",
                "load": self._load,
                "number": number,
                "created": self._created,
                "program": ProgramFacts.model_validate(program.manifest.model_dump(exclude={"model", "prefix"})),
            }
            for index, (writer, party) in enumerate(zip(writers, self._parties, strict=True)):
                writer.finish(self._identity, party=party, index=index, **facts)
            return result
        finally:
            for writer in writers:
                writer.close()

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
