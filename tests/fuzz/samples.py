"""What a target of the fuzzer is, and what samples of several targets share."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from models import public_tables
from models.shapes import SHAPES
from parties.wire.manifest import PROTOCOL_VERSION, Manifest, architecture_hash, new_id, package_version

SHAPE = SHAPES["tiny"]


@dataclass(frozen=True)
class Target:
    """A decoder. samples: valid inputs; decode: what is called with a case; refusals: errors beside `MpcacheError`."""

    samples: Callable[[], Sequence[bytes]]
    decode: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...] = ()


def make_manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "protocol": PROTOCOL_VERSION,
        "version": package_version(),
        "model": new_id(),
        "architecture": architecture_hash(SHAPE),
        "suite": "masked",
        "fraction_bits": 14,
        "options": {"score": 8, "residual": 14},
        "prefix_tokens": 0,
        "chunk_tokens": [],
        "chunk_again": 0,
        "chunk_slots": 0,
        "prompt_tokens": 9,
        "new_tokens": 3,
        "decoding": "greedy",
        "temperature": None,
        "policy": "mpcache:preset=clusters,static=0.5",
        "draft": 0,
        "tables": public_tables.digest(SHAPE),
        "parties": ["party0", "party1"],
    }
    return Manifest(**{**values, **changes})


@cache
def scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="mpcache-fuzz-"))


def configurations() -> list[bytes]:
    return [
        b"role: party\nname: party0\nlisten: 0.0.0.0:7000\ncertificates: certificates\nstore: shares\nparties:\n"
        b"  - {name: party0, address: 'a:1'}\n  - {name: party1, address: 'b:2'}\ndealer: {name: dealer, address: 'c:3'}\n"
        b"clients: [client]\nmodel_owners: [model-owner]\nlimits: {max_sessions: 3}\n",
        b"role: client\nname: client\ncertificates: x\nparties: [{name: p, address: 'a:1'}, {name: q, address: 'b:2'}]\n",
    ]
