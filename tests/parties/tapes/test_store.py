"""A tape serves one session, whatever happens: crashes, copies, other processes, full disks, a damaged journal."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpc.errors import EnvironmentProblem, TapeError
from parties.tapes import journal as tape_journal
from parties.tapes import store as tape_store
from parties.tapes.journal import RECORD_BYTES, Journal
from tests import forked
from tests.parties import tape_folders as tapes
from tests.parties.deployment import Deployment

ROOT = Path(__file__).parents[3]
TAPES, SESSIONS = ["a" * 32, "b" * 32, "c" * 32], ["1" * 32, "2" * 32, "3" * 32]
LOAD, STORING = "d" * 32, "4" * 32


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return Deployment(tmp_path_factory.mktemp("deployment"))


@pytest.fixture(scope="module")
def dealt(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """Party1's folder of a deal of three sessions."""
    out = tmp_path_factory.mktemp("dealt") / "out"
    tapes.deal_toy(deployment, checkpoint, out, sessions=3)
    return out / "party1"


@pytest.fixture
def root(dealt: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(dealt, tmp_path / "tapes"))


def offered(store: tape_store.TapeStore, checkpoint: Path, **changes: Any) -> list[tuple[str, str]]:
    found = store.offers(tapes.manifest(checkpoint, **changes), tapes.STORING)
    return [(header.load, tape) for tape, header in found.items()]


# ---- the journal ---------------------------------------------------------------------------------------------------
def written(path: Path) -> Journal:
    """A journal with three tapes taken: four records."""
    journal = Journal(path, "party0")
    for tape, session in zip(TAPES, SESSIONS, strict=True):
        with journal.locked() as records:
            records.take(tape, session, LOAD, STORING)
    return journal


def test_journal_remembers(tmp_path: Path) -> None:
    journal = written(tmp_path / "journal")
    assert len((tmp_path / "journal").read_bytes()) == 4 * RECORD_BYTES
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o600
    with journal.locked() as records:
        assert [records.session(tape) for tape in TAPES] == SESSIONS
        assert records.session("e" * 32) is None
        assert (records.storing(LOAD), records.storing("e" * 32)) == (STORING, None)
        with pytest.raises(TapeError, match=f"tape {TAPES[0]} was used by session {SESSIONS[0]}: a tape serves once"):
            records.take(TAPES[0], SESSIONS[1], LOAD, STORING)
        with pytest.raises(TapeError, match=f"masks of load {LOAD} were used for the weights of storing {STORING}, not for"):
            records.take("e" * 32, SESSIONS[1], LOAD, "6" * 32)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 4 * RECORD_BYTES - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_journal_is_refused(tmp_path: Path, at: int, bit: int) -> None:
    path = tmp_path / "journal"
    path.unlink(missing_ok=True)
    journal = written(path)
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(TapeError, match=rf"record {at // RECORD_BYTES + 1} is damaged.*mpcache deal"):
        journal.locked().__enter__()


@pytest.mark.parametrize(
    "change",
    [
        lambda r: [r[0], r[2], r[3]],
        lambda r: [r[1], r[2], r[3]],
        lambda r: [r[0], r[2], r[1], r[3]],
        lambda r: [*r, r[3]],
        lambda r: [*r, b"\0" * RECORD_BYTES],
    ],
    ids=["one missing", "first missing", "swapped", "repeated", "zeros"],
)
def test_changed_journals_are_refused(tmp_path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path = tmp_path / "journal"
    journal = written(path)
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(TapeError, match="is damaged"):
        journal.locked().__enter__()


def test_another_party_s_journal_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "journal")
    with pytest.raises(TapeError, match="record 1 is damaged"):
        Journal(tmp_path / "journal", "party1").locked().__enter__()


@pytest.mark.parametrize("kept", [1, 80, RECORD_BYTES - 1])
def test_an_append_that_a_crash_cut_short_is_dropped(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "journal"
    journal = written(path)
    whole = path.read_bytes()
    os.truncate(path, 3 * RECORD_BYTES + kept)
    with journal.locked() as records:
        assert [records.session(tape) for tape in TAPES] == [*SESSIONS[:2], None]
        assert path.read_bytes() == whole[: 3 * RECORD_BYTES]
        records.take(TAPES[2], SESSIONS[0], LOAD, STORING)
    with journal.locked() as records:
        assert records.session(TAPES[2]) == SESSIONS[0]


def test_the_lock_has_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal", "party0")
    monkeypatch.setattr(tape_journal, "LOCK_SECONDS", 0.1)
    with journal.locked(), pytest.raises(TapeError, match=r"is locked by another process for 0\.1 s"):
        Journal(tmp_path / "journal", "party0").locked().__enter__()
    with journal.locked():
        pass


# ---- taking --------------------------------------------------------------------------------------------------------
def test_a_tape_serves_once(deployment: Deployment, root: Path, checkpoint: Path) -> None:
    store = tapes.store(deployment, root)
    pairs = offered(store, checkpoint)
    load, tape = pairs[0]
    emitted = tapes.everything(tapes.tape_file(deployment, root / load, tape))
    taken = store.take(pairs, SESSIONS[0], tapes.STORING)
    assert taken.header.tape == tape
    assert not list((root / load).glob(f"{tape}.*"))  # before anything is read
    assert bytes(taken.session.read(len(emitted))) == emitted
    assert offered(store, checkpoint) == pairs[1:]
    with pytest.raises(TapeError, match=f"party1: tape {tape} was used by session {SESSIONS[0]}"):
        store.take(pairs[:1], SESSIONS[1], tapes.STORING)
    assert store.take(pairs, SESSIONS[1], tapes.STORING).header.tape == pairs[1][1]
    store.release(taken)
    assert (root / load / f"{load}.seed").exists()
    last = store.take(pairs, SESSIONS[2], tapes.STORING)
    store.release(last)
    assert sorted(p.name for p in root.iterdir()) == ["journal"]
    with pytest.raises(TapeError, match="it has none at all"):
        offered(store, checkpoint)


def test_a_replayed_copy_is_refused(deployment: Deployment, dealt: Path, root: Path, checkpoint: Path) -> None:
    store = tapes.store(deployment, root)
    pairs = offered(store, checkpoint)
    for session in SESSIONS:
        store.release(store.take(pairs, session, tapes.STORING))
    shutil.copytree(dealt, root, dirs_exist_ok=True)
    with pytest.raises(TapeError, match=r"it has 3 refused \(tape .* was used by session .*: a tape serves once\)"):
        offered(store, checkpoint)
    with pytest.raises(TapeError, match=f"tape {pairs[1][1]} was used by session {SESSIONS[1]}"):
        store.take(pairs[1:2], "9" * 32, tapes.STORING)
    again = tapes.store(deployment, root)  # after a restart
    assert again.stock() == ["none"]
    assert not [p for p in root.rglob("*.seed") if p.stem != p.parent.name]


def test_killed_between_journal_and_use(
    deployment: Deployment, root: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: Any) -> None:
        raise Killed

    store = tapes.store(deployment, root)
    pairs = offered(store, checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr(tape_store, "destroy", kill)
        with pytest.raises(Killed):
            store.take(pairs, SESSIONS[0], tapes.STORING)
    load, tape = pairs[0]
    assert (root / load / f"{tape}.seed").exists()
    again = tapes.store(deployment, root)
    assert not list((root / load).glob(f"{tape}.*"))
    assert offered(again, checkpoint) == pairs[1:]
    with pytest.raises(TapeError, match=f"tape {tape} was used by session {SESSIONS[0]}"):
        again.take(pairs[:1], SESSIONS[1], tapes.STORING)


def test_all_is_on_disk_before_the_first_byte_is_read(
    deployment: Deployment, root: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tapes.store(deployment, root)
    pairs = offered(store, checkpoint)
    order: list[str] = []
    sync, take_away = os.fsync, tape_store.destroy

    def synced(handle: int) -> None:
        name = os.readlink(f"/proc/self/fd/{handle}").rsplit("/", 1)[-1]
        order.append(name)
        sync(handle)

    def destroyed(folder: Path, tape: str) -> None:
        order.append("destroy")
        take_away(folder, tape)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(tape_store, "destroy", destroyed)
    read = tape_store.OpenTape.__init__

    def opened(self: Any, *arguments: Any) -> None:
        read(self, *arguments)
        inner = self.read
        self.read = lambda count: (order.append("read"), inner(count))[1]

    monkeypatch.setattr(tape_store.OpenTape, "__init__", opened)
    taken = store.take(pairs, SESSIONS[0], tapes.STORING)
    taken.session.read(1)
    assert order.index("journal") < order.index("destroy") < order.index("read")
    seed, folder = f"{pairs[0][1]}.seed", pairs[0][0]
    assert order.index("destroy") < order.index(seed) < order.index(folder) < order.index("read")  # each one on disk


def test_two_processes_never_take_the_same(deployment: Deployment, tmp_path: Path, checkpoint: Path) -> None:
    tapes.deal_toy(deployment, checkpoint, tmp_path / "out", sessions=12, new_tokens=1)
    root = tmp_path / "out" / "party1"
    pairs = offered(tapes.store(deployment, root), checkpoint, new_tokens=1)
    command = [sys.executable, "-m", "tests.parties.tapes.taker", str(root), str(deployment.certificates), json.dumps(pairs)]
    both = [
        forked.started([*command, session], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for session in SESSIONS[:2]
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    got = [json.loads(process.communicate(timeout=60)[0]) for process in both]
    assert sorted(got[0] + got[1]) == sorted(tape for _, tape in pairs)
    assert len(pairs) == 12


@pytest.mark.parametrize("room", [0, 100, RECORD_BYTES + 30])
def test_a_full_disk_uses_no_tape(
    deployment: Deployment, root: Path, checkpoint: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tapes.store(deployment, root)
    pairs = offered(store, checkpoint)

    def full(handle: int, data: bytes) -> None:
        os.write(handle, data[:room])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tape_journal, "write_all", full)
        with pytest.raises(EnvironmentProblem, match=r"tapes'\) cannot be written \(no space left on device\), so no tape"):
            store.take(pairs, SESSIONS[0], tapes.STORING)
    assert offered(tapes.store(deployment, root), checkpoint) == pairs
    assert store.take(pairs, SESSIONS[1], tapes.STORING).header.tape == pairs[0][1]


def test_a_load_serves_one_storing(deployment: Deployment, root: Path, checkpoint: Path) -> None:
    """Not another model's weights, and not other weights under the same model's id."""
    store = tapes.store(deployment, root)
    pairs = offered(store, checkpoint)
    store.take(pairs, SESSIONS[0], tapes.STORING)
    other = "9" * 32
    with pytest.raises(TapeError, match="it has 2 for another model's weights, or another storing of this one's"):
        store.offers(tapes.manifest(checkpoint), other)
    with pytest.raises(TapeError, match=f"were used for the weights of storing {tapes.STORING}, not for those of {other}"):
        store.take(pairs[1:], SESSIONS[1], other)
    assert offered(store, checkpoint) == pairs[1:]


def test_a_damaged_load_spends_no_tape(deployment: Deployment, root: Path, checkpoint: Path) -> None:
    store = tapes.store(deployment, root)
    pairs = offered(store, checkpoint)
    path = root / pairs[0][0] / f"{pairs[0][0]}.tape"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        TapeError, match=f"tape {pairs[0][0]} of party1: chunk 1 of 1 is not what .* the whole deal is of no"
    ):
        store.take(pairs, SESSIONS[0], tapes.STORING)
    assert offered(store, checkpoint) == pairs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_tokens": 6}, r"no tape for a prompt of 6 tokens and 4 new tokens \(greedy, suite crypten\): it has 3 for"),
        ({"new_tokens": 5}, r"3 for a prompt of 5 and up to 4 new tokens; .*--prompt 5 --tokens 5 --suite crypten`"),
        ({"suite": "masked"}, "it has 3 for another suite"),
        ({"fraction_bits": 14}, "3 for another fraction bits"),
        ({"options": {"crypten_own": True}}, r"3 for another set of options \(none\)"),
        ({"decoding": "logits"}, "3 for another decoding"),
        ({"policy": "window"}, "3 for another policy"),
        ({"architecture": "0" * 64}, "3 for another architecture"),
        ({"version": "0.0.0"}, "3 for another version"),
        ({"parties": ["party1", "party0"]}, "3 for another set of parties"),
        (
            {"prg": {"party1": "chacha20"}},
            r"it has 3 whose seed of party1 is expanded by prg aes256-ctr, where chacha20 is asked for: deal again with the "
            r"'prg' of all roles in the entry of party1 in 'parties' of the dealer's file",
        ),
    ],
)
def test_tapes_of_another_program(
    deployment: Deployment, root: Path, checkpoint: Path, changes: dict[str, Any], message: str
) -> None:
    store = tapes.store(deployment, root)
    with pytest.raises(TapeError, match=message):
        offered(store, checkpoint, **changes)


def test_the_shortest_that_suffices(deployment: Deployment, root: Path, checkpoint: Path, tmp_path: Path) -> None:
    deal = tapes.deal_toy(deployment, checkpoint, tmp_path / "out", new_tokens=2, prompts=[5, 7])
    shutil.copytree(tmp_path / "out" / "party1", root, dirs_exist_ok=True)
    store = tapes.store(deployment, root)
    found = store.offers(tapes.manifest(checkpoint, new_tokens=2), tapes.STORING)
    assert [h.program.new_tokens for h in found.values()] == [2, 2, 4, 4, 4]
    assert next(iter(found.values())).load == deal.load
    shorter = store.offers(tapes.manifest(checkpoint, new_tokens=3), tapes.STORING)
    assert [h.program.new_tokens for h in shorter.values()] == [4, 4, 4]
    assert len(store.offers(tapes.manifest(checkpoint, new_tokens=1, prompt_tokens=7), tapes.STORING)) == 2
    assert sorted(store.stock()) == [
        "2 for a prompt of 5 and up to 2 new tokens (greedy, suite crypten)",
        "2 for a prompt of 7 and up to 2 new tokens (greedy, suite crypten)",
        "3 for a prompt of 5 and up to 4 new tokens (greedy, suite crypten)",
    ]


def test_damaged_tapes_are_listed_and_not_offered(deployment: Deployment, root: Path, checkpoint: Path) -> None:
    store = tapes.store(deployment, root)
    pairs = offered(store, checkpoint)
    (root / pairs[0][0] / f"{pairs[0][1]}.seed").unlink()
    os.truncate(root / pairs[1][0] / f"{pairs[1][1]}.tape", 5)
    assert offered(store, checkpoint) == pairs[2:]
    lines = store.stock()
    assert len(lines) == 3
    assert any(f"refused: tape {pairs[0][1]}" in line and "seed is missing" in line for line in lines)
    assert any(f"refused: tape {pairs[1][1]}" in line and "its file has 5 bytes" in line for line in lines)


def test_folders_that_cannot_be_used(deployment: Deployment, tmp_path: Path, root: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentProblem, match=r"tape folder .*file cannot be used"):
        tapes.store(deployment, tmp_path / "file")
    (root / "journal").mkdir()
    with pytest.raises(EnvironmentProblem, match=r"journal of party1's tapes .* cannot be opened"):
        tapes.store(deployment, root)
