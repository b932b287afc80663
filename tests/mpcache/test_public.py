"""The package that programs import: its names, when they are loaded, and what its two functions return."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest

import mpcache
from models.policies import POLICIES, parse
from mpcache import ConfigurationError, Setting, estimate, policies

SOURCE = Path(mpcache.__file__)


def test_every_name_is_there_and_types_are_those_of_the_run() -> None:
    """What type checkers read, what `__all__` says and what is loaded on demand are the same names from the same places."""
    block = next(node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == mpcache._PLACES
    assert sorted({*typed, "__version__"}) == mpcache.__all__ == dir(mpcache)
    for name in mpcache.__all__:
        assert getattr(mpcache, name) is not None
    assert mpcache.__version__ == version("mpcache")
    with pytest.raises(AttributeError, match="module 'mpcache' has no attribute 'decode'"):
        mpcache.decode  # noqa: B018


def test_nothing_heavy_is_loaded_before_it_is_asked_for() -> None:
    code = (
        "import sys, mpcache\n"
        "heavy = {'torch', 'grpc', 'transformers', 'numpy'}\n"
        "assert not heavy & set(sys.modules)\n"
        "mpcache.__version__, mpcache.PeerLost, mpcache.MpcacheError\n"
        "assert not heavy & set(sys.modules)\n"
        "mpcache.PrivateModel\n"
        "assert {'torch', 'grpc'} <= set(sys.modules) and 'crypten' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_estimate_counts_by_stage() -> None:
    costs = estimate("tiny", prompt_tokens=12, new_tokens=3, setting=Setting("masked", policy="h2o:budget=0.5"))
    for name, value in asdict(costs.session).items():
        assert value == getattr(costs.first_token, name) + getattr(costs.further_tokens, name) > 0
    assert costs.model_load.bytes_sent > 0
    assert costs.memory_bytes > 0


def test_estimate_reads_a_checkpoints_folder_and_lengths_beyond_its_positions() -> None:
    folder = Path(mpcache.__file__).parents[1] / "models" / "recall" / "gpt2"
    assert estimate(folder, prompt_tokens=8).further_tokens.rounds == 0
    assert estimate("tiny", prompt_tokens=64, new_tokens=2).session.rounds > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": "no-such-shape"}, "model 'no-such-shape' is neither a file"),
        ({"prompt_tokens": 0}, "prompt_tokens = 0 must be a whole number, 1 or more"),
        ({"new_tokens": True}, "new_tokens = True must be a whole number"),
        ({"setting": Setting("none")}, "unknown suite 'none'"),
        ({"setting": Setting("masked", policy="none")}, "unknown cache policy 'none'"),
    ],
)
def test_estimate_refuses_what_cannot_work(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        estimate(**{"model": "tiny", "prompt_tokens": 4, **arguments})  # type: ignore[arg-type]


def test_policies_are_those_that_a_generation_can_name() -> None:
    found = policies()
    assert list(found) == list(POLICIES)
    for name, policy in found.items():
        assert policy.name == name
        assert parse(name) == POLICIES[name](**policy.settings)
        assert policy.description
        for preset in policy.presets:
            parse(f"{name}:preset={preset}")
    assert "budget" in found["h2o"].description
