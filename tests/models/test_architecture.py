"""The public description of a model: canonical JSON, canonical weights' shapes, validation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from models.architecture import Architecture, Rotary
from mpc.errors import ConfigurationError
from protocols.suite import Norm

VALUES: dict[str, Any] = {
    "family": "llama",
    "layers": 2,
    "width": 12,
    "heads": 6,
    "kv_heads": 2,
    "head_channels": 4,
    "feed_forward": 9,
    "vocabulary": 31,
    "positions": 64,
    "rotary": Rotary(theta=500.0, scaling="llama3", factor=8.0),
    "norm": Norm("rms", 1e-6),
    "activation": "silu",
    "gated": True,
    "qkv_bias": True,
    "windows": (None, 5),
    "eos": (2, 3),
}


def test_weight_shapes_in_canonical_order() -> None:
    shapes = Architecture(**VALUES).weight_shapes()
    layer = {
        "attention.qkv.weight": (12, 40),
        "attention.qkv.bias": (40,),
        "attention.out.weight": (24, 12),
        "mlp.up.weight": (12, 9),
        "mlp.gate.weight": (12, 9),
        "mlp.down.weight": (9, 12),
    }
    wanted: dict[str, tuple[int, ...]] = {"embedding.tokens": (31, 12)}
    for n in range(2):
        wanted |= {f"layers.{n}.{name}": shape for name, shape in layer.items()}
    wanted["head.weight"] = (12, 31)
    assert list(shapes.items()) == list(wanted.items())
    assert Architecture(**VALUES).parameters() == 31 * 12 * 2 + 2 * (480 + 40 + 288 + 324)


def test_learned_positions_and_biases() -> None:
    values = VALUES | {"rotary": None, "gated": False, "out_bias": True, "mlp_bias": True, "head_bias": True, "layers": 1}
    values["windows"] = None
    assert list(Architecture(**values).weight_shapes().items()) == [
        ("embedding.tokens", (31, 12)),
        ("embedding.positions", (64, 12)),
        ("layers.0.attention.qkv.weight", (12, 40)),
        ("layers.0.attention.qkv.bias", (40,)),
        ("layers.0.attention.out.weight", (24, 12)),
        ("layers.0.attention.out.bias", (12,)),
        ("layers.0.mlp.up.weight", (12, 9)),
        ("layers.0.mlp.up.bias", (9,)),
        ("layers.0.mlp.down.weight", (9, 12)),
        ("layers.0.mlp.down.bias", (12,)),
        ("head.weight", (12, 31)),
        ("head.bias", (31,)),
    ]


def test_json_is_canonical_and_complete() -> None:
    architecture = Architecture(**VALUES)
    text = architecture.to_json()
    assert Architecture.from_json(text) == architecture
    assert Architecture.from_json(json.dumps(dict(reversed(json.loads(text).items())), indent=3)).to_json() == text
    assert " " not in text
    assert architecture.window(0) is None
    assert architecture.window(1) == 5
    assert architecture.group == 3


def test_integer_and_float_theta_give_the_same_json() -> None:
    assert Rotary(theta=10000) == Rotary(theta=10000.0)
    a, b = (Architecture(**VALUES | {"rotary": Rotary(theta=theta)}) for theta in (10000, 10000.0))
    assert a.to_json() == b.to_json()


def test_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Architecture(**VALUES).width = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, r"architecture: 'layers' = 0: .* greater than or equal to 1"),
        ({"layers": 10**9}, r"'layers' = 1000000000"),
        ({"width": -3}, r"'width' = -3"),
        ({"width": 12.0}, r"'width' = 12\.0: .* integer"),
        ({"width": True}, r"'width' = True: .* integer"),
        ({"vocabulary": 1}, r"'vocabulary' = 1"),
        ({"kv_heads": 4}, r"'heads' = 6 must be a multiple of 'kv_heads' = 4"),
        ({"head_channels": 5}, r"'head_channels' = 5 must be even for rotary positions"),
        ({"windows": (5,)}, r"'windows' has 1 entries, it needs one for each of 2 layers"),
        ({"windows": (0, None)}, r"'windows\.0' = 0"),
        ({"eos": (31,)}, r"'eos' = 31 lies outside the vocabulary of 31 tokens"),
        ({"bos": 40}, r"'bos' = 40 lies outside"),
        ({"activation": "mish"}, r"'activation' = 'mish'"),
        ({"norm": Norm("rms", 0.0)}, r"'epsilon' = 0\.0 must be a number between 0 and 1"),
        ({"norm": Norm("batch", 0.1)}, r"'kind' = 'batch'; known: layer, rms"),  # type: ignore[arg-type]
        ({"mixture": 8}, r"'mixture' = 8: .*not permitted"),
    ],
)
def test_bad_values(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Architecture(**VALUES | change)


def test_bad_rotary() -> None:
    with pytest.raises(ConfigurationError, match=r"rotary: 'theta' = 0\.0"):
        Rotary(theta=0.0)
    with pytest.raises(ConfigurationError, match=r"'theta' = inf"):
        Rotary(theta=float("inf"))
    with pytest.raises(ConfigurationError, match=r"'scaling' = 'longrope'"):
        Rotary(scaling="longrope")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"'high_frequency_factor' = 1\.0 must be larger"):
        Rotary(scaling="llama3", high_frequency_factor=1.0)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v: v.pop("width"), "architecture: 'width' is missing"),
        (lambda v: v.update(surprise=1), "'surprise' = 1"),
        (lambda v: v["norm"].update(kind="batch"), "'norm.*batch'"),
        (lambda v: v["norm"].update(epsilon=2.0), "'epsilon' = 2.0"),
        (lambda v: v["norm"].update(epsilon="small"), "'epsilon' = 'small'"),
        (lambda v: v["norm"].pop("kind"), "'kind' and 'epsilon' are needed"),
        (lambda v: v["rotary"].update(theta="big"), "rotary: 'theta' = 'big'"),
        (lambda v: v.update(heads="6"), "'heads' = '6'"),
    ],
)
def test_bad_json(edit: Any, message: str) -> None:
    values = json.loads(Architecture(**VALUES).to_json())
    edit(values)
    with pytest.raises(ConfigurationError, match=message):
        Architecture.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "[]", "nonsense", b"\xff"])
def test_not_an_architecture(text: str | bytes) -> None:
    with pytest.raises(ConfigurationError, match="architecture: "):
        Architecture.from_json(text)
