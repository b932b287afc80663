"""Each mistake of a user is one line on standard error that names the thing and the remedy; exit code 2."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from launch.terminal.console import Settings, error_line, print_json, show_error
from mpc.errors import ConfigurationError, PeerLost
from parties.config.role_config import make_config
from tests.launch.conftest import Command

PARTY = {
    "role": "party",
    "name": "party0",
    "listen": "127.0.0.1:0",
    "certificates": "certificates",
    "store": "store",
    "parties": [
        {"name": "party0", "address": "127.0.0.1:7000"},
        {"name": "party1", "address": "127.0.0.1:7001", "fingerprint": "1f" * 32},
    ],
    "dealer": {"name": "dealer", "address": "127.0.0.1:7002", "fingerprint": "3d" * 32},
}


def write(folder: Path, **changes: object) -> Path:
    path = folder / "party0.yaml"
    path.write_text(yaml.safe_dump({**PARTY, **changes}))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stroe": "x"}, r"unknown key 'stroe': did you mean 'store'\?"),
        ({"listen": "7000"}, r"'7000' is not an address: write host:port"),
        ({"deadline_seconds": -1}, r"deadline_seconds: .* greater than 0 \(got -1\)"),
        (
            {"role": "dealer", "name": "dealer", "store": None},
            r"role is 'dealer', not 'party'; start it with `mpcache dealer`",
        ),
        ({"clients": ["x"]}, r"party0 knows no fingerprint of 'x' \(client\), so anybody"),
        ({}, r"certificate folder .*certificates is missing: make it with `mpcache certs`"),
    ],
)
def test_party_configuration(command: Command, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    found = command("party", "--config", write(tmp_path, **changes))
    assert found.code == 2
    assert found.out == ""
    lines = found.err.strip().splitlines()
    assert len(lines) == 1
    assert re.match(r"error \[configuration\]: ", lines[0])
    assert re.search(message, lines[0])


@pytest.mark.parametrize("role", ["party", "dealer", "client", "model-owner"])
def test_missing_configuration(command: Command, tmp_path: Path, role: str) -> None:
    extra = ["--model", tmp_path] if role == "model-owner" else []
    found = command(role, "--config", tmp_path / "none.yaml", *extra)
    assert found.code == 2
    assert found.err.startswith("error [configuration]:")
    assert "none.yaml cannot be read: No such file or directory" in found.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a", "--suite", "magic"], r"suite 'magic' is unknown; choose one of: .*crypten"),
        (["--prompt", "a", "--draft", "ngram:tokens=0"], r"draft: tokens = 0 must be a whole number from 1 to 16"),
        (["--prompt", "a", "--draft", "ngram", "--temperature", "1"], r"decoding = 'sample' cannot verify drafted tokens"),
        (["--prompt", "a", "--draft", "ngram", "--policy", "tova"], r"policy tova cannot verify 4 drafted tokens a step"),
        (["--prompt", "a", "--draft", "elsewhere"], r"draft = 'elsewhere' is neither 'off', 'ngram'"),
        (["--prompt", "a", "--suite", "plain"], r"suite 'plain' keeps nothing secret"),
        (["--prompt", "a", "--device", "abacus"], r"device 'abacus' is unknown; write cpu, cuda or cuda:N"),
        (["--prompt", "a", "--device", "cuda:77"], r"device 'cuda:77' is not there"),
        (["--prompt", "a", "--device", "cuda:x"], r"device 'cuda:x' is unknown"),
        ([], r"no prompt was given; use --prompt TEXT or --prompt-file FILE"),
        (["--prompt", ""], r"the prompt is empty"),
        (["--prompt", "a", "--prompt-file", "b"], r"both given"),
        (["--prompt-file", "/none"], r"--prompt-file /none cannot be read: No such file"),
        (
            ["--prompt", "a" * 48],
            r"prompt_tokens = 48 and new_tokens = 32 need 79 positions, the model has 48; ask for at most 1",
        ),
        (["--prompt", "a", "--decoding", "beam"], r"--decoding 'beam' is unknown; choose one of: greedy, sample, logits"),
        (["--prompt", "a", "--temperature", "0"], r"temperature"),
        (["--prompt", "a", "--top-k", "3"], r"top_k and top_p need decoding 'logits'"),
        (["--prompt", "a", "--name", "x"], r"--name needs --config"),
        (["--prompt", "a", "--config", "x.yaml", "--parties", "3"], r"--parties cannot be combined with --config"),
    ],
)
def test_generate(command: Command, text_model: Path, arguments: list[str], message: str) -> None:
    found = command("generate", "--model", text_model, *arguments)
    assert found.code == 2
    assert found.out == ""
    lines = found.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error [configuration]:")
    assert re.search(message, lines[0])


def test_generate_without_checkpoint(command: Command, tmp_path: Path) -> None:
    found = command("generate", "--model", tmp_path / "none", "--prompt", "a")
    assert (found.code, found.out) == (2, "")
    assert f"error [configuration]: --model {tmp_path / 'none'}: nothing is there" in found.err


@pytest.mark.parametrize("arguments", [["--wrong"], ["--suite"]])
def test_wrong_usage(command: Command, text_model: Path, arguments: list[str]) -> None:
    found = command("generate", "--model", text_model, "--prompt", "a", *arguments)
    assert (found.code, found.out) == (2, "")
    assert "Error" in found.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "mamba"], r"--family 'mamba' is unknown; choose one of: gpt2, llama"),
        (["--tokens", "5"], r"--tokens 5: the shipped model answers for 16 to \d+ tokens"),
        (["--tokens", "100000"], r"--tokens 100000"),
        (["--seed", "-1"], r"--seed -1: must not be negative"),
        (["--suite", "plain"], r"keeps nothing secret"),
    ],
)
def test_demo(command: Command, arguments: list[str], message: str) -> None:
    found = command("demo", *arguments)
    assert (found.code, found.out) == (2, "")
    assert re.search(message, found.err)


def test_prompt_never_reaches_an_error(command: Command, text_model: Path, tmp_path: Path) -> None:
    secret = "Rosebud"
    path = tmp_path / "prompt.txt"
    path.write_text(secret * 20)
    found = command("generate", "--model", text_model, "--prompt-file", path)
    assert found.code == 2
    assert secret not in found.err + found.out


def test_certs(command: Command, tmp_path: Path) -> None:
    made = command("certs", "--out", tmp_path / "c", "--parties", "a, b", "--parties", "c")
    assert made.code == 0
    assert {p.name for p in (tmp_path / "c").glob("*.crt")} == {
        f"{name}.crt" for name in ("a", "b", "c", "dealer", "client", "model-owner", "authority")
    }
    again = command("certs", "--out", tmp_path / "c", "--parties", "a")
    assert again.code == 2
    assert "authority.crt exists already" in again.err
    wrong = command("certs", "--out", tmp_path / "d", "--parties", "Ünfug")
    assert wrong.code == 2
    assert "cannot be an identity's name" in wrong.err
    days = command("certs", "--out", tmp_path / "e", "--parties", "a", "--days", "-3")
    assert days.code == 2
    assert "days must be between 0 and 36500, got -3" in days.err


def test_error_lines() -> None:
    assert error_line(ConfigurationError("two\nlines")) == "error [configuration]: two lines"
    assert error_line(PeerLost("party1", "prefill", "gone")) == "error [peer-lost]: party1: gone (during prefill)"
    try:
        raise ValueError("token 1234")
    except ValueError as error:
        line = error_line(error)
    assert "1234" not in line
    assert line.startswith("error [internal]: ValueError at test_command_errors.py:")


def test_debug_shows_the_traceback(command: Command, tmp_path: Path) -> None:
    found = command("--debug", "party", "--config", tmp_path / "none.yaml")
    assert found.code == 2
    assert "Traceback" in found.err
    assert found.err.strip().splitlines()[-1].startswith("error [configuration]:")


def test_configurations_of_the_documentation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "roles.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    assert {make_config(yaml.safe_load(block)).role for block in blocks} == {"party", "dealer", "client"}


def test_an_error_is_json_where_json_was_asked_for(command: Command) -> None:
    found = command("estimate", "--model", "nothing", "--prompt", 3, "--json")
    assert found.code == 2
    assert found.err.startswith("error [configuration]: ")
    told = json.loads(found.out)
    assert list(told) == ["error"]
    assert told["error"]["code"] == "configuration"
    assert found.err.strip() == f"error [configuration]: {told['error']['message']}"
    assert command("estimate", "--model", "nothing", "--prompt", 3).out == ""


def test_no_second_object_follows_the_answer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that ended at a value beyond its range is printed before the error that says so."""
    monkeypatch.setattr(Settings, "as_json", True)
    monkeypatch.setattr(Settings, "answered", False)
    print_json({"text": "half an"})
    show_error(ConfigurationError("a value left its range"))
    assert capsys.readouterr().out == '{"text": "half an"}\n'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "--model", "MODEL", "--tolerance", "nan"), "--tolerance nan: input should be greater than or equal to 0"),
        (("check", "--model", "MODEL", "--tolerance", "inf"), "--tolerance inf: give a finite number"),
        (("check", "--model", "MODEL", "--tolerance=-1"), "--tolerance -1: input should be greater than or equal to 0"),
        (("generate", "--model", "MODEL", "--max-new-tokens", "0"), "--max-new-tokens 0: input should be greater than or"),
        (("generate", "--model", "MODEL", "--temperature=-inf"), "--temperature -inf: give a finite number"),
        (("estimate", "--model", "MODEL", "--parties", "two"), "--parties two: input should be a valid integer"),
        (("generate", "--model", "MODEL", "--parties", "1"), "--parties 1: input should be greater than or equal to 2"),
        (("certs", "--out", "OUT", "--parties", "2", "--days", "nan"), "--days nan: give a finite number"),
        (("lab", "up", "--rtt", "nan"), "--rtt nan: give a finite number"),
    ],
)
def test_values_out_of_range_are_named(
    command: Command, text_model: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    given = [{"MODEL": str(text_model), "OUT": str(tmp_path / "out")}.get(one, one) for one in arguments]
    found = command(*given)
    assert (found.code, found.out, found.err.count("\n")) == (2, "", 1)
    assert found.err.startswith(f"error [configuration]: {message}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("generate", "--zzz"), "No such option: --zzz"), (("nothing",), "No such command 'nothing'.")],
)
def test_wrong_usage_is_told_to_programs_too(command: Command, arguments: tuple[str, ...], message: str) -> None:
    found = command(*arguments, "--json")
    assert (found.code, json.loads(found.out)) == (2, {"error": {"code": "usage", "message": message}})
    assert found.err.startswith("Usage: mpcache")
    assert command(*arguments).out == ""
