"""docs/deployment.md and docs/hosts.md word for word: their commands, on the hosts that they name, network namespaces here.

Each host has a folder of its own and one shell; `scp` copies between the folders. Nothing else is changed but CHECKPOINT.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

from launch.lab import iproute

ROOT = Path(__file__).parents[3]
CHECKPOINT = ROOT / "models" / "recall" / "gpt2"
HOST = r"10\.0\.0\.1\d"
QUESTION = "Codes . Kepler : 0 4 5 1 ; Curie : 9 3 2 7 ; Bohr : 5 5 1 8 . ? Curie :\n"
SCP = """#!/bin/sh
# scp [-r] FILE HOST:FOLDER
[ "$1" = -r ] && shift
exec cp -r "$1" "{hosts}/${{2%%:*}}/${{2#*:}}"
"""

pytestmark = pytest.mark.skipif(iproute.problem() is not None, reason=str(iproute.problem()))


@dataclass(frozen=True)
class Block:
    """Commands of the page. hosts: where the line before says that they run; a line each on its host, or all of them on
    each host, likewise with its role's name."""

    section: str
    hosts: list[str]
    line_each: bool
    commands: list[str]


@dataclass
class Hosts:
    """Namespaces 10.0.0.10 to 14 on one switch."""

    folder: Path
    made: list[str] = field(default_factory=list)
    running: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    logs: dict[str, Path] = field(default_factory=dict)

    def up(self, names: list[str]) -> None:
        mark = f"mpcd{os.getpid()}"
        switch = f"{mark}-s"
        self._namespace(switch)
        iproute.run("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
        iproute.run("ip", "-n", switch, "link", "set", "br0", "up")
        for n, name in enumerate(names):
            space = self.space(name)
            self._namespace(space)
            iproute.run("ip", "-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", f"p{n}", "netns", switch)
            iproute.run("ip", "-n", switch, "link", "set", f"p{n}", "master", "br0", "up")
            iproute.run("ip", "-n", space, "address", "add", f"{name}/24", "dev", "eth0")
            iproute.run("ip", "-n", space, "link", "set", "eth0", "up")
            (self.folder / name).mkdir()
            (self.folder / f"{name}.cwd").write_text(str(self.folder / name))
        program = self.folder / "bin" / "scp"
        program.parent.mkdir()
        program.write_text(SCP.format(hosts=self.folder))
        program.chmod(0o755)
        mpcache = program.with_name("mpcache")
        mpcache.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m launch.cli.main "$@"\n')
        mpcache.chmod(0o755)

    def space(self, name: str) -> str:
        return f"mpcd{os.getpid()}-{name.rpartition('.')[2]}"

    def _namespace(self, name: str) -> None:
        iproute.run("ip", "netns", "add", name)
        self.made.append(name)
        iproute.run("ip", "-n", name, "link", "set", "lo", "up")

    def command(self, host: str, text: str) -> list[str]:
        """In the folder where the host's shell is."""
        where = self.folder / f"{host}.cwd"
        script = f'cd "$(cat {where})" && {text} && pwd > {where}'
        return ["ip", "netns", "exec", self.space(host), "bash", "-c", script]

    def environment(self, host: str) -> dict[str, str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        keep = {k: v for k, v in os.environ.items() if k in ("LANG", "PYTHONDONTWRITEBYTECODE")}
        return {**keep, "PATH": path, "HOME": str(self.folder / host), "PYTHONPATH": str(ROOT), "COLUMNS": "200"}

    def run(self, host: str, text: str) -> str:
        done = subprocess.run(
            self.command(host, text), env=self.environment(host), capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, f"{host}$ {text}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, host: str, text: str) -> None:
        self.logs[host] = self.folder / f"{host}.log"
        log: IO[Any]
        with self.logs[host].open("w") as log:
            self.running[host] = subprocess.Popen(
                self.command(host, text), env=self.environment(host), stdout=log, stderr=subprocess.STDOUT, text=True
            )

    def wait_for(self, host: str, text: str) -> None:
        limit = time.monotonic() + 180
        while text not in (said := self.logs[host].read_text()):
            assert time.monotonic() < limit, f"{host} never said {text!r}:\n{said}"
            assert self.running[host].poll() is None, said
            time.sleep(0.05)

    def down(self) -> None:
        for name in self.made:
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            for pid in found.stdout.split():
                subprocess.run(["kill", "-9", pid], check=False)
        for child in self.running.values():
            child.wait()
        for name in self.made:
            iproute.run("ip", "netns", "delete", name)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    try:
        yield made
    finally:
        made.down()


def blocks(page: str) -> list[Block]:
    """All console blocks, with the hosts that the line before names."""
    out = []
    for found in re.finditer(r"([^\n]*)\n\n```console\n(.*?)```\n", page, re.DOTALL):
        section = ["", *re.findall(r"^## (.*)$", page[: found.start(2)], flags=re.MULTILINE)][-1]
        commands = [line[2:] for line in found[2].splitlines() if line.startswith("$ ")]
        out.append(Block(section, re.findall(HOST, found[1]), "a line each" in found[1].lower(), commands))
    return out


def roles_of(page: str) -> dict[str, str]:
    """The hosts of the page's table, each with its first role."""
    rows = re.findall(rf"^\|.*?({HOST})\b.*$", page, re.MULTILINE)
    lines = [line for line in page.splitlines() if line.startswith("|") and re.search(HOST, line)]
    return {host: re.findall(r"`([\w-]+)`", line)[0] for host, line in zip(rows, lines, strict=True)}


def word_for_word(hosts: Hosts, page: str, roles: dict[str, str]) -> tuple[str, int]:
    """Run the numbered sections of a page; what the last command said, and how many ran."""
    hosts.up(list(roles))
    (hosts.folder / "10.0.0.13" / "question.txt").write_text(QUESTION)
    shutil.copytree(CHECKPOINT, hosts.folder / "10.0.0.13" / "CHECKPOINT")
    answer = ""
    ran = 0
    for block in blocks(page):
        if not re.match(r"[123]\. ", block.section):
            continue
        assert block.hosts, block.commands
        if block.line_each:
            for host, text in zip(block.hosts, block.commands, strict=True):
                hosts.start(host, text)
            for host in block.hosts:
                hosts.wait_for(host, "all peers are there" if roles[host] != "dealer" else "dealer")
            continue
        first = roles[block.hosts[0]]
        for host in block.hosts:
            for text in block.commands:
                answer = hosts.run(host, text.replace(first, roles[host]))
                ran += 1
    return answer, ran


def test_two_hosts_word_for_word(hosts: Hosts) -> None:
    page = (ROOT / "docs" / "hosts.md").read_text()
    roles = roles_of(page)
    assert roles == {"10.0.0.10": "party0", "10.0.0.11": "party1", "10.0.0.13": "dealer"}
    answer, ran = word_for_word(hosts, page, roles)
    assert ran == 6, "with a line each that starts a server, nine commands"
    assert "9 3 2 7" in answer
    for host in ("10.0.0.10", "10.0.0.11"):
        assert [p.name for p in (hosts.folder / host).rglob("*.key")] == [f"{roles[host]}.key"]


def test_word_for_word(hosts: Hosts) -> None:
    page = (ROOT / "docs" / "deployment.md").read_text()
    roles = roles_of(page)
    assert list(roles.values()) == ["party0", "party1", "dealer", "client", "authority"]
    answer, ran = word_for_word(hosts, page, roles)
    assert ran >= 20
    assert "9 3 2 7" in answer
    keys = {p.parent.parent.name for p in hosts.folder.glob("10.0.0.1[0-2]/*/certificates/*.key")}
    assert keys == {"party0", "party1", "dealer"}
    for host, role in list(roles.items())[:3]:
        found = [p.name for p in (hosts.folder / host).rglob("*.key")]
        assert found == [f"{role}.key"], "a host holds its own private key and no other"
    signing = [p.relative_to(hosts.folder).parts[0] for p in hosts.folder.rglob("authority.key")]
    assert signing == ["10.0.0.14"], "the authority's key lies on no role's host"
    assert [p.name for p in (hosts.folder / "10.0.0.14").rglob("*.key")] == ["authority.key"]
