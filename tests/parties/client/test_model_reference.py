"""What parties say of the models that they hold, where they do not say the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from models.shapes import SHAPES
from mpc.errors import ConfigurationError
from parties.client.client import Client
from parties.client.model_reference import ModelReference, common_models, disputes
from parties.wire import wire_pb2 as wire

MODEL = "5" * 32
PARTIES = ["party0", "party1", "party2"]


def said(**changes: str) -> wire.Description:
    values = {"architecture": SHAPES["tiny"].to_json(), "tokenizer": "1" * 64, **changes}
    return wire.Description(models=[wire.HeldModel(model=MODEL, name="assistant", owner="owner", **values)])


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"tokenizer": "2" * 64}, "another tokenizer"),
        ({"tokenizer": ""}, "another tokenizer"),
        ({"architecture": SHAPES["gpt2"].to_json(), "tokenizer": "2" * 64}, "another architecture and another tokenizer"),
        ({"ranges": "{}"}, "another bounds"),
    ],
)
def test_a_party_that_says_something_else_is_named(changes: dict[str, str], wrong: str) -> None:
    others = [said(), said(), said(**changes)]
    assert common_models(others) == []
    assert disputes(PARTIES, others) == [
        f"party2 says {wrong} of assistant ({MODEL}) than party0: one of them is not as its owner shared it"
    ]
    assert disputes(PARTIES, [said()] * 3) == disputes(PARTIES, [said(), said(), wire.Description()]) == []


def test_it_is_said_where_the_model_is_missed() -> None:
    class Asked(Client):
        def __init__(self) -> None:
            self.disputes = disputes(PARTIES[:2], [said(), said(tokenizer="")])

        def models(self, on_waiting: Callable[[str], None] = lambda reason: None) -> list[ModelReference]:
            return []

    with pytest.raises(ConfigurationError, match=r"no model fits 'assistant'; .*; party1 says another tokenizer of"):
        Asked().find_model("assistant")
