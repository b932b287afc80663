"""Sessions in step over real gRPC: the same answers and costs as alone, and whoever comes, goes or fails harms no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpc.errors import ConfigurationError, MpcacheError, PeerLost
from mpc.in_step import StepMember
from mpc.step_messages import overhead
from parties.client.cancellation import Cancellation
from parties.client.client import GenerationResult
from parties.errors import Busy
from tests.parties.conftest import VOCABULARY, Running, run
from tests.parties.deployment import Deployment
from tests.parties.toy import Toy, expected, slow

PROMPT = [3, 1, 4, 1, 5]
IN_STEP = {"max_in_step": 8, "max_sessions": 8, "max_queued_per_client": 0}
PATIENT = {"deadline_seconds": 60, "connect_seconds": 60}  # a busy machine is no fault of a peer's
Answers = dict[int, GenerationResult | MpcacheError]


@pytest.fixture(scope="module", params=[2, 3])
def stepping(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, checkpoint: Path
) -> Iterator[Running]:
    """Parties whose toy sessions run in step."""
    yield from run(tmp_path_factory.mktemp("stepping"), checkpoint, request.param, limits=IN_STEP, **PATIENT)


@pytest.fixture(autouse=True)
def _quick_toy(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "stepping" in request.fixturenames:
        request.getfixturevalue("stepping").toy.before_round = Toy().before_round


def ask(deployment: Deployment, answers: Answers, number: int, new_tokens: int, **changes: Any) -> threading.Thread:
    """Ask in a thread, with a prompt that differs by `number`."""

    def work() -> None:
        try:
            answers[number] = deployment.client().ask([*PROMPT, number], new_tokens, stop_ids=(), **changes)
        except MpcacheError as error:
            answers[number] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def joined(threads: list[threading.Thread]) -> None:
    """Wait for all."""
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()


class Entering:
    """Lets sessions take part in their groups only once `expected` have come, over all parties: they surely meet."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._come = threading.Condition()
        self._missing = 0
        enter = StepMember.enter

        def together(member: StepMember) -> None:
            with self._come:
                if member.posted.number < 0:  # it has exchanged nothing yet
                    self._missing -= 1
                    self._come.notify_all()
                    assert self._come.wait_for(lambda: self._missing <= 0, 60)
            enter(member)

        monkeypatch.setattr(StepMember, "enter", together)

    def expect(self, deployment: Deployment, sessions: int) -> None:
        """Let the sessions that are asked next wait for each other."""
        self._missing = sessions * len(deployment.names)


def right(answer: GenerationResult | MpcacheError, number: int, new_tokens: int) -> None:
    """Check a toy's answer."""
    assert isinstance(answer, GenerationResult), answer
    assert answer.tokens == expected([*PROMPT, number], new_tokens, VOCABULARY)


def counted(running: Running, name: str) -> list[float]:
    """Return a counter at every party."""
    return [running.deployment.servers[p].metrics.get(name)._value.get() for p in running.deployment.names]


def no_groups(running: Running) -> None:
    """Check that nothing of any group is left."""
    limit = time.monotonic() + 60
    parties: list[Any] = [running.deployment.servers[name] for name in running.deployment.names]
    while any(party.groups._groups for party in parties):
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_sessions_share_rounds_and_count_as_alone(stepping: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    entering = Entering(monkeypatch)
    answers: Answers = {}
    joined([ask(stepping.deployment, answers, 0, 6)])
    alone = answers[0]
    assert isinstance(alone, GenerationResult)
    assert {cost["shared_rounds"] for cost in alone.costs.values()} == {0}
    joined([ask(stepping.deployment, answers, 0, 6)])
    alone = answers[0]  # the weights were there
    no_groups(stepping)
    before = [counted(stepping, f"mpcache_step_{what}_total") for what in ("rounds", "sections", "overhead_bytes")]
    entering.expect(stepping.deployment, 5)
    joined([ask(stepping.deployment, answers, number, 6) for number in range(5)])
    for number in range(5):
        right(answers[number], number, 6)
        for name, cost in answers[number].costs.items():  # type: ignore[union-attr]
            for what in ("rounds", "bytes_sent", "bytes_received", "messages", "offline_bytes"):
                assert cost["total"][what] == alone.costs[name]["total"][what], (name, what)  # type: ignore[union-attr]
            assert cost["shared_rounds"] > 0
    no_groups(stepping)
    after = [counted(stepping, f"mpcache_step_{what}_total") for what in ("rounds", "sections", "overhead_bytes")]
    parties = len(stepping.deployment.names)
    for place in range(parties):
        rounds, sections, listed = (now[place] - then[place] for now, then in zip(after, before, strict=True))
        assert listed == (parties - 1) * (rounds * overhead(0) + sections * (overhead(1) - overhead(0)))
        assert sections == 5 * 18  # what each session would exchange alone
        assert rounds < sections / 2


@pytest.mark.parametrize("stepping", [2], indirect=True)
def test_a_session_joins_and_leaves_between_tokens_of_another(stepping: Running) -> None:
    answers: Answers = {}
    begun, others_done = threading.Event(), threading.Event()

    def patiently(party: int, step: int, round: int) -> None:
        time.sleep(0.02 if step < 3 or others_done.is_set() else 0.2)  # only the long one comes to a fourth token

    stepping.toy.before_round = patiently
    long = ask(stepping.deployment, answers, 1, 20, on_token=lambda token: begun.set())
    assert begun.wait(60)
    short = [ask(stepping.deployment, answers, number, 3) for number in (2, 3)]
    joined(short)
    assert long.is_alive()
    others_done.set()
    joined([long])
    for number, new_tokens in ((1, 20), (2, 3), (3, 3)):
        right(answers[number], number, new_tokens)
    assert 0 < answers[1].costs["party0"]["shared_rounds"] < 60  # type: ignore[union-attr]


@pytest.mark.parametrize("stepping", [2], indirect=True)
def test_clients_that_choose_tokens_or_verify_drafts_hold_nobody_up(stepping: Running) -> None:
    stepping.toy.before_round = slow(0.01)
    answers: Answers = {}
    reached, others_done = threading.Event(), threading.Event()

    def thoughtful(token: int) -> None:
        reached.set()
        assert others_done.wait(30)

    waiting = ask(stepping.deployment, answers, 1, 3, decoding="logits", on_token=thoughtful)
    assert reached.wait(30)
    quick = ask(stepping.deployment, answers, 2, 4)
    joined([quick])
    assert waiting.is_alive()
    others_done.set()
    joined([waiting])
    right(answers[2], 2, 4)
    assert isinstance(answers[1], GenerationResult)


@pytest.mark.parametrize("stepping", [2], indirect=True)
def test_a_client_that_leaves_ends_its_session_alone(stepping: Running) -> None:
    stepping.toy.before_round = slow(0.02)
    answers: Answers = {}
    cancellation = Cancellation()
    seen = threading.Event()
    leaving = ask(stepping.deployment, answers, 1, 20, cancellation=cancellation, on_token=lambda token: seen.set())
    staying = ask(stepping.deployment, answers, 2, 8)
    assert seen.wait(30)
    cancellation.cancel()
    joined([leaving, staying])
    right(answers[2], 2, 8)
    joined([ask(stepping.deployment, answers, 3, 2)])
    right(answers[3], 3, 2)
    no_groups(stepping)


def test_a_session_that_fails_at_one_party_ends_alone(stepping: Running) -> None:
    answers: Answers = {}
    failing: list[str] = []  # the first session that comes so far

    def fails(party: int, step: int, round: int) -> None:
        time.sleep(0.02)
        if party == 1 and step == 2 and not failing:
            failing.append(threading.current_thread().name)
            raise RuntimeError("a fault of this session's")

    stepping.toy.before_round = fails
    joined([ask(stepping.deployment, answers, number, 8) for number in (1, 2, 3)])
    failed = [answer for answer in answers.values() if isinstance(answer, MpcacheError)]
    assert len(failed) == 1
    assert "RuntimeError" in str(failed[0])
    for number, answer in answers.items():
        if answer is not failed[0]:
            right(answer, number, 8)


@pytest.mark.parametrize("stepping", [2], indirect=True)
def test_a_refused_session_harms_no_other(stepping: Running) -> None:
    stepping.toy.before_round = slow(0.02)
    answers: Answers = {}
    threads = [ask(stepping.deployment, answers, number, 4) for number in range(8)]
    while len(stepping.deployment.servers["party0"].sessions.all()) < 8:
        time.sleep(0.005)
    ninth: Answers = {}
    joined([ask(stepping.deployment, ninth, 9, 4)])
    assert isinstance(ninth[9], Busy)
    joined(threads)
    for number in range(8):
        right(answers[number], number, 4)


def test_a_session_that_would_cache_too_much_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    limits = {
        **IN_STEP,
        "max_queued_per_client": 8,
        "max_cache_bytes": 2 * 12 * 16 * 8,
    }  # keys and values of 8 tokens of 12 channels
    with Deployment(tmp_path, 2, Toy().program, limits=limits, **PATIENT) as deployment:
        deployment.share(checkpoint)
        answers: Answers = {}
        joined([ask(deployment, answers, number, 3) for number in (1, 2)])  # one after the other
        for number in (1, 2):
            right(answers[number], number, 3)
            assert answers[number].costs["party0"]["shared_rounds"] == 0  # type: ignore[union-attr]
        with pytest.raises(
            ConfigurationError, match=r"would cache 3,456 bytes \(6 prompt and 4 new tokens\), party\d allows 3,072"
        ):
            deployment.client().ask([*PROMPT, 1], 4)


def test_sessions_that_would_send_too_much_together_take_turns(tmp_path: Path, checkpoint: Path) -> None:
    limits = {**IN_STEP, "max_queued_per_client": 8, "max_sent_bytes_together": 1}
    with Deployment(tmp_path, 2, Toy().program, limits=limits, **PATIENT) as deployment:
        deployment.share(checkpoint)
        answers: Answers = {}
        joined([ask(deployment, answers, number, 3) for number in (1, 2, 3)])
        for number in (1, 2, 3):
            right(answers[number], number, 3)
            assert {cost["shared_rounds"] for cost in answers[number].costs.values()} == {0}  # type: ignore[union-attr]


def test_all_parties_must_let_sessions_run_in_step(tmp_path: Path, checkpoint: Path) -> None:
    with Deployment(tmp_path, 2, Toy().program) as deployment:
        deployment.share(checkpoint)
        deployment.servers["party0"].stop()
        deployment.start_one("party0", limits=IN_STEP)
        with pytest.raises(ConfigurationError, match=r"party0 runs sessions in step, party1 does not: set 'max_in_step'"):
            deployment.client().ask(PROMPT, 2)


@pytest.mark.parametrize("parties", [2, 3])
def test_a_lost_peer_ends_the_group_with_its_name(tmp_path: Path, checkpoint: Path, parties: int) -> None:
    toy = Toy()
    toy.before_round = slow(0.03)
    lost = f"party{parties - 1}"
    with Deployment(tmp_path, parties, toy.program, limits=IN_STEP, **PATIENT) as deployment:
        deployment.share(checkpoint)
        deployment.servers.pop(lost).stop()
        process = deployment.start_process(lost, toy.rounds, 0.03, limits=IN_STEP)
        answers: Answers = {}
        begun = {number: threading.Event() for number in (1, 2)}
        threads = [ask(deployment, answers, n, 20, on_token=lambda token, n=n: begun[n].set()) for n in begun]
        assert all(event.wait(60) for event in begun.values())
        process.kill()
        joined(threads)
        for number in (1, 2):
            assert isinstance(answers[number], PeerLost)
            assert lost in str(answers[number])


def real(deployment: Deployment, suite: str) -> Callable[[Answers, list[int]], None]:
    """Return a function that asks several questions at once with a suite."""

    def together(answers: Answers, numbers: list[int]) -> None:
        joined([ask(deployment, answers, number, 2, suite=suite) for number in numbers])

    return together


@pytest.mark.parametrize(("parties", "suite"), [(2, "masked"), (3, "masked"), (2, "crypten")])
def test_real_sessions_give_the_tokens_that_they_give_alone(
    tmp_path: Path, checkpoint: Path, parties: int, suite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entering = Entering(monkeypatch)
    with Deployment(tmp_path, parties, limits=IN_STEP, **PATIENT) as deployment:
        deployment.share(checkpoint)
        asked = real(deployment, suite)
        alone: Answers = {}
        for number in range(2):  # the first one loads the weights, and what the second one costs is what any does
            asked(alone, [number])
        together: Answers = {}
        entering.expect(deployment, 2)
        asked(together, [0, 1])
        for number in range(2):
            one, same, costing = alone[number], together[number], alone[1]
            assert isinstance(costing, GenerationResult)
            assert isinstance(one, GenerationResult)
            assert isinstance(same, GenerationResult)
            assert same.tokens == one.tokens
            for name in deployment.names:
                costs = [result.costs[name]["total"] for result in (costing, same)]
                for what in ("rounds", "bytes_sent", "bytes_received", "offline_bytes"):
                    assert costs[0][what] == costs[1][what]
                assert same.costs[name]["shared_rounds"] > 0
