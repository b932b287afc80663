"""What a client's outputs tell: attacks on sampling and logits, and a client that does the same whatever it decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mpc.errors import ConfigurationError, PermissionRefused
from parties.client.session import ClientSession
from parties.errors import WrongOutput
from parties.server.permissions import Permissions
from tests.parties.conftest import VOCABULARY, Running
from tests.parties.deployment import Deployment
from tests.parties.test_range_findings import MARKS, sent
from tests.parties.test_refusals import manifest
from tests.parties.toy import Flags, expected
from tests.tools.attack.contract import Attack
from tests.tools.attack.cut_bits import CutBitsOfOutputs
from tests.tools.attack.logits_without_grant import LogitsWithoutGrant
from tests.tools.attack.noise_by_client import NoiseChosenByClient
from tests.tools.attack.shifted_share import ShiftedOutputShare

PROMPT = [3, 1, 4]
NEW = 4


@pytest.mark.parametrize("attack", [NoiseChosenByClient, LogitsWithoutGrant, CutBitsOfOutputs, ShiftedOutputShare])
def test_an_attack_is_caught(attack: type[Attack], tmp_path: Path) -> None:
    verdict = attack().run(tmp_path)
    assert verdict.caught, verdict.shown


def shift(running: Running, step: int, by: int) -> None:
    """Party 1 adds to its share of one output."""
    steps = iter(range(NEW))

    def after_share(party: int, share: Any) -> Any:
        return replace(share, share=share.share + by) if party == 1 and next(steps) == step else share

    running.toy.after_share = after_share


@pytest.fixture
def unshifted(two: Running) -> Any:
    yield two
    two.toy.after_share = lambda party, share: share
    two.toy.flags = None


def test_no_token_is_told_when_the_session_is_over(unshifted: Running) -> None:
    """Every output is waited for, tokens before it reach the caller, and later ones do not."""
    shift(unshifted, 1, VOCABULARY)
    seen: list[int] = []
    with pytest.raises(
        WrongOutput, match=r"output 1 do not add up to a token.*one of party0, party1 .*do not use"
    ) as caught:
        unshifted.deployment.client().ask(PROMPT, NEW, stop_ids=(), on_token=seen.append)
    assert caught.value.step == 1
    assert list(caught.value.tokens) == seen == expected(PROMPT, 1, VOCABULARY)


@pytest.mark.parametrize("by", [1, VOCABULARY, 10**6])
def test_a_stop_token_ends_a_session_whatever_came_before(
    unshifted: Running, by: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without a fixed length: else the party that shifted a share would see, by the length, whether the token was still
    one of the vocabulary."""
    stop = {"stop_ids": expected(PROMPT, 3, VOCABULARY)[2:]}
    honest, reason = sent(unshifted, monkeypatch, "greedy", **stop)
    assert reason == "stop"
    assert all(kinds[-1][0] == "finish" for kinds in honest.values())
    shift(unshifted, 1, by)
    found, reason = sent(unshifted, monkeypatch, "greedy", **stop)
    assert (found, reason) == (honest, "stop" if by == 1 else "wrong-output")


def nothing(running: Running) -> dict[str, Any]:
    return {}


def stop_token(running: Running) -> dict[str, Any]:
    return {"stop_ids": expected(PROMPT, 2, VOCABULARY)[1:]}


def stop_at_once(running: Running) -> dict[str, Any]:
    return {"stop_ids": range(VOCABULARY)}


def caller(running: Running) -> dict[str, Any]:
    return {"on_token": lambda token: False}


def range_finding(running: Running) -> dict[str, Any]:
    running.toy.flags = Flags(1, MARKS)
    return {}


def outside(running: Running) -> dict[str, Any]:
    shift(running, 1, 10**6)
    return {}


def no_choice(running: Running) -> dict[str, Any]:
    return {"adjust": lambda logits, tokens: torch.full_like(logits, float("-inf"))}


ENDS = {range_finding: "range", outside: "wrong-output", no_choice: "configuration"}


@pytest.mark.parametrize(
    ("decoding", "cases"),
    [
        ("greedy", [stop_token, stop_at_once, caller, range_finding, outside]),
        ("logits", [stop_at_once, caller, range_finding, no_choice]),
    ],
)
def test_with_a_fixed_length_parties_see_nothing_of_the_answer(
    unshifted: Running,
    decoding: str,
    cases: list[Callable[[Running], dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client's messages, sizes and order are those of an answer that nothing ends."""
    unshifted.toy.flags = Flags(None)
    whole, reason = sent(unshifted, monkeypatch, decoding, fixed_length=True)
    assert reason == "length"
    kinds = [kind for kind, _ in whole["party1"]]
    assert kinds == ["share", "chunk"] * (NEW if decoding == "logits" else 1)
    for case in cases:
        options = case(unshifted)
        found, reason = sent(unshifted, monkeypatch, decoding, fixed_length=True, **options)
        assert (found, reason) == (whole, ENDS.get(case, "stop")), case.__name__
        unshifted.toy.after_share = lambda party, share: share
        unshifted.toy.flags = Flags(None)


@pytest.mark.parametrize("fixed_length", [True, False])
def test_with_a_fixed_length_a_choice_is_sent_before_the_caller_sees_it(
    unshifted: Running, fixed_length: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is sent would else say how long the caller took over the token. Without one the caller may end the answer."""
    order: list[str] = []
    share = ClientSession._share

    def sharing(session: ClientSession, kind: Any, *rest: Any) -> None:
        order.append(kind)
        share(session, kind, *rest)

    monkeypatch.setattr(ClientSession, "_share", sharing)
    unshifted.deployment.client().ask(
        PROMPT, 3, decoding="logits", stop_ids=(), fixed_length=fixed_length, on_token=lambda token: order.append("seen")
    )
    sent_first, seen_first = ["token", "seen"] * 2, ["seen", "token"] * 2
    assert order[-5:] == [*(sent_first if fixed_length else seen_first), "seen"]


@pytest.mark.parametrize("decoding", ["greedy", "logits"])
def test_the_answer_is_cut_here(unshifted: Running, decoding: Any) -> None:
    client = unshifted.deployment.client()
    client.ask(PROMPT, 1, decoding=decoding, stop_ids=())  # the first session loads the weights
    short = client.ask(PROMPT, NEW, decoding=decoding, stop_ids=(), on_token=lambda token: False)
    fixed = client.ask(PROMPT, NEW, decoding=decoding, stop_ids=(), on_token=lambda token: False, fixed_length=True)
    assert (short.tokens, short.finish_reason) == (fixed.tokens, fixed.finish_reason)
    assert len(fixed.tokens) == len(fixed.token_seconds) == 1
    assert fixed.logits is None or fixed.logits.shape == (1, VOCABULARY)
    rounds = [result.costs["party0"]["total"]["rounds"] for result in (short, fixed)]
    assert rounds[0] < rounds[1]  # the parties have gone on


@pytest.mark.parametrize(
    ("decoding", "allowed"),
    [(None, ["greedy", "sample"]), (["greedy"], ["greedy"]), (["logits", "greedy"], ["logits", "greedy"])],
)
def test_grants_of_decodings(two: Running, tmp_path: Path, decoding: list[str] | None, allowed: list[str]) -> None:
    grant = {"name": "client"} if decoding is None else {"name": "client", "decoding": decoding}
    permissions = Permissions(Deployment(tmp_path, clients=[grant]).config("party", "party0"))
    for asked in ("greedy", "sample", "logits"):
        wanted = manifest(two, decoding=asked, temperature=1.0 if asked == "sample" else None)
        if asked in allowed:
            permissions.check_decoding(wanted, "client")
        else:
            with pytest.raises(PermissionRefused, match=rf"decoding: \[{', '.join([*allowed, asked])}\]"):
                permissions.check_decoding(wanted, "client")
    with pytest.raises(ConfigurationError, match="decoding"):
        Deployment(tmp_path / "other", clients=[{"name": "client", "decoding": ["beam"]}]).config("party", "party0")
    with pytest.raises(ConfigurationError, match=r"decoding: an empty list grants nothing: name greedy, sample or logits"):
        Deployment(tmp_path / "none", clients=[{"name": "client", "decoding": []}]).config("party", "party0")
