"""What a server grants by predicted cost, and which policies and options may be asked for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from models.checkpoint import read_architecture
from models.costs.prediction import Prediction, Predictor
from mpc.errors import ConfigurationError, PermissionRefused
from parties.errors import Busy
from parties.party.store import StoredModel
from parties.server.cost_limits import ALLOWANCE_SECONDS, FORGOTTEN_SECONDS, REFILL, Allowances, Costs
from parties.server.permissions import Permissions
from parties.wire.manifest import Manifest, new_id
from tests.parties import tape_folders as tapes
from tests.parties.conftest import run
from tests.parties.deployment import Deployment

pytestmark = pytest.mark.usefixtures("own_predictions")
PREDICTED = Prediction(prompt=5, new=4, prompt_dealt=1000, prompt_sent=100, token_dealt=700, token_sent=30)


def permissions(folder: Path, **changes: Any) -> Permissions:
    return Permissions(Deployment(folder, 2).config("party", "party0", **changes))


def costs(folder: Path, **changes: Any) -> Costs:
    return Costs("party0", permissions(folder, **changes), 60)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("max_token_dealt_bytes", 700), ("max_token_sent_bytes", 30), ("max_dealt_bytes", 3100), ("max_sent_bytes", 190)],
)
def test_each_limit(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, setting: str, value: int) -> None:
    monkeypatch.setattr(Predictor, "predict", lambda *_: PREDICTED)
    asked, architecture = tapes.manifest(checkpoint), read_architecture(checkpoint)
    for where, changes, place in (
        ("limits", lambda most: {"limits": {setting: most}}, "the 'limits' of party0"),
        ("grant", lambda most: {"clients": [{"name": "client", setting: most}]}, "the entry of 'client' in the 'clients'"),
    ):
        costs(tmp_path / where, **changes(value)).check(asked, architecture, "client")
        message = rf"about {value:,} bytes .*policy 'full'.*party0 allows {value - 1:,}: .*raise '{setting}' in {place}"
        with pytest.raises(ConfigurationError, match=message):
            costs(tmp_path / f"{where} low", **changes(value - 1)).check(asked, architecture, "client")


def test_a_grant_does_not_go_beyond_the_server(tmp_path: Path, checkpoint: Path) -> None:
    grants = {"limits": {"max_dealt_bytes": 1}, "clients": [{"name": "client", "max_dealt_bytes": 1 << 60}]}
    with pytest.raises(ConfigurationError, match=r"party0 allows 1: .*in the 'limits' of party0"):
        costs(tmp_path, **grants).check(tapes.manifest(checkpoint), read_architecture(checkpoint), "client")


def test_what_was_predicted_answers_at_once(tmp_path: Path, checkpoint: Path) -> None:
    made, asked, architecture = costs(tmp_path), tapes.manifest(checkpoint), read_architecture(checkpoint)
    assert not made.known(asked, architecture)
    made.check(asked, architecture, "client")
    assert made.known(asked, architecture)
    assert made.known(tapes.manifest(checkpoint, model=new_id()), architecture)
    assert not made.known(tapes.manifest(checkpoint, options={"residual": 9}), architecture)


def test_a_prediction_that_takes_too_long(tmp_path: Path, checkpoint: Path) -> None:
    made, architecture = Costs("party0", permissions(tmp_path), 1e-6), read_architecture(checkpoint)
    message = r"party0 cannot predict within 1e-06 s what 5 prompt and 4 new tokens cost .*'max_prediction_seconds'"
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=message):
            made.check(tapes.manifest(checkpoint), architecture, "client")
    assert made.known(tapes.manifest(checkpoint), architecture)  # that it takes too long


def test_what_took_too_long_is_tried_again(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was busy once does not refuse for ever."""
    made, architecture = Costs("party0", permissions(tmp_path), 1e-6), read_architecture(checkpoint)
    asked = tapes.manifest(checkpoint)
    with pytest.raises(ConfigurationError, match="cannot predict"):
        made.check(asked, architecture, "client")
    monkeypatch.setattr(made, "_max_seconds", 60)
    with pytest.raises(ConfigurationError, match="cannot predict"):
        made.check(asked, architecture, "client")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + FORGOTTEN_SECONDS + 1)
    made.check(asked, architecture, "client")


@pytest.mark.parametrize("decoding", ["sample", "logits"])
def test_a_decoding_has_costs_of_its_own(tmp_path: Path, checkpoint: Path, decoding: str) -> None:
    made, architecture = costs(tmp_path), read_architecture(checkpoint)
    greedy = tapes.manifest(checkpoint, suite="masked")
    other = tapes.manifest(checkpoint, suite="masked", decoding=decoding, temperature=2.0 if decoding == "sample" else None)
    found = [made._predict(asked, architecture, "client") for asked in (greedy, other)]
    assert found[0].token_dealt != found[1].token_dealt
    assert decoding != "sample" or found[1].token_dealt > found[0].token_dealt


def test_each_client_has_time_of_its_own(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, architecture = costs(tmp_path), read_architecture(checkpoint)
    made._allowances.spend("mallory", ALLOWANCE_SECONDS + 1)
    with pytest.raises(Busy, match=r"different sessions of 'mallory': .*try again in 11 s"):
        made.check(tapes.manifest(checkpoint), architecture, "mallory")
    made.check(tapes.manifest(checkpoint), architecture, "client")
    made.check(tapes.manifest(checkpoint), architecture, "mallory")  # what is known costs nothing


def test_time_comes_back() -> None:
    now = [0.0]
    made = Allowances(lambda: now[0])
    made.spend("a", 50)
    assert (made.left("a"), made.left("b")) == (ALLOWANCE_SECONDS - 50, ALLOWANCE_SECONDS)
    now[0] = 10.0
    assert made.left("a") == pytest.approx(ALLOWANCE_SECONDS - 50 + 10 * REFILL)
    now[0] = 1e6
    assert made.left("a") == ALLOWANCE_SECONDS


def test_the_dealer_counts_as_well(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that was predicted to cost next to nothing is ended by what is dealt for it."""
    cheap = Prediction(5, 4, 0, 0, 0, 0)
    monkeypatch.setattr(Predictor, "predict", lambda *_: cheap)
    for running in run(tmp_path, checkpoint, 2, limits={"max_token_dealt_bytes": 1000}):  # type: ignore[arg-type]
        running.toy.elements = 10
        client = running.deployment.client()
        assert client.ask([1, 2], 2, model="tiny", stop_ids=()).tokens == [3, 4]
        running.toy.elements = 300
        with pytest.raises(
            ConfigurationError, match=r"dealer has dealt 2,400 bytes for one token, it allows 1,000: .*'limits'"
        ):
            client.ask([1, 2, 3], 2, model="tiny", stop_ids=())


# ---- policies and options ----------------------------------------------------------------------------------------------
def stored(checkpoint: Path) -> StoredModel:
    return StoredModel(
        model=tapes.MODEL,
        name="acme-1",
        architecture=read_architecture(checkpoint).to_json(),
        owner="owner",
        parties=["party0", "party1"],
        index=0,
        fraction_bits=16,
        seeded=True,
        ranges={"crypten": {"residual": 12}},
        nonce=tapes.STORING,
    )


def choose(folder: Path, checkpoint: Path, asked: dict[str, Any], **changes: Any) -> None:
    manifest: Manifest = tapes.manifest(checkpoint, **asked)
    permissions(folder, **changes).check_choices(manifest, "client", stored(checkpoint))


def entry(kind: str, **lists: list[str]) -> dict[str, Any]:
    """The same lists in a client's grant, or for a model."""
    return {"clients": [{"name": "client", **lists}]} if kind == "client" else {"models": [{"name": "acme-*", **lists}]}


@pytest.mark.parametrize("kind", ["client", "model"])
def test_allowed_policies(tmp_path: Path, checkpoint: Path, kind: str) -> None:
    lists = entry(kind, policies=["full", "mpcache:preset=paper", "quest:budget=0.*"])
    for policy in ("full", "mpcache:preset=paper", "quest:budget=0.5"):
        choose(tmp_path / policy[:3], checkpoint, {"policy": policy}, **lists)
    who = "'client' may not" if kind == "client" else "nobody may, with model 'acme-1',"
    for policy in ("h2o", "mpcache:preset=paper,fine=1", "mpcache"):
        message = rf"{who} use policy '{policy}' at party0; allowed \('policies' .*\): full, mpcache:preset=paper, quest"
        with pytest.raises(PermissionRefused, match=message):
            choose(tmp_path / policy, checkpoint, {"policy": policy}, **lists)


@pytest.mark.parametrize("kind", ["client", "model"])
def test_allowed_options(tmp_path: Path, checkpoint: Path, kind: str) -> None:
    lists = entry(kind, suite_options=["score=8", "value=*"])
    for number, options in enumerate(({}, {"residual": 12}, {"score": 8, "value": 3})):
        choose(tmp_path / str(number), checkpoint, {"options": options}, **lists)
    for number, (options, text) in enumerate((({"residual": 13}, "residual=13"), ({"value": 3, "score": 9}, "score=9"))):
        with pytest.raises(PermissionRefused, match=rf"use suite option {text} at party0; .*\): score=8, value=\*"):
            choose(tmp_path / f"not {number}", checkpoint, {"options": options}, **lists)


@pytest.mark.parametrize("kind", ["client", "model"])
def test_precision_is_an_option(tmp_path: Path, checkpoint: Path, kind: str) -> None:
    """Each precision has its own load of the weights, so who may choose no option may not choose it either."""
    with pytest.raises(PermissionRefused, match=r"use suite option fraction_bits=13 at party0; .*\): none"):
        choose(tmp_path / "not", checkpoint, {"fraction_bits": 13}, **entry(kind, suite_options=[]))
    choose(tmp_path / "usual", checkpoint, {}, **entry(kind, suite_options=[]))
    choose(tmp_path / "granted", checkpoint, {"fraction_bits": 13}, **entry(kind, suite_options=["fraction_bits=1?"]))


def test_the_first_model_that_fits_counts(tmp_path: Path, checkpoint: Path) -> None:
    models = [{"name": "other"}, {"name": tapes.MODEL, "policies": ["h2o"]}, {"name": "*", "policies": []}]
    choose(tmp_path / "a", checkpoint, {"policy": "h2o"}, models=models)
    with pytest.raises(PermissionRefused, match="'policies' of its configuration"):
        choose(tmp_path / "b", checkpoint, {"policy": "full"}, models=models)
