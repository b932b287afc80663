"""A dealer as an actor of a Ray cluster: it writes tapes into folders, and tells whoever asked that they are there.

What goes through Ray, both ways, is JSON text of public settings, names and states. Seeds and tapes never do: each worker
draws its own seeds, writes them where the dealer's folder is, and reads the load's seeds there.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from launch.cluster.processors import places, processor
from launch.cluster.reports import Report, reported
from models.architectures import parse_description
from models.plans import Leaving
from mpc import role_process
from mpc.errors import EnvironmentProblem, ManifestMismatch
from parties.config.role_config import load_config
from parties.identity.certificates import check
from parties.program import SessionProgram
from parties.tapes.deal import DealSpec
from parties.tapes.dealing import LoadFacts, TapeDealing
from parties.wire.manifest import package_version
from protocols.options import OptionValue
from protocols.registry import SuiteSpec

ATTEMPTS = ".attempts"  # folder beside the parties' own; what is in it was not finished, or not yet taken


class SpecText(BaseModel):
    """A `DealSpec` as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompts: list[int]
    new_tokens: int
    sessions: int
    suite: str
    fraction_bits: int
    options: dict[str, OptionValue]
    decoding: Leaving
    temperature: float | None
    policy: str
    padded: bool = False
    behind: int = 0

    @classmethod
    def of(cls, spec: DealSpec) -> SpecText:
        """Return a spec's text."""
        return cls(
            prompts=list(spec.prompts),
            new_tokens=spec.new_tokens,
            sessions=spec.sessions,
            suite=spec.suite.name,
            fraction_bits=spec.suite.fraction_bits,
            options=dict(spec.suite.options),
            decoding=spec.decoding,
            temperature=spec.temperature,
            policy=spec.policy,
            padded=spec.padded,
            behind=spec.behind,
        )

    def spec(self) -> DealSpec:
        """Return the spec."""
        suite = SuiteSpec(self.suite, self.fraction_bits, self.options)
        lengths = (self.prompts, self.new_tokens, self.sessions)
        chosen = (self.decoding, self.temperature, self.policy)
        return DealSpec(*lengths, suite, *chosen, padded=self.padded, behind=self.behind)


class WorkerOrder(BaseModel):
    """What a worker is told before its first tape. config: path of the dealer's file; root: the deal's folder, which nobody
    reads yet; both are paths of every node. threads: that it computes with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    config: Path
    architecture: str
    spec: SpecText
    load: str
    created: int
    root: Path
    threads: int


class TapeWorker:
    """The actor. Each call returns JSON: what was asked for, or `code` and `message` of an error."""

    def __init__(self) -> None:
        self._spec: DealSpec
        self._dealing: TapeDealing
        self._facts: LoadFacts
        self._root: Path
        self._places: int
        self._programs: list[SessionProgram]
        self._weights: dict[str, Any]

    def begin(self, order: str) -> str:
        """Get ready to write tapes of a load that was dealt. Reports node and pid."""
        return reported(lambda: self._begin(WorkerOrder.model_validate_json(order)))

    def write(self, number: int, attempt: str) -> str:
        """Deal one session's tape into the attempt's own folder, at this dealer's turn. Reports the tape's id and the
        seconds that it took."""
        return reported(lambda: self._write(number, attempt))

    def _begin(self, order: WorkerOrder) -> Report:
        node = socket.gethostname()
        if order.version != (own := package_version()):
            raise ManifestMismatch(f"node {node} has version {own}, version {order.version} asked it: install the same")
        if not order.root.is_dir():
            raise EnvironmentProblem(
                f"node {node} does not see {order.root}: dealers need the folder 'out' at the same path on every node, on a "
                "file system of the dealer's own"
            )
        role_process.set_up(computes=True)
        torch.set_num_threads(order.threads)
        torch.set_grad_enabled(False)
        config = load_config(order.config)
        self._facts = LoadFacts(order.load, order.created, tuple(config.party_names))
        self._root, self._spec = order.root, order.spec.spec()
        self._places = places(order.threads)
        self._dealing = TapeDealing(check(config.certificates, config.name, "dealer"), self._facts)
        self._programs = self._spec.programs(order.load, parse_description(order.architecture), config)
        self._weights = self._dealing.read_load(self._programs[0], self._facts.folders(order.root))
        return {"node": node, "pid": os.getpid()}

    def _write(self, number: int, attempt: str) -> Report:
        torch.set_grad_enabled(False)  # of this thread
        root = self._root / ATTEMPTS / attempt
        root.mkdir(mode=0o700)
        program = self._programs[(number - 1) // self._spec.sessions]
        with processor(root.parent, self._places):
            began = time.perf_counter()
            tape = self._dealing.write_session(program, self._weights, number, self._facts.make_folders(root))
            return {"tape": tape, "seconds": time.perf_counter() - began}
