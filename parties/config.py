"""Configuration of a role: a YAML file, checked before anything starts. Unknown keys are errors."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mpc.errors import ConfigurationError, MpcacheError
from parties.certificates import check_name

Role = Literal["party", "dealer", "client", "model-owner"]


class PeerAddress(BaseModel):
    """Where a role listens: name (its identity) and "host:port"."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    address: str

    @model_validator(mode="after")
    def _check(self) -> PeerAddress:
        _check_name(self.name)
        split_address(self.address)
        return self


class Limits(BaseModel):
    """What a server grants a client. Lengths in tokens; sessions and loads are counted per server."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_prompt_tokens: int = Field(default=8192, ge=1)
    max_new_tokens: int = Field(default=4096, ge=1)
    max_sessions: int = Field(default=4, ge=1, le=1000)
    max_loads: int = Field(default=2, ge=1)
    max_model_bytes: int = Field(default=64 << 30, ge=1)


class RoleConfig(BaseModel):
    """One role of a deployment.

    parties: all compute parties; their order is the party index. dealer: needed by parties. clients, model_owners: the
    identities that may generate and that may store models. certificates: folder with this role's identity. store: where
    a party keeps model shares. tapes: where a party has tapes that were dealt beforehand; it then does without a running
    dealer, whose name says who must have signed them. look_ahead: whether a party prepares what depends on the tape alone
    in a thread of its own, while it waits for others; "auto": where the machine has 4 cores or more. deadline_seconds: how
    long a peer may be silent. connect_seconds: how long to wait for a peer to come up. step_seconds: how long a live peer
    may take for one step.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Role
    name: str
    listen: str | None = None
    parties: list[PeerAddress] = Field(default_factory=list)
    dealer: PeerAddress | None = None
    clients: list[str] = Field(default_factory=list)
    model_owners: list[str] = Field(default_factory=list)
    certificates: Path
    store: Path | None = None
    tapes: Path | None = None
    look_ahead: Literal["auto", "on", "off"] = "auto"
    device: str = "cpu"
    deadline_seconds: float = Field(default=30.0, gt=0)
    connect_seconds: float = Field(default=60.0, gt=0)
    step_seconds: float = Field(default=600.0, gt=0)
    limits: Limits = Limits()

    @field_validator("look_ahead", mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        """YAML reads on and off as true and false."""
        return ("on" if value else "off") if isinstance(value, bool) else value

    @property
    def party_names(self) -> list[str]:
        """Names of the compute parties in order."""
        return [p.name for p in self.parties]

    @property
    def index(self) -> int:
        """This party's index."""
        return self.party_names.index(self.name)

    @model_validator(mode="after")
    def _check(self) -> RoleConfig:
        for name in [self.name, *self.clients, *self.model_owners]:
            _check_name(name)
        names = self.party_names
        if len(names) < 2:
            raise ValueError(f"parties: at least 2 compute parties are needed, got {len(names)}")
        everyone = [*names, *([self.dealer.name] if self.dealer else [])]
        if len(set(everyone)) != len(everyone):
            raise ValueError(f"parties, dealer: names must differ, got {', '.join(everyone)}")
        if self.role in ("party", "dealer"):
            if self.listen is None:
                raise ValueError(f'listen: a {self.role} needs an address "host:port" to listen at')
            split_address(self.listen, listening=True)
        if self.role == "party":
            if self.name not in names:
                raise ValueError(f"name: party '{self.name}' is not among parties ({', '.join(names)})")
            if self.dealer is None:
                raise ValueError("dealer: a party needs the dealer's name and address")
            if self.store is None:
                raise ValueError("store: a party needs a folder to keep model shares in")
            if self.tapes is not None and self.tapes == self.store:
                raise ValueError("tapes: model shares ('store') and tapes need different folders")
        elif self.name in names:
            raise ValueError(f"name: '{self.name}' is a compute party's name; a {self.role} needs its own identity")
        return self


def _check_name(name: str) -> None:
    try:
        check_name(name)
    except MpcacheError as error:
        raise ValueError(str(error)) from None


def split_address(address: str, listening: bool = False) -> tuple[str, int]:
    """Host and port of "host:port" ("[::1]:443" for IPv6). Port 0 only where `listening`: any free port."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not (0 if listening else 1) <= int(port) <= 65535:
        raise ValueError(f"'{address}' is not an address: write host:port, for example 127.0.0.1:7000")
    return host.strip("[]"), int(port)


def _known(location: tuple[int | str, ...]) -> list[str]:
    """Keys that are known where an unknown one was found."""
    nested: dict[str, type[BaseModel]] = {"limits": Limits, "parties": PeerAddress, "dealer": PeerAddress}
    model = nested.get(str(location[0]), RoleConfig) if len(location) > 1 else RoleConfig
    return list(model.model_fields)


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = _known(item["loc"])
            close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
            lines.append(f"unknown key '{where}': {hint}")
        elif item["type"] == "missing":
            lines.append(f"'{where}' is missing")
        else:
            text = item["msg"].removeprefix("Value error, ")
            shown = f" (got {item['input']!r})" if isinstance(item["input"], str | int | float) else ""
            lines.append(f"{where}: {text}{shown}" if where else text)
    return "; ".join(lines)


def make_config(values: dict[str, Any], source: str = "configuration") -> RoleConfig:
    """A checked configuration. Raises `ConfigurationError` naming `source` and each wrong key."""
    try:
        return RoleConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(f"{source}: {_explain(error)}") from None


def load_config(path: Path | str) -> RoleConfig:
    """Read a role's YAML file; relative paths in it are relative to the file's folder."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not a UTF-8 text file") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        raise ConfigurationError(f"{path} is not valid YAML{line}: {getattr(error, 'problem', 'syntax error')}") from None
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: expected 'key: value' lines, got {type(values).__name__}")
    for key in ("certificates", "store", "tapes"):
        if isinstance(values.get(key), str):
            values[key] = path.parent.resolve() / values[key]
    return make_config(values, str(path))
