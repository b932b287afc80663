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

from models.architectures import AnyArchitecture
from models.chunks import ChunkPlan
from models.costs.estimation import estimate
from models.costs.tracing import Setting
from models.plans import Leaving, Lengths, make_plan
from mpc.errors import ConfigurationError, EnvironmentProblem
from parties.config.role_config import RoleConfig
from parties.files import sync_folder
from parties.identity.certificates import check
from parties.program import MODEL, Program, SessionProgram
from parties.tapes.dealing import LoadFacts, Progress, TapeDealing, no_progress
from parties.wire.manifest import Manifest, new_id
from protocols.registry import USUAL, SuiteSpec

MOST_SESSIONS = 1000


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
    padded: bool = False
    behind: int = 0


@dataclass(frozen=True)
class DealSpec:
    """What to deal: `sessions` tapes for every prompt length of `prompts`, each for up to `new_tokens` new tokens.

    A tape serves one session whose prompt has exactly its length, and whose temperature is the one that its noise was dealt
    for (decoding "sample"). policy: the cache policy's text. program: what the sessions compute. texts: of an encoder's
    session, each of a length of `prompts`, padding included. padded: of decoders' sessions whose prompts are padded to a
    length of `prompts`, and may be shorter (`models.padding`). behind, chunks: what prompts stand behind, as in
    `models.generation.GenerationPlan`; of which registered texts is decided when the load is used.
    """

    prompts: Sequence[int]
    new_tokens: int
    sessions: int = 1
    suite: SuiteSpec = USUAL
    decoding: Leaving = "greedy"
    temperature: float | None = None
    policy: str = "full"
    program: Program = MODEL
    texts: int = 1
    padded: bool = False
    behind: int = 0
    chunks: ChunkPlan | None = None

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
        lengths = [
            Lengths(prompt * self.texts, self.new_tokens, self.behind, self.chunks, texts, self.padded)
            for prompt in self.prompts
            for texts in [(prompt,) * self.texts if self.texts > 1 else ()]
        ]
        plans = [make_plan(one, self.decoding, self.policy, self.temperature, None) for one in lengths]
        manifests = [Manifest.of(load, architecture, self.suite, plan, config.generators) for plan in plans]
        return [SessionProgram.of(self.program, manifest, architecture, config.device) for manifest in manifests]


@dataclass(frozen=True)
class DealOrder:
    """What the dealer of `config` deals for a model."""

    config: RoleConfig
    architecture: AnyArchitecture
    spec: DealSpec

    def programs(self, load: str) -> list[SessionProgram]:
        """Return the program of each prompt length. Raises `ConfigurationError`."""
        return self.spec.programs(load, self.architecture, self.config)

    def check(self, out: Path) -> None:
        """Raise `ConfigurationError` unless this can be dealt into `out`; nothing is dealt."""
        if self.config.role != "dealer":
            raise ConfigurationError(f"configuration is for role '{self.config.role}', not for 'dealer'")
        self.spec.check()
        self.programs(new_id())
        self._check_room(out)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigurationError(f"--out {out} exists and is not an empty folder: choose another one")

    def _check_room(self, out: Path) -> None:
        """Raise `ConfigurationError` for more bytes than the dealer allows, `EnvironmentProblem` for more than are free."""
        most = self.config.limits.max_tape_bytes
        if most is None:
            return
        size, spec = self.size(), self.spec
        where = f"{spec.tapes} tapes and their load take {size:,} bytes of one party"
        if size > most:
            raise ConfigurationError(
                f"{where}, {self.config.name} deals at most {most:,} at a time: give fewer --sessions or --tokens, or raise "
                "'max_tape_bytes' in its 'limits'"
            )
        folder = next(one for one in (out, *out.absolute().parents) if one.exists())
        if size > (free := shutil.disk_usage(folder).free):
            raise EnvironmentProblem(f"{where}, {folder} has {free:,} free: free space there, or choose another --out")

    def size(self) -> int:
        """Return the bytes of tapes of the party that gets most, the last one, without their headers: what its programs
        are predicted to be dealt."""
        spec, parties = self.spec, len(self.config.party_names)
        options = {**spec.suite.options, "fraction_bits": spec.suite.fraction_bits}
        total = 0
        for prompt in spec.prompts:
            texts = (prompt,) * spec.texts if spec.texts > 1 else ()
            chosen = (spec.decoding, spec.temperature, None, spec.behind, spec.chunks, texts)
            setting = Setting(spec.suite.name, parties, spec.policy, options, *chosen, padded=spec.padded)
            found = estimate(self.architecture, setting, prompt * spec.texts, spec.new_tokens)
            total += spec.sessions * round(found.total.total("offline_bytes"))
        return total + round(found.load.plus(found.load_prefix).total("offline_bytes"))


@dataclass(frozen=True)
class OpenDeal:
    """A deal whose load is written. root: its folder, which nobody reads yet; weights: the dealer's side of them."""

    order: DealOrder
    facts: LoadFacts
    root: Path
    dealing: TapeDealing
    programs: list[SessionProgram]
    weights: dict[str, Any]

    def program(self, number: int) -> SessionProgram:
        """Return what the tape with this number, counted from 1, is for."""
        return self.programs[(number - 1) // self.order.spec.sessions]


Sessions = Callable[[OpenDeal, Progress], list[float]]
"""Deals all sessions of a deal into its folder; returns the seconds of each."""


def in_turn(opened: OpenDeal, on_progress: Progress) -> list[float]:
    """Deal the sessions one after the other in this process."""
    seconds, folders = [], opened.facts.folders(opened.root)
    for number in range(1, opened.order.spec.tapes + 1):
        began = time.perf_counter()
        opened.dealing.write_session(opened.program(number), opened.weights, number, folders)
        seconds.append(time.perf_counter() - began)
        on_progress("sessions", number, opened.order.spec.tapes)
    return seconds


def deal(
    order: DealOrder,
    out: Path,
    on_progress: Progress = no_progress,
    sessions: Sessions = in_turn,
) -> Deal:
    """Deal what `order` says into `out/PARTY`. sessions: who deals them.

    Raises `ConfigurationError` for arguments that cannot work or an `out` that is not empty, `EnvironmentProblem` when the
    disk is full or refuses; then nothing is left.
    """
    config, spec = order.config, order.spec
    facts = LoadFacts(new_id(), int(time.time()), tuple(config.party_names))
    with _folder(order, out) as folder, torch.inference_mode():
        programs = order.programs(facts.load)
        dealing = TapeDealing(check(config.certificates, config.name, config.role), facts, on_progress)
        began = time.perf_counter()
        weights = dealing.write_load(programs[0], facts.make_folders(folder))
        load_seconds = time.perf_counter() - began
        seconds = sessions(OpenDeal(order, facts, folder, dealing, programs, weights), on_progress)
        sizes = {name: _size(folder / name) for name in facts.parties}
    folders = {name: out / name for name in facts.parties}
    found = (facts.load, folders, sizes, tuple(spec.prompts), spec.new_tokens, spec.sessions, load_seconds, seconds)
    return Deal(*found, spec.padded, spec.behind)


@contextmanager
def _folder(order: DealOrder, out: Path) -> Iterator[Path]:
    """Make a folder that becomes `out` when the block ends well, and is removed when it does not."""
    temporary = out.parent / f".{out.name}.dealing-{new_id()[:8]}"
    try:
        order.check(out)
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
