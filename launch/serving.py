"""What `mpcache party` and `mpcache dealer` have in common: serve until told to stop."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol

from launch import supervision
from launch.console import err
from launch.options import check_device
from launch.signals import Terminated
from mpc.errors import ConfigurationError
from parties.config import Role, RoleConfig, load_config


class Server(Protocol):
    """A role's server. start() returns once it accepts calls; address is where it listens then."""

    address: str

    def start(self) -> object: ...

    def wait(self) -> None: ...

    def stop(self) -> None: ...


def load_role(path: Path, role: Role) -> RoleConfig:
    """The configuration of `path`. Raises `ConfigurationError` when it is another role's."""
    config = load_config(path)
    if config.role != role:
        raise ConfigurationError(f"{path}: role is '{config.role}', not '{role}'; start it with `mpcache {config.role}`")
    check_device(config.device)
    return config


def serve(server: Server, config: RoleConfig, supervised: bool) -> None:
    """Run until SIGTERM (then end in good order) or Ctrl-C."""
    level = logging.WARNING if supervised else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    try:
        server.start()
        if supervised:
            supervision.report_ready(name=config.name, address=server.address)
        else:
            err.print(f"{config.name} ({config.role}) serves at {server.address}; Ctrl-C ends it")
        server.wait()
    except Terminated:
        pass
    finally:
        server.stop()
