"""Prompts that lose tokens after every batch: against a decoder written out by hand, and on shares against plaintext."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models.recall
from launch.local.in_process import InProcessSuite
from launch.measure.generation import generate_on_shares
from models.cache import Batch, KVCache
from models.checkpoint import Checkpoint, load_checkpoint
from models.costs.estimation import Tracer, estimate
from models.costs.tracing import Setting
from models.generation import GenerationPlan, PlainModel, generate_plain
from models.policies import parse
from models.prefill import prefill
from models.recall.documents import evaluation_cases
from models.shapes import SHAPES, with_layers, with_positions
from mpc.errors import ConfigurationError
from protocols.plain.suite import tensor_of
from protocols.registry import SuiteSpec
from tests.models import random_checkpoints as checkpoints
from tests.models.policies.policy_cases import grid, tiny, told_of
from tests.models.test_decoder import feed
from tests.protocols.suite_harness import run_plain, run_secure

Drop = Callable[["ByHand", int, np.ndarray, int], None]


class ByHand:
    """A decoder in numpy that keeps, of each layer and key/value head, the numbers of the tokens that are still there.

    drop(self, layer, mass [G, S], token number after the batch): what goes after a batch. own: of the batch's own queries so
    many are observed where none look ahead (a large number for all). With `accumulate`, own ones and those that look ahead.
    """

    def __init__(self, checkpoint: Checkpoint, drop: Drop, observed: int, accumulates: bool = False) -> None:
        self.a = checkpoint.architecture
        self.w = {name: checkpoint.weights[name].double().numpy() for name in self.a.weight_shapes()}
        self.drop, self.observed, self.accumulates = drop, observed, accumulates
        self.joined: Any = np.add  # what a token gets from a query and a head, to what it got before
        self.there: list[list[list[int]]] = [[[] for _ in range(self.a.kv_heads)] for _ in range(self.a.layers)]
        self.k: list[dict[int, np.ndarray]] = [{} for _ in range(self.a.layers)]
        self.v: list[dict[int, np.ndarray]] = [{} for _ in range(self.a.layers)]
        self.scores: dict[int, np.ndarray] = {}

    def run(self, ids: list[int], batches: list[tuple[int, int]]) -> np.ndarray:
        """Return the logits [V] behind the last token. batches: (tokens, how many of the prompt's last ones look ahead)."""
        ends = accumulate((tokens for tokens, _ in batches), initial=0)
        for (start, stop), (_, looking) in zip(pairwise(ends), batches, strict=True):
            places = [*range(start, stop), *range(len(ids) - looking, len(ids))]
            x = self.w["embedding.tokens"][[ids[p] for p in places]]
            if self.a.rotary is None:
                x = x + self.w["embedding.positions"][places]
            for layer in range(self.a.layers):
                x = self._layer(x, layer, places, stop - start)
        head = self._linear(self._normed(x[-1:]), "head")
        return np.asarray(head[0])

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return np.asarray(x @ self.w[f"{name}.weight"] + self.w.get(f"{name}.bias", 0.0))

    def _normed(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + self.a.norm.epsilon))

    def _turned(self, x: np.ndarray, place: int) -> np.ndarray:
        """Rotate a head's channels [C]: halves, angles place * theta^(-2 i / C)."""
        if self.a.rotary is None:
            return x
        half = len(x) // 2
        angle = place * self.a.rotary.theta ** (-2 * np.arange(half) / len(x))
        c, s = np.cos(angle), np.sin(angle)
        return np.concatenate([x[:half] * c - x[half:] * s, x[half:] * c + x[:half] * s])

    def _layer(self, x: np.ndarray, layer: int, places: list[int], own: int) -> np.ndarray:
        a, at = self.a, f"layers.{layer}"
        heads = self._linear(self._normed(x), f"{at}.attention.qkv").reshape(len(x), -1, a.head_channels)
        k, v = dict(self.k[layer]), dict(self.v[layer])  # a token that looks ahead is forgotten
        for n, place in enumerate(places):
            keys = heads[n, a.heads : a.heads + a.kv_heads]
            k[place] = np.stack([self._turned(key, place) for key in keys])
            v[place] = heads[n, a.heads + a.kv_heads :]
        observed = len(places) if self.accumulates else len(places) - own or min(self.observed, own)
        mass = [np.zeros(len(there) + own) for there in self.there[layer]]
        out = np.zeros((len(x), a.heads, a.head_channels))
        for h in range(a.heads):
            g = h // a.group
            before = self.there[layer][g]
            for n, place in enumerate(places):
                seen = [*before, *places[: n + 1]]
                scores = np.array([self._turned(heads[n, h], place) @ k[t][g] for t in seen])
                p = np.exp(scores - scores.max())
                p /= p.sum()
                out[n, h] = sum(weight * v[t][g] for weight, t in zip(p, seen, strict=True))
                if n >= len(places) - observed:
                    count = min(len(seen), len(before) + own)
                    mass[g][:count] = self.joined(mass[g][:count], p[:count])
        x = x + self._linear(out.reshape(len(x), -1), f"{at}.attention.out")
        for n in range(own):
            self.k[layer][places[n]], self.v[layer][places[n]] = k[places[n]], v[places[n]]
        for there in self.there[layer]:
            there += places[:own]
        self.drop(self, layer, np.stack(mass), places[own - 1] + 1)
        up = self._linear(self._normed(x), f"{at}.mlp.up")
        if a.gated:
            gate = self._linear(self._normed(x), f"{at}.mlp.gate")
            return np.asarray(x + self._linear(gate / (1 + np.exp(-gate)) * up, f"{at}.mlp.down"))
        active = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
        return np.asarray(x + self._linear(active, f"{at}.mlp.down"))


def best(scores: np.ndarray, count: int) -> list[int]:
    """Return the places of the highest scores in order, of equal ones the earlier."""
    return sorted(np.argsort(-scores, kind="stable")[:count].tolist())


def snapkv(kept: dict[int, int], window: int) -> Drop:
    def drop(model: ByHand, layer: int, mass: np.ndarray, seen: int) -> None:
        for g, there in enumerate(model.there[layer]):
            older = len(there) - window
            votes = np.convolve(mass[g][:older], np.ones(3))[1 : 1 + older]
            if len(there) > kept[seen]:
                model.there[layer][g] = [there[n] for n in best(votes, kept[seen] - window)] + there[older:]

    return drop


def mpcache(kept: dict[int, int], sinks: int, window: int) -> Drop:
    def drop(model: ByHand, layer: int, mass: np.ndarray, seen: int) -> None:
        for g, there in enumerate(model.there[layer]):
            stop = len(there) - window
            chosen = best(mass.sum(0)[sinks:stop], kept[seen] - sinks - window)
            if len(there) > kept[seen]:
                model.there[layer][g] = there[:sinks] + [there[sinks + n] for n in chosen] + there[stop:]

    return drop


def h2o(kept: dict[int, int]) -> Drop:
    def drop(model: ByHand, layer: int, mass: np.ndarray, seen: int) -> None:
        before = model.scores.get(layer, mass[:, :0])
        total = mass + np.pad(before, ((0, 0), (0, mass.shape[1] - before.shape[1])))
        count = min(kept[seen], total.shape[1])
        recent = round(kept[seen] / 2)
        rows = []
        for g, there in enumerate(model.there[layer]):
            older = len(there) - recent
            stay = best(total[g][:older], kept[seen] - recent) + list(range(older, len(there)))
            stay = stay if count < len(there) else list(range(len(there)))
            model.there[layer][g] = [there[n] for n in stay]
            rows.append(total[g][stay])
        model.scores[layer] = np.stack(rows)

    return drop


KEPT = {6: 6, 16: 10, 26: 13, 36: 18}  # half of the tokens so far, at least a batch of 10; 18 of 36 stay
ALWAYS_18 = {6: 18, 16: 18, 26: 18, 36: 18}
MPCACHE = "mpcache:preset=clusters,static=0.5,dynamic=1,sinks=2,window=3,sharing=1"
CASES = [
    ("batches:tokens=10,ahead=4|snapkv:budget=0.5,window=4,kernel=3", snapkv(KEPT, 4), 4, 4, False),
    ("batches:tokens=10,ahead=0|snapkv:budget=0.5,window=4,kernel=3", snapkv(KEPT, 4), 4, 0, False),
    ("batches:tokens=10,ahead=4,keep=18|snapkv:budget=0.5,window=4,kernel=3", snapkv(ALWAYS_18, 4), 4, 4, False),
    (f"batches:tokens=10,ahead=5|{MPCACHE},observed=8", mpcache(KEPT, 2, 3), 8, 5, False),
    (f"batches:tokens=10,ahead=0|{MPCACHE},observed=8", mpcache(KEPT, 2, 3), 8, 0, False),
    ("batches:tokens=10,ahead=3|h2o:budget=0.5", h2o(KEPT), 99, 3, True),
    ("batches:tokens=10,ahead=0|h2o:budget=0.5", h2o(KEPT), 99, 0, True),
]


@pytest.mark.parametrize("family", ["gpt2", "llama-grouped"])
@pytest.mark.parametrize(("text", "drop", "observed", "ahead", "accumulates"), CASES)
def test_what_stays_and_the_logits_by_hand(
    family: str, text: str, drop: Drop, observed: int, ahead: int, accumulates: bool, tmp_path: Path
) -> None:
    checkpoints.save(family, tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    ids = torch.randint(0, 97, (36,), generator=torch.Generator().manual_seed(len(text))).tolist()
    hand = ByHand(checkpoint, drop, observed, accumulates)
    early = 0 if "keep=" in text else ahead  # where nothing goes nobody looks ahead
    wanted = hand.run(ids, [(6, 0), (10, early), (10, ahead), (10, 0)])
    plain = PlainModel(checkpoint, torch.float64)
    policy = parse(text)
    policy.check(checkpoint.architecture, 36)
    decoder = plain.decoder(policy=policy)
    cache = decoder.new_cache()
    logits = plain.suite.run(prefill(decoder, cache, feed(plain, ids)))
    for layer, entry in enumerate(cache.layers):
        _, values = entry.keys_and_values()
        for g, there in enumerate(hand.there[layer]):
            rows = np.stack([hand.v[layer][t][g] for t in there])
            assert len(there) == 18
            assert np.abs(tensor_of(values)[g].numpy() - rows).max() < 1e-5  # rotary angles are float32
    assert np.abs(tensor_of(logits)[0].numpy() - wanted).max() < 1e-5


ON_SHARES = [
    "batches:tokens=16,ahead=8|snapkv:budget=0.5,window=6,kernel=3",
    "batches:tokens=16,ahead=8|h2o:budget=0.4",
    "batches:tokens=16,ahead=4|mpcache:preset=clusters,static=0.5,dynamic=1,fine=4,sinks=4,window=4,following=2,sharing=1",
    "batches:tokens=16,ahead=1|tova:budget=0.4",
    "batches:tokens=16,keep=24|streaming-llm:budget=0.4",
    "batches:tokens=16,ahead=8|cake:budget=0.5,window=8",
    "batches:tokens=16,ahead=4|compresskv:budget=0.5,window=6,heads=0.2",
    "batches:tokens=16,ahead=8|lazyeviction:budget=0.5,every=12,observed=8,alpha=0.2",  # whose scores are told apart
]


@pytest.mark.covering(2)
@pytest.mark.parametrize(("suite", "parties"), [("crypten", 2), ("masked", 2), ("masked", 3)])
@pytest.mark.parametrize("text", ON_SHARES)
def test_the_same_tokens_stay_on_shares(text: str, suite: str, parties: int) -> None:
    """Keys, values and votes that are exact in fixed point, with ties; grouped queries; 40 tokens in batches."""
    policy, a = parse(text), tiny(heads=4, groups=2)
    policy.check(a, 40)
    generator = torch.Generator().manual_seed(len(text))
    k, v = (grid(2, 40, 4, span=6, step=0.25, generator=generator) for _ in range(2))
    votes = torch.randint(0, 9, (3, 2, 40), generator=generator).double() * 0.125
    ends = list(accumulate(policy.prompt_batches(40), initial=0))
    assert ends == [0, 8, 24, 40]

    async def program(s: Any, k: Any, v: Any, votes: Any) -> Any:
        cache = KVCache(a, policy)
        cache.prompt_tokens = 40
        for n, (start, stop) in enumerate(pairwise(ends)):
            batch = Batch(40, start, stop - start)
            await cache.append(s, 0, k[:, start:stop], v[:, start:stop])
            seen = told_of(s, a, policy.observed_in(batch, 0), votes[n, :, : cache.layers[0].length])
            await policy.after_batch(s, cache, 0, batch, seen)
            await cache.settle()
            cache.seen = stop
        return cache.layers[0].keys_and_values()

    plain = run_plain(program, [k, v, votes])
    found = run_secure(suite, parties, program, [k, v, votes])
    for expected, value in zip(plain, found, strict=True):
        assert expected.shape == value.shape == (2, 20 if "0.5" in text else 16, 4)
        assert (value - expected).abs().max() < 2.0**-12


MODEL = Path(models.recall.__file__).parent / "gpt2"


@pytest.mark.covering(1)
@pytest.mark.parametrize(("suite", "parties"), [("crypten", 2), ("masked", 2), ("masked", 3)])
def test_a_whole_generation_on_shares(suite: str, parties: int) -> None:
    """Layers that share a choice; batches of more tokens than a cache has room for without growing."""
    checkpoint = load_checkpoint(MODEL)
    ids = checkpoint.tokenizer.encode(evaluation_cases(160, 1, 5)[0].prompt)
    text = "batches:tokens=70,ahead=8|mpcache:static=0.5,dynamic=0.3,fine=4,sinks=4,window=4,apart=0,observed=16"
    plan = GenerationPlan(len(ids), 3, policy=text)
    expected = generate_plain(checkpoint, ids, plan, dtype=torch.float64)
    measured = generate_on_shares(checkpoint, ids, plan, InProcessSuite(SuiteSpec(suite), parties)).checked()
    assert measured == expected


def logits_of(checkpoint: Checkpoint, ids: list[int], text: str) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    plain = PlainModel(checkpoint, torch.float64, policy=parse(text))

    def probe(name: str, value: Any) -> None:
        if name == "logits":
            seen.append(tensor_of(value).clone())

    plain.generate(ids, GenerationPlan(len(ids), 4, policy=text), probe=probe)
    return seen[-4:]


@pytest.mark.parametrize("inner", ["snapkv:budget=0.5,window=4", "h2o:budget=0.4", MPCACHE, "tova:budget=0.4"])
def test_one_batch_is_the_policy_alone(inner: str, tmp_path: Path) -> None:
    """To the bit; in several batches it is not."""
    checkpoints.save("llama-grouped", tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    ids = torch.randint(0, 97, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    alone = logits_of(checkpoint, ids, inner)
    for one, other in zip(alone, logits_of(checkpoint, ids, f"batches:tokens=40|{inner}"), strict=True):
        assert torch.equal(one, other)
    cut = logits_of(checkpoint, ids, f"batches:tokens=12,ahead=4|{inner}")
    assert not torch.allclose(alone[0], cut[0], atol=1e-3)


@pytest.mark.parametrize(
    "inner", ["snapkv:budget=1,window=4", "h2o:budget=1", "mpcache:preset=clusters,static=1,dynamic=1,sharing=1,window=3"]
)
def test_keeping_everything_is_the_full_cache_in_batches(inner: str, tmp_path: Path) -> None:
    checkpoints.save("llama-grouped", tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    ids = torch.randint(0, 97, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    for one, other in zip(
        logits_of(checkpoint, ids, "chunked:tokens=10|full"),
        logits_of(checkpoint, ids, f"batches:tokens=10,ahead=4|{inner}"),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_layers_that_keep_everything_see_everything() -> None:
    policy = parse("batches:tokens=16,ahead=8|full@0;snapkv:budget=0.4,window=4")
    checkpoint = load_checkpoint(MODEL)
    plain = PlainModel(checkpoint)
    decoder = plain.decoder(policy=policy)
    cache = decoder.new_cache()
    plain.suite.run(prefill(decoder, cache, feed(plain, list(range(3, 53)))))
    assert [entry.length for entry in cache.layers][:2] == [50, 20]


def test_authors_thresholds_need_the_whole_prompt() -> None:
    with pytest.raises(
        ConfigurationError, match="policy batches: scoring=authors inside decides by a whole prompt's queries"
    ):
        parse("batches:tokens=64|mpcache:preset=clusters,scoring=authors,sharing=1", plaintext=True)


# ---- costs ---------------------------------------------------------------------------------------------------------
def test_a_long_prompt_costs_less_and_takes_a_seventh_of_the_memory() -> None:
    """A GPT-2 of three layers, 2 048 tokens of which 512 stay: dealt bytes and live ones, against one batch."""
    model = with_layers(with_positions(SHAPES["gpt2"], 2050), 3)
    costs = {}
    for text in ("full", "batches:tokens=128,ahead=16|snapkv:budget=0.25,window=16"):
        parse(text).check(model, 2048)
        with torch.inference_mode():
            costs[text] = Tracer(model, Setting("masked", 2, text)).step(0, 2048)
    full, batches = costs.values()
    assert batches.costs.total("offline_bytes") < 0.9 * full.costs.total("offline_bytes")
    assert max(batches.working.values()) < max(full.working.values()) / 7


def test_sums_over_many_batches_fit_their_ring() -> None:
    """What a batch of two tokens says is added up over twenty, and compared: in the last layer, which needs no values."""
    setting = Setting("masked", policy="chunked:tokens=2|kvmerger:budget=0.7")
    assert estimate(tiny(heads=4, groups=1, layers=1), setting, 40, 1).first.total("rounds") > 30
