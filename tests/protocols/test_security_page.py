"""docs/security.md and the code say the same: each protocol, policy, suite, decoding, option and setting stands there."""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from models.plans import Leaving
from models.policies.registry import POLICIES, WRAPPERS
from models.policies.wrappers import PerLayer
from parties.config.grants import ClientGrant, OwnerGrant
from parties.config.role_config import Limits, PeerAddress, RoleConfig
from parties.status.settings import Settings
from parties.wire import wire_pb2
from parties.wire.manifest import Manifest
from protocols.registry import SUITES, secure_suites
from tests.protocols import speaking

ROOT = speaking.ROOT
PAGE = ROOT / "docs" / "security.md"
REFERENCE = re.compile(r'docs/security\.md,\s*"([^"]+)"')
PROTOCOLS = [ROOT / "protocols" / "masked", ROOT / "protocols" / "crypten", ROOT / "protocols"]


@cache
def rows() -> dict[str, list[str]]:
    """{heading: first cells of the rows of its tables}, headers and rulers left out."""
    found: dict[str, list[str]] = {}
    heading, before = "", ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
            found[heading] = []
        elif line.startswith("| ---"):
            found[heading].remove(before)
        elif line.startswith("|"):
            before = line[1:].split(" | ")[0].strip()
            found[heading].append(before)
    return found


def anchors() -> set[str]:
    """Headings and titles of rows, which may name a file in brackets behind them."""
    plain = (re.sub(r" \(`.*\)$", "", cell).replace("`", "") for cells in rows().values() for cell in cells)
    return {heading.replace("`", "") for heading in rows()} | set(plain)


def named(*headings: str) -> set[str]:
    """What stands in backticks in the first cells below these headings."""
    return {name for heading in headings for cell in rows()[heading] for name in re.findall(r"`([^`]+)`", cell)}


def documentation(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def protocols() -> list[Path]:
    """All modules that define a protocol or a policy."""
    policies = {Path(inspect.getfile(kind)) for kind in (*POLICIES.values(), *WRAPPERS.values(), PerLayer)}
    awaiting = {p for p in (ROOT / "models" / "policies").glob("*.py") if "await suite." in p.read_text()}
    return sorted(speaking.speaking(*PROTOCOLS) | policies | awaiting)


def test_protocols_say_what_they_leak() -> None:
    """They open, send or deal something: their docstrings need lines 'Leaks: ...' with (docs/security.md, "title")."""
    texts = {str(path.relative_to(ROOT)): documentation(path) for path in protocols()}
    assert len(texts) > 50
    assert [path for path, text in texts.items() if "Leaks: " not in text] == []
    assert [path for path, text in texts.items() if not REFERENCE.search(text)] == []


def test_the_page_has_what_code_refers_to() -> None:
    folders = [p for top in ("protocols", "models", "mpc", "parties") for p in (ROOT / top).rglob("*.py")]
    wanted = {title for path in folders for title in REFERENCE.findall(path.read_text())}
    assert len(wanted) > 35
    assert not wanted - anchors(), "no such heading or row on docs/security.md"


def test_what_speaks_is_found() -> None:
    """The search itself: the modules that only hold values are silent, and one that speaks through another is found."""
    found = {str(p.relative_to(ROOT / "protocols")) for p in speaking.speaking(*PROTOCOLS)}
    assert not {"masked/shares.py", "masked/append_buffer.py", "masked/values.py", "crypten/value.py", "bounds.py"} & found
    assert {"masked/attention.py", "masked/shuffle.py", "masked/dpf.py", "crypten/own.py", "crypten/suite.py"} <= found


def test_policies() -> None:
    assert named("Policies") == {*POLICIES, *WRAPPERS, PerLayer.name}


def test_suites_and_their_options() -> None:
    assert named("Suites") == set(SUITES)
    options = {name for suite in secure_suites() for name in SUITES[suite].options.known()}
    assert named("Suite options") == options | {"device"}


def test_decodings() -> None:
    assert named("Decodings") == set(get_args(Leaving))


def test_the_manifest() -> None:
    assert not set(Manifest.model_fields) - named("The manifest")


def test_settings() -> None:
    kinds = (RoleConfig, Limits, PeerAddress, ClientGrant, OwnerGrant, Settings)
    fields = {field for kind in kinds for field in kind.model_fields} - {"limits"}
    assert not fields - named("Settings of roles")


def test_messages() -> None:
    part = PAGE.read_text().partition("### Messages")[2].partition("\n## ")[0]
    assert not set(wire_pb2.DESCRIPTOR.message_types_by_name) - set(re.findall(r"`(\w+)`", part))


@pytest.mark.parametrize("page", ["README.md", "docs/roles.md", "docs/policies.md", "docs/ranges.md"])
def test_pages_that_speak_of_security_link_to_it(page: str) -> None:
    assert "security.md" in (ROOT / page).read_text()


def test_files_that_the_page_names_exist() -> None:
    for name in re.findall(r"`((?:tests|protocols|models|mpc|parties|launch)/[\w/]+\.py)`", PAGE.read_text()):
        assert (ROOT / name).is_file(), name
