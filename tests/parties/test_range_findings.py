"""A value that left its range is told to the client, who uses nothing of that output; the parties see an ordinary end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from launch.local.in_process import InProcessSuite
from launch.measure.fidelity import on_shares
from launch.measure.generation import generate_on_shares
from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan, generate_plain, plain_logits
from mpc.errors import ConfigurationError, MpcacheError, WireError
from mpcache import PrivateModel, RangeExceeded, RangeFinding
from parties.client.client import GenerationResult
from parties.transport.peer_stream import PeerStream
from parties.wire import wire_pb2 as wire
from protocols.range_findings import findings_in
from protocols.registry import SUITES, SuiteSpec
from protocols.suite import OutputShare
from tests.parties.conftest import VOCABULARY, Running
from tests.parties.deployment import Deployment
from tests.parties.flagged_suite import ENTRY, FlaggedSuite
from tests.parties.letters import answer, write_letters
from tests.parties.toy import Flags, expected

PROMPT = [3, 1, 4]
NEW = 4
MARKS = [("activation", 1), ("score", 0)]
FOUND = [("score", 0), ("activation", "head")]


def ask(running: Running, decoding: Any, **options: Any) -> tuple[GenerationResult, list[int]]:
    seen: list[int] = []
    client = running.deployment.client()
    result = client.ask(PROMPT, NEW, decoding=decoding, **{"stop_ids": (), "on_token": seen.append, **options})
    return result, seen


def places(findings: Sequence[RangeFinding]) -> list[tuple[Any, ...]]:
    return [(f.kind, f.layer) for f in findings]


@pytest.mark.covering(1)
@pytest.mark.parametrize("decoding", ["greedy", "sample", "logits"])
@pytest.mark.parametrize("which", ["two", "three"])
def test_generation_ends_before_the_token(which: str, decoding: str, request: pytest.FixtureRequest) -> None:
    running: Running = request.getfixturevalue(which)
    clean, _ = ask(running, decoding)
    running.toy.flags = Flags(None)
    assert ask(running, decoding)[0].tokens == clean.tokens
    assert (clean.finish_reason, clean.findings) == ("length", ())
    for step in (0, 1, NEW - 1):
        running.toy.flags = Flags(step, MARKS)
        result, seen = ask(running, decoding)
        assert result.tokens == seen == clean.tokens[:step]
        assert (result.finish_reason, result.stopped) == ("range", False)
        assert places(result.findings) == FOUND
        assert {f.step for f in result.findings} == {step}
        assert sorted(result.costs) == running.deployment.names
        assert len(result.token_seconds) == step
        assert (result.first_token_seconds is None) == (step == 0)
        if decoding == "logits":
            assert result.logits is not None
            assert clean.logits is not None
            assert torch.equal(result.logits, clean.logits[:step])
        with pytest.raises(RangeExceeded, match=r"^attention scores of layer 0 left .*\(1 further finding after it"):
            result.check_range()


@pytest.mark.parametrize("decoding", ["greedy", "logits"])
def test_garbage_of_a_flagged_output_is_not_looked_at(two: Running, decoding: str) -> None:
    """A wrapped value may be no token at all, and logits may be anything."""
    two.toy.after_share = lambda party, share: replace(share, share=share.share * (3 - 2 * party) + 10**6 * party)
    two.toy.flags = Flags(0, MARKS)
    assert ask(two, decoding)[0].findings


def sent(running: Running, monkeypatch: pytest.MonkeyPatch, decoding: str, **options: Any) -> tuple[Any, Any]:
    """What the client sends each party, in order, and why generation ended (or the error's code)."""
    out: dict[str, list[tuple[str, int]]] = {}
    outgoing = PeerStream.outgoing

    def spy(self: PeerStream) -> Iterator[Any]:
        for message in outgoing(self):
            kind = message.WhichOneof("content") if isinstance(message, wire.ClientMessage) else "heartbeat"
            if kind not in ("heartbeat", "open", "end"):
                out.setdefault(self.peer, []).append((kind, message.ByteSize()))
            yield message

    with monkeypatch.context() as patch:
        patch.setattr(PeerStream, "outgoing", spy)
        try:
            return out, ask(running, decoding, **options)[0].finish_reason
        except MpcacheError as error:
            return out, error.code


@pytest.mark.parametrize("decoding", ["greedy", "logits"])
def test_parties_see_what_they_see_at_a_stop_token(two: Running, decoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clean, _ = ask(two, decoding)
    for step in (1, NEW - 1):
        two.toy.flags = Flags(step, MARKS)
        flagged = sent(two, monkeypatch, decoding)
        two.toy.flags = Flags(None)
        count = 0

        def more(token: int, step: int = step) -> bool:
            nonlocal count
            count += 1
            return count <= step

        stopped = sent(two, monkeypatch, decoding, on_token=more)
        assert (flagged[1], stopped[1]) == ("range", "stop")
        assert flagged[0] == stopped[0]
        finishes = [kind for messages in flagged[0].values() for kind, _ in messages if kind == "finish"]
        assert len(finishes) == (2 if step + 1 < NEW else 0)
    assert len(clean.tokens) == NEW


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: replace(s, flags=s.flags[:, 1:]),
            r"party1 sent 40 bytes of range flags with output 0, .* of shape \[5, 2\]",
        ),
        (lambda s: replace(s, flags=s.flags.repeat(4000, 1)), "party1 sent 320000 bytes of range flags"),
        (lambda s: replace(s, flags=None), "output 0 with and without range flags: party0 80 bytes, party1 0 bytes"),
    ],
)
def test_wrong_flags(two: Running, change: Callable[[OutputShare], OutputShare], message: str) -> None:
    two.toy.flags = Flags(None)
    two.toy.after_share = lambda party, share: change(share) if party == 1 else share
    with pytest.raises(WireError, match=message):
        ask(two, "greedy")


def test_a_session_that_ends_early_is_no_answer(two: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parties that sum up before the last output, though nobody asked for an end, do not pass for a short answer."""
    program = two.deployment.servers["party0"].program
    run = program.run

    def short(suite: Any, architecture: Any, weights: Any, plan: Any, *rest: Any) -> int:
        return run(suite, architecture, weights, replace(plan, new_tokens=2), *rest)

    for server in two.deployment.servers.values():
        monkeypatch.setattr(server, "program", replace(program, run=short))
    with pytest.raises(WireError, match=r"party. sent 'summary' where an output was due"):
        ask(two, "greedy")


def test_adjusted_logits_must_leave_a_choice(two: Running) -> None:
    for bad in (float("nan"), float("-inf"), float("inf")):
        with pytest.raises(ConfigurationError, match=f"returned logits for token 1 whose largest is {bad}"):
            ask(two, "logits", adjust=lambda logits, ids, bad=bad: torch.full_like(logits, bad))


# ---- the real program -----------------------------------------------------------------------------------------------
@pytest.fixture
def flagged(monkeypatch: pytest.MonkeyPatch) -> Callable[[Flags], None]:
    """Plants flags in the suite "flagged"."""
    monkeypatch.setitem(SUITES, "flagged", ENTRY)
    return lambda flags: monkeypatch.setattr(FlaggedSuite, "planted", flags)


@pytest.mark.parametrize("parties", [2, 3])
def test_real_program(parties: int, flagged: Callable[[Flags], None], tmp_path: Path, checkpoint: Path) -> None:
    plain = load_checkpoint(checkpoint)
    wanted = generate_plain(plain, PROMPT, GenerationPlan(len(PROMPT), NEW))
    assert len(wanted) == NEW
    with Deployment(tmp_path, parties, deadline_seconds=20) as deployment:
        model = deployment.share(checkpoint)
        flagged(Flags(2, MARKS))
        options: dict[str, Any] = {"model": model, "suite": "flagged", "options": {"score": 8}}
        result = deployment.client().ask(PROMPT, NEW, **options)
        assert (result.tokens, result.finish_reason, places(result.findings)) == (wanted[:2], "range", FOUND)
        assert (result.findings[0].bound, result.findings[0].option) == (8, "score=9")
        if parties > 2:
            return
        logits = deployment.client().ask(PROMPT, NEW, decoding="logits", **options)
        assert logits.tokens == wanted[:2]
        assert logits.logits is not None
        reference = plain_logits(plain, [*PROMPT, wanted[0]])[-2:].double()
        assert torch.allclose(logits.logits, reference, atol=0.05)
        sampled = deployment.client().ask(PROMPT, NEW, decoding="sample", temperature=1e-2, **options)
        assert sampled.tokens == wanted[:2]
        flagged(Flags(None))
        assert deployment.client().ask(PROMPT, NEW, **options).tokens == wanted


def test_remedies_lead_to_the_answer(tmp_path: Path) -> None:
    """The flags of `masked` itself: whoever does what the findings say gets the tokens of the plaintext."""
    torch.manual_seed(1)
    sizes = {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 12, "n_layer": 1, "n_head": 3}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=39, initializer_range=1.0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "loud")
    plain = load_checkpoint(tmp_path / "loud")
    wanted = generate_plain(plain, PROMPT, GenerationPlan(len(PROMPT), NEW))
    options: dict[str, Any] = {"residual": 5, "score": 5, "value": 3, "logits": 3}
    seen: set[str] = set()
    with Deployment(tmp_path / "deployment", 2, deadline_seconds=20) as deployment:
        model = deployment.share(tmp_path / "loud")
        for _ in range(6):
            result = deployment.client().ask(PROMPT, NEW, model=model, suite="masked", options=options)
            assert result.tokens == wanted[: len(result.tokens)]
            if result.finish_reason != "range":
                break
            seen |= {finding.kind for finding in result.findings}
            for name, _, value in [str(finding.option).partition("=") for finding in result.findings]:
                options[name] = int(value)
    assert (result.tokens, result.findings) == (wanted, ())
    # values and logits lie between their bound and where a flag is certain: right either way
    assert {"residual", "score"} <= seen, options


def test_in_one_process(flagged: Callable[[Flags], None], checkpoint: Path) -> None:
    plain = load_checkpoint(checkpoint)
    plan = GenerationPlan(len(PROMPT), NEW)
    wanted = generate_plain(plain, PROMPT, plan)
    flagged(Flags(1, MARKS))
    spec = SuiteSpec("flagged")
    two, three = InProcessSuite(spec, 2), InProcessSuite(spec, 3)
    found = generate_on_shares(plain, PROMPT, plan, two)
    assert found.tokens == wanted[:1]
    assert places(found.findings) == FOUND
    with pytest.raises(RangeExceeded, match="attention scores of layer 0"):
        generate_on_shares(plain, PROMPT, plan, three).checked()
    flagged(Flags(0, MARKS))
    measured = on_shares(plain, PROMPT, two)
    assert measured.flags is not None
    assert places(findings_in(measured.flags, 0, spec.settings.bounds)) == FOUND
    flagged(Flags(None))
    assert generate_on_shares(plain, PROMPT, plan, two).checked() == wanted


# ---- from Python ----------------------------------------------------------------------------------------------------
@pytest.fixture
def model(two: Running, tmp_path: Path, checkpoint: Path) -> Iterator[PrivateModel]:
    letters = write_letters(tmp_path / "letters", checkpoint)
    config = two.deployment.config("client", "client")
    with PrivateModel.connect(config, tokenizer=letters, suite="crypten", allow_logits=True) as connected:
        yield connected


def test_texts_are_no_silent_part(two: Running, model: PrivateModel) -> None:
    two.toy.flags = Flags(3, MARKS)
    for call in (
        lambda: model.complete("ab", max_new_tokens=8),
        lambda: model.complete("ab", max_new_tokens=8, stop_strings=["f"]),  # "f" would be the token that is not there
        lambda: model.chat([{"role": "user", "content": "ab"}], max_new_tokens=8),
    ):
        with pytest.raises(RangeExceeded) as caught:
            call()
        assert caught.value.text == answer("ab", 3) == "cde"
        assert places(caught.value.findings) == FOUND
        assert caught.value.result is not None
        assert caught.value.result.tokens == [3, 4, 5]
        assert "cde" not in str(caught.value) + repr(caught.value)
    assert model.complete("ab", max_new_tokens=3) == "cde"
    stream = model.stream("ab", max_new_tokens=8, stop_strings=["eX"])
    assert [next(stream) for _ in range(3)] == ["c", "d", "e"]  # what waited for a stop string is right as well
    with pytest.raises(RangeExceeded) as caught:
        next(stream)
    assert caught.value.text == "cde"


def test_token_ids(two: Running, model: PrivateModel) -> None:
    two.toy.flags = Flags(2, MARKS)
    with pytest.raises(RangeExceeded, match="attention scores of layer 0") as caught:
        model.generate([1, 2], max_new_tokens=5)
    assert caught.value.result is not None
    assert caught.value.result.tokens == [3, 4]
    found = model.generate([1, 2], max_new_tokens=5, return_dict_in_generate=True)
    assert (found.sequences.tolist(), found.finish_reason, places(found.findings)) == ([[1, 2, 3, 4]], "range", FOUND)
    two.toy.flags = Flags(0, MARKS)
    none = model.generate([1, 2], max_new_tokens=5, return_dict_in_generate=True, output_logits=True)
    assert (none.sequences.tolist(), none.logits) == ([[1, 2]], ())
    two.toy.flags = None
    stop = expected([1, 2], 3, VOCABULARY)[-1]
    ends = model.generate([1, 2], max_new_tokens=5, return_dict_in_generate=True, eos_token_id=stop)
    assert (ends.finish_reason, ends.findings) == ("stop", ())
    last = model.generate([1, 2], max_new_tokens=3, return_dict_in_generate=True, eos_token_id=stop)
    assert last.finish_reason == "stop"
    assert model.generate([1, 2], max_new_tokens=2, return_dict_in_generate=True).finish_reason == "length"
