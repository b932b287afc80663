"""EpiCache: probes in front of a prompt look at its batches; against a decoder by hand, and on shares against plaintext."""

from __future__ import annotations

from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from launch.local.in_process import InProcessSuite
from launch.measure.generation import generate_on_shares
from models.cache import Batch, KVCache
from models.checkpoint import Checkpoint, load_checkpoint
from models.generation import GenerationPlan, PlainModel, generate_plain, prefill
from models.observation import Seen
from models.policies import parse
from mpc.errors import ConfigurationError
from protocols.plain.suite import tensor_of
from protocols.registry import SuiteSpec
from tests.models import random_checkpoints as checkpoints
from tests.models.policies.oracles import order
from tests.models.policies.policy_cases import grid, tiny, told_of
from tests.models.policies.test_batches import ByHand, Drop, best
from tests.models.test_decoder import feed
from tests.protocols.suite_harness import run_plain, run_secure

CASES = 1000
PROBES, SINKS, LAST = 5, 2, 3


class Drawn:
    """Probabilities [G, R, P, T] of few values, exact in fixed point, and what stays of a prompt of T tokens."""

    def __init__(self, number: int) -> None:
        g = np.random.default_rng(number)
        self.group, self.tokens = (1, 2, 4)[number % 3], int(g.integers(SINKS + LAST + 2, 40))
        least = SINKS + LAST + 1
        self.stays = (least, self.tokens - 1, int(g.integers(least, self.tokens)))[number // 3 % 3]
        self.reduce = ("sum", "max")[number % 2]
        self.p = g.integers(0, 3, (2, self.group, PROBES, self.tokens)) / 8 * (number % 5 > 0)
        self.text = f"epicache:budget={self.stays / self.tokens:.17g},probe_tokens={PROBES},sinks={SINKS},last={LAST}"
        self.text += f",reduce={self.reduce}"

    def told(self) -> Tensor:
        return torch.from_numpy(self.p.sum((1, 2)) if self.reduce == "sum" else self.p.reshape(-1, self.tokens).copy())

    def expected(self) -> np.ndarray[Any, Any]:
        score = self.p.sum((1, 2)) if self.reduce == "sum" else self.p.max((1, 2))
        middle = SINKS + order(score[:, SINKS : self.tokens - LAST], self.stays - SINKS - LAST)
        ends = np.r_[:SINKS], np.r_[self.tokens - LAST : self.tokens]
        return np.stack([np.r_[ends[0], one, ends[1]] for one in middle])

    async def run(self, s: Any, numbers: Any, mass: Any) -> Any:
        """The numbers of the tokens that stay."""
        policy, architecture = parse(self.text), tiny(heads=2 * self.group, groups=2)
        policy.check(architecture, self.tokens + PROBES)
        assert policy.observation(self.tokens, 0).sums(2 * self.group, 2) == mass.shape[0]
        cache = KVCache(architecture, policy)
        cache.prompt_tokens = self.tokens
        await cache.append(s, 0, numbers, numbers)
        alone = self.reduce == "max"
        await policy.after_prefill(s, cache, 0, Seen(mass, 1 if alone else PROBES, 1 if alone else self.group))
        await cache.settle()
        return [cache.layers[0].keys_and_values()[0]]

    def kept(self, runner: Any) -> np.ndarray[Any, Any]:
        numbers = torch.arange(self.tokens, dtype=torch.float64).reshape(1, -1, 1).expand(2, -1, 4).contiguous()
        (found,) = runner(self.run, [numbers, self.told()])
        return np.asarray(found[..., 0].round().to(torch.int64))


def test_the_tokens_that_stay_are_what_probes_look_at() -> None:
    """1 000 cases with ties, R = 1, 2 and 4, sums and largest, from one chosen token to all but one."""
    for number in range(CASES):
        drawn = Drawn(number)
        assert np.array_equal(drawn.kept(run_plain), drawn.expected()), (number, drawn.text)


@pytest.mark.covering(1)
@pytest.mark.parametrize(("suite", "parties"), [("crypten", 2), ("crypten", 3), ("masked", 2), ("masked", 3)])
def test_the_same_tokens_stay_on_shares(suite: str, parties: int) -> None:
    for number in (5, 12, 26, 41):
        drawn = Drawn(number)
        found = drawn.kept(lambda program, inputs: run_secure(suite, parties, program, inputs))
        assert np.array_equal(found, drawn.expected()), (number, drawn.text)


class WithProbes(ByHand):
    """The decoder by hand, with probes behind each batch at the places that follow it; after a few of them nothing looks."""

    probes: list[int]

    def run(self, ids: list[int], batches: list[tuple[int, int]]) -> np.ndarray:
        ends = accumulate((tokens for tokens, _ in batches), initial=0)
        for (start, stop), (_, looking) in zip(pairwise(ends), batches, strict=True):
            places = list(range(start, stop + looking))
            x = self.w["embedding.tokens"][[*ids[start:stop], *self.probes[:looking]]]
            if self.a.rotary is None:
                x = x + self.w["embedding.positions"][places]
            for layer in range(self.a.layers):
                x = self._layer(x, layer, places, stop - start)
        head = self._linear(self._normed(x[stop - start - 1 : stop - start]), "head")
        return np.asarray(head[0])


def dropping(kept: dict[int, int]) -> Drop:
    def drop(model: ByHand, layer: int, mass: np.ndarray, seen: int) -> None:
        for g, there in enumerate(model.there[layer]):
            stop = len(there) - LAST
            if len(there) > kept[seen]:
                chosen = best(mass[g][SINKS:stop], kept[seen] - SINKS - LAST)
                model.there[layer][g] = there[:SINKS] + [there[SINKS + n] for n in chosen] + there[stop:]

    return drop


HALF = f"epicache:budget=0.5,probe_tokens={PROBES},sinks={SINKS},last={LAST}"
WHOLE = [(36, PROBES)]
CUT = [(6, 0), (10, PROBES), (10, PROBES), (10, PROBES)]
KEPT = {6: 6, 16: 10, 26: 13, 36: 18}  # half of the tokens so far, at least a batch of 10


@pytest.mark.covering(2)
@pytest.mark.parametrize("family", ["gpt2", "llama-grouped"])
@pytest.mark.parametrize("reduce", ["sum", "max"])
@pytest.mark.parametrize(("around", "batches"), [("", WHOLE), ("batches:tokens=10|", CUT), ("chunked:tokens=13|", WHOLE)])
def test_what_stays_and_the_logits_by_hand(
    family: str, reduce: str, around: str, batches: list[tuple[int, int]], tmp_path: Path
) -> None:
    checkpoint, ids = saved(family, tmp_path, len(around))
    hand = WithProbes(checkpoint, dropping(KEPT), 99)
    hand.probes, hand.joined = ids[:PROBES], np.add if reduce == "sum" else np.maximum
    wanted = hand.run(ids[PROBES:], batches)
    plain, policy = PlainModel(checkpoint, torch.float64), parse(f"{around}{HALF},reduce={reduce}")
    policy.check(checkpoint.architecture, len(ids))
    decoder = plain.decoder(policy=policy)
    cache = decoder.new_cache()
    logits = plain.suite.run(prefill(decoder, cache, feed(plain, ids)))
    assert (cache.seen, cache.looking.probes) == (36, None)
    for layer, entry in enumerate(cache.layers):
        _, values = entry.keys_and_values()
        for g, there in enumerate(hand.there[layer]):
            rows = np.stack([hand.v[layer][t][g] for t in there])
            assert len(there) == 18
            assert np.abs(tensor_of(values)[g].numpy() - rows).max() < 1e-5
    assert np.abs(tensor_of(logits)[0].numpy() - wanted).max() < 1e-5


def saved(family: str, folder: Path, seed: int, layers: int = 0) -> tuple[Checkpoint, list[int]]:
    """A checkpoint, and a prompt of 36 tokens behind its probes."""
    checkpoints.save(family, folder, layers=layers)
    ids = torch.randint(0, 97, (36 + PROBES,), generator=torch.Generator().manual_seed(seed)).tolist()
    return load_checkpoint(folder), ids


@pytest.mark.parametrize(("suite", "parties"), [("crypten", 2), ("masked", 2), ("masked", 3)])
@pytest.mark.parametrize("text", ["batches:tokens=16|" + HALF, f"batches:tokens=16|{HALF},reduce=max"])
def test_batches_on_shares(text: str, suite: str, parties: int) -> None:
    """What probes say of 40 tokens in batches, exact in fixed point, with ties; grouped queries."""
    policy, a = parse(text), tiny(heads=4, groups=2)
    g = torch.Generator().manual_seed(len(text))
    k, v = (grid(2, 40, 4, span=6, step=0.25, generator=g) for _ in range(2))
    votes = torch.randint(0, 9, (3, 2, 40), generator=g).double() * 0.125
    ends = list(accumulate(policy.prompt_batches(40), initial=0))

    async def program(s: Any, k: Any, v: Any, votes: Any) -> Any:
        cache = KVCache(a, policy)
        cache.prompt_tokens = 40
        for n, (start, stop) in enumerate(pairwise(ends)):
            batch = Batch(40, start, stop - start)
            await cache.append(s, 0, k[:, start:stop], v[:, start:stop])
            assert policy.looking_ahead(batch) == (0 if n == 0 else PROBES)
            seen = told_of(s, a, policy.observed_in(batch, 0), votes[n, :, : cache.layers[0].length])
            await policy.after_batch(s, cache, 0, batch, seen)
            await cache.settle()
            cache.seen = stop
        return cache.layers[0].keys_and_values()

    plain = run_plain(program, [k, v, votes])
    for expected, value in zip(plain, run_secure(suite, parties, program, [k, v, votes]), strict=True):
        assert expected.shape == value.shape == (2, 20, 4)
        assert (value - expected).abs().max() < 2.0**-12


@pytest.mark.covering(1)
@pytest.mark.parametrize(("suite", "parties"), [("crypten", 2), ("masked", 2), ("masked", 3)])
@pytest.mark.parametrize(
    ("family", "text"), [("llama-grouped", f"batches:tokens=15|{HALF},reduce=max"), ("gpt2", f"layers:weights=2 1|{HALF}")]
)
def test_a_generation_on_shares(family: str, text: str, suite: str, parties: int, tmp_path: Path) -> None:
    checkpoint, ids = saved(family, tmp_path, 3, 2 if "layers:" in text else 1)
    plan = GenerationPlan(len(ids), 3, policy=text)
    measured = generate_on_shares(checkpoint, ids, plan, InProcessSuite(SuiteSpec(suite), parties)).checked()
    assert measured == generate_plain(checkpoint, ids, plan, dtype=torch.float64)


def test_probes_are_no_part_of_the_prompt(tmp_path: Path) -> None:
    """With everything kept, other probes change nothing, and the answer is that of the prompt behind them."""
    checkpoint, ids = saved("llama-grouped", tmp_path, 4)
    plain = PlainModel(checkpoint, torch.float64)
    alone = plain.generate(ids[PROBES:], GenerationPlan(36, 4))
    for first in (ids[:PROBES], [1] * PROBES):
        policy = parse(f"epicache:budget=0.99,probe_tokens={PROBES},sinks=0,last=36")
        decoder = plain.decoder(policy=policy)
        cache = decoder.new_cache()
        logits = plain.suite.run(prefill(decoder, cache, feed(plain, [*first, *ids[PROBES:]])))
        assert int(tensor_of(logits).argmax(-1)) == alone[0]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("think|epicache", "think: 'epicache' has probes look at the prompt"),
        ("lag|epicache", "lag: the scores of 'epicache' come from the prompt's last queries alone"),
        ("epicache:probe_tokens=0", "policy epicache: probe_tokens = 0 must be a whole number, 1 or more"),
        ("epicache:reduce=mean", "policy epicache: reduce = 'mean' must be one of sum, max"),
        ("epicache:last=0", "policy epicache: last = 0 must be a whole number, 1 or more"),
    ],
)
def test_what_does_not_go_together_is_refused(text: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        parse(text)


@pytest.mark.parametrize(
    ("text", "tokens", "named"),
    [
        ("epicache", 64, "the first 64 tokens, its probes, look at the prompt .* which leaves none of 64"),
        ("epicache", 164, r"keeps 20 of 100 tokens.*sinks = 4, last = 16 and a token more"),
        ("batches:tokens=128|epicache", 164, "tokens = 128 is more than the 100 tokens of the prompt"),
        ("snapkv@0;epicache", 364, "another layer's policy in 'snapkv@0;epicache' has 64 probes look at the prompt"),
    ],
)
def test_what_does_not_fit_a_prompt_is_refused(text: str, tokens: int, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        parse(text).check(tiny(), tokens)
    parse("full@0;epicache").check(tiny(), 364)
