"""The owner's bounds travel with a model: through the parties to the client, and into every manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.calibration.record import make
from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan, generate_plain
from mpc.errors import RangeError, WireError
from parties.client import client as client_module
from parties.client.session import AgreedRequest
from parties.model_owner.model_owner import SharingTerms, share_model
from parties.party.store import ModelStore
from parties.wire.model_ranges import MOST_BYTES, pack_ranges, unpack_ranges
from tests.parties.conftest import Running
from tests.parties.deployment import Deployment

RANGES = {"masked": {"score": 8, "residual": "8*2 14"}, "crypten": {}}


def test_there_and_back() -> None:
    assert unpack_ranges(pack_ranges(RANGES), "a") == RANGES
    assert unpack_ranges(pack_ranges(None), "a") is None
    assert unpack_ranges(pack_ranges({}), "a") == {}


@pytest.mark.parametrize(
    "text",
    ["{", "[" * 9000, "3", '{"masked":{"score":99}}', '{"masked":{"sc":1}}', '{"x":{}}', '"' + "x" * MOST_BYTES + '"'],
)
def test_what_a_peer_makes_up_is_refused(text: str) -> None:
    with pytest.raises(WireError, match="mallory"):
        unpack_ranges(text, "mallory")


def test_the_owners_bounds_are_options_of_every_session(two: Running, checkpoint: Path, monkeypatch: Any) -> None:
    """Text and numbers alike: parties store and say them; the manifest has them; what a caller says goes over them."""
    shared = share_model(two.deployment.config("model-owner", "owner"), checkpoint, "ranged", SharingTerms(ranges=RANGES))
    client = two.deployment.client()
    reference = client.find_model("ranged")
    assert reference.ranges == RANGES == shared.ranges
    assert client.find_model("tiny").ranges is None
    for name in two.deployment.names:
        stored = ModelStore(two.deployment.folder / f"store-{name}").get(shared.id)
        assert stored is not None
        assert stored.ranges == RANGES
    manifests = []

    class Noted(Exception):
        pass

    def noting(id: str, config: Any, request: AgreedRequest, *callbacks: Any) -> Any:
        manifests.append(request.manifest)
        raise Noted

    monkeypatch.setattr(client_module, "ClientSession", noting)
    for options in ({}, {"score": 9}):
        with pytest.raises(Noted):
            client.ask([1, 2], 1, model=reference, suite="masked", options=options)
    with pytest.raises(Noted):
        client.ask([1, 2], 1, model=replace(reference, ranges=None), suite="masked")
    assert [m.options for m in manifests] == [RANGES["masked"], RANGES["masked"] | {"score": 9}, {}]


PROMPT = [3, 5, 7]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two parties and a dealer that run the real program."""
    with Deployment(tmp_path_factory.mktemp("real"), 2, deadline_seconds=20) as running:
        yield running


@pytest.fixture(scope="module")
def wanted(checkpoint: Path) -> list[int]:
    return generate_plain(load_checkpoint(checkpoint), PROMPT, GenerationPlan(len(PROMPT), 2))


def test_a_session_runs_with_the_calibrated_bounds(real: Deployment, checkpoint: Path, wanted: list[int]) -> None:
    """The calibration beside a checkpoint is shared without being asked, and a session computes with it."""
    found = make(checkpoint)
    try:
        real.share(checkpoint, "calibrated")
    finally:
        assert found.file is not None
        found.file.unlink()
    client = real.client()
    reference = client.find_model("calibrated")
    assert reference.ranges == json.loads(json.dumps(found.suites))
    assert reference.ranges["masked"] == {"residual": 8}
    assert client.ask(PROMPT, 2, model=reference, suite="masked", stop_ids=()).tokens[: len(wanted)] == wanted


def test_bounds_by_layer_end_to_end(real: Deployment, checkpoint: Path, wanted: list[int]) -> None:
    """Texts by layer reach all roles, which compute with them: tokens are plaintext's."""
    by_layer = {"masked": {"residual": "8 9 10", "score": "7 8", "value": "6 7", "activation": "8 9", "logits": 9}}
    share_model(real.config("model-owner", "owner"), checkpoint, "by layer", SharingTerms(ranges=by_layer))
    client = real.client()
    reference = client.find_model("by layer")
    assert reference.ranges == by_layer
    assert client.ask(PROMPT, 2, model=reference, suite="masked", stop_ids=()).tokens[: len(wanted)] == wanted
    with pytest.raises(RangeError, match="score = 11"):
        client.ask(PROMPT, 2, model=reference, suite="masked", options={"score": 11})
