"""Configuration of a role: a YAML file, checked before anything starts. Unknown keys are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mpc.errors import ConfigurationError, MpcacheError
from mpc.generators import AES, generator
from parties.config.grants import ClientGrant, Clients, ModelGrant, Models, OwnerGrant, Owners, checked_suites
from parties.config.limits import NOT_DEALER, PARTY, SERVERS, Limits
from parties.config.telemetry import Listener, Telemetry
from parties.config.yaml_files import Location, explain, read_yaml_text, yaml_values
from parties.names import Fingerprints, Role, check_name, in_words


class PeerAddress(BaseModel):
    """Where a role listens: name (its identity) and "host:port"; fingerprint: of its key, several during a change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="Name in the peer's certificate.")
    address: str = Field(description='"host:port" that it is reached at.')
    fingerprint: Fingerprints = Field(default=(), description="Of its key; several while it changes its key.")

    @model_validator(mode="after")
    def _check(self) -> PeerAddress:
        _check_name(self.name)
        split_address(self.address)
        return self


class PartyAddress(PeerAddress):
    """Where a compute party listens, and how it expands its seed (`mpc.generators`)."""

    prg: str = Field(
        default=AES,
        description="How the party's seeds are expanded, the same at every role: aes256-ctr, or chacha20 for a party that "
        "computes on a GPU.",
    )

    @field_validator("prg")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            return generator(value).name
        except ConfigurationError as error:
            raise ValueError(str(error)) from None


class RoleConfig(BaseModel):
    """One role of a deployment.

    Every key has a description, which `mpcache init` writes above it. A key that only some roles use names them in
    `json_schema_extra`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Role = Field(description="What this process is: party, dealer, client or model-owner.")
    name: str = Field(description="This role's name, as in its certificate.")
    listen: str | None = Field(
        default=None, description='"host:port" to serve at; host 0.0.0.0 means every network.', json_schema_extra=SERVERS
    )
    parties: list[PartyAddress] = Field(
        default_factory=list,
        description="All compute parties; the same ones in the same order at every role. {name: ..., address: ..., "
        "fingerprint: ...}; the fingerprint says which key a peer has, so that nobody has to trust the authority: "
        "`mpcache certs fingerprint` prints it on the peer's host, `mpcache certs pin` writes it here. For a party on a GPU "
        "also prg: chacha20, at every role: it then makes what its seed stands for there.",
    )
    dealer: PeerAddress | None = Field(
        default=None,
        description="The dealer of correlated randomness, as a party above; parties need it.",
        json_schema_extra=NOT_DEALER,
    )
    clients: Clients = Field(
        default_factory=list,
        description="Identities that may generate: {name: ..., fingerprint: ...}, with limits such as max_new_tokens: ..., "
        "models: [...]. decoding: [greedy, sample] unless it says more; a client that is granted logits learns much more of "
        "the model.",
        json_schema_extra=SERVERS,
    )
    model_owners: Owners = Field(
        default_factory=list,
        description="Identities that may store models: {name: ..., fingerprint: ...}, and models: [NAME, ...].",
        json_schema_extra=SERVERS,
    )
    models: Models = Field(
        default_factory=list,
        description="What clients may ask of models: {name: ..., policies: [...], suite_options: [...]}; the first entry "
        "whose name fits counts, and without one nothing is excluded.",
        json_schema_extra=PARTY,
    )
    suites: list[str] | None = Field(
        default=None, description="Suites that may be used at this server; all if left out.", json_schema_extra=SERVERS
    )
    certificates: Path = Field(
        description="Folder with NAME.crt, NAME.key and authority.crt, and revoked.txt, a list of fingerprints of keys that "
        "are trusted no more (`mpcache certs revoke`). Paths are relative to this file."
    )
    insecure_trust_authority: bool = Field(
        default=False,
        description="Take any key that the authority certifies for a peer's, where no fingerprint says which it has. "
        "Whoever has the authority's key can then read prompts and weights.",
    )
    store: Path | None = Field(
        default=None, description="Folder in which a party keeps its shares of models.", json_schema_extra=PARTY
    )
    store_key: Path | None = Field(
        default=None,
        description="File with a key (`mpcache store key`) under which pages of the store are encrypted: rows of registered "
        "prefixes and of caches. Left out: they are not.",
        json_schema_extra=PARTY,
    )
    tapes: Path | None = Field(
        default=None,
        description="Folder with tapes that were dealt beforehand (`mpcache deal`), instead of a running dealer, whose name "
        "then says who must have signed them.",
        json_schema_extra=PARTY,
    )
    preprocessing: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Prepare what depends on the tape alone in a thread of its own while waiting for the others: on, off, "
        "or auto (on with 4 cores or more).",
        json_schema_extra=PARTY,
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Processes of this party, its ranks, which hold weights together and compute products with them at the "
        "same time; on GPUs each has one of its own. See docs/clusters.md.",
        json_schema_extra=PARTY,
    )
    bulk: Literal["auto", "off", "required"] = Field(
        default="auto",
        description="Let what parties exchange with each other and with the dealer in a session leave gRPC for a connection "
        "of its own, which costs less: auto (where the other side can be reached so), off, or required (a session without "
        "it is an error).",
        json_schema_extra=SERVERS,
    )
    bulk_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="TCP port, at the host of `listen`, of those connections; 0: any that is free. Where a firewall lets "
        "named ports in only, choose one and open it for the parties.",
        json_schema_extra=SERVERS,
    )
    device: str = Field(default="cpu", description="Where to compute: cpu, cuda, cuda:1.", json_schema_extra=SERVERS)
    deadline_seconds: float = Field(
        default=30.0, gt=0, description="How long a connected peer may be silent before the session ends."
    )
    first_message_seconds: float = Field(
        default=10.0,
        gt=0,
        description="How long a caller may take to send a call's first message, before the call ends.",
        json_schema_extra=SERVERS,
    )
    connect_seconds: float = Field(
        default=60.0, gt=0, description="How long to wait for a peer that does not answer yet, when a session starts."
    )
    step_seconds: float = Field(default=600.0, gt=0, description="How long a peer that is alive may take for one step.")
    resume_seconds: float = Field(
        default=30.0,
        ge=0,
        description="How long a session waits for a lost connection to come back; 0: it ends at once.",
    )
    when_tape_is_out: Literal["error", "wait", "dealer"] = Field(
        default="error",
        description="When no tape on disk fits a session, or the dealer cannot be reached: end the session, wait for up to "
        "tape_wait_seconds (the client is told), or ask the running dealer, as a party without tapes does.",
        json_schema_extra=PARTY,
    )
    tape_wait_seconds: float = Field(default=600.0, gt=0, description="How long to wait then.", json_schema_extra=PARTY)
    queue_seconds: float = Field(
        default=300.0, gt=0, description="How long a session may wait for its turn.", json_schema_extra=SERVERS
    )
    grace_seconds: float = Field(
        default=30.0,
        ge=0,
        description="How long running sessions may go on after SIGTERM, before they end with an error.",
        json_schema_extra=SERVERS,
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="Logs on standard error, one event a line: text or json.", json_schema_extra=SERVERS
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is logged: debug, info, warning or error.", json_schema_extra=SERVERS
    )
    metrics: Listener | None = Field(
        default=None,
        description="Serve Prometheus metrics over HTTP: {port: 9464}, at 127.0.0.1 unless a host is given.",
        json_schema_extra=SERVERS,
    )
    health_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port of 127.0.0.1 that answers the gRPC health protocol without TLS, for probes.",
        json_schema_extra=SERVERS,
    )
    telemetry: Telemetry | None = Field(
        default=None,
        description='Send OpenTelemetry traces: {endpoint: "http://127.0.0.1:4318/v1/traces"}.',
        json_schema_extra=SERVERS,
    )
    limits: Limits = Field(default=Limits(), description="What this server grants a client.", json_schema_extra=SERVERS)

    @field_validator("suites")
    @classmethod
    def _suites(cls, value: list[str] | None) -> list[str] | None:
        return checked_suites(value)

    @field_validator("preprocessing", mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        """Take true and false for on and off, which YAML reads so."""
        return ("on" if value else "off") if isinstance(value, bool) else value

    @field_validator("bulk", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        """Take false for off, which YAML reads so."""
        return "off" if value is False else value

    @property
    def party_names(self) -> list[str]:
        """Return names of the compute parties in order."""
        return [p.name for p in self.parties]

    @property
    def generators(self) -> dict[str, str]:
        """Return the compute parties in order, and how each expands its seeds."""
        return {p.name: p.prg for p in self.parties}

    @property
    def index(self) -> int:
        """Return this party's index."""
        return self.party_names.index(self.name)

    @model_validator(mode="after")
    def _check(self) -> RoleConfig:
        _check_name(self.name)
        for key, grants in (("clients", self.clients), ("model_owners", self.model_owners)):
            listed = [grant.name for grant in grants]
            if twice := next((name for name in listed if listed.count(name) > 1), None):
                raise ValueError(f"{key}: '{twice}' is listed twice")
        names = self.party_names
        if len(names) < 2:
            raise ValueError(f"parties: at least 2 compute parties are needed, got {len(names)}")
        if len(set(names)) != len(names):
            raise ValueError(f"parties: names must differ, got {', '.join(names)}")
        self._check_overlap()
        if self.bulk == "required" and self.resume_seconds <= 0:
            raise ValueError("bulk: streams that are not resumed stay with gRPC; set resume_seconds above 0, or bulk: auto")
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
        return self

    def _check_overlap(self) -> None:
        """Raise `ValueError` unless one name has one role and one key one name: two roles would see what neither may see."""
        dealers = [self.dealer] if self.dealer is not None else []
        listed: list[tuple[Role, PeerAddress | ClientGrant | OwnerGrant]] = [
            *(("party", peer) for peer in self.parties),
            *(("dealer", peer) for peer in dealers),
            *(("client", grant) for grant in self.clients),
            *(("model-owner", grant) for grant in self.model_owners),
        ]
        roles: dict[str, Role] = {self.name: self.role}
        names: dict[str, str] = {}
        for role, entry in listed:
            if (other := roles.setdefault(entry.name, role)) != role:
                raise ValueError(
                    f"'{entry.name}' is {in_words(other)} and {in_words(role)}: every name has one role; give the other its "
                    "own identity"
                )
            for mark in entry.fingerprint:
                if (before := names.setdefault(mark, entry.name)) != entry.name:
                    raise ValueError(
                        f"'{before}' and '{entry.name}' have the same fingerprint {mark}: every name needs its own key"
                    )


def _check_name(name: str) -> None:
    try:
        check_name(name)
    except MpcacheError as error:
        raise ValueError(str(error)) from None


def split_address(address: str, listening: bool = False) -> tuple[str, int]:
    """Return host and port of "host:port" ("[::1]:443" for IPv6). Port 0 only where `listening`: any free port.

    >>> split_address("[::1]:443")
    ('::1', 443)
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not (0 if listening else 1) <= int(port) <= 65535:
        raise ValueError(f"'{address}' is not an address: write host:port, for example 127.0.0.1:7000")
    return host.strip("[]"), int(port)


def _known(location: Location) -> list[str]:
    """Return keys that are known where an unknown one was found."""
    nested: dict[str, type[BaseModel]] = {
        "limits": Limits,
        "parties": PartyAddress,
        "dealer": PeerAddress,
        "clients": ClientGrant,
        "model_owners": OwnerGrant,
        "models": ModelGrant,
        "metrics": Listener,
        "telemetry": Telemetry,
    }
    model = nested.get(str(location[0]), RoleConfig) if len(location) > 1 else RoleConfig
    return list(model.model_fields)


def make_config(values: dict[str, Any], source: str = "configuration") -> RoleConfig:
    """Return a checked configuration. Raises `ConfigurationError` naming `source` and each wrong key.

    >>> parties = [{"name": f"party{i}", "address": f"127.0.0.1:700{i}"} for i in (0, 1)]
    >>> values = {"role": "client", "name": "ada", "parties": parties, "certificates": "certificates"}
    >>> make_config(values).party_names
    ['party0', 'party1']
    >>> make_config({**values, "deadline_second": 5}, "client.yaml")
    Traceback (most recent call last):
    mpc.errors.ConfigurationError: client.yaml: unknown key 'deadline_second': did you mean 'deadline_seconds'?
    """
    try:
        return RoleConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(f"{source}: {explain(error, _known)}") from None


def load_config(path: Path | str) -> RoleConfig:
    """Read a role's YAML file; relative paths in it are relative to the file's folder."""
    path = Path(path)
    return read_config(read_yaml_text(path), path)


def read_config(text: str, path: Path) -> RoleConfig:
    """Return the configuration in a file's text, as `load_config` does; `path`: where the text is, or may be."""
    values = yaml_values(text, path)
    for key in ("certificates", "store", "store_key", "tapes"):
        if isinstance(values.get(key), str):
            values[key] = path.parent.resolve() / values[key]
    return make_config(values, str(path))
