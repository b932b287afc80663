"""README and docs as a reader meets them: short enough, linked, every page found, the scripts run as they stand."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXAMPLES = DOCS / "examples"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *DOCS.glob("families/*.md"), *DOCS.glob("quality/*/*.md")])
README_WORDS = 1500
READ, TYPED = 238, 200  # words read and characters typed a minute (Brysbaert 2019; 40 words of 5 characters)


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> list[str]:
    """Targets of a page's links and pictures, but for those of other sites and those in code."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for target in links(page):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            lost.append(target)
    assert not lost


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= README_WORDS


def test_an_answer_from_two_hosts_takes_ten_minutes_of_reading_and_typing() -> None:
    """The README to the link, the page behind it, and its commands."""
    readme, _, _ = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Who holds what")
    assert "(docs/hosts.md)" in readme
    page = (DOCS / "hosts.md").read_text(encoding="utf-8")
    shown = re.sub(r"\]\([^)]*\)|<!--.*?-->|[|]", " ", readme + page)
    words = [word for word in shown.split() if re.search(r"\w", word)]
    commands = re.findall(r"^\$ (.*)$", page, flags=re.MULTILINE)
    assert len(commands) == 10
    minutes = len(words) / READ + sum(map(len, commands)) / TYPED
    assert minutes < 10, f"{len(words)} words, {len(commands)} commands: {minutes:.1f} minutes"


def test_every_page_is_found_from_the_index() -> None:
    found = {(DOCS / target.partition("#")[0]).resolve() for target in links(DOCS / "README.md")}
    assert not {page for page in DOCS.glob("*.md") if page.name != "README.md"} - found
    assert not set(EXAMPLES.glob("*.py")) - found - {EXAMPLES / "shares_picture.py"}
    assert (DOCS / "README.md").resolve() in {(ROOT / target).resolve() for target in links(ROOT / "README.md")}


def test_the_readme_tests_as_ci_does() -> None:
    """The command that the README gives for all tests is the one that .ci/run runs."""
    assert "`make test` runs all tests" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^step tests make (--\S+ )*test\b", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)


def said_by(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert text.count("\n# %%\n") >= 3
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_private_question_answering(capsys: pytest.CaptureFixture[str]) -> None:
    """The answer is the document's record, and both parties sent what was predicted, to the byte."""
    said = said_by("private_question_answering.py", capsys)
    assert "? Curie :9 3 2 7" in said
    costs = re.findall(r"(\d+) rounds, ([\d,]+) bytes sent", said)
    assert len(costs) == 3
    assert len(set(costs)) == 1


def test_comparing_policies(capsys: pytest.CaptureFixture[str]) -> None:
    """The full cache takes the fewest rounds, sends the most, and recalls the most."""
    said = said_by("comparing_policies.py", capsys)
    lines = re.findall(r"^(\S+) +(\d+) +([\d.]+) MB +([\d.]+) MB +([\d.]+)$", said, flags=re.MULTILINE)
    costs = {name: (int(rounds), float(sent), float(recalled)) for name, rounds, sent, _, recalled in lines}
    assert len(costs) == 4
    full = costs.pop("full")
    assert full[2] == 1
    assert all(full[0] <= rounds and full[1] > sent and full[2] >= recalled for rounds, sent, recalled in costs.values())


def test_the_picture_of_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is drawn from shares that add up to the plaintext (the script checks that), and the committed one is small."""
    monkeypatch.setattr(sys, "argv", ["shares_picture.py", str(tmp_path / "shares.png")])
    runpy.run_path(str(EXAMPLES / "shares_picture.py"), run_name="__main__")
    assert (tmp_path / "shares.png").read_bytes().startswith(b"\x89PNG")
    assert (DOCS / "shares.png").stat().st_size < 100_000
