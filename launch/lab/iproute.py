"""`ip` and `tc`: run, or say why not and what to do about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mpc.errors import EnvironmentProblem

COMMAND_SECONDS = 30.0
TUN_DEVICE = Path("/dev/net/tun")
_PROBE = f"mpcache-probe-{os.getpid()}"


def run(*words: object) -> str:
    """Return the standard output of a command. Raises `EnvironmentProblem` with what it said."""
    command = [str(word) for word in words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise EnvironmentProblem(f"`{command[0]}` is not installed: apt install iproute2") from None
    except subprocess.TimeoutExpired:
        raise EnvironmentProblem(f"`{' '.join(command)}` did not end within {COMMAND_SECONDS:g} s") from None
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise EnvironmentProblem(f"`{' '.join(command)}` failed: {said}")
    return done.stdout


def works(*words: object) -> bool:
    """Return whether a command succeeds."""
    try:
        run(*words)
    except EnvironmentProblem:
        return False
    return True


def namespaces() -> list[str]:
    """Return all named network namespaces."""
    return [line.split()[0] for line in run("ip", "netns", "list").splitlines() if line.strip()]


def set_sysctl(namespace: str, values: dict[str, str]) -> None:
    """Set kernel settings of a namespace."""
    lines = [f"echo '{value}' > /proc/sys/{key.replace('.', '/')}" for key, value in values.items()]
    run("ip", "netns", "exec", namespace, "sh", "-ec", "\n".join(lines))


def inside(namespace: str, command: Sequence[object]) -> list[str]:
    """Return the command line that runs `command` in a namespace, as the same process."""
    return ["ip", "netns", "exec", namespace, *(str(word) for word in command)]


def problem() -> str | None:
    """Return why there can be no lab here, with the remedy; None when there can. Makes and removes one namespace to find
    out."""
    if sys.platform != "linux":
        return f"network namespaces need Linux, this is {sys.platform}: use a Linux machine or virtual machine"
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"`{tool}` is not installed: apt install iproute2 (Fedora: dnf install iproute iproute-tc)"
    if os.geteuid() != 0:
        return "network namespaces need root: run it as root (`sudo env PATH=$PATH mpcache lab ...`)"
    try:
        run("ip", "netns", "add", _PROBE)
    except EnvironmentProblem as error:
        return f"{error}: this machine permits no network namespaces (in a container: start it with --privileged)"
    try:
        run("ip", "-n", _PROBE, "link", "add", "one", "type", "veth", "peer", "name", "two")
        run("tc", "-n", _PROBE, "qdisc", "add", "dev", "one", "root", "tbf", "rate", "1mbit", "burst", 4000, "limit", 8000)
    except EnvironmentProblem as error:
        return f"{error}: the kernel needs the modules veth and sch_tbf (modprobe veth sch_tbf)"
    finally:
        works("ip", "netns", "del", _PROBE)
    return None


def has_netem() -> bool:
    """Return whether the kernel can delay packets by itself."""
    try:
        run("ip", "netns", "add", _PROBE)
        return works("tc", "-n", _PROBE, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
    finally:
        works("ip", "netns", "del", _PROBE)


def has_tun() -> bool:
    """Return whether packets can be taken to user space."""
    return os.access(TUN_DEVICE, os.R_OK | os.W_OK)
