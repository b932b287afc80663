"""A policy that cannot work is refused by every command in one line, before anything is traced, started or sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.policies import parse
from mpc.errors import ConfigurationError
from tests.launch.conftest import Command
from tests.models.policies.policy_cases import Case, tiny
from tests.protocols.suite_harness import run_plain

BAD = [
    ("mpcache:preset=clusters,dynamic=0", 64, "policy mpcache: dynamic = 0.0 must be a share above 0 and up to 1"),
    ("mpcache:preset=clusters,static=1.01", 64, "policy mpcache: static = 1.01 must be a share above 0 and up to 1"),
    ("h2o:budget=nan", 64, "policy h2o: budget = nan must be a share above 0 and up to 1"),
    ("tova:budget=inf", 64, "policy tova: budget = inf must be a share above 0 and up to 1"),
    (
        "mpcache:preset=clusters,fine=16,coarse=40",
        64,
        "clusters do not nest: coarse = 40 must be a multiple of fine = 16 and larger",
    ),
    (
        "mpcache:preset=clusters,static=1",
        100,
        "dynamic = 0.1 attends to 10 of 100 tokens, fewer than sinks = 4 and window = 12; raise",
    ),
    ("mpcache", 30, "static = 0.4 keeps 12 of 30 tokens, which does not hold sinks = 4, window = 12 and one more; raise"),
    ("mpcache", 7, "static = 0.4 keeps 3 of 7 tokens, which does not hold sinks = 4, window = 12 and one more; raise"),
    ("streaming-llm:budget=0.05", 60, "budget = 0.05 keeps 3 of 60 tokens, which does not hold sinks = 4"),
    ("snapkv", 20, "budget = 0.1 keeps 2 of 20 tokens, which does not hold window = 32"),
    (
        "mpcache:preset=clusters,sharing=5",
        64,
        "sharing = 5 must be at most 4: what tokens receive in all layers of a group is added up",
    ),
    (
        "mpcache:dynamic=0.1,sharing=3",
        64,
        "needs 5 layers, the model has 4; lower them, or set sharing=1",
    ),
    ("shared:layers=3|quest", 64, "layers = 3 behind the first apart = 2 needs 5 layers, the model has 4"),
]


@pytest.mark.parametrize(("policy", "prompt", "message"), BAD)
def test_every_command_refuses(policy: str, prompt: int, message: str, command: Command) -> None:
    shape = ("--layers", 4)
    for arguments in (
        ("estimate", "--model", "tiny", *shape, "--prompt", prompt, "--new", 2, "--rate", 1, "--policy", policy),
        ("bench", "--shape", "tiny", *shape, "--cached", prompt, "--policy", policy),
    ):
        done = command(*arguments)
        assert done.code == 2, done.out
        assert message in " ".join(done.err.split())
        assert done.out == ""
        assert "Traceback" not in done.err


def test_an_unknown_policy_is_refused_before_anything_starts(
    command: Command, roles: Path, text_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*arguments: object, **options: object) -> None:
        raise AssertionError("something started")

    for place in (
        "launch.local.processes.Processes.start",
        "parties.client.client.Client.models",
        "parties.tapes.dealing.TapeDealing.write_load",
    ):
        monkeypatch.setattr(place, started)
    wrong = []
    model, client = ("--model", text_model), ("--config", roles / "client.yaml")
    lengths = ("--prompt", 3, "--tokens", 2, "--out", roles / "out")
    for arguments in (
        ("generate", *model, "--prompt", "a"),
        ("generate", *client, *model, "--prompt", "a"),
        ("chat", *model),
        ("serve", *client, "--tokenizer", text_model, "--listen", "127.0.0.1:0"),
        ("deal", "--config", roles / "dealer.yaml", *model, *lengths),
        ("load", *client),
        ("plan", "--model", "tiny", "--prompt", 32, "--new", 2),
        ("quality", *model, "--out", roles / "quality"),
        ("trace", "--shape", "tiny", "--out", roles / "trace.json"),
        ("demo",),
    ):
        done = command(*arguments, "--policy", "foo")
        said = " ".join(done.err.split())
        if (done.code, done.out) != (2, "") or not said.startswith("error [configuration]: unknown cache policy 'foo'; "):
            wrong.append((arguments, done))
    assert wrong == []


@pytest.mark.parametrize(("policy", "prompt"), [(policy, prompt) for policy, prompt, _ in BAD])
def test_each_is_refused_by_the_policy_itself(policy: str, prompt: int) -> None:
    with pytest.raises(ConfigurationError):
        parse(policy).check(tiny(), prompt)


DEGENERATE = [
    ("mpcache:preset=clusters,static=1,dynamic=0.9,sharing=1", 12),  # nothing between sinks and window
    ("mpcache:preset=clusters,static=1,dynamic=0.9,sharing=1,sinks=0,window=0", 7),  # no whole cluster of 8
    ("mpcache:preset=clusters,static=1,dynamic=0.9,sharing=1,fine=16,sinks=0,window=0", 15),
    ("mpcache:preset=clusters,static=1,dynamic=1,sharing=1,fine=64,coarse=128", 40),
    ("quest:budget=0.01,page=64,skip=0", 40),  # the only page is the unfilled one
    ("dynamic-top-k:budget=0.99", 3),
]


@pytest.mark.parametrize(("policy", "tokens"), DEGENERATE)
def test_too_short_for_a_choice_means_all_of_it(policy: str, tokens: int) -> None:
    case = Case(tiny(), tokens, 2, seed=3)
    parse(policy).check(case.architecture, tokens)
    found = []
    for text in (policy, "full"):

        async def program(s: Any, *values: Any, text: str = text) -> Any:
            return await case.run(parse(text), s, *values)

        found.append(run_plain(program, case.inputs))
    assert all(bool((a == b).all()) for a, b in zip(*found, strict=True))
