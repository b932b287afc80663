"""Tapes on disk for tests: a deal of the toy's program, and everything that a tape says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models import public_tables
from models.checkpoint import read_architecture
from parties.config.role_config import make_config
from parties.identity.certificates import check
from parties.tapes.deal import Deal, DealOrder, DealSpec, deal
from parties.tapes.file import TapeFile
from parties.tapes.store import TapeStore
from parties.wire.manifest import PROTOCOL_VERSION, Manifest, architecture_hash, package_version
from protocols.registry import SuiteSpec
from tests.parties.deployment import Deployment
from tests.parties.toy import Toy

PROMPT = [3, 1, 4, 1, 5]
MODEL = "5" * 32
STORING = "7" * 32  # nonce of the party's shares of it


def deal_toy(deployment: Deployment, checkpoint: Path, out: Path, toy: Toy | None = None, **changes: Any) -> Deal:
    """Tapes for the toy, by default two for `PROMPT` and up to 4 new tokens."""
    values: dict[str, Any] = {"prompts": [len(PROMPT)], "new_tokens": 4, "sessions": 2, "suite": "crypten", **changes}
    values["suite"] = SuiteSpec(values["suite"], options=values.pop("options", None))
    config = values.pop("config", deployment.config("dealer", "dealer"))
    spec = DealSpec(**values, program=(toy or Toy()).program)
    return deal(DealOrder(config, read_architecture(checkpoint), spec), out)


def manifest(checkpoint: Path, **changes: Any) -> Manifest:
    """What a client would ask for that these tapes serve."""
    values: dict[str, Any] = {
        "protocol": PROTOCOL_VERSION,
        "version": package_version(),
        "model": MODEL,
        "architecture": architecture_hash(read_architecture(checkpoint)),
        "suite": "crypten",
        "fraction_bits": 16,
        "options": {},
        "prefix_tokens": 0,
        "chunk_tokens": [],
        "chunk_again": 0,
        "chunk_slots": 0,
        "prompt_tokens": len(PROMPT),
        "new_tokens": 4,
        "decoding": "greedy",
        "temperature": None,
        "policy": "full",
        "draft": 0,
        "tables": public_tables.digest(read_architecture(checkpoint)),
        "parties": ["party0", "party1"],
    }
    return Manifest(**{**values, **changes})


def tape_file(deployment: Deployment, folder: Path, tape: str, party: str = "party1") -> TapeFile:
    """One tape as its party opens it."""
    return TapeFile(folder, tape, party, int(party[-1]), deployment.peer("dealer"), check(deployment.certificates, party))


def store(deployment: Deployment, root: Path, party: str = "party1") -> TapeStore:
    """A party's folder of tapes."""
    own = check(deployment.certificates, party)
    return TapeStore(root, party, int(party[-1]), deployment.peer("dealer"), lambda: own)


def session_tapes(folder: Path) -> list[str]:
    """Ids of the sessions' tapes in a deal's folder."""
    return sorted(file.stem for file in folder.glob("*.json") if file.stem != folder.name)


def everything(file: TapeFile) -> bytes:
    """All that a tape says."""
    opened = file.open()
    try:
        return bytes(opened.read(file.header.length))
    finally:
        opened.close()


def other_config(deployment: Deployment, **changes: Any) -> Any:
    """The dealer's configuration with changes."""
    return make_config({**deployment.values("dealer", "dealer"), **changes})
