"""Episodes of a text and probes of them: which windows a question is about, whatever their order."""

from __future__ import annotations

import pytest
import torch

from models.episodes import EPISODES, WINDOW, episodes, probes, with_probes
from models.policies import parse
from parties.client.request import GenerationRequest
from parties.client.sampling_params import SamplingParams

TOPICS = [list(range(100 * n, 100 * n + 20)) for n in range(1, 5)]


def conversation(seed: int, windows: int = 24) -> tuple[list[int], list[int]]:
    """Windows about topics in turn by chance, and the topic of each."""
    g = torch.Generator().manual_seed(seed)
    of = torch.randint(0, 4, (windows,), generator=g).tolist()
    return [TOPICS[n][int(k)] for n in of for k in torch.randint(0, 20, (WINDOW,), generator=g)], of


@pytest.mark.parametrize("seed", range(20))
def test_probes_are_of_the_topic_that_is_asked(seed: int) -> None:
    ids, of = conversation(seed)
    asked = of[seed]
    question = TOPICS[asked][:WINDOW] * 2
    found = probes([*ids, *question[:WINDOW]], 64)
    assert len(found) == 64
    assert set(found) <= set(TOPICS[asked])
    assert found[32:] == question[:WINDOW]
    assert found == probes([*ids, *question[:WINDOW]], 64)


def test_episodes_are_topics() -> None:
    bags = torch.eye(4, dtype=torch.float64)[[0, 1, 1, 2, 3, 0, 2]]
    centres, of = episodes(bags, EPISODES)
    assert torch.equal(centres[of], bags)


@pytest.mark.parametrize("ids", [[7], [7, 7], [1, 2, 3], list(range(200)), [5] * 100])
@pytest.mark.parametrize("count", [1, 2, 64, 300])
def test_any_text_has_any_number_of_probes(ids: list[int], count: int) -> None:
    found = probes(ids, count)
    assert len(found) == count
    assert set(found) <= set(ids)
    assert with_probes(ids, count)[count:] == ids


def test_a_request_shares_its_prompt_behind_its_probes() -> None:
    request = GenerationRequest(range(100), SamplingParams(4), policy="epicache:probe_tokens=8,budget=0.5")
    assert parse(request.policy).probes == 8
    assert request.plan().prompt_tokens == 108
    assert GenerationRequest(range(100), SamplingParams(4), policy="epicache:budget=1").plan().prompt_tokens == 100
