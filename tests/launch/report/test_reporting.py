"""Reports from results: ratios, exponents and predictions against numbers worked out by hand; files; bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from launch.measure.bench.cell import Cell
from launch.measure.bench.results import ResultFolder, read_results
from launch.predict.networks import Network
from launch.report.blocks import filled
from launch.report.network_model import comparisons, predict
from launch.report.page import all_tables
from launch.report.paper import paper_tables
from launch.report.rows import Row, rows_of, tokens
from launch.report.tables import (
    exponent,
    exponents,
    network_table,
    peer_table,
    prompt_peer_table,
    prompt_tables,
    ratios,
)
from mpc.errors import ConfigurationError
from tests.launch.conftest import Command

PLACE = {
    "versions": {"python": "3", "torch": "2", "grpcio": "1"},
    "hardware": {"processor": "a", "cores": 2, "memory_bytes": 1, "cuda_devices": []},
    "revision": {"commit": None, "changed": None},
    "time": "2026-01-02T00:00:00Z",
}


def measured(sent: int, rounds: int, seconds: float | None, **more: Any) -> dict[str, Any]:
    """A result of two parties."""
    out = {
        "rounds": rounds,
        "bytes_sent": {"party0": sent, "party1": sent - 1},
        "offline_bytes": {"party0": 5, "party1": 7 * sent},
        "per_layer": {"rounds": rounds / 12, "bytes_sent": sent / 12},
        "parts": {"attention": {"rounds": rounds, "bytes_sent": sent, "offline_bytes": 7 * sent, "seconds": seconds or 0}},
        **more,
    }
    if seconds is not None:
        all_of_them = [9 * seconds, seconds, seconds]  # tables and plots that show the first one are found
        spread = {"median": seconds, "min": seconds, "max": 9 * seconds, "all": all_of_them}
        out |= {"seconds": spread, "prepare_seconds": spread, "dealer_seconds": spread}
    else:
        out["predicted"] = True
    return out


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """Full cache and a policy at three lengths, the last one predicted; one shaped run; one peer."""
    folder = ResultFolder(tmp_path / "results")
    for policy, sent in (("full", {1024: 1000, 2048: 2000, 4096: 4000}), ("mpcache", {1024: 500, 2048: 500, 4096: 500})):
        for prompt, size in sent.items():
            ran = prompt < 4096
            cell = Cell(measure="token" if ran else "estimate", policy=policy, prompt=prompt)
            folder.keep(cell, PLACE, measured(size, 100, size / 1000 if ran else None))
    shaped = Cell(prompt=1024, network="100,8")
    folder.keep(shaped, PLACE, measured(1000, 100, 7.0))
    peer = Cell(measure="peer", suite="spu-aby3", parties=3, prompt=1024)
    folder.keep(peer, PLACE, measured(20_000, 6000, 12.0))
    folder.keep(peer.model_copy(update={"network": "wan"}), PLACE, measured(20_000, 6000, 99.0))
    return rows_of(read_results(tmp_path / "results"))


def test_prediction() -> None:
    network = Network("", round_trip=0.1, bandwidth=8e6)
    assert predict(network, rounds=100, bytes_sent=2_000_000, local_seconds=1.5) == pytest.approx(1.5 + 100 * 0.0503 + 2.0)


def test_error_of_the_network_model(rows: list[Row]) -> None:
    (found,) = comparisons(rows)
    assert found.predicted == pytest.approx(1.0 + 5.03 + 0.001)
    assert found.error == pytest.approx((6.031 - 7.0) / 7.0)
    table = network_table(rows)
    assert table is not None
    assert "-14 %" in table.rows[0]


def test_ratios(rows: list[Row]) -> None:
    found = {r.row.cell.prompt: r for r in ratios(rows)}
    assert {n: r.bytes_ratio for n, r in found.items()} == {1024: 2.0, 2048: 4.0, 4096: 8.0}
    assert found[2048].seconds_ratio == pytest.approx(4.0)
    assert found[4096].seconds_ratio is None
    wan = found[2048].networks["wan"]
    assert wan == pytest.approx((2.0 + 100 * 0.0203 + 2000 * 8 / 400e6) / (0.5 + 100 * 0.0203 + 500 * 8 / 400e6))


def test_exponents(rows: list[Row]) -> None:
    assert exponent([(1, 3), (10, 300)]) == pytest.approx(2)
    assert exponent([(5, 3), (5, 4)]) is None
    assert {label: round(b, 6) for _, label, _, _, b in exponents(rows)} == {"masked": 1.0, "masked, mpcache": 0.0}


def test_a_measured_row_hides_a_prediction(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path)
    folder.keep(Cell(prompt=8), PLACE, measured(10, 1, 1.0))
    folder.keep(Cell(prompt=8, measure="estimate"), PLACE, measured(10, 1, None))
    (row,) = tokens(rows_of(read_results(tmp_path)))
    assert not row.predicted


def test_peers(rows: list[Row]) -> None:
    table = peer_table(rows)
    assert table is not None
    assert [line[1] for line in table.rows] == ["SPU, spu-aby3", "masked", "masked, mpcache"]
    assert [line[3] for line in table.rows] == ["6000 (60x)", "100 (1.0x)", "100"]
    assert [line[4] for line in table.rows] == ["20.00 KB (40x)", "1.00 KB (2.0x)", "500 B"]
    assert [line[6] for line in table.rows] == ["12 (24x)", "1 (2.0x)", "0.5"]
    assert table.rows[0][7] == "99 (39x)"  # measured there: not 12 + 6000 x 0.02 + the bytes
    assert table.rows[2][7] == "2.53, predicted"


def test_a_mean_over_tokens_is_what_is_counted_and_one_token_what_is_timed(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path)
    folder.keep(Cell(prompt=1024), PLACE, measured(12_000_000, 96, 2.0))
    folder.keep(Cell(prompt=1024, policy="mpcache"), PLACE, measured(4_800_000, 108, 0.5))
    folder.keep(Cell(measure="estimate", policy="mpcache", new_tokens=64), PLACE, measured(6_000_000, 120, None))
    rows = rows_of(read_results(tmp_path))
    (found,) = ratios(rows)
    assert (found.bytes_ratio, found.rounds_ratio, found.seconds_ratio) == (2.0, 0.8, 4.0)
    assert found.networks["wan"] == pytest.approx((2.0 + 96 * 0.0203 + 0.24) / (0.5 + 120 * 0.0203 + 0.12))
    page = filled("<!-- results: policies -->\n<!-- /results -->", rows)
    assert "| 1 024 | 8 rounds, 1.00 MB | 10 rounds, 0.50 MB |" in page


@pytest.fixture
def prompts(tmp_path: Path) -> list[Row]:
    """A prompt that was measured and predicted, a longer one that was predicted, a shaped one, and a peer's."""
    folder = ResultFolder(tmp_path / "prompts")
    folder.keep(Cell(measure="prompt", prompt=128), PLACE, measured(4000, 300, 5.0, peak_memory_bytes={"party": 9_000_000}))
    folder.keep(Cell(measure="prompt", prompt=128, network="wan"), PLACE, measured(4000, 300, 11.0))
    for prompt in (128, 1024):
        folder.keep(Cell(measure="estimate-prompt", prompt=prompt), PLACE, measured(40 * prompt, 300, None))
    folder.keep(Cell(measure="peer-prompt", suite="spu-aby3", parties=3, prompt=128), PLACE, measured(80_000, 6000, 50.0))
    return rows_of(read_results(tmp_path / "prompts"))


def test_prompts_say_what_was_measured(prompts: list[Row]) -> None:
    assert tokens(prompts) == []
    (table,) = prompt_tables(prompts)
    assert table.rows == (
        ("128", "masked", "300", "4.00 KB", "28.00 KB", "5", "5", "5", "9.00 MB", "measured"),
        ("1024", "masked", "300", "40.96 KB", "286.72 KB", "-", "-", "-", "-", "predicted"),
    )
    page = filled("<!-- results: prompts -->\n<!-- /results -->", prompts)
    assert "| gpt2, 128 | masked | 300 | 4.00 KB | 28.00 KB | 5 | 5 | 5 | measured |" in page
    assert "| gpt2, 1 024 | masked | 300 | 40.96 KB | 286.72 KB | - | - | - | estimate |" in page


def test_a_peers_prompt_stands_beside_the_measured_one_alone(prompts: list[Row]) -> None:
    assert peer_table(prompts) is None
    table = prompt_peer_table(prompts)
    assert table is not None
    assert [line[:5] for line in table.rows] == [
        ("128", "SPU, spu-aby3", "3", "6000 (20x)", "80.00 KB (20x)"),
        ("128", "masked", "2", "300", "4.00 KB"),
    ]
    assert [line[6] for line in table.rows] == ["50 (10x)", "5"]
    assert table.rows[1][7] == "11"  # on the shaped network
    assert table.markdown() in filled("<!-- results: prompt-peers -->\n<!-- /results -->", prompts)


def test_the_papers_form_says_what_is_an_estimate(rows: list[Row]) -> None:
    communication = paper_tables(rows)[0]
    assert [line[4] for line in communication.rows] == ["2.00x", "4.00x", "8.00x"]
    assert [line[-1] for line in communication.rows] == ["measured", "measured", "estimate"]


def test_report_files(rows: list[Row], tmp_path: Path, command: Command) -> None:
    done = command("report", "--results", tmp_path / "results", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    text = (tmp_path / "out" / "report.md").read_text()
    page = (tmp_path / "out" / "report.html").read_text()
    for table in all_tables(rows):
        assert table.title in text
        assert table.title in page
    pictures = [line for line in text.splitlines() if line.startswith("![")]
    assert len(pictures) >= 4
    assert page.count("<figcaption>") == len(pictures) == len(re.findall(r"^\*.+\.\*$", text, re.MULTILINE))
    for line in pictures:
        data = (tmp_path / "out" / line.rpartition("](")[2].rstrip(")")).read_bytes()
        assert data.startswith(b"\x89PNG")
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png;base64,") == len(pictures)


def test_columns_of_nothing_are_left_out(rows: list[Row]) -> None:
    for table in all_tables(rows):
        _, *lines = table.shown()
        assert all(any(cell not in ("-", "") for cell in column) for column in zip(*lines, strict=True)), table.title


def test_a_model_beyond_its_positions_is_called_its_shape(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path)
    for prompt in (512, 1024, 2048):
        folder.keep(Cell(prompt=prompt), PLACE, measured(10, 1, 1.0))
    folder.keep(Cell(measure="estimate-prompt", prompt=1024), PLACE, measured(10, 1, None))
    names = {(r.cell.measure, r.cell.prompt): r.title for r in rows_of(read_results(tmp_path))}
    assert names["token", 512] == names["estimate-prompt", 1024] == "gpt2"
    assert names["token", 1024] == names["token", 2048] == "shape of gpt2"  # a token behind 1 024 is the 1 025th


def test_blocks_of_a_page(rows: list[Row]) -> None:
    before = "a\n<!-- results: growth -->\nold\n<!-- /results -->\nb\n"
    after = filled(before, rows)
    assert "| masked | 1024 to 4096 | 1.00 |" in after
    assert after.startswith("a\n")
    assert after.endswith("\nb\n")
    assert filled(after, rows) == after
    with pytest.raises(ConfigurationError, match="no block '<!-- results: NAME -->'"):
        filled("a page without one\n", rows)
    with pytest.raises(ConfigurationError, match="'nothing' is unknown"):
        filled(before.replace("growth", "nothing"), rows)


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1, "cell": {"model": 3}}', "[1]"])
def test_what_is_no_result(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"x\.json is not a result"):
        read_results(tmp_path)


def test_nothing_there(tmp_path: Path, command: Command) -> None:
    with pytest.raises(ConfigurationError, match="holds no result"):
        read_results(tmp_path)
    done = command("report", "--results", tmp_path)
    assert done.code == 2
    assert "--out FOLDER" in done.err


def test_results_are_never_replaced(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path)
    path = folder.keep(Cell(), PLACE, measured(10, 1, 1.0))
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="never replaced"):
        folder.keep(Cell(), PLACE, measured(11, 1, 1.0))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert json.loads(before)["measured"]["rounds"] == 1


PAGES = [("README.md", 1), ("docs/costs.md", 5), ("docs/choosing.md", 3), ("docs/bench.md", 1), ("docs/paper.md", 1)]


@pytest.mark.parametrize(("page", "blocks"), PAGES)
def test_tables_of_pages_are_those_of_the_committed_results(page: str, blocks: int) -> None:
    """`mpcache report --results docs/results --fill PAGE` makes them again."""
    root = Path(__file__).parents[3]
    text = (root / page).read_text(encoding="utf-8")
    assert text.count("<!-- results: ") >= blocks
    assert filled(text, rows_of(read_results(root / "docs" / "results"))) == text
