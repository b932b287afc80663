"""`mpcache certs`: what is asked before anything is signed, and how fingerprints get into files and out of trust."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from parties.config.role_config import load_config
from parties.identity.certificates import check
from tests.launch.conftest import Command

HOSTS = ["--parties", "party0=10.0.0.10:7000,party1=10.0.0.11:7000", "--dealer", "10.0.0.12:7000"]
A, B = ":".join(["0a"] * 32), ":".join(["0b"] * 32)
PARTY = """\
# Mine.
role: party
name: party0
listen: 0.0.0.0:7000   # everywhere
certificates: certificates
store: shares
parties:   # in order
  - {name: party0, address: "a:1"}
  - name: party1   # the other
    address: b:2
dealer:
  address: c:3
  name: dealer
clients: [client, {name: alice, max_new_tokens: 3}]
model_owners:
- owner   # who has weights
"""


@pytest.fixture
def folder(command: Command, tmp_path: Path) -> Path:
    """A new deployment in which party0 has asked for its certificate."""
    out = tmp_path / "d"
    assert command("init", *HOSTS, "--out", out).code == 0
    asked = command("certs", "request", "--config", out / "party0" / "party0.yaml")
    assert asked.code == 0, asked.err
    return out


def request_of(folder: Path, name: str) -> Path:
    return folder / name / "certificates" / "requests" / f"{name}.csr"


class Typed(io.StringIO):
    """A terminal at which a person has typed this."""

    def isatty(self) -> bool:
        return True


def test_nothing_is_signed_without_the_fingerprint(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown = command("certs", "fingerprint", "--config", folder / "party0" / "party0.yaml").out
    mark = shown.split()[1]
    assert re.fullmatch(r"party0 ([0-9a-f]{2}:){31}[0-9a-f]{2}\n", shown)
    sign = ["certs", "sign", "--authority", folder / "authority", request_of(folder, "party0"), "--out", tmp_path / "x.crt"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(mark))
    refused = command(*sign)
    assert refused.code == 2
    assert "is signed only with the fingerprint that `mpcache certs fingerprint` shows on the host of party0" in refused.err
    for typed, message in ((A, "has fingerprint"), ("yes", "'yes' is no fingerprint of a key")):
        monkeypatch.setattr(sys, "stdin", Typed(f"{typed}\n"))
        refused = command(*sign)
        assert (refused.code, mark in refused.out) == (2, False), "the request's own is not shown to be copied"
        assert message in refused.err
    assert not (tmp_path / "x.crt").exists()
    monkeypatch.setattr(sys, "stdin", Typed(f"{mark.replace(':', '').upper()}\n"))
    assert command(*sign).code == 0
    assert (tmp_path / "x.crt").exists()


def test_fingerprints_from_a_file_and_by_name(command: Command, folder: Path, tmp_path: Path) -> None:
    assert command("certs", "request", "--config", folder / "client" / "client.yaml").code == 0
    lines = "".join(
        command("certs", "fingerprint", "--config", folder / name / f"{name}.yaml").out for name in ("party0", "client")
    )
    (tmp_path / "marks").write_text(f"# read out over the telephone\n{lines}other {A}  # not asked for\n")
    both = [request_of(folder, "party0"), request_of(folder, "client")]
    signed = command("certs", "sign", "--authority", folder / "authority", *both, "--fingerprint", tmp_path / "marks")
    assert signed.code == 0, signed.err
    one = ["certs", "sign", "--authority", folder / "authority", both[0], "--fingerprint"]
    assert "not the expected" in command(*one, f"party0={A}").err
    assert "is neither NAME=FINGERPRINT nor a file" in command(*one, tmp_path / "none").err
    (tmp_path / "marks").write_text("party0\n")
    assert "line 1: expected NAME FINGERPRINT, found 1 words" in command(*one, tmp_path / "marks").err
    several = command(*one, f"party0={A}", "--fingerprint", f"party0={B}")
    assert "'party0' has several: give the one of the key that the request is for" in several.err
    for options, message in ((["--name", "party0"], "belong together"), (["--name", "party0", "--role", "boss"], "unknown")):
        assert message in command(*one, A, *options).err
    wrong = command(*one, A, "--name", "party0", "--role", "client")
    assert "'party0' is a compute party in" in wrong.err


def test_pin_changes_nothing_else(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "party0.yaml"
    file.write_text(PARTY)
    file.chmod(0o640)
    marks = {name: ":".join([f"{number:02x}"] * 32) for number, name in enumerate(["party1", "dealer", "client", "owner"])}
    items = [f"{name}={mark.replace(':', '')}" for name, mark in marks.items()]
    done = command("certs", "pin", "--config", file, *items, f"stranger={A}")
    assert done.code == 0, done.err
    assert f"{file}: stranger is not among this role's peers, nothing to write" in done.out
    config = load_config(file)
    entries = [*config.parties, config.dealer, *config.clients, *config.model_owners]
    assert {one.name: one.fingerprint for one in entries if one is not None and one.fingerprint} == {
        name: (mark,) for name, mark in marks.items()
    }
    text = file.read_text()
    assert (text.count("# "), file.stat().st_mode & 0o777) == (PARTY.count("# "), 0o640)
    assert "- name: party1\n    fingerprint" in text.replace("   # the other", "").replace(f'"{marks["party1"]}"', "")
    kept = command("certs", "pin", "--config", file, f"party1={A}", f"alice={B}", "--keep")
    assert kept.code == 0, kept.err
    config = load_config(file)
    assert config.parties[1].fingerprint == (marks["party1"], A)
    assert (config.clients[1].fingerprint, config.clients[1].max_new_tokens) == ((B,), 3)
    same = command("certs", "pin", "--config", file, f"party1={B}")
    assert f"{file}: 'party1' and 'alice' have the same fingerprint" in same.err
    assert command("certs", "pin", "--config", file, f"party1={A}").code == 0
    assert load_config(file).parties[1].fingerprint == (A,)
    assert [p.name for p in tmp_path.iterdir()] == ["party0.yaml"]
    refused = command("certs", "pin", "--config", file, "party1=ab")
    assert (refused.code, "party1=ab: 'ab' is no fingerprint of a key" in refused.err) == (2, True)


def test_a_file_that_cannot_be_changed_is_left_alone(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "party0.yaml"
    text = PARTY.replace("dealer:\n  address: c:3\n  name: dealer", "dealer: {<<: {name: dealer}, address: c:3}")
    file.write_text(text)
    refused = command("certs", "pin", "--config", file, f"dealer={A}")
    assert refused.code == 2
    assert "is written in a way that cannot be changed here" in refused.err
    assert file.read_text() == text


def test_every_fingerprint_is_printed_as_it_is(command: Command, tmp_path: Path) -> None:
    """Pairs of digits between colons are also names of emoji, which terminals' libraries put in their place."""
    (tmp_path / "party0.yaml").write_text(PARTY)
    for pair in ("ab", "cd", "00"):
        mark = ":".join([pair] * 32)
        written = command("certs", "pin", "--config", tmp_path / "party0.yaml", f"party1={mark}")
        assert f"party1 {mark}\n" in written.out


def test_revoke(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "certificates"
    made = command("certs", "--out", out, "--parties", "party0,party1")
    assert made.code == 0, made.err
    assert {path.name for path in out.glob("*.key")} == {
        f"{n}.key" for n in ["party0", "party1", "dealer", "client", "model-owner"]
    }
    identity = check(out, "client", "client")
    assert f"client {identity.fingerprint}\n" in made.out
    (tmp_path / "party0.yaml").write_text(PARTY)
    for item in (A, out / "client.crt"):
        done = command("certs", "revoke", "--config", tmp_path / "party0.yaml", item, "--why", "lost laptop")
        assert (done.code, "is revoked" in done.out) == (0, True), done.err
    assert check(out, "party0").revoked == {A, identity.fingerprint}
    assert "# client lost laptop" in (out / "revoked.txt").read_text()
    again = command("certs", "revoke", "--config", tmp_path / "party0.yaml", A)
    assert "was revoked before" in again.out
    assert command("certs", "revoke", "--config", tmp_path / "party0.yaml", "x").code == 2
    twice = command("certs", "--out", tmp_path / "other", "--parties", "a,b", "--clients", "a")
    assert "the name 'a' is given to two roles" in twice.err


def test_doctor_and_status_tell_of_trust(command: Command, tmp_path: Path) -> None:
    assert command("certs", "--out", tmp_path / "certificates", "--parties", "party0,party1").code == 0
    file = tmp_path / "party0.yaml"
    file.write_text(PARTY)
    found = command("doctor", "--json", "--config", file)
    assert (found.code, "party0 knows no fingerprint of" in found.out) == (1, True)
    said = command("status", "--config", file)
    assert said.code == 1
    assert "party0 knows no fingerprint of 'party1' (party)" in " ".join(said.out.split())
    file.write_text(PARTY + "insecure_trust_authority: true\n")
    found = command("doctor", "--json", "--config", file)
    assert (found.code, "insecure_trust_authority is set" in found.out) == (1, True)
    assert "insecure_trust_authority is set" in " ".join(command("status", "--config", file).out.split())
    assert command("certs", "pin", "--config", file, f"party0={A}").code == 0
    assert (
        "the fingerprint of party0 in its own file is not the one of its key"
        in command("doctor", "--config", file, "--json").out
    )
