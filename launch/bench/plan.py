"""What a benchmark measures: public, the same at every process, and written into the run's folder."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from models.architecture import Architecture
from mpc.errors import ConfigurationError
from protocols.registry import SUITES

Option = bool | int | float | str
PLAN_FILE = "plan.json"
DEALER = "dealer"


def party_name(index: int) -> str:
    """Name of a compute party of a benchmark."""
    return f"party{index}"


class BenchPlan(BaseModel):
    """One step of a decoder: one token after `cached` tokens, or, where `prefill` is not 0, a prompt of that many tokens.

    options: the suite's own settings. seed: public; weights, cached tokens and their shares all follow from it, so nothing
    in a benchmark is secret. repeat: measured steps, each from the same cache with fresh randomness, after one that is not
    measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str
    suite: str
    policy: str = "full"
    options: dict[str, Option] = Field(default_factory=dict)
    parties: int = 2
    cached: int = 0
    prefill: int = 0
    repeat: int = 5
    threads: int = 1
    device: str = "cpu"
    seed: int = 1

    @property
    def shape(self) -> Architecture:
        """The model."""
        return Architecture.from_json(self.architecture)

    @property
    def tokens(self) -> int:
        """T: tokens of the step."""
        return self.prefill or 1

    @property
    def names(self) -> list[str]:
        """The compute parties."""
        return [party_name(i) for i in range(self.parties)]

    def write(self, folder: Path) -> None:
        """Write it where the processes find it."""
        (folder / PLAN_FILE).write_text(self.model_dump_json(), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> BenchPlan:
        """The plan of a run's folder."""
        return cls.model_validate_json((folder / PLAN_FILE).read_text(encoding="utf-8"))


def parse_options(texts: list[str]) -> dict[str, Option]:
    """Suite options from "name=value"; a value is an integer, a number, true, false or text.

    Raises `ConfigurationError` for a text without "=" or a name that the benchmark sets itself.
    """
    out: dict[str, Option] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigurationError(f"--option '{text}' is not of the form name=value, for example fraction_bits=12")
        if name in ("parties", "tape", "channel", "ledger", "device"):
            raise ConfigurationError(f"--option '{name}' is not a suite option: it follows from the other arguments")
        out[name] = _parsed(value)
    return out


def _parsed(text: str) -> Option:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def check_secure(suite: str) -> str:
    """The suite's name. Raises `ConfigurationError` unless it computes on shares."""
    secure = [name for name in SUITES if name != "plain"]
    if suite not in secure:
        raise ConfigurationError(f"suite '{suite}' does not compute on shares; choose one of: {', '.join(sorted(secure))}")
    return suite
