"""What a benchmark measures: public, the same at every process, and written into the run's folder."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from models.architecture import Architecture
from models.costs.program import StepPlan, by_parties
from mpc.channel import Channel
from mpc.tape import Tape
from protocols.options import OptionValue
from protocols.registry import SuiteSpec, secure_suite
from protocols.suite import Suite

PLAN_FILE = "plan.json"
DEALER = "dealer"
HERE = "127.0.0.1"


def party_name(index: int) -> str:
    """Return the name of a compute party of a benchmark."""
    return f"party{index}"


class BenchPlan(BaseModel):
    """One step of a decoder: one token after `cached` tokens, with `draft` guesses behind it as so many further rows, or,
    where `prefill` is not 0, a prompt of that many tokens; with `eviction` what the policy does on one layer after a prompt
    of `cached` tokens.

    options: the suite's own settings. seed: public; weights, cached tokens and their shares all follow from it, so nothing
    in a benchmark is secret. repeat: measured steps, each from the same cache with fresh randomness, after one that is not
    measured. preprocessing: what depends on the tape alone is prepared before a step is timed, in suites that can. trace:
    record spans of the last step. hosts: address of each process, where that is not this machine's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str
    suite: str
    policy: str = "full"
    options: dict[str, OptionValue] = Field(default_factory=dict)
    parties: int = 2
    cached: int = 0
    prefill: int = 0
    draft: int = 0
    eviction: bool = False
    repeat: int = 5
    threads: int = 1
    preprocessing: bool = True
    device: str = "cpu"
    seed: int = 1
    trace: bool = False
    hosts: dict[str, str] = Field(default_factory=dict)

    @property
    def shape(self) -> Architecture:
        """Return the model."""
        return Architecture.from_json(self.architecture)

    @property
    def tokens(self) -> int:
        """Return T, the number of tokens of the step."""
        return self.prefill or 1 + self.draft

    @property
    def step(self) -> StepPlan:
        """Return what the step does."""
        return StepPlan(self.tokens, drafted=self.draft > 0)

    @property
    def given_as_rows(self) -> bool:
        """Return whether the step's token comes as the one-hot row that parties chose."""
        return not self.draft and by_parties(self.cached, self.tokens)

    @property
    def names(self) -> list[str]:
        """Return the compute parties."""
        return [party_name(i) for i in range(self.parties)]

    def host(self, name: str) -> str:
        """Return where a process listens."""
        return self.hosts.get(name, HERE)

    def make_suite(self, tape: Tape, channel: Channel | None) -> Suite:
        """Return a party's suite, the dealer's or an estimate's. Raises a typed error for options that do not fit it."""
        spec = SuiteSpec(self.suite, options=self.options)
        return secure_suite(spec, parties=self.parties, tape=tape, channel=channel)

    def write(self, folder: Path) -> None:
        """Write it where the processes find it."""
        (folder / PLAN_FILE).write_text(self.model_dump_json(), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> BenchPlan:
        """Return the plan of a run's folder."""
        return cls.model_validate_json((folder / PLAN_FILE).read_text(encoding="utf-8"))
