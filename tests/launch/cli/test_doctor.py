"""The doctor finds what is wrong, says what to do, and ends with exit code 1 then."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from launch.cli.commands import doctor
from mpc.errors import EnvironmentProblem
from parties.identity.certificates import create_deployment
from tests.launch.conftest import Command


def test_all_is_well_here(command: Command, tmp_path: Path) -> None:
    create_deployment(tmp_path / "c", {"party0": "party", "client": "client"})
    found = command("doctor", "--json", "--certificates", tmp_path / "c")
    report = json.loads(found.out)
    assert (found.code, report["ok"]) == (0, True)
    lines = {line["what"]: line for line in report["findings"]}
    assert {"python", "torch", "crypten", "numpy", "transformers", "grpcio", "cuda", "cores", "memory", "ports"} <= set(
        lines
    )
    assert lines["crypten"]["found"].startswith("0.4.1")
    assert lines["identity party0"]["ok"]
    assert lines["identity client"]["ok"]


def test_problems_have_a_remedy(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_deployment(tmp_path / "c", {"party0": "party"})
    (tmp_path / "c" / "party0.key").chmod(0o644)

    def missing() -> None:
        raise EnvironmentProblem("crypten 0.3.0 is installed, 0.4.1 is needed; run: pip install --no-deps crypten==0.4.1")

    monkeypatch.setattr("protocols.crypten.binding.requirement.require_crypten", missing)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = command("doctor", "--json", "--port", port, "--certificates", tmp_path / "c")
    report = json.loads(found.out)
    assert (found.code, report["ok"]) == (1, False)
    problems = {line["what"]: line["remedy"] for line in report["findings"] if not line["ok"]}
    assert set(problems) == {"crypten", f"port {port}", "identity party0"}
    assert "pip install --no-deps crypten==0.4.1" in problems["crypten"]
    assert "choose another port" in problems[f"port {port}"]
    assert "chmod 600" in problems["identity party0"]


def test_crypten_is_not_needed_by_the_default_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    found = doctor._crypten()
    assert not found.remedy
    assert found.found == "not installed; for the suite crypten alone: pip install --no-deps crypten==0.4.1"


def test_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert doctor._proxies().found == "none"
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    found = doctor._proxies()
    assert (found.found, found.remedy) == ("https_proxy: for downloads alone, peers are reached directly", "")


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: "1.0")
    assert doctor._package("torch").remedy.startswith("pip install 'torch>=")
    assert doctor._importable("json")
    assert not doctor._importable("no_such_module")


def test_table(command: Command) -> None:
    found = command("doctor", "--certificates", "/none")
    assert found.code == 1
    assert "problem" in found.out
    assert "mpcache certs" in " ".join(found.out.split())
