"""The file of `mpcache ray up`: where Ray is, and what runs there. All of it is public."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

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
    padded: bool = Field(default=False, description="Whether prompts are padded to these lengths.")
    prefix: int = Field(default=0, ge=0, description="Tokens of the registered prefix that sessions begin behind.")

    @property
    def most_workers(self) -> int:
        """Return how many dealers there is work for."""
        return min(self.workers, self.sessions * len(self.prompts))


class ReplicaSettings(BaseModel):
    """Replicas of a whole deployment, and one address before them. Paths are relative to the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Path = Field(description="Checkpoint folder, with its tokenizer.")
    name: str = Field(default="model", description="Name that requests call the model by.")
    keys: Path = Field(description="File of the keys that requests need, one a line, mode 0600.")
    count: int = Field(default=2, ge=1, le=1000, description="Replicas at a time.")
    parties: int = Field(default=2, ge=2, le=16, description="Compute parties of each.")
    cpus: float = Field(default=1.0, gt=0, le=1024, description="Cores that each of them is given.")
    listen: str = Field(default="127.0.0.1:8000", description="host:port that requests come to; of this machine alone.")
    attempts: int = Field(default=3, ge=1, le=100, description="Replicas that may fail in turn before one of them serves.")

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        if split_address(value, listening=True)[0] not in ("127.0.0.1", "localhost", "::1"):
            raise ValueError(f"'{value}' would serve others without TLS: write 127.0.0.1:PORT, and a TLS proxy before it")
        return value


class ClusterSettings(BaseModel):
    """A cluster file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str = Field(
        default=LOCAL,
        description='Where Ray is: local (one for this run, on this machine), auto (this node\'s), or "host:port" of the '
        "cluster's head.",
    )
    dealers: DealerSettings | None = None
    replicas: ReplicaSettings | None = None

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

    @model_validator(mode="after")
    def _something(self) -> ClusterSettings:
        if self.dealers is None and self.replicas is None:
            raise ValueError("nothing to run: write 'dealers', 'replicas' or both")
        return self

    @property
    def cpus(self) -> float:
        """Return the cores that all of it is given."""
        dealers = self.dealers.most_workers * self.dealers.cpus if self.dealers is not None else 0.0
        return dealers + (self.replicas.count * self.replicas.cpus if self.replicas is not None else 0.0)


def load_cluster(path: Path) -> ClusterSettings:
    """Read a cluster file. Raises `ConfigurationError` naming each wrong key."""
    values = yaml_values(read_yaml_text(path), path)
    for part in (values.get("dealers"), values.get("replicas")):
        for key in ("config", "model", "out", "keys"):
            if isinstance(part, dict) and isinstance(part.get(key), str):
                part[key] = path.parent.resolve() / part[key]
    try:
        return ClusterSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(f"{path}: {explain(error, _known)}") from None


def _known(location: Location) -> list[str]:
    parts: dict[int | str, type[BaseModel]] = {"dealers": DealerSettings, "replicas": ReplicaSettings}
    return list((parts[location[0]] if len(location) > 1 else ClusterSettings).model_fields)
