"""What `mpcache party` and `mpcache dealer` have in common: serve until told to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from launch.local import supervision
from launch.local.checks import check_device
from launch.local.signals import Terminated
from launch.terminal import logs
from launch.terminal.console import err
from mpc import role_process
from mpc.errors import ConfigurationError, MpcacheError
from mpc.generators import AES, suited
from parties.config.role_config import RoleConfig, load_config
from parties.events import log
from parties.identity.certificates import Identity
from parties.names import Role
from parties.status.peer_watch import PeerWatch

FAILURE_SECONDS = 0.2


class Server(Protocol):
    """A role's server. start() returns once it accepts calls; address is where it listens then."""

    address: str

    @property
    def identity(self) -> Identity: ...

    def start(self) -> object: ...

    def wait(self) -> None: ...

    def fail(self, error: MpcacheError) -> None: ...

    def drain(self, seconds: float) -> bool: ...

    def stop(self) -> None: ...


def load_role(path: Path, role: Role, trust_authority: bool = False) -> RoleConfig:
    """Read a role's configuration, with insecure_trust_authority set if `trust_authority`, and let this process, which is to
    be that role, share its machine as that role should (`mpc.role_process`). Raises `ConfigurationError` when it is another
    role's."""
    role_process.set_up(role in ("party", "dealer"))
    config = load_config(path)
    if config.role != role:
        served = {config.role, role} == {"party", "dealer"}
        remedy = f"start it with `mpcache {config.role}`" if served else f"give the file of a {role.replace('-', ' ')}"
        raise ConfigurationError(f"{path}: role is '{config.role}', not '{role}'; {remedy}")
    check_device(config.device)
    return config.model_copy(update={"insecure_trust_authority": True}) if trust_authority else config


class _Failing:
    """Ends a server, from a thread of its own, as soon as something says that it cannot go on."""

    def __init__(self, server: Server, failure: Callable[[], MpcacheError | None]) -> None:
        self.error: MpcacheError | None = None
        self._server, self._failure, self._over = server, failure, threading.Event()
        threading.Thread(target=self._watch, name="failure", daemon=True).start()

    def _watch(self) -> None:
        while not self._over.wait(FAILURE_SECONDS):
            if (error := self._failure()) is not None:
                self.error = error
                self._server.fail(error)
                self._server.stop()
                return

    def stop(self) -> None:
        """Watch no longer."""
        self._over.set()


def _hint(config: RoleConfig) -> None:
    """Say where a party on a GPU has its seeds expanded by the processor."""
    better = suited(config.device)
    if config.role == "party" and better != AES and config.generators[config.name] == AES:
        log.info(
            "%s: its seeds are expanded by the processor and copied; 'prg: %s' in its entry of 'parties', at all roles, has "
            "them expanded on %s",
            config.name,
            better,
            config.device,
        )


def serve(
    server: Server, config: RoleConfig, supervised: bool, failure: Callable[[], MpcacheError | None] = lambda: None
) -> None:
    """Run until SIGTERM (then let running sessions end, for `grace_seconds`) or Ctrl-C. failure(): why the server cannot go
    on, None as long as it can; it ends with that error."""
    logs.configure(config.log_format, "warning" if supervised else config.log_level, config.name)
    _hint(config)
    watch, failing = PeerWatch(config, lambda: server.identity), _Failing(server, failure)
    try:
        server.start()
        if supervised:
            supervision.report_ready(name=config.name, address=server.address)
        else:
            err.print(f"{config.name} ({config.role}) serves at {server.address}; Ctrl-C ends it")
            watch.start()
        server.wait()
        if failing.error is not None:
            raise failing.error
    except Terminated:
        server.drain(config.grace_seconds)  # a second signal ends it at once
    finally:
        failing.stop()
        watch.stop()
        server.stop()
