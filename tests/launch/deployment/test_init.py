"""`mpcache init`: what it writes, that it fits together, and that a deployment starts from it as a user would do it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.deployment.config_file import applies
from launch.local.ports import free_ports
from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan, generate_plain
from parties.config.role_config import RoleConfig, load_config
from parties.identity.certificates import check
from tests import forked
from tests.launch.conftest import Command

ROOT = Path(__file__).parents[3]
HOSTS = ["--parties", "party0=10.0.0.10:7000,party1=two.example:7001", "--dealer", "10.0.0.12:443"]
ROLES = {"party0": "party", "party1": "party", "dealer": "dealer", "client": "client", "model-owner": "model-owner"}


@pytest.fixture
def folder(command: Command, tmp_path: Path) -> Path:
    made = command("init", *HOSTS, "--out", tmp_path / "d", "--prefix", tmp_path / "d")
    assert made.code == 0, made.err
    return tmp_path / "d"


def test_folders(folder: Path) -> None:
    assert {p.name for p in folder.iterdir()} == {*ROLES, "authority", "README.md"}
    keys = [str(p.relative_to(folder)) for p in folder.rglob("*.key")]
    assert keys == ["authority/authority.key"], "no role's private key is made here"
    for name, role in ROLES.items():
        config = load_config(folder / name / f"{name}.yaml")
        assert (config.name, config.role) == (name, role)
        assert [(p.name, p.address) for p in config.parties] == [
            ("party0", "10.0.0.10:7000"),
            ("party1", "two.example:7001"),
        ]
        assert config.listen == {"party0": "0.0.0.0:7000", "party1": "0.0.0.0:7001", "dealer": "0.0.0.0:443"}.get(name)
        assert (config.certificates / "authority.crt").read_bytes() == (folder / "authority" / "authority.crt").read_bytes()
        assert f"mpcache certs request --config {name}.yaml" in (folder / name / "README.md").read_text()


@pytest.mark.parametrize("name", list(ROLES))
def test_every_key_with_its_description(folder: Path, name: str) -> None:
    """The file is made from the fields: none is missing, each has its description and its default."""
    path = folder / name / f"{name}.yaml"
    text = path.read_text()
    joined = " ".join(line.lstrip("# ").rstrip() for line in text.splitlines())
    for key, info in RoleConfig.model_fields.items():
        assert info.description, f"{key} has no description"
        shown = re.search(rf"^(# )?{key}:", text, flags=re.MULTILINE) is not None
        assert shown == applies(info, load_config(path).role), key
        if shown:
            assert info.description in joined
    limits = RoleConfig.model_fields["limits"].default
    for key, info in type(limits).model_fields.items():
        assert info.description, f"limits.{key} has no description"
        if name == "party0":
            assert yaml.safe_dump({key: getattr(limits, key)}).strip() in text
            assert info.description in joined
    in_force = yaml.safe_load(text)
    for line in re.findall(r"^# ([a-z_]+: .*)$", text, flags=re.MULTILINE):
        key = line.split(":")[0]
        if key in RoleConfig.model_fields:
            changed = RoleConfig.model_validate({**in_force, **yaml.safe_load(line)})
            assert changed == RoleConfig.model_validate(in_force), f"{key} is not shown with its default"


def test_units_and_containers(folder: Path) -> None:
    crypten = re.search(r"^CRYPTEN := (\S+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert crypten is not None
    for name, role in ROLES.items():
        compose = yaml.safe_load((folder / name / "compose.yaml").read_text())
        service = compose["services"][name]
        assert service["command"] == [role, "--config", f"{name}.yaml"]
        assert ("ports" in service) == (role in ("party", "dealer"))
        docker = (folder / name / "Dockerfile").read_text()
        assert f"--no-deps {crypten[1]}" in docker
        for package in re.findall(r"^COPY --from=mpcache (\w+) ", docker, flags=re.MULTILINE):
            assert (ROOT / package / "__init__.py").exists()
        assert (folder / name / f"mpcache-{name}.service").exists() == (role in ("party", "dealer"))
    assert yaml.safe_load((folder / "party0" / "compose.yaml").read_text())["services"]["party0"]["ports"] == ["7000:7000"]
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE" in (folder / "dealer" / "mpcache-dealer.service").read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_units_by_systemd(folder: Path) -> None:
    program = folder / "venv" / "bin" / "mpcache"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    units = [folder / name / f"mpcache-{name}.service" for name in ("party0", "dealer")]
    found = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60)
    mine = [line for line in found.stderr.splitlines() if "mpcache-" in line]
    assert mine == [], found.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parties", "a:1", "--dealer", "b:2"], r"--parties needs at least 2 compute parties, got 1"),
        (
            ["--parties", "a:1,b", "--dealer", "b:2"],
            r"--parties 'b' is not NAME=HOST:PORT, such as party1=10\.0\.0\.10:7000",
        ),
        (["--parties", "a:1,b:99999", "--dealer", "c:2"], r"--parties 'b:99999' is not NAME=HOST:PORT"),
        (["--parties", "a:1,b:0", "--dealer", "c:2"], r"--parties 'b:0' is not NAME=HOST:PORT"),
        (["--parties", "X=a:1,b:2", "--dealer", "c:2"], r"--parties: 'X' cannot be an identity's name: use 1 to 63"),
        (["--parties", "a:1,b:2", "--dealer", "authority=c:2"], r"--dealer: 'authority' cannot be an identity's name"),
        (["--parties", "x=a:1,x=b:2", "--dealer", "c:2"], r"the name 'x' is given to two roles"),
        (["--parties", "a:1,b:2", "--dealer", "c:2", "--clients", "party0"], r"the name 'party0' is given to two roles"),
        (["--parties", "a:1,a:1", "--dealer", "c:2"], r"the address a:1 is given to two roles"),
        (["--parties", "a:1,party0:2", "--dealer", "c:2"], r"host 'party0' of 'party1' is the name of another role"),
        (["--parties", "0.0.0.0:1,b:2", "--dealer", "c:2"], r"'0\.0\.0\.0' is no host that others can reach"),
        (["--parties", "a b:1,b:2", "--dealer", "c:2"], r"'a b' is no host that others can reach"),
        (["--parties", "a:1,b:2", "--dealer", "c:2", "--prefix", "here"], r"--prefix 'here' is not an absolute path"),
        (["--parties", "a:1,b:2", "--dealer", "c:2", "--days", "0"], r"days must be between 0 and 36500, got 0"),
    ],
)
def test_refused(command: Command, tmp_path: Path, arguments: list[str], message: str) -> None:
    found = command("init", *arguments, "--out", tmp_path / "d")
    assert (found.code, found.out) == (2, "")
    assert len(found.err.strip().splitlines()) == 1
    assert re.search(message, found.err)
    assert list(tmp_path.iterdir()) == [], "nothing is half-written"


def test_nothing_is_overwritten(command: Command, folder: Path) -> None:
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    found = command("init", *HOSTS, "--out", folder)
    assert found.code == 2
    assert "is there already: nothing is overwritten" in found.err
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


# ---- from nothing to an answer -----------------------------------------------------------------------------------------
class Role:
    """`mpcache party` or `mpcache dealer` as a user starts it, but for the seconds of its imports (`tests.forked`)."""

    def __init__(self, folder: Path, name: str) -> None:
        command = [sys.executable, "-P", "-m", "launch.cli.main", ROLES[name], "--config", f"{name}.yaml"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = forked.started(command, cwd=folder / name, stderr=subprocess.PIPE, text=True, env=environment)
        self.log = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line

    def wait_for(self, text: str, others: Iterable[Role] = ()) -> None:
        """Wait until the log has a text, as long as this role and the others run."""
        limit = time.monotonic() + 120
        while text not in self.log:
            for role in (self, *others):
                assert role.process.poll() is None, role.log
            assert time.monotonic() < limit, f"not in the log: {text}\n{self.log}"
            time.sleep(0.02)


@pytest.fixture
def roles() -> Iterator[dict[str, Role]]:
    running: dict[str, Role] = {}
    yield running
    for role in running.values():
        role.process.kill()
        role.process.wait()


def certify(command: Command, out: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Request a role's certificate, have the authority sign it, and install it, each in the folder of its host."""
    monkeypatch.chdir(out / name)
    asked = command("certs", "request", "--config", f"{name}.yaml")
    assert asked.code == 0, asked.err
    mark = re.search(r"fingerprint of the key: (\S+)", asked.out)
    assert mark is not None
    shutil.copy(f"certificates/requests/{name}.csr", out / "authority")
    monkeypatch.chdir(out / "authority")
    signed = command("certs", "sign", "--authority", ".", f"{name}.csr", "--fingerprint", mark[1])
    assert signed.code == 0, signed.err
    monkeypatch.chdir(out / name)
    installed = command("certs", "install", "--config", f"{name}.yaml", out / "authority" / f"{name}.crt")
    assert installed.code == 0, installed.err
    shown = command("certs", "fingerprint", "--config", f"{name}.yaml")
    assert shown.out == f"{name} {mark[1]}\n"


def test_from_init_to_an_answer(
    command: Command, tmp_path: Path, text_model: Path, roles: dict[str, Role], monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = free_ports(3)
    addresses = [f"127.0.0.1:{port}" for port in ports]
    out = tmp_path / "d"
    assert command("init", "--parties", ",".join(addresses[:2]), "--dealer", addresses[2], "--out", out).code == 0
    for name in ROLES:
        certify(command, out, name, monkeypatch)
        with (tmp_path / "fingerprints.txt").open("a") as file:
            file.write(command("certs", "fingerprint", "--config", out / name / f"{name}.yaml").out)
    early = command("party", "--config", out / "party0" / "party0.yaml")
    assert early.code == 2
    assert "party0 knows no fingerprint of 'party1' (party), 'dealer' (dealer), 'client' (client)" in early.err
    assert "`mpcache certs fingerprint --config party1.yaml` on the host of party1" in early.err
    for name in ROLES:
        pinned = command("certs", "pin", "--config", out / name / f"{name}.yaml", tmp_path / "fingerprints.txt")
        assert pinned.code == 0, pinned.err

    roles["party0"] = Role(out, "party0")
    roles["party0"].wait_for(f"party0: waiting for party1: nothing listens at {addresses[1]}: start party1")
    roles["party1"] = Role(out, "party1")
    roles["dealer"] = Role(out, "dealer")
    roles["party0"].wait_for("party0: party1 is there (version")
    for name in roles:
        roles[name].wait_for(f"{name}: all peers are there", roles.values())

    monkeypatch.chdir(out / "model-owner")
    shared = command("model-owner", "--config", "model-owner.yaml", "--model", text_model)
    assert shared.code == 0, shared.err
    monkeypatch.chdir(out / "client")
    common = ["--config", "client.yaml", "--model", text_model, "--prompt", "Who goes there", "--max-new-tokens", "3"]
    answer = command("generate", *common, "--json")
    assert answer.code == 0, answer.err
    checkpoint = load_checkpoint(text_model)
    ids = checkpoint.tokenizer.encode("Who goes there")
    assert json.loads(answer.out)["tokens"] == generate_plain(checkpoint, ids, GenerationPlan(len(ids), 3))

    well = command("status", "--config", "client.yaml")
    assert well.code == 0, well.out + well.err
    monkeypatch.chdir(out / "party0")
    report = _status(command, "party0.yaml", 0)
    assert [peer["name"] for peer in report["peers"]] == ["party1", "dealer"]
    assert all(peer["upload_bytes_per_second"] > 0 and peer["settings"] for peer in report["peers"])

    roles["party1"].process.send_signal(signal.SIGTERM)
    assert roles["party1"].process.wait(60) == 0
    assert "Traceback" not in roles["party1"].log
    report = _status(command, "party0.yaml", 1)
    assert report["peers"][0]["troubles"] == [
        {"reason": f"nothing listens at {addresses[1]}", "remedy": "start party1, or correct its address", "minor": False}
    ]
    shown = command("status", "--config", "party0.yaml", "--probe-bytes", "0")
    assert shown.code == 1
    assert f"problem  nothing listens at {addresses[1]}\n  remedy start party1, or correct its address" in shown.out


def _status(command: Command, config: str, code: int) -> dict[str, Any]:
    found = command("status", "--config", config, "--probe-bytes", "100000", "--json")
    assert found.code == code, found.out + found.err
    report: dict[str, Any] = json.loads(found.out)
    assert report["ok"] == (code == 0)
    return report


def test_one_owner(command: Command, tmp_path: Path) -> None:
    """All keys are made, certified and pinned, each in its own role's folder; what is said next are commands as they are."""
    target = tmp_path / "mine"
    made = command(
        "init", "--one-owner", "--parties", "10.0.0.10:7000,10.0.0.11:7000", "--dealer", "10.0.0.13:1", "--out", target
    )
    assert made.code == 0, made.err
    assert sorted(str(p.relative_to(target)) for p in target.rglob("*.key")) == sorted(
        ["authority/authority.key", *(f"{name}/certificates/{name}.key" for name in ROLES)]
    )
    marks = {}
    for name, role in ROLES.items():
        assert (target / name / "certificates" / f"{name}.key").stat().st_mode & 0o077 == 0
        marks[name] = check(target / name / "certificates", name, role).fingerprint
        assert "certs request" not in (target / name / "README.md").read_text()
    for name in ROLES:
        config = load_config(target / name / f"{name}.yaml")
        for peer in (*config.parties, *filter(None, [config.dealer]), *config.clients, *config.model_owners):
            assert peer.fingerprint == (marks[peer.name],)
    shown = made.out.splitlines()
    assert f"  scp -r {target}/party1 10.0.0.11:" in shown
    assert f"  mpcache model-owner --config {target}/model-owner/model-owner.yaml --model CHECKPOINT" in shown
    refused = command(
        "init",
        "--one-owner",
        "--insecure-trust-authority",
        "--parties",
        "a:1,b:2",
        "--dealer",
        "c:3",
        "--out",
        tmp_path / "no",
    )
    assert refused.code == 2
    assert "leave --insecure-trust-authority out" in refused.err
    assert not (tmp_path / "no").exists()


def test_certificate_that_is_not_installed(command: Command, folder: Path) -> None:
    config = folder / "client" / "client.yaml"
    assert command("certs", "request", "--config", config).code == 0
    found = command("status", "--config", config)
    assert found.code == 1
    assert "mpcache certs install --config client.yaml client.crt" in found.out.replace("\n", " ")
    request = folder / "client" / "certificates" / "requests" / "client.csr"
    other = command("certs", "sign", "--authority", folder, "--fingerprint", "client=" + "00:" * 31 + "00", request)
    assert f"{folder} is not an authority's folder" in other.err
    wrong = command("status", "--config", folder / "client")
    assert f"client is a folder; give {folder}/client/client.yaml" in wrong.err.replace("\n", " ")


def test_status_without_a_certificate(command: Command, folder: Path) -> None:
    found = command("status", "--config", folder / "client" / "client.yaml")
    assert found.code == 1
    assert "client.crt is missing" in found.out.replace("\n", "")
    assert "mpcache certs request" in found.out
