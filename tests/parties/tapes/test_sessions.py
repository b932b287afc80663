"""Sessions that take their tapes from folders, over real gRPC with TLS: no dealer runs, and nothing else changes."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from models.checkpoint import Checkpoint, load_checkpoint, read_architecture
from models.generation import GenerationPlan, generate_plain, plain_logits
from mpc.errors import ManifestMismatch, MpcacheError, PeerError, TapeError
from mpc.generators import CHACHA
from parties.party.compute_party import ComputePartyServer
from parties.program import MODEL, Program
from parties.tapes.deal import DealOrder, DealSpec, deal
from parties.transport.channel import GrpcChannel
from protocols import gumbel
from protocols.registry import SuiteSpec
from tests.parties import tape_folders as tapes
from tests.parties.conftest import VOCABULARY
from tests.parties.deployment import Deployment
from tests.parties.tape_folders import PROMPT
from tests.parties.toy import Toy, expected, slow

REAL_PROMPT = [3, 17, 8, 30, 5]
TOLERANCE = {"masked": 0.05, "crypten": 0.02}


def start(deployment: Deployment, out: Path, *names: str, **changes: Any) -> None:
    """Start parties with their folders of tapes."""
    for name in names or deployment.names:
        deployment.start_one(name, tapes=out / name, **changes)


def restart(deployment: Deployment, out: Path) -> None:
    """Stop all parties and start them again."""
    for name in deployment.names:
        deployment.servers[name].stop()
    start(deployment, out)


# ---- the real program ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> Checkpoint:
    return load_checkpoint(checkpoint)


@pytest.mark.parametrize(("parties", "suite"), [(3, "masked"), (2, "crypten")])
def test_equal_to_plain_and_to_live(
    parties: int, suite: str, tmp_path: Path, checkpoint: Path, plain: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = Deployment(tmp_path, parties, deadline_seconds=20)
    deployment.prg = {"party0": CHACHA}  # the dealer follows each party's generator
    architecture, dealer = read_architecture(checkpoint), deployment.config("dealer", "dealer")
    wanted = generate_plain(plain, REAL_PROMPT, GenerationPlan(5, 2))
    assert len(wanted) > 1

    def ask(**options: Any) -> Any:
        return deployment.client().ask(REAL_PROMPT, options.pop("tokens", 2), suite=suite, stop_ids=(), **options)

    try:
        for name in ("dealer", *deployment.names):
            deployment.start_one(name)
        deployment.share(checkpoint)
        live = ask().tokens
        for server in deployment.servers.values():
            server.stop()
        out = tmp_path / "out"
        deal(DealOrder(dealer, architecture, DealSpec([5], 2, 2, SuiteSpec(suite))), out)
        start(deployment, out)
        assert live[: len(wanted)] == wanted
        first = ask()
        assert first.tokens == live
        offline = [first.costs[name]["total"]["offline_bytes"] for name in deployment.names]
        assert offline[-1] > offline[0] > 0  # corrections beside what is common to all
        fewer = ask(tokens=1)  # the masked weights of the first session, a tape for up to 2
        assert fewer.tokens == live[:1]
        assert all("model load" not in str(sorted(cost["stages"])) for cost in fewer.costs.values())
        with pytest.raises(TapeError, match="has no tape for a prompt of 5 tokens and 2 new tokens"):
            ask()
        noise: list[Tensor] = []

        def caught(shape: Any) -> Tensor:
            noise.append(draw(shape))
            return noise[-1]

        draw = gumbel.gumbel
        monkeypatch.setattr(gumbel, "gumbel", caught)
        for decoding in ("logits", "sample"):
            chosen: Any = {"decoding": decoding, "temperature": 3.0 if decoding == "sample" else None}
            deal(DealOrder(dealer, architecture, DealSpec([5], 2, suite=SuiteSpec(suite), **chosen)), tmp_path / decoding)
            for name in deployment.names:
                shutil.copytree(tmp_path / decoding / name, out / name, dirs_exist_ok=True)
        result = ask(tokens=2, decoding="logits")
        reference = plain_logits(plain, [*REAL_PROMPT, result.tokens[0]])[-2:]
        assert result.logits is not None
        assert (result.logits - reference).abs().max() < TOLERANCE[suite]
        with pytest.raises(TapeError, match=r"1 for another temperature.*--decoding sample --temperature 2\.5"):
            ask(tokens=2, decoding="sample", temperature=2.5)
        sampled = ask(tokens=2, decoding="sample", temperature=3.0).tokens
        tokens: list[int] = []
        for step in range(2):
            tokens.append(int((plain_logits(plain, [*REAL_PROMPT, *tokens])[-1] + (noise[step][0] * 3.0).float()).argmax()))
        assert sampled == tokens
    finally:
        deployment.stop()


def test_a_restart_sends_the_same_masked_weights_again(
    tmp_path: Path, checkpoint: Path, plain: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, sent = threading.local(), []
    send = GrpcChannel.send

    def load(*arguments: Any) -> dict[str, Any]:
        loading.now = []
        try:
            return MODEL.load(*arguments)
        finally:
            sent.append(loading.now)
            loading.now = None

    def spy(self: GrpcChannel, peer: int, payload: bytes) -> None:
        if getattr(loading, "now", None) is not None:
            loading.now.append((self.party, peer, bytes(payload)))
        send(self, peer, payload)

    monkeypatch.setattr(GrpcChannel, "send", spy)
    deployment = Deployment(tmp_path, 3, Program(load, MODEL.run), deadline_seconds=20)
    try:
        deal(
            DealOrder(deployment.config("dealer", "dealer"), read_architecture(checkpoint), DealSpec([5], 2, 4)),
            tmp_path / "out",
        )
        start(deployment, tmp_path / "out")
        deployment.share(checkpoint)
        wanted = generate_plain(plain, REAL_PROMPT, GenerationPlan(5, 2))
        for sessions in range(1, 5):
            tokens = deployment.client().ask(REAL_PROMPT, 2, suite="masked", stop_ids=()).tokens
            assert tokens[: len(wanted)] == wanted
            if sessions == 1:
                restart(deployment, tmp_path / "out")
            if sessions == 2:  # one party alone has lost the weights
                deployment.servers["party1"].stop()
                start(deployment, tmp_path / "out", "party1")
            # loaded in sessions 1 (all), 2 (all again), 3 (all, for party1), not in 4
            assert len(sent) == 3 * min(sessions, 3)
        runs = [sorted(sent[i : i + 3]) for i in (0, 3, 6)]
        assert runs[0] == runs[1] == runs[2]
        assert sum(len(part) for messages in runs[0] for _, _, part in messages) > 8 * 40 * 12
    finally:
        deployment.stop()
    assert not list((tmp_path / "out").rglob("*.seed"))  # the last session took the load's tape along


# ---- the toy -------------------------------------------------------------------------------------------------------
class Taped:
    """Parties of the toy with a folder of two tapes each."""

    def __init__(self, folder: Path, checkpoint: Path, parties: int = 2) -> None:
        self.toy, self.out, self.checkpoint = Toy(), folder / "out", checkpoint
        self.deployment = Deployment(folder, parties, self.toy.program)
        self.load = tapes.deal_toy(self.deployment, checkpoint, self.out).load

    def generate(self, new_tokens: int = 4, **options: Any) -> list[int]:
        return self.deployment.client().ask(PROMPT, new_tokens, model="tiny", stop_ids=(), **options).tokens

    def works(self, new_tokens: int = 4) -> None:
        assert self.generate(new_tokens) == expected(PROMPT, new_tokens, VOCABULARY)

    def left(self, name: str) -> list[str]:
        """Ids of the unused tapes of a party."""
        return tapes.session_tapes(self.out / name / self.load)

    def used(self, name: str) -> int:
        """Tapes that its journal knows."""
        return (self.out / name / "journal").read_bytes().count(b"take ")


@pytest.fixture
def taped(tmp_path: Path, checkpoint: Path) -> Iterator[Taped]:
    found = Taped(tmp_path, checkpoint)
    start(found.deployment, found.out)
    found.deployment.share(checkpoint)
    yield found
    found.deployment.stop()


def test_three_parties_and_two_sessions_at_once(tmp_path: Path, checkpoint: Path) -> None:
    found = Taped(tmp_path, checkpoint, 3)
    try:
        start(found.deployment, found.out)
        found.deployment.share(checkpoint)
        found.toy.before_round = slow(0.01)
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda _: found.generate(), range(2)))
        assert results == [expected(PROMPT, 4, VOCABULARY)] * 2
        assert [found.used(name) for name in found.deployment.names] == [2, 2, 2]
        with pytest.raises(TapeError, match="it has none at all"):
            found.generate()
    finally:
        found.deployment.stop()


def test_a_client_that_stops_early_spends_the_tape(taped: Taped) -> None:
    tape = set(taped.left("party0"))
    result = taped.deployment.client().ask(PROMPT, 4, model="tiny", stop_ids=expected(PROMPT, 2, VOCABULARY)[1:])
    assert result.stopped
    assert len(result.tokens) == 2
    assert len(tape - set(taped.left("party0"))) == 1
    assert [taped.used(name) for name in ("party0", "party1")] == [1, 1]
    taped.works()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [(5, "2 for a prompt of 5 and up to 4 new tokens"), (1, "")],
)
def test_lengths(taped: Taped, tokens: int, message: str) -> None:
    if not message:
        taped.works(tokens)
        return
    with pytest.raises(TapeError, match=rf"party. has no tape for a prompt of 5 tokens and {tokens} .*: it has {message}"):
        taped.generate(tokens)
    with pytest.raises(TapeError, match="it has 2 for another suite"):
        taped.generate(4, suite="masked")
    assert [taped.used(name) for name in ("party0", "party1")] == [0, 0]


def remove(folder: Path, tape: str) -> None:
    for file in folder.glob(f"{tape}.*"):
        file.unlink()


def test_only_what_all_parties_have_is_used(taped: Taped) -> None:
    first, _ = taped.left("party0")
    remove(taped.out / "party0" / taped.load, first)
    taped.works()
    assert taped.left("party1") == [first]
    with pytest.raises(TapeError, match="party0 has no tape"):
        taped.generate()


def test_nothing_in_common(taped: Taped) -> None:
    first, second = taped.left("party0")
    remove(taped.out / "party0" / taped.load, first)
    remove(taped.out / "party1" / taped.load, second)
    with pytest.raises(
        TapeError, match=rf"no unused tape for .* is at all parties \(party0 has 1, party1 1\): {second} is not at party1"
    ):
        taped.generate()
    assert [taped.used(name) for name in ("party0", "party1")] == [0, 0]


def test_one_party_s_journal_protects_all(taped: Taped, tmp_path: Path) -> None:
    shutil.copytree(taped.out / "party0", tmp_path / "backup")
    for _ in range(2):
        taped.works()
    taped.deployment.servers["party0"].stop()
    (taped.out / "party0").rename(tmp_path / "later")  # its disk is rolled back, journal and all
    shutil.copytree(tmp_path / "backup", taped.out / "party0")
    start(taped.deployment, taped.out, "party0")
    with pytest.raises(TapeError, match="party1 has no tape"):
        taped.generate()


def test_all_parties_or_none_from_files(taped: Taped) -> None:
    taped.deployment.servers["party1"].stop()
    taped.deployment.start_one("party1")
    with pytest.raises(ManifestMismatch, match="party0 takes its tapes from a folder, party1 from the running dealer: conf"):
        taped.generate()
    assert taped.used("party0") == 0


def during(taped: Taped, act: Callable[[], None]) -> MpcacheError:
    """The client's error when something happens after the first token."""
    with pytest.raises(MpcacheError) as caught:
        taped.generate(on_token=lambda token: act())
    return caught.value


def test_a_failed_session_has_spent_its_tape(taped: Taped) -> None:
    taped.toy.before_round = slow(0.02)

    def gone() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        taped.generate(on_token=lambda token: gone())
    limit = time.monotonic() + 5
    while any(server.sessions.all() for server in taped.deployment.servers.values()):
        assert time.monotonic() < limit
        time.sleep(0.02)
    assert [taped.used(name) for name in ("party0", "party1")] == [1, 1]
    taped.works()
    with pytest.raises(TapeError, match="it has none at all"):
        taped.generate()


def test_a_changed_tape_ends_the_session_before_it_is_used(taped: Taped) -> None:
    server = taped.deployment.servers["party0"]
    assert isinstance(server, ComputePartyServer)
    assert server.tapes is not None
    next_one = next(iter(server.tapes.offers(tapes.manifest(taped.checkpoint), tapes.STORING)))
    path = taped.out / "party1" / taped.load / f"{next_one}.tape"
    data = bytearray(path.read_bytes())
    data[100] ^= 4
    path.write_bytes(data)
    with pytest.raises(TapeError, match=f"tape {next_one} of party1: chunk 1 of 1 is not what the dealer dealt"):
        taped.generate()
    taped.works()
    assert [taped.used(name) for name in ("party0", "party1")] == [2, 2]


def test_the_same_id_with_another_content(taped: Taped, monkeypatch: pytest.MonkeyPatch) -> None:
    server = taped.deployment.servers["party1"]
    assert isinstance(server, ComputePartyServer)
    assert server.tapes is not None
    offers = server.tapes.offers

    def other(*arguments: Any) -> Any:
        return {tape: header.model_copy(update={"created": 1}) for tape, header in offers(*arguments).items()}

    monkeypatch.setattr(server.tapes, "offers", other)
    with pytest.raises(
        TapeError, match=r"party0 and party1 have different tapes of id .*: copy all folders of one deal again"
    ):
        taped.generate()


def test_a_tape_that_another_session_took_meanwhile(taped: Taped, monkeypatch: pytest.MonkeyPatch) -> None:
    """Party1 offers a tape and loses it before party0 names it."""
    server = taped.deployment.servers["party1"]
    assert isinstance(server, ComputePartyServer)
    store = server.tapes
    assert store is not None
    take = store.take

    def late(wanted: Any, session: str, model: str) -> Any:
        take(wanted, "8" * 32, model)
        return take(wanted, session, model)

    monkeypatch.setattr(store, "take", late)
    with pytest.raises(TapeError, match=rf"party1: tape [0-9a-f]+ was used by session {'8' * 32}: a tape serves once"):
        taped.generate()
    monkeypatch.undo()
    taped.works()


def test_a_killed_process_never_uses_a_tape_twice(tmp_path: Path, checkpoint: Path) -> None:
    """Party1 is a process of its own that is killed in a session; after its restart it takes another tape."""
    toy = Toy(3)
    toy.before_round = slow(0.02)
    deployment = Deployment(tmp_path, 2, toy.program, connect_seconds=30)
    out = tmp_path / "out"
    load = tapes.deal_toy(deployment, checkpoint, out, toy, sessions=2).load
    try:
        start(deployment, out, "party0")
        running = deployment.start_process("party1", 3, 0.02, tapes=str(out / "party1"))
        deployment.share(checkpoint)
        with pytest.raises(PeerError):
            deployment.client().ask(PROMPT, 4, stop_ids=(), on_token=lambda token: running.kill())
        running.wait(10)
        assert len(tapes.session_tapes(out / "party1" / load)) == 1
        deployment.start_process("party1", 3, 0.02, tapes=str(out / "party1"))
        assert deployment.client().ask(PROMPT, 4, stop_ids=()).tokens == expected(PROMPT, 4, VOCABULARY)
        with pytest.raises(TapeError, match="has no tape for a prompt of 5 tokens and 4 new tokens"):
            deployment.client().ask(PROMPT, 4, stop_ids=())
        for name in ("party0", "party1"):
            records = (out / name / "journal").read_text().splitlines()
            taken = [line.split()[1] for line in records if line.startswith("take")]
            assert len(set(taken)) == len(taken) == 2
    finally:
        deployment.stop()
