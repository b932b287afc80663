"""Prompts from files and standard input, and answers on outputs of any encoding."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from launch.cli.options import read_prompt
from launch.terminal import console
from launch.terminal.texts import decode_text
from mpc.errors import ConfigurationError


def test_prompt_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompt.txt"
    for data, text in (
        ("Zürich 漢\n".encode(), "Zürich 漢"),
        (b"\xef\xbb\xbfa\r\nb\r\n", "a\nb"),
        ("\ufeffx\ufeff".encode(), "x\ufeff"),
    ):
        file.write_bytes(data)
        assert read_prompt(None, file) == text
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))
        assert read_prompt(None, Path("-")) == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"caf\xe9", r"byte 4 \(0xe9\) does not belong there; convert it first: iconv -f ITS-ENCODING -t UTF-8"),
        ("é".encode("utf-16"), r"byte 1 \(0xff\) does not belong there; convert it first: iconv -f UTF-16 -t UTF-8"),
        (b"a\xed\xa0\xbdb", r"byte 2 \(0xed\)"),
        ("漢".encode()[:2], r"byte 1 \(0xe6\)"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, message: str) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(data)
    with pytest.raises(ConfigurationError, match=rf"--prompt-file {file} is not a UTF-8 text: {message}"):
        read_prompt(None, file)
    with pytest.raises(ConfigurationError, match=rf"line 3 of standard input is not a UTF-8 text: {message}"):
        decode_text(data, "line 3 of standard input")


def test_an_output_that_lacks_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    with pytest.raises(UnicodeEncodeError):
        print("é漢")
    console.replace_what_cannot_be_written()
    print("é漢 a", flush=True)
    assert written.getvalue() == b"?? a\n"
    console.print_json({"text": "é漢"})
    assert json.loads(written.getvalue().splitlines()[1]) == {"text": "é漢"}
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8"))
    console.print_json({"text": "é漢"})
    assert written.getvalue().decode().endswith('{"text": "é漢"}\n')
