"""A lab: namespaces of roles, linked through a hub that has the network's delay, bandwidth and loss.

    role's namespace                     hub's namespace                      role's namespace
    eth0  --tbf-->  veth pair  -->  r0 --route--> delay0 (relay) --route--> r1  --tbf-->  veth pair  -->  eth0

Bandwidth is the kernel's (`tbf`, each direction of each role's link), delay and loss are netem's where the kernel has it,
else the relay's (`launch.lab.relay`). No interface exists outside the lab's own namespaces.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from launch.lab import iproute
from launch.lab.relay import DEVICE
from launch.lab.removal import HOSTS, HUB, STATE, check_name, namespace, remove, roles_up, state_file
from launch.lab.shaping import Shape, check_shapeable
from launch.local.supervision import READY
from launch.predict.networks import Network, find_network
from mpc.errors import ConfigurationError, EnvironmentProblem

Delay = Literal["auto", "netem", "relay", "none"]
DEFAULT_NAME = "lab"
GATEWAY = "10.77.0.1"
FIRST_ADDRESS = 10
MOST_ROLES = 200
TABLE = 100
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class LabState:
    """A lab that is up. addresses: role -> IPv4 address. delay: what delays packets."""

    name: str
    network: Network
    addresses: dict[str, str]
    delay: str

    def to_json(self) -> dict[str, Any]:
        """Return it for files and `--json`."""
        network = {
            "profile": self.network.name,
            "round_trip_ms": self.network.round_trip * 1e3,
            "mbit_per_second": self.network.bandwidth / 1e6,
            "loss_percent": self.network.loss * 100,
        }
        spaces = {role: namespace(self.name, role) for role in self.addresses}
        return {"name": self.name, **network, "delay": self.delay, "addresses": self.addresses, "namespaces": spaces}


def read_state(name: str) -> LabState:
    """Return the state of a lab that is up. Raises `ConfigurationError` when there is none of this name."""
    try:
        values = json.loads(state_file(name).read_text(encoding="utf-8"))
        return LabState(name, Network(**values["network"]), values["addresses"], values["delay"])
    except (OSError, ValueError, KeyError, TypeError):
        what = "is there in part only: `mpcache lab down` removes it" if roles_up(name) else "is not up: `mpcache lab up`"
        raise ConfigurationError(f"lab '{name}' {what}") from None


def roles_for(parties: int) -> list[str]:
    """Return the roles of a deployment with so many compute parties."""
    return ["client", "model-owner", "dealer", *(f"party{i}" for i in range(parties))]


class Lab:
    """A lab that lives as long as the `with` block, or this process: with either, its namespaces and all processes in them
    go. `up()` alone makes one that stays until `down()` or `removal.remove`.

    network: a name or "RTT_MS,MBIT_PER_SECOND" (`launch.predict.networks`). roles: names, one namespace each.
    Raises `EnvironmentProblem` where namespaces are not permitted, `ConfigurationError` for bad or taken names.
    """

    def __init__(self, network: Network | str, roles: Sequence[str], name: str | None = None, delay: Delay = "auto") -> None:
        self.network = check_shapeable(find_network(network) if isinstance(network, str) else network)
        self.roles = list(roles)
        self.name = check_name("--name", f"run-{os.getpid()}" if name is None else name)
        for role in self.roles:
            check_name("role", role)
        if not 2 <= len(set(self.roles)) == len(self.roles) <= MOST_ROLES or HUB in self.roles:
            raise ConfigurationError(
                f"roles {','.join(self.roles)}: 2 to {MOST_ROLES} different names are needed, none of them '{HUB}'"
            )
        self.addresses = {role: f"10.77.0.{FIRST_ADDRESS + i}" for i, role in enumerate(self.roles)}
        self.processes: list[subprocess.Popen[bytes]] = []
        self._wanted = delay
        self._daemon: subprocess.Popen[str] | None = None

    # ---- life --------------------------------------------------------------------------------------------------------
    def __enter__(self) -> Lab:
        self.up(owned=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self.down()

    def up(self, owned: bool = False) -> LabState:
        """Make it. owned: the lab goes when this process does, even by SIGKILL."""
        if (why := iproute.problem()) is not None:
            raise EnvironmentProblem(why)
        STATE.mkdir(mode=0o755, exist_ok=True)
        with _locked(self.name):
            if roles_up(self.name) or state_file(self.name).exists():
                raise ConfigurationError(
                    f"lab '{self.name}' is there already: `mpcache lab down --name {self.name}`, or choose another --name"
                )
            try:
                return self._make(owned)
            except BaseException:
                self.down()
                raise

    def down(self) -> None:
        """End its processes and remove it. Nothing happens when it is gone already."""
        remove(self.name)
        everyone: list[subprocess.Popen[Any]] = [*self.processes]
        if self._daemon is not None:
            everyone.append(self._daemon)
        for process in everyone:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        self.processes, self._daemon = [], None

    @classmethod
    def attach(cls, name: str) -> Lab:
        """Return a lab that another process made. Raises `ConfigurationError` when there is none."""
        state = read_state(name)
        return cls(state.network, list(state.addresses), name)

    # ---- use ---------------------------------------------------------------------------------------------------------
    def command(self, role: str, command: Sequence[object]) -> list[str]:
        """Return the command line that runs `command` as `role`."""
        if role not in self.addresses:
            raise ConfigurationError(f"role '{role}' is not in lab '{self.name}': {', '.join(self.roles)}")
        return iproute.inside(namespace(self.name, role), command)

    def start(
        self, role: str, command: Sequence[object], environment: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[bytes]:
        """Run `command` as `role`; it is ended with the lab. options: of `subprocess.Popen`."""
        process = subprocess.Popen(self.command(role, command), env={**os.environ, **(environment or {})}, **options)
        self.processes.append(process)
        return process

    @contextmanager
    def inside(self, role: str) -> Iterator[None]:
        """Put this thread, and those that it starts, into the role's namespace: what they open connects from there.

        For a process that has not connected anywhere yet: threads of libraries that run already stay where they are.
        """
        self.command(role, [])
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            enter(namespace(self.name, role))
            try:
                yield
            finally:
                _enter(here)
        finally:
            os.close(here)

    # ---- making ------------------------------------------------------------------------------------------------------
    def _make(self, owned: bool) -> LabState:
        delay = self._choose_delay()
        shape, hub = Shape(self.network), namespace(self.name, HUB)
        for role in [HUB, *self.roles]:
            iproute.run("ip", "netns", "add", namespace(self.name, role))
            iproute.run("ip", "-n", namespace(self.name, role), "link", "set", "lo", "up")
        forwarding = {"net.ipv4.ip_forward": "1"}
        for where in ("all", "default"):
            forwarding[f"net.ipv4.conf.{where}.rp_filter"] = "0"
            forwarding[f"net.ipv4.conf.{where}.send_redirects"] = "0"
        iproute.set_sysctl(hub, forwarding)
        self._start_daemon(delay, owned, shape)
        if delay == "relay":
            iproute.run("ip", "-n", hub, "link", "set", DEVICE, "txqueuelen", 10000, "up")
        for number, role in enumerate(self.roles):
            self._link(number, role, shape, delay)
        if delay == "relay":
            iproute.run("ip", "-n", hub, "route", "add", "default", "dev", DEVICE, "table", TABLE)
        self._write_hosts()
        state = LabState(self.name, self.network, self.addresses, delay)
        values = {"network": asdict(self.network), "addresses": self.addresses, "delay": delay}
        state_file(self.name).write_text(json.dumps(values), encoding="utf-8")
        return state

    def _choose_delay(self) -> str:
        if self._wanted == "none" or not (self.network.round_trip or self.network.loss):
            return "none"
        if self._wanted == "netem" or (self._wanted == "auto" and iproute.has_netem()):
            if not iproute.has_netem():
                raise EnvironmentProblem("--delay netem: the kernel has no sch_netem; modprobe sch_netem, or --delay relay")
            return "netem"
        if not iproute.has_tun():
            raise EnvironmentProblem(
                "the kernel can delay packets by neither sch_netem nor /dev/net/tun: modprobe sch_netem, or modprobe tun "
                "(in a container: --device /dev/net/tun)"
            )
        return "relay"

    def _link(self, number: int, role: str, shape: Shape, delay: str) -> None:
        hub, own, near, address = namespace(self.name, HUB), namespace(self.name, role), f"r{number}", self.addresses[role]
        ip, tc = iproute.run, iproute.run
        ip("ip", "-n", hub, "link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", own)
        segments = ["gso_max_size", shape.segment, *(["gso_max_segs", 1] if self.network.loss else [])]
        ip("ip", "-n", own, "link", "set", "eth0", *segments, "up")
        ip("ip", "-n", hub, "link", "set", near, "up")
        ip("ip", "-n", own, "addr", "add", f"{address}/32", "dev", "eth0")
        ip("ip", "-n", own, "route", "add", "default", "via", GATEWAY, "dev", "eth0", "onlink")
        ip("ip", "-n", hub, "addr", "add", f"{GATEWAY}/32", "dev", near)
        ip("ip", "-n", hub, "route", "add", f"{address}/32", "dev", near)
        tc("tc", "-n", own, "qdisc", "add", "dev", "eth0", "root", *shape.bucket())
        if delay == "netem":
            tc("tc", "-n", hub, "qdisc", "add", "dev", near, "root", "handle", "1:", *shape.netem())
            tc("tc", "-n", hub, "qdisc", "add", "dev", near, "parent", "1:1", "handle", "10:", *shape.bucket())
        else:
            tc("tc", "-n", hub, "qdisc", "add", "dev", near, "root", *shape.bucket())
        if delay == "relay":
            ip("ip", "-n", hub, "rule", "add", "iif", near, "lookup", TABLE, "pref", TABLE)
        window = f"4096 131072 {max(6 << 20, min(shape.window, 1 << 30))}"
        iproute.set_sysctl(own, {"net.ipv4.tcp_rmem": window, "net.ipv4.tcp_wmem": window})

    def _start_daemon(self, delay: str, owned: bool, shape: Shape) -> None:
        command = [sys.executable, "-P", "-m", "launch.lab.daemon", self.name]
        command += ["--counts", str(state_file(self.name, ".counts"))]
        if owned:
            command.append("--owned")
        if delay == "relay":
            room = shape.held(len(self.roles))
            command += ["--relay", str(self.network.round_trip / 2), str(self.network.loss), str(room)]
        with state_file(self.name, ".log").open("wb") as log:
            self._daemon = subprocess.Popen(
                iproute.inside(namespace(self.name, HUB), command),
                stdin=subprocess.PIPE if owned else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                cwd="/",
                env=module_environment(),
            )
        assert self._daemon.stdout is not None
        if not self._daemon.stdout.readline().startswith(READY):
            said = state_file(self.name, ".log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise EnvironmentProblem(f"the lab's relay did not start: {said[-1] if said else 'it printed no error'}")

    def _write_hosts(self) -> None:
        lines = [f"{address}\t{role}" for role, address in self.addresses.items()]
        before = Path("/etc/hosts").read_text(encoding="utf-8") if Path("/etc/hosts").exists() else "127.0.0.1\tlocalhost\n"
        for role in self.roles:
            folder = HOSTS / namespace(self.name, role)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "hosts").write_text(before.rstrip("\n") + "\n" + "\n".join(lines) + "\n", encoding="utf-8")


def module_environment() -> dict[str, str]:
    """Return the environment of a child whose folder is not ours: where this package is."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, *([path] if path else [])])}


def enter(name: str) -> None:
    """Move this thread, and those that it starts, into a named namespace for good. Raises `EnvironmentProblem`."""
    try:
        handle = os.open(f"/run/netns/{name}", os.O_RDONLY)
    except OSError as error:
        raise EnvironmentProblem(f"network namespace {name} cannot be entered ({error.strerror}): is its lab up?") from None
    try:
        _enter(handle)
    finally:
        os.close(handle)


def _enter(handle: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(handle, _CLONE_NEWNET) != 0:
        raise EnvironmentProblem(f"cannot enter a network namespace: {os.strerror(ctypes.get_errno())}; run it as root")


@contextmanager
def _locked(name: str) -> Iterator[None]:
    handle = os.open(state_file(name, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        state_file(name, ".lock").unlink(missing_ok=True)
        os.close(handle)
