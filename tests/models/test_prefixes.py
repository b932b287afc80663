"""Registered prefixes, in plaintext and on shares: sessions behind stored rows give the tokens of the whole prompt."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from launch.local.in_process import InProcessSuite
from launch.local.shares import KeptShares, WeightShares, additive_shares, opened
from models.architecture import Architecture, Rotary
from models.checkpoint import Checkpoint, load_checkpoint
from models.costs.estimation import estimate
from models.costs.prediction import Predictor
from models.costs.tracing import Setting, trace_step
from models.decoder import Decoder
from models.generation import GenerationPlan, PlainModel, generate
from models.learned import with_learned
from models.loaded import load_weights
from models.policies import parse
from models.policies.batches import Batches
from models.policies.eviction import EvictingPolicy
from models.prefix_rows import LOAD_ROWS, load_rows, rows_name, rows_shapes
from models.prefix_scores import scores_of
from models.prefixes import PrefixPlan, register
from models.shapes import SHAPES, find_description
from mpc.errors import ConfigurationError
from protocols.registry import SuiteSpec
from protocols.suite import OutputShare, Suite
from tests.models import random_checkpoints as checkpoints
from tests.models.policies.test_locret import learned_checkpoint

PROMPT = [(7 * n * n + 3 * n) % 90 + 3 for n in range(18)]
BEHIND = 13
NEW = 3
OWN = len(PROMPT) - BEHIND
PLAN = GenerationPlan(OWN, NEW, behind=BEHIND)


@dataclass
class Rows:
    """What one role keeps of a prefix, by name."""

    shares: dict[str, Tensor] = field(default_factory=dict)

    def keep(self, name: str, share: Tensor) -> None:
        assert name not in self.shares
        self.shares[name] = share


@dataclass
class Roles:
    """All roles' weights, stored rows and loaded rows, from session to session."""

    spec: SuiteSpec
    checkpoint: Checkpoint
    parties: int = 2
    weights: dict[int | None, dict[str, Any]] = field(default_factory=dict)
    stored: dict[int | None, Rows] = field(default_factory=dict)
    loaded: dict[int | None, dict[str, Any]] = field(default_factory=dict)

    def run(self, program: Any) -> list[Any]:
        return InProcessSuite(self.spec, self.parties).run(program)

    def load(self) -> None:
        shares = WeightShares(self.checkpoint, self.parties)

        def program(suite: Suite, party: int | None) -> None:
            a = self.checkpoint.architecture
            self.weights[party] = suite.run(load_weights(suite, a, lambda name: shares.share(suite, name, party)))

        self.run(program)

    def register(self, ids: list[int], policy: str = "full") -> list[OutputShare]:
        given = dict(enumerate(additive_shares(torch.tensor(ids), self.parties)))

        def program(suite: Suite, party: int | None) -> OutputShare:
            rows, endpoint = self.stored.setdefault(party, Rows()), KeptShares()
            plan = PrefixPlan(len(ids), policy)
            decoder = Decoder(suite, self.checkpoint.architecture, self.weights[party], plan.noting)
            share = None if party is None else given[party]
            suite.run(register(suite, decoder, plan, share, endpoint, rows.keep))
            return endpoint.shares[0]

        return self.run(program)

    def load_rows(self, tokens: int, scores: str = "") -> list[int]:
        def program(suite: Suite, party: int | None) -> int:
            stored = self.stored[party].shares
            self.loaded[party] = suite.run(
                load_rows(
                    suite, self.checkpoint.architecture, tokens, lambda n: None if party is None else stored[n], scores
                )
            )
            return suite.ledger.total(LOAD_ROWS).bytes_sent

        return self.run(program)

    def answer(self, ids: list[int], plan: GenerationPlan) -> list[int]:
        given = dict(enumerate(additive_shares(torch.tensor(ids), self.parties)))

        def program(suite: Suite, party: int | None) -> list[OutputShare]:
            weights = {**self.weights[party], **self.loaded.get(party, {})}
            decoder = Decoder(suite, self.checkpoint.architecture, weights, parse(plan.policy))
            endpoint = KeptShares()
            suite.run(generate(suite, decoder, plan, None if party is None else given[party], endpoint))
            return endpoint.shares

        found = self.run(program)
        steps = [[of_party[step] for of_party in found] for step in range(plan.new_tokens)]
        assert all(_clean(step) for step in steps)
        return [int(opened(step).round()) for step in steps]


def _clean(shares: list[OutputShare]) -> bool:
    if shares[0].flags is None:
        return True
    words = torch.zeros_like(shares[0].flags)
    for share in shares:
        assert share.flags is not None
        words ^= share.flags
    return not bool(words.any())


def plain_behind(model: PlainModel, prompt: list[int], plan: GenerationPlan) -> list[int]:
    """Tokens in plaintext behind rows that a session of its own registered."""
    rows, ids, suite = Rows(), prompt[: plan.behind], model.suite
    indices = torch.tensor(ids)
    endpoint = KeptShares()
    registering = PrefixPlan(len(ids), plan.policy if scores_of(parse(plan.policy)) else "full")
    decoder = model.decoder(policy=registering.noting)
    suite.run(register(suite, decoder, registering, indices, endpoint, rows.keep))
    loaded = suite.run(
        load_rows(suite, model.architecture, len(ids), rows.shares.__getitem__, scores_of(parse(plan.policy)))
    )
    model.weights = {**model.weights, **loaded}
    return model.generate(prompt[plan.behind :], plan)


def model_of(name: str, folder: Path, layers: int = 0) -> Checkpoint:
    checkpoints.save(name, folder, layers=layers)
    return load_checkpoint(folder)


@pytest.mark.parametrize(
    "name",
    ["gpt2", "llama-grouped", "mistral-window", "qwen2-window-from-layer-1", "gemma2", "qwen3", "falcon-40b", "gptj"],
)
@pytest.mark.parametrize("behind", [1, BEHIND, len(PROMPT) - 1])
def test_tokens_in_plaintext_are_those_of_the_whole_prompt(name: str, behind: int, tmp_path: Path) -> None:
    model = PlainModel(model_of(name, tmp_path), torch.float64)
    wanted = model.generate(PROMPT, GenerationPlan(len(PROMPT), NEW))
    assert plain_behind(model, PROMPT, replace(PLAN, prompt_tokens=len(PROMPT) - behind, behind=behind)) == wanted


@pytest.mark.parametrize(
    "policy",
    [
        "streaming-llm:budget=0.5,sinks=2",
        "snapkv:budget=0.5,window=4",
        "quest:budget=0.5",
        "h2o:budget=0.5",
        "h2o:budget=0.6,recent=0.2",
        "chunked:tokens=2|h2o:budget=0.4",
        "elastic:budget=0.5",
        "d2o:budget=0.5",
        "kvmerger:budget=0.5",
        "mikv:budget=0.5",
        "dynamic-top-k:budget=0.3",
        "chunked:tokens=2|full",
        "mpcache:preset=clusters,static=0.6,dynamic=0.5,observed=0.2,fine=2,sinks=1,window=2,sharing=1,apart=0",
    ],
)
def test_policies_behind_a_prefix_do_as_with_the_whole_prompt(policy: str, tmp_path: Path) -> None:
    model = PlainModel(model_of("llama-grouped", tmp_path), torch.float64)
    wanted = model.generate(PROMPT, GenerationPlan(len(PROMPT), NEW, policy=policy))
    assert plain_behind(model, PROMPT, replace(PLAN, policy=policy)) == wanted


@dataclass(frozen=True)
class FirstWhole(Batches):
    """Batches of a whole prompt, of which the first one is `first` tokens, behind which nothing goes: what batches behind a
    prefix of so many tokens are to give."""

    first: int = BEHIND

    def prompt_batches(self, tokens: int) -> list[int]:
        return [self.first, *super().prompt_batches(tokens - self.first)]

    def kept(self, policy: EvictingPolicy, layer: int, prompt: int, seen: int) -> int:
        return seen if seen == self.first else super().kept(policy, layer, prompt, seen)


BATCHES = "batches:tokens=3,ahead=1|snapkv:budget=0.5,window=2"


@pytest.mark.parametrize(
    "policy", [BATCHES, "batches:tokens=4,keep=11,ahead=0|snapkv:budget=0.6,window=3", "batches:tokens=3|h2o:budget=0.5"]
)
def test_batches_behind_a_prefix_are_those_of_a_prompt_whose_first_batch_it_is(policy: str, tmp_path: Path) -> None:
    checkpoint = model_of("llama-grouped", tmp_path)
    inside = parse(policy)
    assert isinstance(inside, Batches)
    first = FirstWhole(inside.inner, inside.tokens, inside.keep, inside.ahead)
    for prompt in (PROMPT, [*PROMPT[:BEHIND], 5, 80, 41, 7, 9, 33]):
        whole = GenerationPlan(len(prompt), NEW, policy=policy)
        wanted = PlainModel(checkpoint, torch.float64, policy=first).generate(prompt, whole)
        plan = replace(PLAN, prompt_tokens=len(prompt) - BEHIND, policy=policy)
        assert plain_behind(PlainModel(checkpoint, torch.float64), prompt, plan) == wanted


@pytest.mark.covering(1)
@pytest.mark.parametrize(
    ("name", "suite", "parties", "policy"),
    [
        ("gpt2", "masked", 2, "full"),
        ("llama-grouped", "masked", 3, "snapkv:budget=0.5,window=4"),
        ("mistral-window", "masked", 2, "full"),
        ("gpt2", "crypten", 2, "full"),
        ("llama-grouped", "crypten", 3, "full"),
        ("llama-grouped", "masked", 3, BATCHES),
        ("gpt2", "crypten", 2, BATCHES),
        ("llama-grouped", "masked", 3, "h2o:budget=0.5"),
        ("gpt2", "crypten", 2, "h2o:budget=0.5"),
        ("gpt2", "masked", 2, "elastic:budget=0.5"),
        ("llama-grouped", "masked", 3, "d2o:budget=0.5"),
        ("gpt2", "crypten", 2, "kvmerger:budget=0.5"),
    ],
)
def test_sessions_on_shares_begin_behind_rows_that_are_loaded_once(
    name: str, suite: str, parties: int, policy: str, tmp_path: Path
) -> None:
    checkpoint = model_of(name, tmp_path, layers=1)
    inside = parse(policy)
    first = FirstWhole(inside.inner, inside.tokens, inside.keep, inside.ahead) if isinstance(inside, Batches) else None
    model = PlainModel(checkpoint, torch.float64, policy=first)
    roles = Roles(SuiteSpec(suite), checkpoint, parties)
    roles.load()
    scores = scores_of(inside)
    said = roles.register(PROMPT[:BEHIND], policy if scores else "full")
    assert opened(said).tolist() == [0]
    assert _clean(said)
    sent = roles.load_rows(BEHIND, scores)
    a = checkpoint.architecture
    elements = sum(g * s * c for g, s, c in rows_shapes(a, BEHIND, scores).values())
    assert set(sent) == {8 * elements * (parties - 1)}
    other = [*PROMPT[:BEHIND], 5, 80, 41, 7, 9, 33]
    for prompt in (PROMPT, other, PROMPT):  # the second session must not have written into what the third begins behind
        whole = GenerationPlan(len(prompt), NEW, policy=policy)
        plan = replace(PLAN, prompt_tokens=len(prompt) - BEHIND, policy=policy)
        assert roles.answer(prompt[BEHIND:], plan) == model.generate(prompt, whole)


def test_rows_of_two_registrations_are_shared_afresh(tmp_path: Path) -> None:
    """What is stored is the same value in other shares, uniform each time."""
    checkpoint = model_of("gpt2", tmp_path)
    found = []
    for _ in range(2):
        roles = Roles(SuiteSpec("masked"), checkpoint)
        roles.load()
        roles.register(PROMPT[:BEHIND])
        name = rows_name(1, "keys")
        found.append([roles.stored[party].shares[name] for party in range(2)])
    first, second = found
    assert not any(bool((a == b).any()) for a, b in zip(first, second, strict=True))
    difference = first[0] + first[1] - second[0] - second[1]
    assert int(difference.abs().max()) < 64  # rounding of two sessions, in units of 2^-14


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (
            "ems:budget=0.6,window=2,every=1,candidates=4",
            "policy ems.* looks at the prompt's last 18 queries, of which 5 are behind the prefix of 13",
        ),
        ("snapkv:budget=0.5,window=8", "policy snapkv.* looks at the prompt's last 8 queries, of which 5"),
        (
            "epicache:budget=0.6,probe_tokens=2,sinks=1,last=2",
            "reads the first 2 tokens of a prompt as its probes, which a prefix",
        ),
    ],
)
def test_policies_that_need_more_of_a_prefix_are_refused_by_name(policy: str, message: str) -> None:
    plan, tiny = replace(PLAN, policy=policy), SHAPES["tiny"]
    learned = with_learned(tiny, parse(policy).weight_shapes(tiny))
    with pytest.raises(ConfigurationError, match=f"{message}.*use a policy such as full.*or ask without a prefix"):
        plan.check(learned)


def test_what_cannot_be_registered_or_continued() -> None:
    tiny = SHAPES["tiny"]
    assert isinstance(tiny, Architecture)
    with pytest.raises(ConfigurationError, match="leaves no room for a prompt behind it: the model has"):
        PrefixPlan(tiny.positions).check(tiny)
    for behind, remedy in (
        (tiny.positions, "register a shorter text"),
        (tiny.positions - 4, "shorten the prompt to at most 2"),
    ):
        message = (
            rf"= 5 behind {behind} tokens of registered texts and new_tokens = 3 need {behind + 7} positions.*; {remedy}"
        )
        with pytest.raises(ConfigurationError, match=message):
            replace(PLAN, behind=behind).check(tiny)
    with pytest.raises(ConfigurationError, match="prompt_tokens must be a positive integer, got 0"):
        PrefixPlan(0)
    with pytest.raises(ConfigurationError, match="is an encoder"):
        PrefixPlan(4).check(find_description("bert-base"))


def test_rotary_angles_that_depend_on_the_length_are_refused(tmp_path: Path) -> None:
    most = 20
    a = model_of("llama-grouped", tmp_path).architecture
    a = a.model_copy(update={"rotary": Rotary(scaling="dynamic", factor=2.0, original_positions=most)})
    PrefixPlan(most).check(a)
    with pytest.raises(ConfigurationError, match="rotary scaling 'dynamic'"):
        PrefixPlan(most + 1).check(a)
    with pytest.raises(ConfigurationError, match="rotary scaling 'dynamic'"):
        replace(PLAN, behind=most).check(a)


def test_costs_behind_a_prefix_are_a_fifth_of_the_whole_prompt_at_gpt2_base() -> None:
    a = find_description("gpt2")
    whole = estimate(a, Setting("masked"), 1024, 1)
    behind = estimate(a, Setting("masked", behind=896), 128, 1)
    for what in ("bytes_sent", "offline_bytes"):
        assert behind.total.total(what) < 0.18 * whole.total.total(what)
        assert behind.total.total(what) + behind.load_prefix.total(what) < 0.24 * whole.total.total(what)
    assert behind.total.total("rounds") == whole.total.total("rounds")
    assert behind.load_prefix.total("bytes_sent") == 8 * 896 * 768 * 2 * 12
    assert behind.load_prefix.total("rounds") == 12
    registering = trace_step(a, Setting("masked", decoding="rows"), 0, 16).costs([1] * 12)
    stored = registering.total("offline_bytes", "stored")
    assert stored == 12 * 2 * (8 * 16 * 768 + 16)


def test_a_text_of_almost_all_positions_is_predicted() -> None:
    tiny = SHAPES["tiny"]
    found = Predictor(tiny, Setting("masked", decoding="rows")).predict(tiny.positions - 2, 1, 60.0)
    assert found.dealt > 8 * 2 * (tiny.positions - 2) * tiny.layers * tiny.kv_heads * tiny.head_channels
    behind = Predictor(tiny, Setting("masked", behind=tiny.positions - 9)).predict(7, 2, 60.0)
    assert 0 < behind.sent < found.sent


@pytest.mark.parametrize(("suite", "parties"), [("plain", 1), ("masked", 2), ("crypten", 3)])
def test_scores_of_retaining_heads_are_stored_once(suite: str, parties: int, tmp_path: Path) -> None:
    policy = "locret:budget=0.5,width=8"
    checkpoint = learned_checkpoint("gpt2", tmp_path, policy, layers=1)
    model = PlainModel(checkpoint, torch.float64)
    wanted = model.generate(PROMPT, GenerationPlan(len(PROMPT), NEW, policy=policy))
    plan = replace(PLAN, policy=policy)
    if suite == "plain":
        assert plain_behind(model, PROMPT, plan) == wanted
        return
    roles = Roles(SuiteSpec(suite), checkpoint, parties)
    roles.load()
    roles.register(PROMPT[:BEHIND], policy)
    roles.load_rows(BEHIND, scores_of(parse(policy)))
    assert roles.answer(PROMPT[BEHIND:], plan) == wanted


@pytest.mark.parametrize("policy", ["full", BATCHES, "h2o:budget=0.5"])
def test_what_is_predicted_behind_a_prefix_is_what_parties_count(policy: str, tmp_path: Path) -> None:
    checkpoint = model_of("gpt2", tmp_path)
    roles = Roles(SuiteSpec("masked"), checkpoint)
    roles.load()
    scores = scores_of(parse(policy))
    roles.register(PROMPT[:BEHIND], policy if scores else "full")
    loading = roles.load_rows(BEHIND, scores)
    given = dict(enumerate(additive_shares(torch.tensor(PROMPT[BEHIND:]), 2)))

    def counted(suite: Suite, party: int | None) -> tuple[int, int, int]:
        decoder = Decoder(suite, checkpoint.architecture, {**roles.weights[party], **roles.loaded[party]}, parse(policy))
        share = None if party is None else given[party]
        suite.run(generate(suite, decoder, replace(PLAN, new_tokens=1, policy=policy), share, KeptShares()))
        cost = suite.ledger.total("prefill")
        return cost.rounds, cost.bytes_sent, cost.offline_bytes

    whole = estimate(checkpoint.architecture, Setting("masked", policy=policy, behind=BEHIND), OWN, 1)
    assert whole.load_prefix.total("bytes_sent") == loading[1]
    costs = whole.first
    fields = ("rounds", "bytes_sent", "offline_bytes")
    predicted = tuple(round(costs.total(name) - costs.total(name, "choice")) for name in fields)
    assert roles.run(counted)[1] == predicted
