"""What a lab is called, which labs there are, and taking one away: by its name alone, so also after a crash."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

from launch.lab import iproute
from mpc.errors import ConfigurationError

STATE = Path("/run/mpcache-lab")
HOSTS = Path("/etc/netns")  # `ip netns exec` lays what is here over /etc
PREFIX = "mpcache"
HUB = "hub"
TERM_SECONDS = 5.0
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


def check_name(option: str, name: str) -> str:
    """Return the name itself. Raises `ConfigurationError` unless it is fit for a namespace's name."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{option} '{name}': write 1 to 32 lower-case letters, digits and hyphens")
    return name


def namespace(lab: str, role: str) -> str:
    """Return the namespace of a role of a lab."""
    return f"{PREFIX}.{lab}.{role}"


def state_file(lab: str, suffix: str = ".json") -> Path:
    """Return where a lab's facts are kept while it is up."""
    return STATE / f"{lab}{suffix}"


def roles_up(lab: str) -> list[str]:
    """Return the roles (and the hub) of a lab that have a namespace."""
    before = namespace(lab, "")
    return [name.removeprefix(before) for name in iproute.namespaces() if name.startswith(before)]


def labs() -> list[str]:
    """Return the names of all labs of which anything is there."""
    found = {path.stem for path in STATE.glob("*.json")}
    for name in iproute.namespaces():
        parts = name.split(".")
        if len(parts) == 3 and parts[0] == PREFIX:
            found.add(parts[1])
    return sorted(found)


def remove(lab: str) -> bool:
    """End the processes in a lab's namespaces, and remove these with everything in them. False when there was nothing.

    Interfaces of a lab exist only inside its namespaces, so nothing else is touched. This process and those above it are
    spared, wherever they are.
    """
    roles = roles_up(lab)
    roles.sort(key=lambda role: role == HUB)  # those who use the network before the network
    _end_processes([namespace(lab, role) for role in roles])
    for role in roles:
        with suppress(OSError):
            shutil.rmtree(HOSTS / namespace(lab, role))
        if iproute.works("ip", "netns", "del", namespace(lab, role)):
            continue
        if role in roles_up(lab):  # not by another process meanwhile
            iproute.run("ip", "netns", "del", namespace(lab, role))
    known = state_file(lab).exists()
    for suffix in (".json", ".counts", ".log"):
        state_file(lab, suffix).unlink(missing_ok=True)
    return known or bool(roles)


def _end_processes(names: list[str]) -> None:
    spared = _ancestry()
    for number, seconds in ((signal.SIGTERM, TERM_SECONDS), (signal.SIGKILL, TERM_SECONDS)):
        limit = time.monotonic() + seconds
        told: set[int] = set()
        while left := [pid for name in names for pid in processes(name) if pid not in spared]:
            for pid in left:
                if pid not in told:
                    told.add(pid)
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
            if time.monotonic() > limit:
                break
            time.sleep(0.05)
        else:
            return


def processes(name: str) -> list[int]:
    """Return the processes in a namespace; none when it is gone."""
    try:
        wanted = os.stat(f"/run/netns/{name}")
    except OSError:
        return []
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with suppress(OSError):
                there = os.stat(f"/proc/{entry}/ns/net")
                if (there.st_ino, there.st_dev) == (wanted.st_ino, wanted.st_dev) and not _zombie(entry):
                    found.append(int(entry))
    return found


def _zombie(pid: str) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def _ancestry() -> set[int]:
    found, pid = set(), os.getpid()
    while pid > 0:
        found.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return found
