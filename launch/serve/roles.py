"""What `mpcache party` and `mpcache dealer` have in common: serve until told to stop."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from launch.local import supervision
from launch.local.checks import check_device
from launch.local.signals import Terminated
from launch.terminal import logs
from launch.terminal.console import err
from mpc.errors import ConfigurationError
from parties.config.role_config import RoleConfig, load_config
from parties.identity.certificates import Identity
from parties.names import Role
from parties.status.peer_watch import PeerWatch


class Server(Protocol):
    """A role's server. start() returns once it accepts calls; address is where it listens then."""

    address: str

    @property
    def identity(self) -> Identity: ...

    def start(self) -> object: ...

    def wait(self) -> None: ...

    def drain(self, seconds: float) -> bool: ...

    def stop(self) -> None: ...


def load_role(path: Path, role: Role, trust_authority: bool = False) -> RoleConfig:
    """Read a role's configuration, with insecure_trust_authority set if `trust_authority`. Raises `ConfigurationError` when
    it is another role's."""
    config = load_config(path)
    if config.role != role:
        raise ConfigurationError(f"{path}: role is '{config.role}', not '{role}'; start it with `mpcache {config.role}`")
    check_device(config.device)
    return config.model_copy(update={"insecure_trust_authority": True}) if trust_authority else config


def serve(server: Server, config: RoleConfig, supervised: bool) -> None:
    """Run until SIGTERM (then let running sessions end, for `grace_seconds`) or Ctrl-C."""
    logs.configure(config.log_format, "warning" if supervised else config.log_level, config.name)
    watch = PeerWatch(config, lambda: server.identity)
    try:
        server.start()
        if supervised:
            supervision.report_ready(name=config.name, address=server.address)
        else:
            err.print(f"{config.name} ({config.role}) serves at {server.address}; Ctrl-C ends it")
            watch.start()
        server.wait()
    except Terminated:
        server.drain(config.grace_seconds)  # a second signal ends it at once
    finally:
        watch.stop()
        server.stop()
