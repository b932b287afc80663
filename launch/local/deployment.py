"""A whole deployment on this machine: real processes, real TLS, temporary identities, nothing left afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import yaml

from launch.local.ports import free_ports
from launch.local.processes import Child, ProcessEnded, Processes
from launch.terminal.console import Settings
from mpc.errors import EnvironmentProblem
from mpc.generators import suited
from mpc.role_process import processors
from parties.config.role_config import load_config
from parties.identity.certificates import create_deployment
from parties.names import AUTHORITY, Role
from parties.wire.model_ranges import Ranges, pack_ranges

T = TypeVar("T")

CLIENT, DEALER, OWNER = "client", "dealer", "model-owner"
CERTIFICATE_DAYS = 1
ATTEMPTS = 5
LAB_PORT = 7000
PORT_TAKEN = "cannot listen at"


class Hosts(Protocol):
    """Where roles run that do not run on this machine as it is: a lab's network namespaces."""

    @property
    def addresses(self) -> Mapping[str, str]:
        """Return every role's address."""

    def command(self, role: str, command: Sequence[object]) -> list[str]:
        """Return the command line that runs `command` as `role`."""


def party_name(index: int) -> str:
    """Return the name of a local compute party.

    >>> party_name(0)
    'party0'
    """
    return f"party{index}"


class LocalDeployment:
    """Running compute parties and dealer. Made by `local_deployment`."""

    def __init__(self, processes: Processes, folder: Path, children: list[Child], lab: Hosts | None = None) -> None:
        self.children = children
        self.lab = lab
        self.folder = folder
        self.client = load_config(folder / f"{CLIENT}.yaml")
        self._processes = processes

    def share_model(
        self,
        checkpoint: Path,
        name: str,
        ranges: Ranges | None = None,
        calibrated: bool = True,
        on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    ) -> None:
        """Run a model owner, which shares the weights among the parties and leaves. ranges: the bounds that go with them, by
        default those of the checkpoint's calibration, if `calibrated`. Raises `ProcessEnded`."""
        arguments = ["model-owner", "--supervised", "--config", str(self.folder / f"{OWNER}.yaml")]
        words = [*arguments, "--model", str(checkpoint.resolve()), "--name", name]
        words += [] if calibrated else ["--no-calibration"]
        words += [] if ranges is None else ["--ranges", pack_ranges(ranges)]
        owner = self._processes.start(OWNER, words, _before(self.lab, OWNER))
        self._processes.wait_done(owner, on_progress)

    def watch(self) -> NoReturn:
        """Wait until this process is told to end; a process that dies meanwhile raises `ProcessEnded`."""
        self._processes.watch()

    def gateway(self, checkpoint: Path, keys: Path) -> str:
        """Run a gateway for all models, with the checkpoint's tokenizer, and return its address on this machine. keys: the
        file of the keys that it asks for. Raises `ProcessEnded`."""
        words = ["serve", "--supervised", "--config", str(self.folder / f"{CLIENT}.yaml"), "--listen", "127.0.0.1:0"]
        words += ["--tokenizer", str(checkpoint.resolve()), "--api-key-file", str(keys.resolve())]
        child = self._processes.start("gateway", words)
        self._processes.wait_ready([child])
        assert child.ready is not None
        return str(child.ready["address"])

    def check(self) -> None:
        """Raise `ProcessEnded` when one of its processes has ended."""
        self._processes.check()

    def watched(self, work: Callable[[], T]) -> T:
        """Return the result of `work`; a process that dies meanwhile raises `ProcessEnded` at once."""
        return self._processes.watched(work)


@contextmanager
def local_deployment(
    parties: int = 2,
    device: str = "cpu",
    lab: Hosts | None = None,
    limits: Mapping[str, int] | None = None,
    show_openings: bool = False,
) -> Iterator[LocalDeployment]:
    """Run compute parties `party0`, `party1`, ... and a dealer as processes of this machine, ready to serve.

    lab: where each role runs, by default on this machine as it is; it has all roles, and the caller is the client's. limits:
    of the servers, see `parties.config.role_config.Limits`. show_openings: parties tell this process what they open
    (`Child.seen`).

    On leaving, for whatever reason, the processes are ended and the temporary folder (identities, configurations, shares;
    mode 0700) is removed. Should this process be killed outright, its children do that.
    """
    folder = Path(tempfile.mkdtemp(prefix="mpcache-"))
    try:
        names = [party_name(i) for i in range(parties)]
        members: dict[str, Role] = {
            **dict.fromkeys(names, "party"),
            DEALER: "dealer",
            CLIENT: "client",
            OWNER: "model-owner",
        }
        fingerprints = create_deployment(folder / "certificates", members, CERTIFICATE_DAYS)
        shutil.rmtree(folder / "certificates" / AUTHORITY)  # nobody is to be introduced any more
        with Processes(folder, _environment(parties)) as processes:
            known = _Known(folder, fingerprints, names, lab)
            further = {"device": device, "limits": dict(limits or {})}
            children = _start(processes, known, further, ["--show-openings"] if show_openings else [])
            yield LocalDeployment(processes, folder, children, lab)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _before(lab: Hosts | None, role: str) -> list[str]:
    return lab.command(role, []) if lab is not None else []


@dataclass(frozen=True)
class _Known:
    """What the roles' configurations say of the deployment: its folder, keys' fingerprints, the parties' names, where roles
    run."""

    folder: Path
    fingerprints: dict[str, str]
    names: list[str]
    lab: Hosts | None


def _start(processes: Processes, known: _Known, further: dict[str, Any], of_parties: list[str]) -> list[Child]:
    """Start all servers; a port that another program took in the meantime leads to new ports. further: keys of all
    configurations. of_parties: options of the parties' command."""
    for attempt in range(ATTEMPTS):
        _write_configurations(known, further)
        flags = ["--debug"] if Settings.debug else []
        roles = [(DEALER, [DEALER]), *((name, ["party", *of_parties]) for name in known.names)]
        children = [
            processes.start(
                name,
                [*flags, *command, "--supervised", "--config", str(known.folder / f"{name}.yaml")],
                _before(known.lab, name),
            )
            for name, command in roles
        ]
        try:
            processes.wait_ready(children)
            return children
        except ProcessEnded as error:
            if PORT_TAKEN not in error.last_error or attempt + 1 == ATTEMPTS:
                raise
            processes.stop()
    raise EnvironmentProblem(f"no free ports at 127.0.0.1 in {ATTEMPTS} attempts")


def _environment(parties: int) -> dict[str, str]:
    """Divide cores among the parties and the dealer, unless the user says how many threads each may use."""
    threads = str(max(1, processors() // (parties + 1)))
    return {key: os.environ.get(key, threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def _addresses(names: list[str], lab: Hosts | None) -> dict[str, str]:
    if lab is not None:  # nothing else listens there
        return {name: f"{lab.addresses[name]}:{LAB_PORT}" for name in names}
    return {name: f"127.0.0.1:{port}" for name, port in zip(names, free_ports(len(names)), strict=True)}


def _write_configurations(known: _Known, further: dict[str, Any]) -> None:
    folder, fingerprints, names, lab = known.folder, known.fingerprints, known.names, known.lab
    addresses = _addresses([*names, DEALER], lab)

    def entry(name: str) -> dict[str, str]:
        address = {"address": addresses[name]} if name in addresses else {}
        return {"name": name, **address, "fingerprint": fingerprints[name]}

    common: dict[str, Any] = {
        "certificates": str(folder / "certificates"),
        "parties": [{**entry(name), "prg": suited(further["device"])} for name in names],
        "dealer": entry(DEALER),
        # whoever starts this is client, model owner and parties in one: there is nobody to keep logits from
        "clients": [{**entry(CLIENT), "decoding": ["greedy", "sample", "logits"]}],
        "model_owners": [entry(OWNER)],
        **further,
    }
    for name in names:
        own = {"role": "party", "listen": addresses[name], "store": str(folder / f"store-{name}")}
        _write(folder, name, {**common, **own})
    _write(folder, DEALER, {**common, "role": "dealer", "listen": addresses[DEALER]})
    _write(folder, CLIENT, {**common, "role": "client"})
    _write(folder, OWNER, {**common, "role": "model-owner"})


def _write(folder: Path, name: str, values: dict[str, Any]) -> None:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, **values}, sort_keys=False), encoding="utf-8")
