"""The file of `mpcache ray up`: where Ray is, and what runs there. All of it is public."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mpc.errors import ConfigurationError
from parties.config.role_config import split_address
from parties.config.yaml_files import Location, explain, read_yaml_text, yaml_values
from protocols.options import OptionValue

LOCAL, AUTO = "local", "auto"


class DealerSettings(BaseModel):
    """Dealers that write tapes together. Paths are relative to the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: Path = Field(description="The dealer's configuration file.")
    model: Path = Field(description="Checkpoint folder; its configuration is read, no weights.")
    prompts: list[int] = Field(min_length=1, description="Lengths of prompts in tokens, exactly.")
    tokens: int = Field(ge=1, description="Most new tokens of a session.")
    sessions: int = Field(default=1, ge=1, description="Sessions to deal for, per prompt length.")
    out: Path = Field(description="Folder to write to; new or empty. Every node needs it at the same path.")
    workers: int = Field(default=2, ge=1, le=1000, description="Dealers that work at the same time.")
    cpus: float = Field(default=1.0, gt=0, le=1024, description="Cores that each of them is given.")
    attempts: int = Field(default=3, ge=1, le=100, description="How often a tape may be begun, before the deal is given up.")
    suite: str = "masked"
    suite_options: dict[str, OptionValue] = Field(default_factory=dict, description="Options of the suite.")
    decoding: str | None = Field(default=None, description="greedy (default), sample or logits; of encoders an output.")
    temperature: float | None = Field(default=None, description="The temperature of their samples.")
    policy: str = Field(default="full", description="Cache policy.")

    @property
    def most_workers(self) -> int:
        """Return how many dealers there is work for."""
        return min(self.workers, self.sessions * len(self.prompts))


class ClusterSettings(BaseModel):
    """A cluster file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str = Field(
        default=LOCAL,
        description='Where Ray is: local (one for this run, on this machine), auto (this node\'s), or "host:port" of the '
        "cluster's head.",
    )
    dealers: DealerSettings

    @field_validator("address")
    @classmethod
    def _address(cls, value: str) -> str:
        if value not in (LOCAL, AUTO):
            try:
                split_address(value)
            except ValueError:
                raise ValueError(
                    f"'{value}' is no address of Ray: write local, auto, or host:port of the cluster's head, such as "
                    "10.0.0.5:6379, on one of its nodes"
                ) from None
        return value


def load_cluster(path: Path) -> ClusterSettings:
    """Read a cluster file. Raises `ConfigurationError` naming each wrong key."""
    values = yaml_values(read_yaml_text(path), path)
    dealers = values.get("dealers")
    if isinstance(dealers, dict):
        for key in ("config", "model", "out"):
            if isinstance(dealers.get(key), str):
                dealers[key] = path.parent.resolve() / dealers[key]
    try:
        return ClusterSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(f"{path}: {explain(error, _known)}") from None


def _known(location: Location) -> list[str]:
    return list((DealerSettings if len(location) > 1 else ClusterSettings).model_fields)
