"""Who takes part in a new deployment and where, from the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import PurePosixPath

from mpc.errors import ConfigurationError
from parties.config.role_config import PeerAddress, split_address
from parties.names import Role, check_name

DEALER = "dealer"
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
PREFIX = re.compile(r"(/[A-Za-z0-9._-]+)+")


@dataclass(frozen=True)
class Member:
    """One role. address: where it is reached, None for those that nobody dials."""

    name: str
    role: Role
    address: str | None = None

    @property
    def host(self) -> str | None:
        """Return the address's host."""
        return None if self.address is None else split_address(self.address)[0]

    @property
    def port(self) -> int | None:
        """Return the address's port."""
        return None if self.address is None else split_address(self.address)[1]

    @property
    def listen(self) -> str | None:
        """Return where it listens: at every network, but for a deployment on one machine."""
        if self.address is None or self.host is None:
            return None
        try:
            address = ip_address(self.host)
        except ValueError:
            return self.address if self.host == "localhost" else f"0.0.0.0:{self.port}"
        if address.is_loopback:
            return self.address
        return f"[::]:{self.port}" if address.version == 6 else f"0.0.0.0:{self.port}"


@dataclass(frozen=True)
class Plan:
    """A whole deployment. prefix: where its folders and the program will lie on the roles' hosts.

    trust_authority: whether no fingerprints are needed. one_owner: whether one person owns all roles, whose keys are made
    with the folders.
    """

    parties: list[Member]
    dealer: Member
    clients: list[Member]
    model_owners: list[Member]
    prefix: PurePosixPath
    trust_authority: bool = False
    one_owner: bool = False

    @property
    def members(self) -> list[Member]:
        """Return everybody's name and role."""
        return [*self.parties, self.dealer, *self.clients, *self.model_owners]


def make_plan(
    parties: list[str],
    dealer: str,
    clients: list[str],
    model_owners: list[str],
    prefix: str,
    trust_authority: bool = False,
) -> Plan:
    """Return a plan from NAME=HOST:PORT (or HOST:PORT alone, with the usual name) and names.

    Raises `ConfigurationError` that names the option, the value and the remedy.
    """
    if len(parties) < 2:
        raise ConfigurationError(f"--parties needs at least 2 compute parties, got {len(parties)}: separate them by commas")
    found = [_member("--parties", text, "party", f"party{i}") for i, text in enumerate(parties)]
    plan = Plan(
        parties=found,
        dealer=_member("--dealer", dealer, "dealer", DEALER),
        clients=[Member(_name("--clients", name), "client") for name in clients],
        model_owners=[Member(_name("--model-owners", name), "model-owner") for name in model_owners],
        prefix=PurePosixPath(prefix),
        trust_authority=trust_authority,
    )
    if not PREFIX.fullmatch(prefix):
        raise ConfigurationError(f"--prefix '{prefix}' is not an absolute path of letters, digits and . _ -")
    names = [member.name for member in plan.members]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigurationError(f"the name '{twice}' is given to two roles: every role needs a name of its own")
    addresses = [member.address for member in plan.members if member.address is not None]
    if same := next((address for address in addresses if addresses.count(address) > 1), None):
        raise ConfigurationError(f"the address {same} is given to two roles: give each a host or a port of its own")
    for member in plan.members:
        if member.host in names and member.host != member.name:
            raise ConfigurationError(
                f"host '{member.host}' of '{member.name}' is the name of another role: give that role another name"
            )
    return plan


def _member(option: str, text: str, role: Role, usual: str) -> Member:
    name, equals, address = text.rpartition("=")
    name = _name(option, name if equals else usual)
    try:
        PeerAddress(name=name, address=address)
        host, _ = split_address(address)
    except ValueError:
        raise ConfigurationError(f"{option} '{text}' is not NAME=HOST:PORT, such as {usual}=10.0.0.10:7000") from None
    try:
        unspecified = ip_address(host).is_unspecified
    except ValueError:
        unspecified = not HOST.fullmatch(host)
    if unspecified:
        raise ConfigurationError(f"{option} '{text}': '{host}' is no host that others can reach; write its name or address")
    return Member(name, role, address)


def _name(option: str, name: str) -> str:
    try:
        return check_name(name)
    except ConfigurationError as error:
        raise ConfigurationError(f"{option}: {error}") from None
