"""The suite `crypten` as a whole: a transformer layer, its cost, its secrecy, and how it refuses what cannot work."""

from __future__ import annotations

import math
import pickle
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from torch import Tensor

from launch.local.in_process import run_in_process
from mpc.channel import MemoryChannel
from mpc.errors import ConfigurationError, TapeError
from mpc.fixed_point import decode, encode
from mpc.ledger import Ledger, current
from mpc.tape import DealerTape, PartyTape
from protocols.crypten.binding.library import use
from protocols.crypten.binding.requirement import require_crypten
from protocols.crypten.binding.session import CryptenSession
from protocols.crypten.linear import WEIGHT_BITS
from protocols.crypten.suite import CryptenSuite
from protocols.crypten.value import CryptenValue, CryptenWeight
from protocols.options import CryptenOptions
from protocols.registry import SuiteSpec, secure_suite, suite_class
from protocols.suite import Linear, Norm, Value
from tests.protocols.crypten.programs import Outcome, decoded, evaluate, split

crypten = require_crypten()

PARTIES = [2, 3]
TOKENS, WIDTH, HEADS, VOCABULARY = 10, 16, 2, 23
MASK = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()


def _weights() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g) * 0.3

    qkv, up = draw(WIDTH, 3 * WIDTH), draw(WIDTH, 2 * WIDTH)
    return {
        "table": draw(VOCABULARY, WIDTH) * 4,
        "qkv": qkv - qkv.mean(0),
        "out": draw(WIDTH, WIDTH),
        "up": up,
        "bias": draw(2 * WIDTH),
        "down": draw(2 * WIDTH, WIDTH),
    }


IDS = torch.arange(TOKENS) * 7 % VOCABULARY
ANGLES = torch.linspace(0, 3, TOKENS * WIDTH // HEADS).reshape(TOKENS, WIDTH // HEADS)


async def layer(s: Any, one_hot: Any, table: Any, qkv: Any, out: Any, up: Any, bias: Any, down: Any) -> list[Value]:
    """Embedding, attention with rotation and a causal mask, gated feed-forward, arg-max over the vocabulary."""
    h = await s.embed(one_hot, table)
    (mixed,) = await s.norm_linear(h, Norm("layer", 1e-5), [Linear(qkv)])
    mixed = mixed.reshape(TOKENS, 3, HEADS, WIDTH // HEADS).permute(1, 2, 0, 3)
    q = await s.scale(await s.rotate(mixed[0], ANGLES.cos(), ANGLES.sin()), 1 / math.sqrt(WIDTH // HEADS))
    k = await s.mask_for_cache(await s.rotate(mixed[1], ANGLES.cos(), ANGLES.sin()))
    attended = await s.attention(q, k, mixed[2], MASK)
    h = await s.linear(attended.permute(1, 0, 2).reshape(TOKENS, WIDTH), Linear(out), h)
    (z,) = await s.norm_linear(h, Norm("rms", 1e-6), [Linear(up, bias)])
    gated = await s.gated_activation(z, z, "silu")
    h = await s.linear(await s.activation(gated, "gelu"), Linear(down), h)
    logits = await s.matmul(h, table.transpose(0, 1))
    return [h, logits, await s.argmax(logits), await s.less_than_zero(h), await s.max(h)]


def plaintext(w: dict[str, Tensor]) -> list[Tensor]:
    """The same in float64."""
    w = {name: decoded(x, WEIGHT_BITS) for name, x in w.items()}
    half = WIDTH // HEADS // 2

    def rotate(x: Tensor) -> Tensor:
        return x * ANGLES.double().cos() + torch.cat([-x[..., half:], x[..., :half]], -1) * ANGLES.double().sin()

    h = w["table"][IDS]
    mixed = torch.nn.functional.layer_norm(h, (WIDTH,), eps=1e-5) @ w["qkv"]
    q, k, v = mixed.reshape(TOKENS, 3, HEADS, WIDTH // HEADS).permute(1, 2, 0, 3)
    scores = rotate(q) @ rotate(k).transpose(1, 2) / math.sqrt(WIDTH // HEADS)
    attended = scores.masked_fill(~MASK, float("-inf")).softmax(-1) @ v
    h = h + attended.permute(1, 0, 2).reshape(TOKENS, WIDTH) @ w["out"]
    z = h * (h.square().mean(-1, keepdim=True) + 1e-6).rsqrt() @ w["up"] + w["bias"]
    h = h + torch.nn.functional.gelu(torch.nn.functional.silu(z) * z) @ w["down"]
    logits = h @ w["table"].t()
    one_hot = torch.nn.functional.one_hot(logits.argmax(-1), VOCABULARY).double()
    return [h, logits, one_hot, (h < 0).double(), h.amax(-1, keepdim=True)]


def run_layer(parties: int, **options: Any) -> Outcome:
    return evaluate(
        layer, [torch.eye(VOCABULARY)[IDS]], parties=parties, weights=_weights(), **({"input_bits": 0} | options)
    )


def _forbid(name: str) -> Callable[..., NoReturn]:
    def forbidden(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError(f"{name} was called")

    return forbidden


@pytest.mark.parametrize("parties", PARTIES)
def test_a_layer_with_every_insecure_source_poisoned(parties: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, expected = _weights(), plaintext(_weights())
    monkeypatch.setattr("tests.protocols.crypten.test_suite._weights", lambda: weights)
    generators = ("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "bernoulli",
                  "multinomial", "manual_seed", "seed", "Generator", "load", "save")  # fmt: skip
    for name in generators:
        monkeypatch.setattr(torch, name, _forbid(f"torch.{name}"))
    for name in ("random_", "uniform_", "normal_", "bernoulli_", "exponential_"):
        monkeypatch.setattr(Tensor, name, _forbid(f"Tensor.{name}"), raising=False)
    for name in ("random", "randint", "getrandbits", "choice"):
        monkeypatch.setattr(random, name, _forbid(f"random.{name}"))
    for name in ("rand", "randn", "randint", "default_rng", "bytes", "random"):
        monkeypatch.setattr(np.random, name, _forbid(f"numpy.random.{name}"))
    for name in ("loads", "load", "dumps", "dump", "Unpickler"):
        monkeypatch.setattr(pickle, name, _forbid(f"pickle.{name}"))
    provider = crypten.mpc.provider
    for owner in (provider.TrustedFirstParty, provider.TrustedThirdParty, provider.provider.TupleProvider):
        for name in ("generate_additive_triple", "square", "generate_binary_triple", "wrap_rng", "B2A_rng"):
            monkeypatch.setattr(owner, name, _forbid(f"{owner.__name__}.{name}"))
    monkeypatch.setattr(crypten.common.serial, "restricted_loads", _forbid("restricted_loads"))
    monkeypatch.setattr(crypten, "generators", None)
    out = run_layer(parties)
    for got, want, bound in zip(out.values, expected, (2e-3, 1e-2, 0.0, 0.0, 2e-3), strict=True):
        assert float((got - want).abs().max()) <= bound


@pytest.mark.parametrize("parties", PARTIES)
def test_dealer_and_estimate_count_what_a_party_sends(parties: int) -> None:
    out = run_layer(parties)
    suite = CryptenSuite(parties=parties, tape=None, channel=None)

    async def whole() -> Any:
        held = {n: await suite.weight(n, w.shape, None) for n, w in _weights().items()}
        suite.ledger.costs.clear()
        suite.at(0)
        return await layer(suite, suite.input((TOKENS, VOCABULARY), None, 0), **held)

    results = suite.run(whole())
    assert [tuple(r.shape) for r in results] == [tuple(v.shape) for v in out.values]
    counted = {k: (c.bytes_sent, c.rounds) for k, c in out.ledgers[0].costs.items() if c.rounds}
    for ledger in (suite.ledger, out.dealer):
        assert {k: (c.bytes_sent, c.rounds) for k, c in ledger.costs.items() if c.rounds} == counted
    last = out.ledgers[-1].total().offline_bytes
    assert suite.ledger.total().offline_bytes == last
    assert out.ledgers[0].total().bytes_sent == out.ledgers[-1].total().bytes_sent
    named = {
        "embed",
        "linear",
        "cache",
        "matmul",
        "norm",
        "norm scale",
        "scale",
        "scores",
        "softmax",
        "values",
        "silu",
        "gelu",
        "mul",
    }
    assert set(out.ledgers[0].by_operation()) == named | {"argmax", "comparison", "max"}


def test_crypten_own_is_close_on_small_values_and_opens_weights_each_time() -> None:
    x, w = torch.linspace(-1, 1, 12).reshape(3, 4), torch.linspace(-0.5, 0.5, 8).reshape(4, 2)

    async def program(s: Any, v: Any, w: Any) -> list[Value]:
        first = await s.linear(v, Linear(w))
        await s.linear(v, Linear(w))
        return [first, await s.softmax(v), await s.activation(v, "gelu_tanh"), await s.mul(v, v)]

    own = evaluate(program, [x], weights={"w": w}, crypten_own=True)
    ours = evaluate(program, [x], weights={"w": w})
    for a, b in zip(own.values, ours.values, strict=True):
        assert float((a - b).abs().max()) < 0.02
    assert own.ledgers[0].by_operation()["linear"].bytes_sent == 2 * 8 * (x.numel() + w.numel())
    assert ours.ledgers[0].by_operation()["linear"].bytes_sent == 2 * 8 * (x.numel() + 6)
    assert {k: c.rounds for k, c in own.ledgers[0].by_operation().items()} == {
        k: c.rounds for k, c in own.dealer.by_operation().items()
    }


@pytest.mark.parametrize("parties", PARTIES)
def test_a_dealer_that_differs_in_one_operation_is_refused_before_any_opening(parties: int) -> None:
    sent: list[int] = []

    async def program(s: Any, x: Any) -> Value:
        try:
            return await s.mul(x, x)
        except TapeError:
            sent.append(s.ledger.total().bytes_sent)
            raise

    async def other(s: Any, x: Any) -> Value:
        return await s.matmul(x, x)

    with pytest.raises(TapeError, match="needs 'mul a random"):
        evaluate(program, [torch.ones(3, 3)], parties=parties, dealer_program=other)
    assert sent
    assert set(sent) == {0}


# ---- what is opened --------------------------------------------------------------------------------------------------
def _opened(monkeypatch: pytest.MonkeyPatch, program: Any, inputs: list[Tensor]) -> dict[tuple[Any, ...], list[Tensor]]:
    seen: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
    real = CryptenSession.open_together

    def recording(self: CryptenSession, items: Any) -> list[Tensor]:
        out = real(self, items)
        if self.channel is not None and self.party == 0:
            for i, ((_, bits, kind), value) in enumerate(zip(items, out, strict=True)):
                seen[current()[1], bits, kind, i].append(value.reshape(-1))
        return out

    monkeypatch.setattr(CryptenSession, "open_together", recording)
    evaluate(program, inputs)
    return seen


def _worst_chi_square(seen: dict[tuple[Any, ...], list[Tensor]]) -> float:
    """Largest chi-square over the highest and the lowest (up to) 4 bits of all opened values of a kind, 15 degrees."""
    worst = 0.0
    for (_, bits, _, _), parts in seen.items():
        values = torch.cat(parts)
        digit = min(bits, 4)
        if len(values) < 2000:
            continue
        for shift in {0, bits - digit}:
            counts = torch.bincount((values >> shift) & (2**digit - 1), minlength=2**digit).double()
            expected = len(values) / 2**digit
            worst = max(worst, float(((counts - expected) ** 2 / expected).sum()))
    return worst


async def _many_openings(s: Any, x: Any) -> list[Value]:
    return [
        await s.mul(x, x),
        await s.softmax(x),
        await s.activation(x, "silu"),
        await s.less_than_zero(x),
        await s.rsqrt_moment(x, Norm("layer", 1e-5)),
        await s.matmul(x, x.transpose(0, 1)),
        await s.gated_activation(x, x, "silu"),
        await s.matmul(await s.mask_queries(x), (await s.mask_for_cache(x)).transpose(0, 1)),
    ]


def test_opened_values_are_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _opened(monkeypatch, _many_openings, [torch.full((60, 60), 1.0)])
    assert len(seen) > 15
    assert _worst_chi_square(seen) < 70


@pytest.mark.parametrize(
    "op",
    [
        "truncation mask",
        "mul a",
        "square r",
        "square mask",
        "comparison mask",
        "bit mask",
        "and masks",
        "factor mask",
        "cache mask",
    ],
)
def test_a_protocol_without_its_mask_fails_the_uniformity_test(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for tape in (PartyTape, DealerTape):
        real = tape.random

        def unmasked(self: Any, name: str, *args: Any, real: Any = real, **kwargs: Any) -> Tensor:
            out: Tensor = real(self, name, *args, **kwargs)
            return torch.zeros_like(out) if name == op else out

        monkeypatch.setattr(tape, "random", unmasked)
    seen = _opened(monkeypatch, _many_openings, [torch.full((60, 60), 1.0)])
    assert _worst_chi_square(seen) > 1000


def test_outputs_are_re_randomised() -> None:
    share = torch.zeros(2, 1000, dtype=torch.int64)

    async def program(s: Any, v: Any) -> Value:
        return CryptenValue(share[s.session.party].to(s.session.device), 16, s.session.party)

    out = evaluate(program, [torch.zeros(1)], parties=2)
    parts = [o.share.cpu() for (o,) in out.shares]
    assert torch.equal(parts[0], -parts[1])
    assert (parts[0] != 0).all()
    assert len(parts[0].unique()) == 1000


# ---- weights, sessions, arguments ------------------------------------------------------------------------------------
@pytest.mark.parametrize("parties", PARTIES)
def test_weights_outlive_their_session(parties: int) -> None:
    w = torch.randn(6, 4)
    x = torch.randn(3, 6)
    shares = split(encode(w, WEIGHT_BITS), parties)
    inputs = split(encode(x, 16), parties)
    kept: dict[int | None, Value] = {}

    def run(first: bool) -> list[Any]:
        def main(suite: CryptenSuite, party: int | None) -> Any:
            async def load() -> Value:
                return await suite.weight("w", w.shape, None if party is None else shares[party])

            async def use() -> Value:
                value = suite.input(x.shape, None if party is None else inputs[party], 16)
                return await suite.linear(value, Linear(kept[party]))

            if first:
                kept[party] = suite.run(load())
                return None
            return suite.output(suite.run(use()))

        def party_main(channel: MemoryChannel, tape: PartyTape) -> Any:
            return main(CryptenSuite(parties=parties, tape=tape, channel=channel), channel.party)

        def dealer_main(tape: DealerTape) -> Any:
            return main(CryptenSuite(parties=parties, tape=tape, channel=None), None)

        return run_in_process(parties, party_main, dealer_main)[0]

    run(True)
    for _ in range(2):
        total = sum(o.share.cpu() for o in run(False))
        assert float((decode(total, 16) - decoded(x) @ decoded(w, WEIGHT_BITS)).abs().max()) <= 2.0**-16
    party = kept[0]
    assert isinstance(party, CryptenWeight)
    assert party.mask is None
    dealer = kept[None]
    assert isinstance(dealer, CryptenWeight)
    assert dealer.difference is None


def test_registry_and_arguments() -> None:
    assert suite_class("crypten") is CryptenSuite
    suite = secure_suite(SuiteSpec("crypten"), parties=2, tape=None, channel=None)  # type: ignore[arg-type]
    assert (suite.fraction_bits, suite.parties, suite.name) == (16, 2, "crypten")
    with pytest.raises(ConfigurationError, match="fraction_bits must be between 8 and 20, got 24"):
        CryptenOptions(fraction_bits=24)
    ledger = Ledger()
    assert CryptenSuite(parties=2, tape=None, channel=None, ledger=ledger).ledger is ledger


def test_values_of_another_suite_are_refused() -> None:
    from protocols.plain.suite import PlainSuite

    plain = PlainSuite()
    foreign = plain.public(torch.zeros(2))
    suite = CryptenSuite(parties=2, tape=None, channel=None)
    with pytest.raises(ConfigurationError, match="computes on its own values, got"):
        suite.run(suite.mul(foreign, foreign))


def test_crypten_tensors_are_the_border() -> None:
    from crypten.mpc import MPCTensor

    share = torch.tensor([65536, -32768])
    suite = CryptenSuite(parties=2, tape=None, channel=None)
    with use(suite.session):
        value = CryptenValue.from_tensor(MPCTensor.from_shares(share, precision=16), 0)
    assert torch.equal(value.share, share)
    assert value.fraction_bits == 16
    back = value.tensor
    assert torch.equal(back.share, share)
    assert back.encoder.scale == 65536
    assert torch.equal(CryptenValue.from_tensor(back, 0).share, share)


def test_nothing_secret_in_a_repr() -> None:
    value = CryptenValue(torch.tensor([123456789]), 16, 0)
    assert "123456789" not in repr(value)
    assert "123456789" not in f"{value} {[value]}"
