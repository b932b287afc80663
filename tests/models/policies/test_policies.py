"""Cache policies: on every suite what the suite `plain` does, on inputs that are exact in fixed point, ties included."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import models.policies
import models.recall
from launch.local.in_process import InProcessSuite
from launch.measure.generation import generate_on_shares
from models.cache import KVCache
from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan, PlainModel, generate_plain
from models.observation import Seen
from models.policies import POLICIES, parse
from models.policies.axes.cluster_reader import ClusterReader, ClusterState
from models.policies.mpcache import MPCache
from models.policies.quest import QuestState
from models.policies.registry import WRAPPERS
from models.recall.documents import evaluation_cases
from protocols.plain.suite import tensor_of
from protocols.registry import SuiteSpec
from tests.models.policies.policy_cases import Case, tiny
from tests.models.test_decoder import saved
from tests.protocols.suite_harness import run_plain, run_secure

MPCACHE = "static=0.5,dynamic=0.4,fine=4,coarse=8,sinks=4,window=4,alpha=0.5,sharing=1"
MATRIX = {
    "full": ["full"],
    "mpcache": [
        f"mpcache:preset=clusters,{MPCACHE}",
        f"mpcache:preset=clusters,{MPCACHE},levels=1",
        f"mpcache:preset=clusters,{MPCACHE},levels=1,gathering=rows",
        f"mpcache:preset=clusters,{MPCACHE},levels=1,gathering=scores",
        f"mpcache:{MPCACHE},levels=1,per_head=true",
        f"mpcache:preset=clusters,{MPCACHE},linear=false",
        "mpcache:preset=clusters,static=1,dynamic=0.4,fine=2,coarse=4,sinks=0,window=0,alpha=0.5,sharing=1",
        "mpcache:preset=clusters,static=0.3,dynamic=1,sinks=2,window=3,fine=4,coarse=8,sharing=1",
    ],
    "streaming-llm": ["streaming-llm:budget=0.3", "streaming-llm:budget=0.3,sinks=0"],
    "h2o": ["h2o:budget=0.3", "lag:every=3|h2o:budget=0.3"],
    "snapkv": [
        "snapkv:budget=0.5,window=6,kernel=3",
        "snapkv:budget=0.5,window=6,kernel=1",
        "layers:weights=3 2 1*2|snapkv:budget=0.3,window=6",
        "clusters:dynamic=0.4,fine=3,alpha=0.5,sinks=1,window=4|snapkv:budget=0.6,window=6",
    ],
    "cake": [
        "cake:budget=0.5,window=8",
        "cake:budget=0.5,window=6,kernel=1,gamma=3",
        "lag:every=3|cake:budget=0.4,window=8",
    ],
    "compresskv": ["compresskv:budget=0.5,window=6,heads=0.1 0.3", "compresskv:budget=0.5,window=6,kernel=3"],
    "lazyeviction": [
        "lazyeviction:budget=0.4,every=3,alpha=0.1,observed=4",
        "lag:every=1|lazyeviction:budget=0.4,every=4,alpha=0.1,observed=2",
    ],
    "tova": ["tova:budget=0.4", "lag:every=2|tova:budget=0.4"],
    "quest": ["quest:budget=0.4,page=4,skip=0"],
    "elastic": ["elastic:budget=0.4,distance=3"],
    "d2o": ["d2o:budget=0.5,every=3,sinks=2"],
    "kvmerger": ["kvmerger:budget=0.5", "kvmerger:budget=0.4,longest=0,weights=gaussian"],
    "epicache": [f"epicache:budget=0.4,probe_tokens=4,sinks=2,last=5,reduce={reduce}" for reduce in ("sum", "max")],
    "ems": ["ems:budget=0.4,window=4,every=3,tau=1"],  # what merges is in test_merging
    "mikv": ["mikv:budget=0.3,every=2", "demote|snapkv:budget=0.5,window=6"],
    "dynamic-top-k": ["dynamic-top-k:budget=0.3"],
}
LEARNED = {"locret", "attention-gate"}  # whose weights have tests of their own, on all suites
TEXTS = [text for texts in MATRIX.values() for text in texts]


def outcomes(text: str, suite: str, parties: int, case: Case) -> tuple[list[Any], list[Any]]:
    policy = parse(text)
    policy.check(case.architecture, case.tokens)

    async def program(s: Any, *values: Any) -> Any:
        return await case.run(policy, s, *values)

    return run_plain(program, case.inputs), run_secure(suite, parties, program, case.inputs)


def test_every_policy_is_in_the_matrix() -> None:
    assert set(MATRIX) | LEARNED == set(POLICIES)


PLACES = [("crypten", 2), ("masked", 2), ("masked", 3)]
FURTHER = {  # further texts of a policy that asks every suite for the operations of its first one
    text for name, texts in MATRIX.items() if name != "mpcache" for text in texts[1:] if not text.startswith("clusters:")
}


@pytest.mark.covering(2)
@pytest.mark.parametrize(("suite", "parties"), PLACES)
@pytest.mark.parametrize("text", [text for text in TEXTS if text not in FURTHER])
def test_same_tokens_stay_and_count(text: str, suite: str, parties: int) -> None:
    """Grouped queries (R = 2), a prompt of 40 tokens and five more: a cluster fills up on the way."""
    case = Case(tiny(heads=4, groups=2), tokens=40, steps=5, seed=len(text))
    plain, found = outcomes(text, suite, parties, case)
    for expected, value in zip(plain, found, strict=True):
        assert value.shape == expected.shape
        assert (value - expected).abs().max() < 4e-3
    for expected, value in zip(plain[-2:], found[-2:], strict=True):  # keys and values: the very same rows
        assert (value - expected).abs().max() < 2.0**-12


@pytest.mark.covering(1)
@pytest.mark.parametrize(("suite", "parties"), PLACES)
@pytest.mark.parametrize("text", sorted(FURTHER))
def test_so_they_do_in_other_settings(text: str, suite: str, parties: int) -> None:
    test_same_tokens_stay_and_count(text, suite, parties)


@pytest.mark.parametrize("parties", [2, 3])
def test_a_cluster_of_new_tokens_is_chosen_as_any_other(parties: int) -> None:
    """Twelve more tokens than the prompt's: two clusters of four fill up token by token and leave the window of four."""
    case = Case(tiny(heads=4, groups=2), tokens=14, steps=12, seed=5)
    plain, found = outcomes(
        "mpcache:preset=clusters,static=1,dynamic=0.4,fine=4,sinks=1,window=4,sharing=1", "masked", parties, case
    )
    for expected, value in zip(plain, found, strict=True):
        assert (value - expected).abs().max() < 4e-3


EVERYTHING = [
    "mpcache:preset=clusters,static=1,dynamic=1,sharing=1",
    "streaming-llm:budget=1",
    "h2o:budget=1",
    "snapkv:budget=1",
    "cake:budget=1",
    "compresskv:budget=1",
    "tova:budget=1",
    "lazyeviction:budget=1",
    "elastic:budget=1",
    "d2o:budget=1",
    "kvmerger:budget=1",
    "ems:budget=1",
    "epicache:budget=1",
    "mikv:budget=1",
    "quest:budget=1",
    "dynamic-top-k:budget=1",
    "locret:budget=1",
    "attention-gate:budget=1",
]


def test_every_policy_can_keep_everything() -> None:
    assert {parse(text).name for text in EVERYTHING} | {"full"} == set(POLICIES)


@pytest.mark.parametrize("text", EVERYTHING)
def test_keeping_everything_is_the_full_cache(text: str, tmp_path: Path) -> None:
    """The very same logits at every step, in plaintext."""
    _, checkpoint, ids = saved("llama-grouped", tmp_path)
    results = []
    for policy in ("full", text):
        plain = PlainModel(checkpoint, torch.float64, policy=parse(policy))
        seen: list[Any] = []
        tokens = plain.generate(ids, GenerationPlan(len(ids), 6, policy=policy), probe=recorder(seen))
        results.append((tokens, seen))
    assert results[0][0] == results[1][0]
    for one, other in zip(results[0][1], results[1][1], strict=True):
        assert torch.equal(one, other)


def recorder(seen: list[Any]) -> Any:
    def probe(name: str, value: Any) -> None:
        if name == "logits":
            seen.append(tensor_of(value).clone())

    return probe


FEW = "mpcache:preset=clusters,static=0.6,dynamic=0.3,fine=4,coarse=8,sinks=4,window=4,sharing=1"


@pytest.mark.parametrize(("suite", "parties", "text"), [("crypten", 2, FEW), ("masked", 2, FEW), ("masked", 2, "mpcache")])
def test_whole_generation_on_shares(suite: str, parties: int, text: str) -> None:
    """The shipped model with MPCache, two layers sharing nothing, against plaintext with the same policy."""
    checkpoint = load_checkpoint(Path(models.recall.__file__).parent / "gpt2")
    assert checkpoint.architecture.layers == 2
    case = evaluation_cases(96, 1, 5)[0]
    ids = checkpoint.tokenizer.encode(case.prompt)
    plan = GenerationPlan(len(ids), 4, policy=text)
    plan.check(checkpoint.architecture)
    expected = generate_plain(checkpoint, ids, plan, dtype=torch.float64)
    measured = generate_on_shares(checkpoint, ids, plan, InProcessSuite(SuiteSpec(suite), parties)).checked()
    assert measured == expected


@pytest.mark.parametrize(
    ("text", "choosing"),
    [
        ("shared:layers=3,apart=1|quest:budget=0.4,page=4", [2, 4]),  # a group's first layer attends to everything
        ("shared:layers=3,apart=0|full@3;quest:budget=0.4,page=4", [2, 4]),  # it is another policy's
    ],
)
def test_a_choice_is_shared_from_the_first_layer_on_that_makes_one(text: str, choosing: list[int]) -> None:
    """Quest's first two layers choose nothing, whatever group they are in."""
    a = tiny(layers=6)
    policy = parse(text)
    policy.check(a, 40)
    case = Case(a, tokens=40, steps=3, seed=4)

    async def program(s: Any, k: Any, v: Any, q: Any, mass: Any) -> Any:
        cache = KVCache(a, policy)
        for layer in range(a.layers):
            await cache.append(s, layer, k[:, :40], v[:, :40])
            await policy.after_prefill(s, cache, layer, Seen())
        cache.seen = 40
        for step in range(case.steps):
            for layer in range(a.layers):
                await cache.append(s, layer, k[:, 40 + step : 41 + step], v[:, 40 + step : 41 + step])
                await policy.after_append(s, cache, layer)
                await policy.attend(s, cache, layer, await s.mask_queries(q[step]))
            cache.seen += 1
        states = [entry.state for entry in cache.layers]
        assert [
            n for n, state in enumerate(states) if isinstance(state, QuestState) and state.choice is not None
        ] == choosing
        return [k]

    run_plain(program, case.inputs)


@pytest.mark.parametrize("tokens", [1, 3, 7])
@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_prompt_shorter_than_a_cluster_is_attended_to_as_a_whole(name: str, tokens: int) -> None:
    texts = {"mpcache": "mpcache:preset=clusters,static=1,sharing=1", "h2o": "h2o:budget=1", "tova": "tova:budget=1"}
    texts |= {
        "streaming-llm": "streaming-llm:budget=1",
        "snapkv": "snapkv:budget=1",
        "elastic": "elastic:budget=1",
        "d2o": "d2o:budget=1",
        "kvmerger": "kvmerger:budget=1",
        "ems": "ems:budget=1",
        "epicache": "epicache:budget=1",
        "mikv": "mikv:budget=1",
        "cake": "cake:budget=1",
        "lazyeviction": "lazyeviction:budget=1",
        "compresskv": "compresskv:budget=1",
        "dynamic-top-k": "dynamic-top-k:budget=1",
        "locret": "locret:budget=1",
        "attention-gate": "attention-gate:budget=1",
    }
    case = Case(tiny(), tokens=tokens, steps=2, seed=1)
    policy = parse(texts.get(name, name))
    policy.check(case.architecture, tokens)

    async def program(s: Any, *values: Any) -> Any:
        return await case.run(policy, s, *values)

    async def full(s: Any, *values: Any) -> Any:
        return await case.run(parse("full"), s, *values)

    for one, other in zip(run_plain(program, case.inputs), run_plain(full, case.inputs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("prompt", [5, 6, 7, 8, 9])
def test_extremes_kept_up_token_by_token_are_those_of_the_whole_cluster(prompt: int) -> None:
    """On shares, whatever the prompt leaves over: clusters of four behind a sink, on two levels."""
    policy = parse("mpcache:preset=clusters,static=1,dynamic=0.4,fine=4,coarse=8,sinks=1,window=3,sharing=1")
    case = Case(tiny(), prompt, 13, seed=prompt)

    async def program(s: Any, k: Any, v: Any, q: Any, mass: Any) -> Any:
        cache = KVCache(tiny(), policy)
        await cache.append(s, 0, k[:, :prompt], v[:, :prompt])
        await policy.after_prefill(s, cache, 0, Seen())
        for token in range(prompt, prompt + case.steps):
            await cache.append(s, 0, k[:, token : token + 1], v[:, token : token + 1])
            await policy.after_append(s, cache, 0)
            await cache.settle()
        levels = cache.layers[0].state_of(ClusterState).described
        return [x for level in (levels.fine, levels.coarse) if level is not None for x in (level.high, level.low)]

    found = run_secure("masked", 2, program, case.inputs)
    for level, size in enumerate((4, 8)):
        count = (prompt + case.steps - 1) // size
        clusters = case.k[:, 1 : 1 + count * size].reshape(case.k.shape[0], count, size, -1)
        torch.testing.assert_close(found[2 * level], clusters.amax(2), atol=2**-14, rtol=0)
        torch.testing.assert_close(found[2 * level + 1], clusters.amin(2), atol=2**-14, rtol=0)


def test_layers_share_a_choice_and_chunks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six layers: 0 and 1 choose alone, 2 and 4 choose for 3 and 5; a prompt in batches gives the same tokens."""
    case = Case(tiny(layers=6), tokens=64, steps=1, seed=2)
    chosen: list[int] = []

    real = ClusterReader.chosen

    async def watched(self: ClusterReader, suite: Any, entry: Any, q: Any, plan: Any) -> Any:
        chosen.append(len(chosen))
        return await real(self, suite, entry, q, plan)

    monkeypatch.setattr(ClusterReader, "chosen", watched)
    policy = MPCache(static=1, dynamic=0.3, fine=4, coarse=8, sinks=4, window=4, sharing=2)

    async def program(s: Any, k: Any, v: Any, q: Any, mass: Any) -> Any:
        cache = KVCache(case.architecture, policy)
        out = []
        for layer in range(6):
            await cache.append(s, layer, k, v)
            await policy.after_prefill(s, cache, layer, Seen())
        cache.seen = 64
        for layer in range(6):
            out.append(await policy.attend(s, cache, layer, q[0]))
        return out

    found = run_plain(program, case.inputs)
    assert len(chosen) == 4
    for value in found[1:]:
        assert torch.equal(value, found[0])


@pytest.mark.parametrize("text", ["full", *(texts[0] for name, texts in MATRIX.items() if name != "full")])
def test_a_copied_cache_goes_its_own_way(text: str) -> None:
    """Two copies give the same attention, and the cache that they were made of stays as it was."""
    case, policy = Case(tiny(), tokens=40, steps=2, seed=3), parse(text)

    async def program(s: Any, k: Any, v: Any, q: Any, mass: Any) -> Any:
        cache = KVCache(tiny(), policy)
        await cache.append(s, 0, k[:, :40], v[:, :40])
        await policy.after_prefill(s, cache, 0, case.told(policy, s, mass))
        cache.seen = 40
        length, state = cache.layers[0].length, vars(cache.layers[0].state).copy()
        out = []
        for _ in range(2):
            after = cache.copied()
            for step in range(case.steps):
                await after.append(s, 0, k[:, 40 + step : 41 + step], v[:, 40 + step : 41 + step])
                await policy.after_append(s, after, 0)
                out.append(await policy.attend(s, after, 0, q[step]))
                await after.settle()
                after.seen += 1
            assert (cache.layers[0].length, cache.seen) == (length, 40)
            assert all(vars(cache.layers[0].state)[name] is value for name, value in state.items())
        return out

    found = run_plain(program, case.inputs)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


def test_a_cache_of_another_policy_is_refused() -> None:
    cache = KVCache(tiny(), parse("h2o"))
    with pytest.raises(RuntimeError, match="the cache was made for another policy: it holds EvictionState"):
        cache.layers[0].state_of(ClusterState)


def test_a_policy_file_is_registered_documented_and_tested() -> None:
    folder = Path(models.policies.__file__).parent
    shared = {"__init__", "clusters", "eviction", "levels", "registry", "selecting", "settings", "threshold"}
    shared |= {"batches", "changed", "clustered", "composition", "holding", "wrappers"}
    files = {path.stem.replace("_", "-") for path in folder.glob("*.py") if path.stem not in shared}
    assert files == set(POLICIES) | {"think", "cskv"}
    page = (folder.parents[1] / "docs" / "policies.md").read_text(encoding="utf-8")
    for name in (*POLICIES, *WRAPPERS):
        assert f"`{name}`" in page, f"docs/policies.md does not mention {name}"
    for name, kind in POLICIES.items():
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            assert f"`{field.name}`" in page, f"docs/policies.md does not mention {name}'s setting {field.name}"
