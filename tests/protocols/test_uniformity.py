"""All that is opened in a whole generation is uniform, and gates that are broken on purpose are found out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.cache import KVCache, LayerCache
from models.checkpoint import load_checkpoint
from models.encoding import EncoderInput, EncodingPlan
from models.generation import GenerationPlan, generate_plain
from models.learned import Learned
from models.observation import Seen
from models.outputs import Decoding, Output
from models.policies import parse
from models.policies.axes.kernel import Gaussian
from models.policies.axes.recurrence import Recurrence
from models.policies.eviction import Event, Scores
from mpc import ring
from mpc.ledger import operation
from mpc.random import Prg
from mpc.tape import DealerTape, PartyTape
from protocols.masked import cache
from protocols.masked import tokens as token_rows
from protocols.masked.context import Opening
from protocols.masked.conversion import Conversion
from protocols.masked.shares import Shared
from protocols.masked.values import MaskedTensor
from protocols.schedule import together
from protocols.suite import Value
from tests.models import random_checkpoints as checkpoints
from tests.models import random_encoders
from tests.models.policies.policy_cases import tiny
from tests.protocols import uniformity

PROMPT = [(37 * n + 17) % 223 for n in range(24)]
NEW_TOKENS = 4


@pytest.mark.parametrize("parties", [2, 3])
def test_everything_that_is_opened_in_a_generation_is_uniform(parties: int) -> None:
    checkpoint = uniformity.shipped()
    seen, tokens = uniformity.observed_generation(checkpoint, PROMPT, NEW_TOKENS, parties)
    assert tokens == generate_plain(checkpoint, PROMPT, GenerationPlan(len(PROMPT), NEW_TOKENS))
    found = uniformity.results(seen)
    assert not uniformity.failures(found)
    operations = {one.operation for one in seen}
    tested = {r.name.partition(":")[0] for r in found}
    assert tested - {uniformity.EVERYTHING} <= operations
    assert len(tested) >= 10, f"only {sorted(tested)} have enough data"
    assert sum(one.m.numel() for one in seen) > 600_000  # 468 703 of them are weights


def test_so_is_what_is_opened_for_a_registered_prefix_and_behind_it() -> None:
    checkpoint, behind = uniformity.shipped(), 17
    seen, tokens = uniformity.observed_prefix(checkpoint, PROMPT, behind)
    prompts = [PROMPT, [*PROMPT[:behind], *reversed(PROMPT[behind:])]]
    assert tokens == [generate_plain(checkpoint, ids, GenerationPlan(len(ids), 1)) for ids in prompts]
    found = uniformity.results(seen)
    assert not uniformity.failures(found)
    assert any(r.name.startswith("cache") for r in found)


def test_rows_that_are_opened_twice_under_one_mask_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = cache.lasting

    async def twice(convert: Conversion, new: Value) -> MaskedTensor:
        share = convert.tensor(new).as_shared().x
        rows = await real(convert, new)
        assert rows.masked is not None
        lam, frac = rows.masked.lam, rows.masked.frac

        async def opened(value: Tensor) -> None:
            with operation("cache"):
                await Opening(Shared(value, ring.RING_BITS, frac), lam)

        await together(opened(share), opened(share + share))
        return rows

    monkeypatch.setattr(cache, "lasting", twice)
    seen, _ = uniformity.observed_prefix(uniformity.shipped(), PROMPT, 17)
    assert uniformity.failures(uniformity.results(seen))


@pytest.mark.parametrize(("decoding", "temperature"), [("logits", None), ("sample", 2.0)])
def test_so_is_what_is_opened_for_logits_and_samples(decoding: Decoding, temperature: float | None) -> None:
    checkpoint = uniformity.shipped()
    seen, tokens = uniformity.observed_generation(checkpoint, PROMPT, 1, 2, decoding, temperature)
    if decoding == "logits":
        assert tokens == generate_plain(checkpoint, PROMPT, GenerationPlan(len(PROMPT), 1))
    assert not uniformity.failures(uniformity.results(seen))


@pytest.mark.parametrize("name", ["gemma2", "qwen3"])
def test_so_is_what_soft_caps_and_norms_with_gains_open(name: str, tmp_path: Path) -> None:
    checkpoints.save(name, tmp_path)
    ids = [token % 101 for token in PROMPT[:12]]
    seen, tokens = uniformity.observed_generation(load_checkpoint(tmp_path), ids, 2, 2)
    assert len(tokens) == 2
    assert not uniformity.failures(uniformity.results(seen))
    assert {one.operation for one in seen} >= {"norm", "norm gain", "scores"}


@pytest.mark.parametrize("parties", [2, 3])
def test_so_is_what_rows_of_tokens_open(parties: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By bits, of one token alone; and whether its bit was opened as 0 is not told by the bit that is opened for it."""
    monkeypatch.setattr(token_rows, "look_up", token_rows.by_bits)
    seen = uniformity.observed_rows(torch.full((2048,), 5), torch.arange(33.0).double().reshape(11, 3), parties)
    assert not uniformity.failures(uniformity.results(seen))
    rows, tau = (one.m for one in seen if one.bits == 1)
    assert rows.shape == (2048, 11)
    assert uniformity.chi_square_p(torch.bincount(rows[:, 5] ^ tau)) > uniformity.FALSE_POSITIVES


async def merging(s: Any, rows: Any, received: Any) -> None:
    """What systems that merge take: runs and their averages, cosines and the sums of classes, scans, exponentials."""
    held, marks = await together(s.mask_for_cache(rows), s.keep_largest(received, 20, 8.0))
    weights = await s.mask_for_cache(received)
    unit = await s.normalised(held)
    assign, near = await s.most_similar(unit[:, :40], unit[:, 40:], 0.25, 12)
    weighted = await s.weighted(weights.reshape(*weights.shape, 1), held, 8)
    sums, runs, last = await together(
        s.scatter_add(assign, await s.select(near.reshape(*near.shape, 1), weighted[:, :40])),
        s.merge_runs(marks, [weighted, weights.reshape(*weights.shape, 1)], 20),
        s.copy_scan(marks, marks * torch.arange(received.shape[1])),
    )
    mean, decayed = await together(s.averaged(runs[0], runs[1], held, (0.25, 8.0 * 60)), s.exp_negative(received, 8.0))
    for x in (sums, mean, decayed, last):
        await s.mask_for_cache(x)


async def hits(s: Any, rows: Any, received: Any) -> None:
    """A prompt's queries by recurrence, and the Gaussian weights of runs."""
    state, scorer = Recurrence(0.25, 20).new_state(), Recurrence(0.25, 20)
    await scorer.token(s, state, Seen(received, 1, each=True))
    held, marks = await together(s.mask_for_cache(rows), s.keep_largest(received, 24, 8.0))
    event = Event(Scores(received, 8.0), marks, 24, (held, held), LayerCache(Learned({}, 0, "silu")))
    await s.mask_for_cache(await Gaussian(8).weights(s, event))


async def classes(s: Any, rows: Any, received: Any) -> None:
    """An eviction of EMS: what goes joins the most similar that stays, whose key is turned and as long as it was."""
    groups, tokens, channels = rows.shape
    policy = parse("ems:budget=0.5,window=8,candidates=0")
    layer = KVCache(tiny(heads=groups, groups=groups, channels=channels), policy)
    await layer.append(s, 0, rows, rows)
    await policy.after_prefill(s, layer, 0, Seen(received, tokens, 1, late=received, late_queries=8))
    await layer.settle()


TESTED = {
    merging: {"merging", "scan", "exponential", "compaction"},
    hits: {"scan", "exponential"},
    classes: {"merging", "less than zero", "compaction"},
}


@pytest.mark.parametrize(("program", "parties"), [(merging, 2), (merging, 3), (hits, 2), (classes, 2)])
def test_so_is_what_merging_and_recurrence_open(program: Any, parties: int) -> None:
    """Rows that are all alike, and what tokens receive, too: whatever shows through is not uniform."""
    rows, received = torch.full((20, 60, 8), 1.0).double(), torch.full((20, 60), 0.5).double()
    seen = uniformity.observed_program(parties, program, [rows, received])
    found = uniformity.results(seen)
    assert not uniformity.failures(found)
    tested = {r.name.partition(":")[0] for r in found}
    assert tested >= TESTED[program]


def test_a_scan_without_masks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    _replaced(monkeypatch, "open", _no_mask)
    seen = uniformity.observed_program(2, merging, [torch.ones(20, 60, 8).double(), torch.full((20, 60), 0.5).double()])
    assert any(r.name.startswith("scan") for r in uniformity.failures(uniformity.results(seen)))


@pytest.mark.parametrize("output", ["mean", "pooled"])
def test_so_is_what_is_opened_in_an_encoding(output: Output, tmp_path: Path) -> None:
    """The mask of padding, token types, the places of a mean and rows behind residual sums included."""
    model = random_encoders.save("bert", tmp_path)
    ids, types = random_encoders.text(model, 21)
    texts, plan = [EncoderInput(ids, types), EncoderInput(ids[:9])], EncodingPlan((32, 32), output)
    seen, found = uniformity.observed_encoding(load_checkpoint(tmp_path, torch.float64), texts, plan)
    each = (random_encoders.outputs(model, list(text.ids), list(text.types) or [0] * 9)[output] for text in texts)
    wanted = torch.cat(list(each))
    assert torch.cosine_similarity(found, wanted.double()).min() > 1 - 1e-5
    assert not uniformity.failures(uniformity.results(seen))
    assert sum(one.m.numel() for one in seen) > 100_000


def _replaced(monkeypatch: pytest.MonkeyPatch, wanted: str, change: Callable[[Tensor, int], Tensor]) -> list[int]:
    """Masks of an operation changed alike at dealer and parties, before shares are added up; [number of calls]."""
    calls = [0]
    dealer, party = DealerTape.random, PartyTape.random

    def each_of(drawn: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
        def each(tape: Any, op: str, shape: Any, bits: int = 64, *rest: Any, **host: Any) -> list[Tensor]:
            found = drawn(tape, op, shape, bits, *rest, **host)
            return [change(share, bits) for share in found] if op == wanted else found

        return each

    all_at_dealer, all_at_party = each_of(DealerTape.random_shares), each_of(PartyTape.random_shares)

    def at_dealer(tape: Any, op: str, shape: Any, bits: int = 64, kind: str = "sum") -> Tensor:
        if op != wanted:
            return dealer(tape, op, shape, bits, kind)
        calls[0] += 1
        parts = all_at_dealer(tape, op, shape, bits, kind)
        total = parts[0]
        for part in parts[1:]:
            total = total ^ part if kind == "xor" or bits == 1 else total + part
        return ring.reduce(total, bits)

    def at_party(tape: Any, op: str, shape: Any, bits: int = 64, kind: str = "sum") -> Tensor:
        found = party(tape, op, shape, bits, kind)
        return found if op != wanted else change(found, bits)

    monkeypatch.setattr(DealerTape, "random", at_dealer)
    monkeypatch.setattr(DealerTape, "random_shares", all_at_dealer)
    monkeypatch.setattr(PartyTape, "random_shares", all_at_party)
    monkeypatch.setattr(PartyTape, "random", at_party)
    return calls


def _no_mask(x: Tensor, bits: int) -> Tensor:
    return torch.zeros_like(x)


def _short_mask(x: Tensor, bits: int) -> Tensor:
    return ring.reduce(x, bits) >> 3 if bits < 64 else (x >> 3) & ((1 << 61) - 1)


def _one_mask_for_all(x: Tensor, bits: int) -> Tensor:
    return x.reshape(-1)[:1].expand(x.numel()).reshape(x.shape).clone() if x.numel() else x


def _biased(x: Tensor, bits: int) -> Tensor:
    """The highest bit of each share is 0 five times in eight (the lowest would be hidden by the values' own low bits)."""
    return x if bits < 3 else x & ~((x & (x << 1) & (x << 2)) & (1 << (bits - 1) if bits < 64 else -(1 << 63)))


@pytest.mark.parametrize(
    ("wanted", "change"),
    [
        ("open", _no_mask),
        ("open", _short_mask),
        ("open", _one_mask_for_all),
        ("open", _biased),
        ("mask bits", _no_mask),
    ],
)
def test_broken_masks_are_found(
    wanted: str, change: Callable[[Tensor, int], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = _replaced(monkeypatch, wanted, change)
    seen, _ = uniformity.observed_generation(uniformity.shipped(), PROMPT[:3], 1)
    assert calls[0] >= 3
    found = uniformity.results(seen)
    assert uniformity.failures(found)


def test_a_reused_mask_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every element is uniform by itself; only the difference of two openings tells."""
    kept: dict[tuple[Any, ...], Tensor] = {}
    hits = [0]
    lists: dict[tuple[Any, ...], list[Tensor]] = {}

    for end in (DealerTape, PartyTape):

        def again(tape: Any, op: str, shape: Any, bits: int = 64, kind: str = "sum", real: Any = end.random) -> Tensor:
            fresh = real(tape, op, shape, bits, kind)
            key = id(tape), tuple(shape), bits
            if op != "open":
                return fresh
            hits[0] += key in kept
            return kept.setdefault(key, fresh).clone()

        def each(
            tape: Any, op: str, shape: Any, bits: int = 64, *rest: Any, drawn: Any = end.random_shares, **host: Any
        ) -> Any:
            fresh = drawn(tape, op, shape, bits, *rest, **host)
            return lists.setdefault((id(tape), tuple(shape), bits), fresh) if op == "open" else fresh

        monkeypatch.setattr(end, "random", again)
        monkeypatch.setattr(end, "random_shares", each)
    seen, _ = uniformity.observed_generation(uniformity.shipped(), PROMPT, 1)
    assert hits[0] > 10
    found = uniformity.failures(uniformity.results(seen))
    assert any("openings" in r.name for r in found)


def test_a_generator_that_starts_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Prg.words

    def restarted(prg: Prg, shape: Any, bits: int = 64, *rest: Any) -> Tensor:
        return real(Prg(bytes(31) + bytes([bits])), shape, bits, *rest)

    monkeypatch.setattr(Prg, "words", restarted)
    seen, _ = uniformity.observed_generation(uniformity.shipped(), PROMPT[:2], 1)
    assert uniformity.failures(uniformity.results(seen))


def test_the_threshold_accepts_uniform_values() -> None:
    prg = Prg(bytes(32))
    seen = [uniformity.Opened("even", prg.ring((5000,), bits), bits) for bits in (1, 3, 8, 20, 64) for _ in range(4)]
    assert not uniformity.failures(uniformity.results(seen))
    wrong = [uniformity.Opened("even", one.m & ~1 if one.bits == 20 else one.m, one.bits) for one in seen]
    assert uniformity.failures(uniformity.results(wrong))
