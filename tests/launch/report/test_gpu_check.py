"""A file of `gpu_check` in a report: every number in its place, what went wrong in words, files that are none refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.report.blocks import filled
from launch.report.gpu import check_tables, read_check
from mpc.errors import ConfigurationError
from tests.launch.conftest import Command

STEP = {
    "name": "token after 128, full", "ok": True, "error": 0.00123, "rounds": 233, "sent_bytes": 6_500_000,
    "dealt_bytes": 87_000_000, "peak_memory_bytes": 5_400_000_000, "seconds": {"dealer": 0.5, "party 0": 0.25},
}  # fmt: skip
PACKING = {"name": "packing", "ok": False, "seconds": 0.004, "bytes_per_second": 2.5e9, "operations_per_second": 3e12}


def check(**changes: Any) -> dict[str, Any]:
    parts = {
        "token": {"state": "ok", "why": "", "seconds": 43.56, "rows": [STEP]},
        "kernels": {"state": "wrong", "why": "Traceback\n  packing: a wrong result", "seconds": 8.0, "rows": [PACKING]},
        "plain": {"state": "skipped", "why": "no GPU", "seconds": 0.0, "rows": [{"name": "device", "skip": "no GPU"}]},
    }
    return {"format": 1, "device": "cuda", "small": False, "complete": True, "parts": parts} | changes


def test_tables() -> None:
    parts, rows = check_tables(check())
    assert parts.rows == (
        ("token", "ok", "1", "43.6", "-"),
        ("kernels", "wrong", "1", "8", "packing: a wrong result"),
        ("plain", "skipped", "1", "0", "no GPU"),
    )
    first, second, third = rows.rows
    seconds = "dealer 0.5, party 0 0.25"
    assert first == ("token", STEP["name"], "right", seconds, "-", "233", "6.50 MB", "87.00 MB", "5.40 GB", "1.2e-03")
    assert second == ("kernels", "packing", "wrong", "0.004", "2.50 GB, 3,000 G operations", *["-"] * 5)
    assert third == ("plain", "device: no GPU", "skipped", *["-"] * 7)
    assert "stopped" in check_tables(check(complete=False))[0].note
    assert "no measurement" in check_tables(check(small=True))[0].note


def test_a_page_keeps_the_blocks_of_what_is_not_given() -> None:
    page = "<!-- results: gpu -->\nold\n<!-- /results -->\n<!-- results: suites -->\nkept\n<!-- /results -->\n"
    made = filled(page, None, check())
    assert "kept" in made
    assert "old" not in made
    assert check_tables(check())[1].markdown() in made
    assert filled(page, None) == page


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        (json.dumps(check(format=2)), "format 2, this version reads 1"),
        (json.dumps(check(parts={"token": {"state": "ok"}})), "KeyError"),
        (json.dumps(check(parts=[])), "AttributeError"),
    ],
)
def test_what_is_no_check_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=rf"--gpu .*gpu.json .*{words}"):
        read_check(tmp_path / "gpu.json")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_check(tmp_path / "none.json")


def test_the_command(tmp_path: Path, command: Command) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps(check()), encoding="utf-8")
    assert command("report", "--gpu", str(tmp_path / "gpu.json"), "--out", str(tmp_path / "made")).code == 0
    assert "| token | token after 128, full | right |" in (tmp_path / "made" / "report.md").read_text(encoding="utf-8")
    found = command("report", "--out", str(tmp_path / "made"))
    assert found.code != 0
    assert "give --results FOLDER, --gpu FILE, or both" in found.err
