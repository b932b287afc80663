from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mpc.errors import ConfigurationError
from parties.config.role_config import load_config

GOOD: dict[str, Any] = {
    "role": "party",
    "name": "party0",
    "listen": "127.0.0.1:7000",
    "parties": [{"name": "party0", "address": "a:1"}, {"name": "party1", "address": "[::1]:2"}],
    "dealer": {"name": "dealer", "address": "c:3"},
    "certificates": "certs",
    "store": "store",
}
MARK = ":".join(["ab"] * 32)


def write(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "party.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_good(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    assert config.index == 0
    assert config.party_names == ["party0", "party1"]
    assert config.certificates == tmp_path / "certs"
    assert config.store == tmp_path / "store"
    assert (config.deadline_seconds, config.connect_seconds, config.step_seconds) == (30, 60, 600)
    assert load_config(write(tmp_path, {**GOOD, "store": "/abs"})).store == Path("/abs")
    assert config.tapes is None
    assert load_config(write(tmp_path, {**GOOD, "tapes": "tapes"})).tapes == tmp_path / "tapes"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dealine_seconds": 3}, "unknown key 'dealine_seconds': did you mean 'deadline_seconds'"),
        ({"xyzzy": 3}, "unknown key 'xyzzy': known keys: role, name, listen"),
        ({"limits": {"max_sesions": 3}}, "unknown key 'limits.max_sesions': did you mean 'max_sessions'"),
        ({"parties": [{"name": "a", "adress": "b:1"}]}, r"unknown key 'parties\.0\.adress': did you mean 'address'"),
        ({"role": "boss"}, "role: Input should be 'party', 'dealer', 'client' or 'model-owner'.*'boss'"),
        ({"name": "party7"}, r"party 'party7' is not among parties \(party0, party1\)"),
        ({"name": "Party"}, "'Party' cannot be an identity's name"),
        ({"role": "dealer"}, "'party0' is a dealer and a compute party: every name has one role"),
        ({"clients": ["party1"]}, "'party1' is a compute party and a client: every name has one role"),
        ({"clients": ["x"], "model_owners": ["x"]}, "'x' is a client and a model owner"),
        ({"model_owners": ["dealer"]}, "'dealer' is a dealer and a model owner"),
        ({"dealer": {"name": "party1", "address": "c:3"}}, "'party1' is a compute party and a dealer"),
        ({"clients": ["authority"]}, "'authority' cannot be an identity's name"),
        (
            {"clients": [{"name": "x", "fingerprint": MARK}, {"name": "y", "fingerprint": ["00" * 32, MARK.upper()]}]},
            "'x' and 'y' have the same fingerprint ab:ab:",
        ),
        ({"clients": [{"name": "x", "fingerprint": "ab:cd"}]}, "'ab:cd' is no fingerprint of a key: it has 32 pairs of"),
        ({"clients": [{"name": "x", "fingerprint": 12}]}, "write one fingerprint, or a list of them"),
        ({"parties": GOOD["parties"][:1]}, "at least 2 compute parties are needed, got 1"),
        ({"parties": [GOOD["parties"][0]] * 2}, "names must differ"),
        (
            {"parties": [{**GOOD["parties"][0], "prg": "chacha8"}]},
            r"parties\.0\.prg: prg 'chacha8' is unknown: write aes256-ctr or chacha20",
        ),
        ({"listen": "7000"}, "'7000' is not an address: write host:port"),
        ({"listen": "a:70000"}, "'a:70000' is not an address"),
        ({"listen": None}, "a party needs an address"),
        ({"store": None}, "a party needs a folder"),
        ({"dealer": None}, "a party needs the dealer's name and address"),
        ({"tapes": "store"}, r"model shares \('store'\) and tapes need different folders"),
        ({"deadline_seconds": 0}, "deadline_seconds: Input should be greater than 0"),
        ({"limits": {"max_sessions": 0}}, "limits.max_sessions: Input should be greater than or equal to 1"),
    ],
)
def test_bad_values(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_config(write(tmp_path, {**GOOD, **changes}))
    assert "party.yaml" in str(caught.value)


def test_missing_key(tmp_path: Path) -> None:
    values = {k: v for k, v in GOOD.items() if k != "certificates"}
    with pytest.raises(ConfigurationError, match="'certificates' is missing"):
        load_config(write(tmp_path, values))


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.yaml cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")
    path = tmp_path / "bad.yaml"
    path.write_text("a: [1\nb: 2")
    with pytest.raises(ConfigurationError, match=r"bad\.yaml is not valid YAML in line 2"):
        load_config(path)
    path.write_text("just text")
    with pytest.raises(ConfigurationError, match="expected 'key: value' lines, got str"):
        load_config(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="not a UTF-8 text file"):
        load_config(path)
