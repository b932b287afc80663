"""Estimates: equal to full traces and to the session's own program; shapes, networks and the command."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, MixtralConfig

from launch.local.shares import KeptShares
from launch.predict.networks import NETWORKS, find_network
from models.architecture import Architecture, Rotary
from models.costs import estimation
from models.costs.estimation import Estimate, alike, estimate
from models.costs.program import CHOICE
from models.costs.rates import Rates
from models.costs.tracing import Setting, trace_step
from models.decoder import Decoder
from models.generation import GenerationPlan, generate
from models.known_checkpoints import KNOWN
from models.loaded import load_weights
from models.outputs import Decoding
from models.shapes import SHAPES, find_shape, tied, with_layers, with_positions
from mpc.errors import ConfigurationError
from mpc.tape import CountingTape
from protocols.options import OptionValue
from protocols.registry import secure_suite
from protocols.suite import Norm
from tests.launch.conftest import Command

WINDOWS = (None, 5, 5, None, 7, 5, None)


def llama(layers: int = 1, kv_heads: int = 1, group: int = 1, windows: tuple[int | None, ...] | None = None) -> Architecture:
    """Odd sizes throughout, so that nothing is a multiple of a byte by chance."""
    return Architecture(
        family="llama",
        layers=layers,
        width=9,
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_channels=6,
        feed_forward=11,
        vocabulary=13,
        positions=400,
        rotary=Rotary(),
        norm=Norm("rms", 1e-5),
        activation="silu",
        gated=True,
        windows=windows,
    )


def same(a: Estimate, b: Estimate) -> None:
    """Equal counts everywhere."""
    assert a.load == b.load
    assert a.first == b.first
    assert a.further == b.further


def generated(architecture: Architecture, setting: Setting, prompt: int, new: int) -> tuple[int, int, int]:
    """Rounds, bytes, offline bytes of the session's own program."""
    suite = secure_suite(setting.spec, parties=setting.parties, tape=CountingTape(), channel=None)
    weights = suite.run(load_weights(suite, architecture, lambda name: None))
    suite.ledger.costs.clear()
    with torch.inference_mode():
        plan = setting.plan(prompt, new)
        assert isinstance(plan, GenerationPlan)
        suite.run(generate(suite, Decoder(suite, architecture, weights), plan, None, KeptShares()))
    total = suite.ledger.total()
    return total.rounds, total.bytes_sent, total.offline_bytes


@pytest.mark.parametrize(("suite", "parties"), [("masked", 2), ("masked", 3), ("crypten", 2), ("crypten", 3)])
def test_equals_the_sessions_own_program(suite: str, parties: int) -> None:
    setting = Setting(suite, parties)
    found = estimate(SHAPES["tiny"], setting, 9, 3)
    total = tuple(found.total.total(name) for name in ("rounds", "bytes_sent", "offline_bytes"))
    assert total == generated(SHAPES["tiny"], setting, 9, 3)


@pytest.mark.parametrize(("suite", "parties"), [("masked", 2), ("masked", 3), ("crypten", 2), ("crypten", 3)])
@pytest.mark.parametrize("architecture", [SHAPES["tiny"], llama(2, 2, 2, (None, 5))], ids=["learned", "rotary"])
def test_a_padded_prompt(architecture: Architecture, suite: str, parties: int) -> None:
    """It costs two rounds, a channel more of what attention gives, and the places that are read in secret."""
    setting = Setting(suite, parties, padded=True)
    found, without = estimate(architecture, setting, 9, 3), estimate(architecture, Setting(suite, parties), 9, 3)
    total = tuple(found.total.total(name) for name in ("rounds", "bytes_sent", "offline_bytes"))
    assert total == generated(architecture, setting, 9, 3)
    for name in ("bytes_sent", "offline_bytes"):
        assert without.total.total(name) < found.total.total(name)
    learned = architecture.learned_positions
    assert found.first.total("rounds") - without.first.total("rounds") <= (2 if suite == "masked" else 12)
    assert found.further.total("rounds") - without.further.total("rounds") <= (2 * learned if suite == "masked" else 14)


@pytest.mark.parametrize(
    ("suite", "parties", "decoding", "temperature"),
    [
        ("masked", 2, "sample", 1.0),
        ("masked", 3, "sample", 100.0),
        ("masked", 2, "logits", None),
        ("crypten", 2, "sample", 1.0),
        ("crypten", 3, "logits", None),
    ],
)
def test_dealt_noise_and_exact_cuts_are_counted(
    suite: str, parties: int, decoding: Decoding, temperature: float | None
) -> None:
    setting = Setting(suite, parties, decoding=decoding, temperature=temperature)
    found = estimate(SHAPES["tiny"], setting, 5, 2)
    total = tuple(found.total.total(name) for name in ("rounds", "bytes_sent", "offline_bytes"))
    assert total == generated(SHAPES["tiny"], setting, 5, 2)
    greedy = estimate(SHAPES["tiny"], Setting(suite, parties), 5, 2).total
    if decoding == "sample":
        assert total[2] > greedy.total("offline_bytes")
    if temperature == 1.0:  # the noise is dealt, and nothing is sent for it but a bit more of what the arg-max opens
        assert total[0] == greedy.total("rounds")
        assert total[1] < 1.001 * greedy.total("bytes_sent")


@pytest.mark.parametrize("suite", ["masked", "crypten"])
def test_alike_layers_are_multiplied(suite: str) -> None:
    model = llama(layers=7, windows=WINDOWS)
    reduced, _, repeats = alike(model, Setting(suite))
    assert (reduced.windows, repeats) == ((None, 5, None, 7, None), [1, 3, 1, 1, 1])
    short = estimate(model, Setting(suite), 9, 2)
    same(short, estimate(model, Setting(suite), 9, 2, exhaustive=True))
    assert short.last_layer["attention", "softmax shift" if suite == "masked" else "softmax", "rounds"] > 0


@pytest.mark.parametrize(
    ("parties", "options"),
    [
        (2, {"residual": "8 16 8 8 8 8 8 16 8", "activation": "5 5 5 5 9 5 5 9 5", "prefer": "rounds"}),
        (3, {"activation": "9 9 5 9 5 5 5 5 5"}),
        (2, {"residual": "8 8 8 16 8 8 16 8 8", "prefer": "bytes"}),
    ],
)
def test_rings_follow_from_the_bounds_of_the_layers_around(parties: int, options: dict[str, OptionValue]) -> None:
    model, setting = SHAPES["tiny"].model_copy(update={"layers": 8}), Setting("masked", parties, options=options)
    same(estimate(model, setting, 4, 2), estimate(model, setting, 4, 2, exhaustive=True))


def test_one_and_two_layers() -> None:
    for layers in (1, 2):
        model = llama(layers)
        assert alike(model, Setting("masked"))[2] == [1] * layers
        same(estimate(model, Setting("masked"), 3, 2), estimate(model, Setting("masked"), 3, 2, exhaustive=True))


@pytest.mark.parametrize("suite", ["masked", "crypten"])
def test_tokens_are_interpolated_to_the_byte(monkeypatch: pytest.MonkeyPatch, suite: str) -> None:
    monkeypatch.setattr(estimation, "EACH", 8)
    model = llama(windows=(37,)) if suite == "crypten" else llama()
    quick = estimate(model, Setting(suite), 20, 60)
    full = estimate(model, Setting(suite), 20, 60, exhaustive=True)
    same(quick, full)
    assert quick.lengths_traced < full.lengths_traced == 60


def test_multiply_adds_of_a_token() -> None:
    """Counted by hand: embedding, queries keys and values, scores, output, three feed-forward matrices, head; twice."""
    trace = trace_step(llama(kv_heads=2, group=3), Setting("masked"), cached=10)
    costs = trace.costs([1])
    queries, cached = 6 * 6, 11
    attention = 9 * (queries + 2 * 2 * 6) + 2 * 6 * cached * 6 + queries * 9
    by_hand = attention + 3 * 9 * 11 + 9 * 13
    assert costs.total("vector_products") == 2 * by_hand
    assert costs.total("bit_products") == 2 * 13 * 9, "the row of the token table"
    assert costs.total("matrix_products") == 0
    assert costs.total("vector_products", "mlp") == 2 * 3 * 9 * 11


def test_large_models_at_4096_tokens_are_quick() -> None:
    start = time.process_time()
    for name in ("llama-2-7b", "llama-2-70b"):
        model = with_positions(SHAPES[name], 4097)
        found = estimate(model, Setting("masked"), 4096, 2)
        assert found.memory_bytes > 16 * model.parameters()
        assert found.load.total("bytes_sent") == 8 * model.parameters()
    assert time.process_time() - start < 60  # other programs' work does not count


def test_shapes_are_the_public_ones(tmp_path: Path) -> None:
    """transformers' own configurations, read like any checkpoint's."""
    llama2 = {"vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    configurations = {
        "gpt2": GPT2Config(),
        "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
        "gpt2-large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
        "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
        "llama-2-7b": LlamaConfig(**llama2),
        "llama-2-13b": LlamaConfig(
            **llama2, hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
        ),
        "llama-2-70b": LlamaConfig(
            **llama2,
            hidden_size=8192,
            intermediate_size=28672,
            num_hidden_layers=80,
            num_attention_heads=64,
            num_key_value_heads=8,
        ),
        "mixtral-8x7b": MixtralConfig(max_position_embeddings=32768),
    }
    assert {*configurations, "tiny", "qwen3-30b-a3b", *KNOWN} == set(SHAPES)
    for name, configuration in configurations.items():
        configuration.save_pretrained(tmp_path)
        for path in (tmp_path, tmp_path / "config.json"):
            assert find_shape(str(path)).model_copy(update={"bos": None, "eos": ()}) == SHAPES[name]
    assert SHAPES["llama-2-7b"].parameters() == 6_738_149_376  # 6 738 415 616 less 65 norms of 4 096


def test_shapes_that_do_not_exist() -> None:
    with pytest.raises(ConfigurationError, match=r"model 'gpt3' is neither .* gpt2-xl"):
        find_shape("gpt3")
    with pytest.raises(ConfigurationError, match=r"layers = 5: the shape has 4 layers"):
        with_layers(SHAPES["tiny"], 5)
    assert with_layers(llama(layers=7, windows=WINDOWS), 2).windows == (None, 5)
    assert with_positions(SHAPES["tiny"], 3).positions == 64


def test_networks() -> None:
    assert (NETWORKS["lan"].round_trip, NETWORKS["lan"].bandwidth) == (0.8e-3, 3e9)
    assert (NETWORKS["wan"].round_trip, NETWORKS["wan"].bandwidth) == (40e-3, 400e6)
    network = find_network("10,8")
    assert network.latency_seconds(3) == pytest.approx(3 * (0.005 + 0.0003))
    assert network.transfer_seconds(5e6) == pytest.approx(5)
    for text in ("dsl", "10", "1,2,3", "1,0", "-1,5", "nan,5", "5,inf"):
        with pytest.raises(ConfigurationError, match="is not one of lan, wan, mobile"):
            find_network(text)


def test_tied_tables_are_counted_once(command: Command) -> None:
    """Published counts, less norms, whose gains are folded; a party holds the table twice."""
    counts = ("qwen2.5-0.5b", 494_032_768 - 49 * 896, 136_134_656), ("llama-2-7b", 6_738_149_376, 0)
    for name, published, twice in counts:
        done = command("estimate", "--model", name, "--prompt", 1, "--rate", 1, "--json")
        record = json.loads(done.out)
        assert record["parameters"] == published
        assert record["party_weights"] == published + twice
    assert [tied(name) for name in ("t5-small", "flan-t5-small", "bert-base", "gemma-2-2b", "gpt2-xl")] == [1, 0, 0, 1, 1]


def test_what_takes_too_long_is_refused() -> None:
    """A policy's tokens are traced one by one: refused by the first ones, with how many there is time for."""
    model = with_positions(SHAPES["tiny"], 5000)
    began = time.process_time()
    with pytest.raises(ConfigurationError, match=r"--new: tracing 4000 steps.*ask for at most \d+ tokens"):
        estimate(model, Setting("masked", policy="h2o:budget=0.5", seconds=2.0), 16, 4000)
    assert time.process_time() - began < 2


def test_too_few_positions() -> None:
    with pytest.raises(ConfigurationError, match=r"need 65 positions, the model has 64"):
        estimate(SHAPES["tiny"], Setting("masked"), 60, 6)


def test_command_prints_one_json_object(command: Command) -> None:
    arguments = ("--model", "tiny", "--prompt", 16, "--new", 3, "--network", "40,400", "--rate", "0.001,0.002", "--json")
    done = command("estimate", *arguments)
    assert done.code == 0
    record = json.loads(done.out)
    found = estimate(SHAPES["tiny"], Setting("masked"), 16, 3)
    session = record["stages"]["session"]
    rounds, sent = found.total.total("rounds"), found.total.total("bytes_sent")
    work = Rates(1e6, 2e6).seconds(found.total, sessions=1)
    assert work > Rates(1e9, 2e9).seconds(found.total) > 0
    assert (session["rounds"], session["bytes_sent"]) == (rounds, sent)
    dealt = found.total.total("offline_bytes") * 8 / 400e6
    assert session["offline_seconds"] == pytest.approx(dealt)
    dealer = session["dealer_seconds"] + dealt
    assert session["seconds"] == pytest.approx(max(rounds * (0.02 + 0.0003) + sent * 8 / 400e6 + work, dealer))
    parts = record["stages"]["prefill"]["parts"]
    assert set(parts) == {"embedding", "attention", "mlp", "head", "choice"}
    assert sum(part["bytes_sent"] for part in parts.values()) == record["stages"]["prefill"]["bytes_sent"]
    rates = record["rates"]
    assert (rates["vector"], rates["matrix"], rates["measured"], rates["disturbed"]) == (1e6, 2e6, False, "")


def test_command_prints_a_table(command: Command) -> None:
    done = command("estimate", "--model", "tiny", "--prompt", 3, "--suite", "crypten", "--parties", 3, "--layers", 2)
    assert done.code == 0
    for text in ("loading the model", "prompt, 1st token", "choice", "3 parties, suite crypten"):
        assert text in done.out
    assert "a further token" not in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--suite", "plain"), "suite 'plain' keeps nothing secret; choose one of: crypten, masked"),
        (("--policy", "lucky"), "unknown cache policy 'lucky'; known: full"),
        (("--rate", "0"), "--rate '0': one or two positive numbers"),
        (("--rate", "1,2,3"), "--rate '1,2,3': one or two positive numbers"),
        (("--network", "dsl"), "network 'dsl' is not one of"),
        (("--suite-option", "speed=7"), "suite 'masked' has no option 'speed'"),
        (("--suite-option", "parties=3"), "suite 'masked' has no option 'parties'"),
        (("--suite-option", "fraction_bits=99"), "8 to 16 fraction bits, got 99"),
    ],
)
def test_wrong_arguments(command: Command, arguments: tuple[str, ...], message: str) -> None:
    done = command("estimate", "--model", "tiny", "--prompt", 3, *arguments)
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert done.out == ""


@pytest.mark.parametrize(("heads", "observed"), [(15, 63), (7, 127), (1, 255)])
def test_votes_of_the_most_layers_that_may_share_fit_their_ring(heads: int, observed: int) -> None:
    """Counts just below powers of two, which leave the least room."""
    model = llama(layers=4, kv_heads=heads)
    policy = f"mpcache:preset=clusters,apart=0,sharing=4,observed={observed}"
    assert estimate(model, Setting("masked", policy=policy), 256, 1).total.total("rounds") > 0


@pytest.mark.parametrize(
    ("prefer", "layer", "choice", "dealt"),
    [
        ("auto", 16, 12, 29.6e6),
        ("rounds", 16, 9, 36e6),
        ("bytes", 24, 48, 14.5e6),
        ("1ms/1000mbit", 21, 21, 17.8e6),
        ("40ms/1000mbit", 16, 9, 36e6),
        ("online:40ms/400mbit", 16, 9, 36e6),
    ],
)
def test_a_token_of_gpt2(prefer: str, layer: int, choice: int, dealt: float) -> None:
    """What a token behind 1 023 others takes: rounds of a layer and of the arg-max, bytes dealt, by preference."""
    found = estimate(SHAPES["gpt2"], Setting("masked", options={"prefer": prefer}), 1023, 2)
    assert found.last_layer.total("rounds") == layer
    assert found.further.total("rounds", CHOICE) <= choice
    assert found.further.total("offline_bytes") <= dealt


@pytest.mark.parametrize(("prefer", "rounds", "dealt"), [("auto", 247, 21.5e6), ("rounds", 232, 41.5e6)])
def test_a_token_of_gpt2_that_chooses(prefer: str, rounds: int, dealt: float) -> None:
    """Mean of 16 tokens behind 960 others with clusters: seven layers choose, five take a choice."""
    found = estimate(
        SHAPES["gpt2"], Setting("masked", policy="mpcache:preset=clusters", options={"prefer": prefer}), 960, 17
    )
    each = {name: found.further.total(name) / 16 for name in ("rounds", "offline_bytes", "bytes_sent")}
    assert each["rounds"] <= rounds
    assert each["offline_bytes"] <= dealt
    assert each["bytes_sent"] / 12 < 0.24e6


def test_prompts_of_gpt2() -> None:
    short, long = (estimate(SHAPES["gpt2"], Setting("masked"), n, 1).first for n in (128, 1024))
    assert short.total("offline_bytes") <= 0.7e9
    assert long.total("offline_bytes") <= 8.8e9


@pytest.mark.parametrize(("asked", "said"), [((), "dense"), (("--suite-option", "experts=capacity:1"), "capacity:1")])
def test_the_command_says_how_experts_are_computed(command: Command, asked: tuple[str, ...], said: str) -> None:
    done = command("estimate", "--model", "mixtral-8x7b", "--layers", 1, "--prompt", 16, "--new", 2, *asked)
    assert done.code == 0, done.err
    assert f"Experts: 2 of 8, {said} for the prompt, dense for a token" in " ".join(done.out.split())


def test_a_prompt_that_memory_does_not_hold(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused at once, with the most that it does hold, which is traced."""
    monkeypatch.setattr("launch.local.memory.available_memory", lambda: 600_000_000 + 12 * 300**2)
    with monkeypatch.context() as untraced:
        untraced.setattr("models.costs.estimation.estimate", None)
        for length, extra in (("301", ()), ("99999", ()), ("300", ("--prefix", "1"))):
            found = command("estimate", "--model", "gpt2", "--prompt", length, "--rate", "1", *extra)
            assert (found.code, found.out) == (2, "")
            said = " ".join(found.err.split())
            assert f"--prompt: tracing {int(length) + len(extra) // 2} tokens takes about" in said
            assert "ask for at most 300 tokens" in said
    assert command("estimate", "--model", "tiny", "--prompt", "300", "--rate", "1").code == 0


def test_bounds_of_a_calibrated_checkpoint_count(command: Command) -> None:
    model = Path(__file__).parents[3] / "models" / "recall" / "llama"
    bounds = json.loads((model / "mpcache.json").read_text())["suites"]["masked"]

    def asked(what: Path, *options: str) -> dict[str, Any]:
        done = command("estimate", "--model", what, "--prompt", 20, "--new", 2, "--rate", "1,1", "--json", *options)
        assert done.code == 0, done.err
        told: dict[str, Any] = json.loads(done.out)
        return {"options": told["options"], "stages": {n: s["bytes_sent"] for n, s in told["stages"].items()}}

    said = [part for name, value in bounds.items() for part in ("--suite-option", f"{name}={value}")]
    assert asked(model) == asked(model / "config.json", *said) != asked(model / "config.json")
    over = asked(model, "--suite-option", "score=9")
    assert over["options"] == {**asked(model)["options"], "score": 9}
