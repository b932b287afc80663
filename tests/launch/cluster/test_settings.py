"""The cluster file: what it says, and each way to write it wrongly."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.cluster import connection
from launch.cluster.settings import DealerSettings, load_cluster
from launch.cluster.worker import SpecText
from launch.local.ports import free_ports
from mpc.errors import ConfigurationError, EnvironmentProblem
from parties.tapes.deal import DealSpec
from protocols.registry import SuiteSpec

DEALERS = {"config": "dealer.yaml", "model": "gpt2", "prompts": [5], "tokens": 3, "out": "out"}


def dealers_of(path: Path) -> DealerSettings:
    """The dealers of a file."""
    found = load_cluster(path).dealers
    assert found is not None
    return found


def written(folder: Path, dealers: dict[str, Any], **further: Any) -> Path:
    """A cluster file."""
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump({"dealers": {**DEALERS, **dealers}, **further}))
    return path


def test_what_a_file_says(tmp_path: Path) -> None:
    path = written(tmp_path, {"workers": 8, "sessions": 2, "prompts": [3, 5]})
    found = dealers_of(path)
    assert load_cluster(path).address == "local"
    assert found.config == tmp_path / "dealer.yaml"
    assert found.out == tmp_path / "out"
    assert (found.workers, found.most_workers, load_cluster(path).cpus) == (8, 4, 4)
    assert load_cluster(written(tmp_path, {}, address="10.0.0.5:6379")).address == "10.0.0.5:6379"


def test_what_a_worker_is_told_is_what_is_dealt(tmp_path: Path) -> None:
    found = dealers_of(written(tmp_path, {"prefix": 7, "padded": False, "policy": "snapkv"}))
    assert (found.prefix, found.padded) == (7, False)
    for more in ({"behind": 7, "policy": "snapkv"}, {"padded": True}):
        spec = DealSpec([5, 6], 3, 2, SuiteSpec("masked"), **more)
        assert SpecText.model_validate_json(SpecText.of(spec).model_dump_json()).spec() == spec


@pytest.mark.parametrize(
    ("dealers", "further", "message"),
    [
        ({"worker": 2}, {}, "unknown key 'dealers.worker': did you mean 'workers'?"),
        ({}, {"adress": "auto"}, "unknown key 'adress': did you mean 'address'?"),
        ({"workers": 0}, {}, "dealers.workers: Input should be greater than or equal to 1 (got 0)"),
        ({"prompts": []}, {}, "dealers.prompts: List should have at least 1 item"),
        ({"tokens": "many"}, {}, "dealers.tokens: Input should be a valid integer"),
        ({}, {"address": "ray://head"}, "write local, auto, or host:port of the cluster's head, such as 10.0.0.5:6379"),
    ],
)
def test_mistakes(tmp_path: Path, dealers: dict[str, Any], further: dict[str, Any], message: str) -> None:
    path = written(tmp_path, dealers, **further)
    with pytest.raises(ConfigurationError, match=re.escape(message)) as raised:
        load_cluster(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_that_a_file_says_what_to_run(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("address: auto\n")
    with pytest.raises(ConfigurationError, match="nothing to run: write 'dealers', 'replicas' or both"):
        load_cluster(path)
    path.write_text("replicas: {model: gpt2, keys: keys.txt, listen: '0.0.0.0:80'}")
    with pytest.raises(ConfigurationError, match=r"'0\.0\.0\.0:80' would serve others without TLS"):
        load_cluster(path)
    path.write_text("replicas: {model: gpt2, keys: keys.txt, count: 3}")
    assert load_cluster(path).replicas is not None
    assert load_cluster(path).cpus == 3
    with pytest.raises(ConfigurationError, match=r"none\.yaml cannot be read: No such file"):
        load_cluster(tmp_path / "none.yaml")


@pytest.mark.parametrize("silent", [False, True])
def test_a_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch, silent: bool) -> None:
    """Nothing listens, or what listens is no Ray: Ray itself would wait for two minutes and end the process."""
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.5)
    with socket.socket() as listener:
        if silent:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
        port = listener.getsockname()[1] if silent else free_ports(1)[0]
        address = f"127.0.0.1:{port}"
        with pytest.raises(EnvironmentProblem) as raised:
            connection.check_that_it_answers(address)
    assert f"no Ray cluster answers at {address}" in str(raised.value)
    assert "`ray start --head --port 6379`" in str(raised.value)
    assert "`address: local`" in str(raised.value)
