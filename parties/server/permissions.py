"""Who may do what at a server, by the names in certificates. A refusal says that, and nothing of what the server holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar, get_args

from models.outputs import Output
from models.policies import parse
from mpc.errors import ConfigurationError, PermissionRefused
from parties.config.grants import ClientGrant, ModelGrant, fits
from parties.config.role_config import RoleConfig
from parties.wire.manifest import Manifest
from protocols.registry import SUITES

FURTHER_CALLS = 8  # descriptions, a probe, calls that are being resumed
TEXTS = (
    "; ask for fewer texts at once, or write the limit as `max_prompt_tokens` under `limits` of the client's configuration"
)
_ANYBODY = ClientGrant(name="anybody")  # no limits of its own
_ANY_MODEL = ModelGrant(name="*")
_UNSET = object()


class OwnedModel(Protocol):
    """What decides who may use a stored model: its id, its owner and his name for it, and his options by suite."""

    @property
    def model(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def owner(self) -> str: ...

    @property
    def ranges(self) -> Mapping[str, Mapping[str, int | str]] | None: ...


M = TypeVar("M", bound=OwnedModel)


class Permissions:
    """The grants of one server's configuration."""

    def __init__(self, config: RoleConfig) -> None:
        self._server = config.name
        self._limits = config.limits
        self._suites = config.suites
        self._models = config.models
        self._parties = config.party_names
        self._dealer = [config.dealer.name] if config.dealer else []
        self._clients = {grant.name: grant for grant in config.clients}
        self._owners = {grant.name: grant for grant in config.model_owners}

    # ---- by identity -----------------------------------------------------------------------------------------------
    def may_generate(self, name: str) -> None:
        """Raise `PermissionRefused` unless `name` is a configured client, or a model owner, who may register prefixes."""
        self._listed(name, name in self._clients or name in self._owners, "generate", "clients")

    def may_store(self, name: str) -> None:
        """Raise `PermissionRefused` unless `name` is a configured model owner."""
        self._listed(name, name in self._owners, "store models", "model_owners")

    def may_exchange(self, name: str) -> None:
        """Raise `PermissionRefused` unless `name` is another compute party."""
        if name not in self._parties or name == self._server:
            raise PermissionRefused(f"'{name}' may not compute with {self._server}: it is not listed in its 'parties'")

    def may_have_tape(self, name: str) -> None:
        """Raise `PermissionRefused` unless `name` is a compute party."""
        if name not in self._parties:
            raise PermissionRefused(f"'{name}' may not have a tape of {self._server}: it is not listed in its 'parties'")

    def peers(self) -> list[str]:
        """Return the compute parties and the dealer."""
        return [*self._parties, *self._dealer]

    def is_peer(self, name: str) -> bool:
        """Whether `name` is a compute party or the dealer."""
        return name in self._parties or name in self._dealer

    def clients_and_owners(self) -> list[str]:
        """Return all clients and model owners."""
        return sorted({*self._clients, *self._owners})

    def has_role(self, name: str) -> bool:
        """Whether `name` has some role in this deployment."""
        return self.is_peer(name) or name in self._clients or name in self._owners

    def may_ask(self, name: str) -> None:
        """Raise `PermissionRefused` unless `name` has some role in this deployment."""
        if not self.has_role(name):
            raise PermissionRefused(f"'{name}' has no role in the deployment of {self._server}")

    def _listed(self, name: str, listed: bool, what: str, key: str) -> None:
        if not listed:
            raise PermissionRefused(f"'{name}' may not {what} at {self._server}: it is not listed in its '{key}'")

    # ---- by what is asked for --------------------------------------------------------------------------------------
    def visible(self, name: str, models: list[M]) -> list[M]:
        """Return those of `models` that `name` may know of: a client's and a model owner's own, all for a compute party."""
        if name in self._parties:
            return models
        client, owner = self._clients.get(name), name in self._owners
        return [
            m for m in models if (client is not None and fits(client.models, m.name, m.model)) or (owner and m.owner == name)
        ]

    def check_lengths(self, manifest: Manifest, client: str | None = None) -> None:
        """Raise `ConfigurationError` when a session is longer than the server's limits or, if known, the client's. Tokens of
        chunks that are computed again count as the prompt's."""
        grant = self._clients.get(client or "", _ANYBODY)
        prompt = min(self._limits.max_prompt_tokens, grant.max_prompt_tokens or self._limits.max_prompt_tokens)
        new = min(self._limits.max_new_tokens, grant.max_new_tokens or self._limits.max_new_tokens)
        if manifest.computed_tokens > prompt or manifest.new_tokens > new:
            own = prompt < self._limits.max_prompt_tokens or new < self._limits.max_new_tokens
            raise ConfigurationError(
                f"{manifest.computed_tokens} prompt and {manifest.new_tokens} new tokens exceed the limits of {self._server}"
                f"{f' for {client}' if own else ''}: {prompt} and {new}"
                f"{TEXTS if manifest.text_tokens else ''}"
            )

    def check_suite(self, manifest: Manifest, client: str | None = None) -> None:
        """Raise `PermissionRefused` for a suite that this server, or this client at it, may not use."""
        grant = self._clients.get(client or "", _ANYBODY)
        for allowed, whom in ((self._suites, "nobody"), (grant.suites, f"'{client}'")):
            if allowed is not None and manifest.suite not in allowed:
                may = "nobody may" if whom == "nobody" else f"{whom} may not"
                raise PermissionRefused(
                    f"{may} use suite '{manifest.suite}' at {self._server}; allowed: {', '.join(allowed) or 'none'}"
                )

    def check_choices(self, manifest: Manifest, client: str, found: OwnedModel) -> None:
        """Raise `PermissionRefused` for a policy or an option that the client, or anybody with this model, may not use.

        Options that the model's owner has given with it are always allowed, and so is the suite's usual precision; another
        counts as the option `fraction_bits=N`: it takes a load of the weights of its own, as other options do.
        """
        grant = self._clients.get(client, _ANYBODY)
        model = next((entry for entry in self._models if fits([entry.name], found.name, found.model)), _ANY_MODEL)
        own = (found.ranges or {}).get(manifest.suite, {})
        options = [f"{name}={value}" for name, value in manifest.options.items() if own.get(name, _UNSET) != value]
        if manifest.fraction_bits != SUITES[manifest.suite].options.fraction_bits:
            options.append(f"fraction_bits={manifest.fraction_bits}")
        texts = (manifest.policy, parse(manifest.policy).spec)
        for entry, whom in ((grant, f"'{client}' may not"), (model, f"nobody may, with model '{found.name}',")):
            if not fits(entry.policies, *texts):
                raise PermissionRefused(
                    f"{whom} use policy '{manifest.policy}' at {self._server}; allowed ('policies' of its configuration): "
                    f"{', '.join(entry.policies or []) or 'none'}"
                )
            if other := next((option for option in options if not fits(entry.suite_options, option)), None):
                raise PermissionRefused(
                    f"{whom} use suite option {other[:100]} at {self._server}; allowed beside the model's own "
                    f"('suite_options' of its configuration): {', '.join(entry.suite_options or []) or 'none'}"
                )

    def check_decoding(self, manifest: Manifest, client: str) -> None:
        """Raise `PermissionRefused`, with the line that would grant it, for a decoding or an encoder's output that this
        client may not use."""
        self._check_role(manifest, client)
        if manifest.registers:
            return
        grant, asked = self._clients[client], manifest.decoding
        encoder = asked in get_args(Output)
        key, what = ("outputs", "output") if encoder else ("decoding", "decoding")
        granted: Sequence[str] | None = grant.outputs if encoder else grant.decoding
        if granted is not None and asked not in granted:
            wanted = ", ".join([*granted, asked])
            raise PermissionRefused(
                f"'{client}' may not use {what} '{asked}' at {self._server}; allowed: {', '.join(granted)}. "
                "Every party that grants it says so in its configuration: "
                f"clients: [{{name: {client}, {key}: [{wanted}]}}]"
            )

    def _check_role(self, manifest: Manifest, name: str) -> None:
        """Raise `PermissionRefused` where a model owner asks for more than to register a prefix, or a client for that."""
        if manifest.registers and name not in self._owners:
            raise PermissionRefused(
                f"'{name}' may not register a prefix at {self._server}: the model's owner does (`mpcache prefix add`)"
            )
        if not manifest.registers:
            self._listed(name, name in self._clients, "generate", "clients")

    def model(self, manifest: Manifest, client: str, found: M | None) -> M:
        """Return `found` itself. Raises the same `ConfigurationError` when there is none and when the client, or the model
        owner who registers a prefix, may not."""
        if found is None or not self._may_use(manifest, client, found):
            raise ConfigurationError(
                f"{self._server} holds no model {manifest.model}: its owner must share it first, and the configuration of "
                f"{self._server} must let '{client}' use it"
            )
        return found

    def _may_use(self, manifest: Manifest, name: str, found: OwnedModel) -> bool:
        if manifest.registers:
            return found.owner == name and fits(self._owners[name].models, found.name)
        return fits(self._clients[name].models, found.name, found.model)

    def check_model_name(self, owner: str, name: str, models: Sequence[OwnedModel]) -> None:
        """Raise `PermissionRefused` when the owner may not store under `name`, or somebody else's model has that name."""
        if not fits(self._owners[owner].models, name) or any(m.name == name and m.owner != owner for m in models):
            raise PermissionRefused(f"'{owner}' may not store a model of that name at {self._server}: choose another name")

    def owned(self, owner: str, model: str, found: M | None) -> M:
        """Return `found` itself, to be removed. Raises one and the same `PermissionRefused` unless it is the owner's."""
        if found is None or found.owner != owner or not fits(self._owners[owner].models, found.name):
            raise PermissionRefused(f"'{owner}' has no model {model} at {self._server} that it may remove")
        return found

    # ---- how much --------------------------------------------------------------------------------------------------
    def cost(self, setting: str, client: str) -> tuple[int | None, str]:
        """Return one of `parties.config.grants.COSTS`: the smaller of the server's limit and the client's, and where that is
        written."""
        limit: int | None = getattr(self._limits, setting)
        own: int | None = getattr(self._clients.get(client, _ANYBODY), setting)
        if own is not None and (limit is None or own < limit):
            return own, f"the entry of '{client}' in the 'clients' of {self._server}"
        return limit, f"the 'limits' of {self._server}"

    def loads(self) -> int:
        """Return how many loads are kept for one client at most, and how many its sessions use at a time."""
        limits = self._limits
        return min(limits.max_loads, limits.max_loads_per_client or limits.max_loads)

    def calls(self, name: str) -> int:
        """Return how many calls a client or a model owner may have open: `max_calls_per_client`, or as many as its sessions
        that run, wait or are just leaving, and `FURTHER_CALLS` more."""
        if self._limits.max_calls_per_client is not None:
            return self._limits.max_calls_per_client
        running, queued = self.sessions(name)
        return 2 * running + queued + FURTHER_CALLS

    def all_sessions(self) -> int:
        """Return how many sessions may be at this server: running, waiting, or just leaving."""
        return 2 * self._limits.max_sessions + self._limits.max_queued

    def sessions(self, client: str) -> tuple[int, int]:
        """Return how many sessions of a client may run at a time, and how many may wait.

        Where there are several clients, one that its grant does not allow more leaves a place to the others.
        """
        grant, limits = self._clients.get(client, _ANYBODY), self._limits
        queued = limits.max_queued_per_client if grant.max_queued is None else grant.max_queued
        usual = max(1, limits.max_sessions - 1) if len(self._clients) > 1 else limits.max_sessions
        return min(limits.max_sessions, grant.max_sessions or usual), min(queued, limits.max_queued)
