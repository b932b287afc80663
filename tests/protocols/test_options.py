"""What may be set of a suite: options are known by name, checked when they are set, and kept as they were said."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mpc.errors import ConfigurationError, RangeError
from protocols.bounds import RANGE_KINDS, RANGES
from protocols.options import CryptenOptions, MaskedOptions
from protocols.registry import SUITES, SuiteSpec, check_secure, secure_suites


@pytest.mark.parametrize("name", secure_suites())
def test_bounds_are_options_of_every_secure_suite(name: str) -> None:
    kind = SUITES[name].options
    assert kind.kinds == RANGE_KINDS
    assert set(kind.known()) >= {"fraction_bits", *RANGE_KINDS}
    assert {k: bounds.at(0) for k, bounds in kind().bounds.items()} == {k: about.usual for k, about in RANGES.items()}


def test_that_logits_are_as_activations_where_nothing_is_said() -> None:
    assert MaskedOptions(activation=9).bounds["logits"].at(0) == 9
    assert MaskedOptions(activation=9, logits=10).bounds["logits"].at(0) == 10


def test_a_spec_keeps_what_was_said() -> None:
    assert SuiteSpec() == SuiteSpec("masked", 14, {})
    said = SuiteSpec("crypten", options={"residual": "10*2 15", "fraction_bits": 12})
    assert (said.fraction_bits, said.options) == (12, {"residual": "10*2 15"})
    assert said.settings == CryptenOptions(fraction_bits=12, residual="10*2 15")
    assert dataclasses.replace(said, fraction_bits=13).settings.fraction_bits == 13
    assert said.over({"residual": 9, "score": 8}).options == {"residual": "10*2 15", "score": 8}


@pytest.mark.parametrize(
    ("name", "bits", "options", "message"),
    [
        ("quantum", None, {}, "unknown suite 'quantum'; known: crypten, masked, plain"),
        ("plain", None, {}, "suite 'plain' keeps nothing secret and cannot be run among parties"),
        (
            "masked",
            None,
            {"speed": 7},
            "suite 'masked' has no option 'speed'; known: activation, experts, ",
        ),
        ("masked", None, {"device": "cuda"}, "suite 'masked' has no option 'device'"),
        ("masked", None, {"bounds": {}}, "suite 'masked' has no option 'bounds'"),
        ("masked", 14, {"fraction_bits": 14}, "suite 'masked': fraction_bits was given twice"),
        ("masked", 17, {}, "suite 'masked' needs 8 to 16 fraction bits, got 17"),
        ("masked", None, {"fraction_bits": "many"}, "suite 'masked' needs 8 to 16 fraction bits, got 'many'"),
        ("masked", None, {"fraction_bits": 8.5}, "suite 'masked' needs 8 to 16 fraction bits, got 8.5"),
        ("crypten", None, {"fraction_bits": True}, "fraction_bits must be between 8 and 20, got True"),
        ("crypten", 24, {}, "fraction_bits must be between 8 and 20, got 24"),
        ("crypten", None, {"crypten_own": "yes"}, "crypten_own = 'yes' must be true or false"),
        (
            "masked",
            None,
            {"prefer": "speed"},
            "suite 'masked': prefer = 'speed' must be one of auto, rounds, bytes, online, or a netw",
        ),
        ("masked", None, {"prefer": "40ms/0.5mbit"}, "prefer = '40ms/0.5mbit' must .* such as 40ms/400mbit"),
        ("masked", None, {"prefer": "40ms/400mbit/s"}, "must be one of"),
        ("masked", None, {"prefer": "٤٠ms/400mbit"}, "must be one of"),
        ("masked", None, {"prefer": 40}, "prefer = 40 must be one of"),
        (
            "masked",
            None,
            {"prefer": "online:auto"},
            "prefer = 'online:auto' must .* such as 40ms/400mbit or online:40ms/400",
        ),
        ("masked", None, {"prefer": "40ms/400mbit:online"}, "must be one of"),
        ("masked", None, {"prefer": "online:40ms/0.5mbit"}, "must be one of"),
        ("masked", None, {"score": None}, "score = None must be a whole number from 5 to 10"),
        ("masked", None, {"residual": "10*2 19"}, "residual = '10\\*2 19' must be a whole number from 4 to 18"),
    ],
)
def test_specs_that_cannot_be(name: str, bits: int | None, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigurationError, RangeError), match=message):
        SuiteSpec(name, bits, options)


def test_secure_suites() -> None:
    assert check_secure("masked") == "masked"
    for name, why in (("plain", "keeps nothing secret"), ("quantum", "is unknown")):
        with pytest.raises(ConfigurationError, match=f"suite '{name}' {why}; choose one of: crypten, masked"):
            check_secure(name)
