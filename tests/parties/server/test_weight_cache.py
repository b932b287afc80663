"""Which loads are kept: no client drives out another's."""

from __future__ import annotations

import pytest

from parties.server.weight_cache import WeightCache

KEYS = {name: ("model", name) for name in "abcdefgh"}


def put(loads: WeightCache, name: str, client: str) -> None:
    loads.put(name, KEYS[name], {}, client)


def kept(loads: WeightCache) -> set[str]:
    return {name for name, key in KEYS.items() if loads.ids(key)}


def test_the_client_with_most_gives_up_its_oldest() -> None:
    loads = WeightCache(3)
    put(loads, "a", "victim")
    for name in "bcdef":
        put(loads, name, "other")
        assert {"a", name} <= kept(loads)
    assert kept(loads) == {"a", "e", "f"}


def test_a_load_that_another_uses_stays() -> None:
    loads = WeightCache(2)
    put(loads, "a", "victim")
    assert loads.get("a", KEYS["a"], "other") is not None
    for name in "bcd":
        put(loads, name, "other")
    assert kept(loads) == {"a", "d"}


def test_one_client_alone_keeps_the_latest_used() -> None:
    loads = WeightCache(2)
    put(loads, "a", "client")
    put(loads, "b", "client")
    assert loads.get("a", KEYS["a"], "client") is not None
    put(loads, "c", "client")
    assert kept(loads) == {"a", "c"}


@pytest.mark.parametrize("own", [1, 2])
def test_a_cap_for_one_client(own: int) -> None:
    loads = WeightCache(5, own)
    for name in "abc":
        put(loads, name, "client")
    put(loads, "d", "other")
    assert kept(loads) == set("abc"[3 - own :]) | {"d"}


def test_the_oldest_goes_when_all_have_as_many() -> None:
    loads = WeightCache(2)
    for name, client in zip("abc", ("x", "y", "z"), strict=True):
        put(loads, name, client)
    assert kept(loads) == {"b", "c"}
