"""How many tokens each layer keeps: equal to the authors' rule where that gives every layer one; the same memory in all."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from models.policies import parse
from models.policies.axes.budget import Profile, divided
from models.policies.composition import System
from mpc.errors import ConfigurationError
from tests.models.policies.policy_cases import tiny


def cake_budgets(preferences: list[float], total: int, most: int) -> list[int]:
    """The rule of antgroup/cakekv, `cake/cake_cache.py`, in numpy."""
    b = np.asarray([x / sum(preferences) * total for x in preferences], dtype=int)
    over = np.maximum(b - most, 0).sum()
    b = np.minimum(b, most)

    def spread(amount: int, open_to: np.ndarray, sign: int) -> None:
        places = np.where(open_to)[0]
        if amount and len(places):
            b[places] += sign * (amount // len(places))
            b[places[: amount % len(places)]] += sign

    spread(over, b < most, 1)
    d = total - b.sum()
    spread(abs(d), b < most if d > 0 else b > 1, 1 if d > 0 else -1)
    return [int(n) for n in b]


def test_layers_get_what_the_authors_rule_gives() -> None:
    draw, equal = random.Random(5), 0
    for _ in range(1000):
        layers = draw.randint(1, 40)
        most = draw.randint(1, 300)
        total = draw.randint(layers, layers * most)
        weights = tuple(draw.choice((draw.random(), draw.expovariate(1.0) ** 3, 1.0, 0.0)) for _ in range(layers))
        if not sum(weights):
            continue
        found = divided(weights, total, most)
        assert sum(found) == total
        assert 1 <= min(found) <= max(found) <= most
        authors = cake_budgets(list(weights), total, most)
        if min(authors) >= 1 and max(authors) <= most:
            equal += 1
            assert found == authors
    assert equal > 300


@pytest.mark.parametrize("tokens", [12, 13, 40, 1024])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
def test_a_profile_costs_no_more_memory_than_a_share(tokens: int, share: float) -> None:
    """Unless that does not hold what always stays and one token more."""
    always, weights = 11, (5.0, 0.0, 1.0, 2.0)
    kept = [Profile(share, weights).kept(tokens, layer, always) for layer in range(4)]
    assert sum(kept) == 4 * max(round(share * tokens), always + 1)
    assert all(always < n <= tokens for n in kept)


def test_equal_weights_are_a_share() -> None:
    """So are any weights where everything is kept."""
    for tokens in range(40, 200, 7):
        inside = parse("snapkv:budget=0.4,window=8")
        equal = parse("layers:weights=3*4|snapkv:budget=0.4,window=8")
        assert isinstance(inside, System)
        assert isinstance(equal, System)
        assert [equal.stays(tokens, layer) for layer in range(4)] == [inside.stays(tokens, 0)] * 4


def test_weights_of_another_model_are_refused() -> None:
    policy = parse("layers:weights=4 2 1|h2o:budget=0.5")
    message = "policy layers: weights = '4 2 1' are for 3 layers, the model has 4; name one for each"
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        policy.check(tiny(heads=4, groups=2), 40)
    assert policy.pattern() == (3, 1)
    assert not policy.equal_layers
