"""Each party's generator in the manifest: all roles name the same ones, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mpc.errors import ManifestMismatch, WireError
from mpc.generators import AES, CHACHA
from parties.wire.manifest import Manifest, check_generators, compare
from tests.parties import tape_folders as tapes


def test_a_role_takes_no_other_generator_than_its_own(checkpoint: Path) -> None:
    asked = tapes.manifest(checkpoint, prg={"party1": CHACHA})
    assert [asked.generator(name) for name in asked.parties] == [AES, CHACHA]
    check_generators(asked, "client", {"party0": AES, "party1": CHACHA}, "party1")
    words = (
        r"client has prg chacha20 of party1, party1 is configured with aes256-ctr: write one 'prg' in the entry of party1"
    )
    with pytest.raises(ManifestMismatch, match=words):
        check_generators(asked, "client", {"party0": AES, "party1": AES}, "party1")
    with pytest.raises(ManifestMismatch, match="client has prg aes256-ctr of party0, dealer is configured with chacha20"):
        check_generators(asked, "client", {"party0": CHACHA, "party1": CHACHA}, "dealer")
    with pytest.raises(
        ManifestMismatch, match=r"different manifests: prg \(party0: \{\}, party1: \{'party1': 'chacha20'\}\)"
    ):
        compare("party0", tapes.manifest(checkpoint), "party1", asked)


@pytest.mark.parametrize(
    ("prg", "words"),
    [
        ({"party1": "chacha8"}, "field 'prg.party1' is wrong: Input should be 'chacha20'"),
        ({"party1": AES}, "field 'prg.party1' is wrong"),  # the usual one is not written: one session has one manifest
        ({"party7": CHACHA}, "field 'prg' is wrong: Value error, of 'party7', which is no party"),
    ],
)
def test_what_is_no_generator_of_a_party_is_refused(checkpoint: Path, prg: dict[str, Any], words: str) -> None:
    values = {**json.loads(tapes.manifest(checkpoint).canonical()), "prg": prg}
    with pytest.raises(WireError, match=words):
        Manifest.parse(json.dumps(values, sort_keys=True, separators=(",", ":")).encode(), "client")


def test_a_manifest_comes_back_from_its_bytes(checkpoint: Path) -> None:
    asked = tapes.manifest(checkpoint, prg={"party0": CHACHA})
    assert Manifest.parse(asked.canonical(), "client") == asked
