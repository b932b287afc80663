from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mpc.errors import ConfigurationError
from mpc.random import Prg
from parties.client.sampling import choose
from parties.client.sampling_params import SamplingParams
from protocols.gumbel import check_temperature, gumbel

SEED = b"\x07" * 32


def test_gumbel_has_the_right_distribution() -> None:
    noise = gumbel((200_000,), Prg(SEED))
    assert torch.isfinite(noise).all()
    for x in (-1.0, 0.0, 1.0, 3.0):
        share = float((noise <= x).to(torch.float64).mean())
        assert abs(share - math.exp(-math.exp(-x))) < 5 * math.sqrt(0.25 / 200_000)
    assert not torch.equal(gumbel((8,)), gumbel((8,)))


def test_gumbel_argmax_samples_softmax() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0], dtype=torch.float64)
    for temperature in (0.5, 2.0):
        noise = gumbel((100_000, 4), Prg(SEED)) * temperature
        counts = torch.bincount((logits + noise).argmax(-1), minlength=4) / 100_000
        wanted = torch.softmax(logits / temperature, 0)
        wrong = torch.softmax(logits / (temperature * 1.1), 0)
        assert (counts - wanted).abs().max() < 0.008
        assert (counts - wrong).abs().max() > 0.008


def test_choose() -> None:
    logits = torch.tensor([0.0, 3.0, 2.9, -1.0], dtype=torch.float64)
    prg = Prg(SEED)
    assert choose(logits) == 1
    assert {choose(logits, 5.0, top_k=1, prg=prg) for _ in range(50)} == {1}
    assert {choose(logits, 5.0, top_k=2, prg=prg) for _ in range(100)} == {1, 2}
    assert {choose(logits, 1.0, top_p=0.4, prg=prg) for _ in range(50)} == {1}
    assert {choose(logits, 1.0, top_p=0.9, prg=prg) for _ in range(100)} == {1, 2}
    assert {choose(logits, 50.0, top_p=1.0, prg=prg) for _ in range(300)} == {0, 1, 2, 3}
    assert choose(logits, 1e-3, prg=prg) == 1


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf, 101])
def test_bad_temperature(temperature: float) -> None:
    with pytest.raises(ConfigurationError, match="temperature must be above 0 and at most 100"):
        check_temperature(temperature)


def test_bad_filters() -> None:
    with pytest.raises(ConfigurationError, match="top_k must be at least 1, got 0"):
        SamplingParams(1, "logits", 1.0, top_k=0)
    with pytest.raises(ConfigurationError, match="top_p must be above 0 and at most 1, got 1"):
        SamplingParams(1, "logits", 1.0, top_p=1.5)


def test_what_ends_an_answer() -> None:
    assert SamplingParams(stop="END").stop == SamplingParams(stop=["END"]).stop == ("END",)
    ends = SamplingParams(stop_token_ids=[7, 5]).ends(eos=[2])
    assert ends == {2, 5, 7}
    assert SamplingParams(stop_token_ids=(7,), ignore_eos=True).ends(eos=[2]) == {7}
    assert "7" not in repr(SamplingParams(stop_token_ids=(7,)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stop": ["a", 3]}, "stop must be a list of texts"),
        ({"stop": ("a", "")}, "stop: an empty text would end every answer at once"),
        ({"stop_token_ids": 7}, "stop_token_ids must be a list of token ids"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids must be a list of token ids"),
        ({"stop_token_ids": [True]}, "stop_token_ids must be a list of token ids"),
    ],
)
def test_what_cannot_end_an_answer(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SamplingParams(**given)
