"""A tape on disk says what was dealt or nothing: any change, cut, swap or foreign file is refused before it is used."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpc.errors import ConfigurationError, EnvironmentProblem, TapeError
from parties.identity.certificates import check, create_deployment, create_identity
from parties.tapes import deal as tape_deal
from parties.tapes import file as tape_file
from parties.tapes.file import TapeFile, TapeWriter, destroy
from tests.parties import tape_folders as tapes
from tests.parties.deployment import Deployment

CHUNK = 1000


class Dealt:
    """A deal in chunks of 1000 bytes; `folder` is party1's (the last party's), `tape` one session's."""

    def __init__(self, deployment: Deployment, out: Path, load: str, emitted: bytes) -> None:
        self.deployment, self.out, self.load, self.emitted = deployment, out, load, emitted
        self.folder = out / "party1" / load
        self.tape = tapes.session_tapes(self.folder)[0]

    def copy(self, target: Path, party: str = "party1") -> Path:
        """A fresh copy of one party's folder."""
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(self.out / party / self.load, target / self.load))

    def open(self, folder: Path, party: str = "party1", tape: str = "") -> TapeFile:
        """The tape there."""
        return tapes.tape_file(self.deployment, folder, tape or self.tape, party)


@pytest.fixture(scope="module")
def dealt(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Dealt]:
    folder = tmp_path_factory.mktemp("dealt")
    deployment = Deployment(folder)
    patch = pytest.MonkeyPatch()
    patch.setattr(tape_file, "CHUNK", CHUNK)
    emitted: dict[str, bytearray] = {}
    append = TapeWriter.append

    def spy(self: TapeWriter, data: bytes) -> None:
        if self._folder.parent.name == "party1":
            emitted.setdefault(self._tape, bytearray()).extend(data)
        append(self, data)

    patch.setattr(TapeWriter, "append", spy)
    deal = tapes.deal_toy(deployment, checkpoint, folder / "out", new_tokens=1, sessions=1)
    tape = tapes.session_tapes(folder / "out" / "party1" / deal.load)[0]
    yield Dealt(deployment, folder / "out", deal.load, bytes(emitted[tape]))
    patch.undo()


def test_a_tape_says_what_was_dealt(dealt: Dealt) -> None:
    file = dealt.open(dealt.folder)
    assert file.header.length == len(dealt.emitted) > 5 * CHUNK
    assert tapes.everything(file) == dealt.emitted
    stored = file.path("tape").read_bytes()
    assert len(stored) == len(dealt.emitted)
    assert stored[:CHUNK] != dealt.emitted[:CHUNK]  # sealed under the seed
    opened = file.open()
    assert opened.seed.hex() not in repr(opened) + repr(file)
    with pytest.raises(TapeError, match="the tape ended before the program did"):
        opened.read(len(dealt.emitted) + 1)
    opened.close()


def test_only_the_owner_may_read_and_nobody_holds_another_party_s(dealt: Dealt) -> None:
    seeds = {}
    for party in ("party0", "party1"):
        folder = dealt.out / party / dealt.load
        assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700
        for file in folder.iterdir():
            assert file.stat().st_mode & 0o777 == 0o600
        seeds[party] = (folder / f"{dealt.tape}.seed").read_bytes()
        assert seeds[party] != (folder / f"{dealt.load}.seed").read_bytes()
    assert seeds["party0"] != seeds["party1"]
    texts = [f.read_bytes() for f in (dealt.out / "party0").rglob("*") if f.is_file()]
    assert all(seeds["party1"] not in text and seeds["party1"].hex().encode() not in text for text in texts)
    sizes = [(dealt.out / party / dealt.load / f"{dealt.tape}.tape").stat().st_size for party in ("party0", "party1")]
    assert sizes[0] * 10 < sizes[1]  # party 0 expands its part


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), suffix=st.sampled_from(["json", "seed", "tape"]))
def test_any_flipped_bit_is_refused(dealt: Dealt, tmp_path: Path, place: float, bit: int, suffix: str) -> None:
    folder = dealt.copy(tmp_path / "copy")
    path = folder / f"{dealt.tape}.{suffix}"
    data = bytearray(path.read_bytes())
    at = int(place * len(data))
    data[at] ^= 1 << bit
    path.write_bytes(data)
    before = at // CHUNK * CHUNK if suffix == "tape" else 0

    def use() -> None:
        opened = dealt.open(folder).open()
        assert bytes(opened.read(before)) == dealt.emitted[:before]
        opened.read(1)

    with pytest.raises(TapeError, match=dealt.tape) as caught:
        use()
    if suffix == "tape":
        assert f"chunk {at // CHUNK + 1} of" in str(caught.value)
        assert "is not what the dealer dealt" in str(caught.value)


def test_every_truncation_is_refused(dealt: Dealt, tmp_path: Path) -> None:
    folder = dealt.copy(tmp_path / "copy")
    path = folder / f"{dealt.tape}.tape"
    whole = path.read_bytes()
    cuts = [*range(0, len(whole), CHUNK), *range(CHUNK // 2, len(whole), CHUNK), 1, len(whole) - 1]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(TapeError, match=rf"its file has {cut} bytes, {len(whole)} were dealt"):
            dealt.open(folder)
    path.write_bytes(whole + b"\0")
    with pytest.raises(TapeError, match="were dealt"):
        dealt.open(folder)
    path.write_bytes(whole)
    opened = dealt.open(folder).open()
    assert bytes(opened.read(10)) == dealt.emitted[:10]
    os.truncate(path, 2 * CHUNK + 5)  # while it is read
    assert bytes(opened.read(2 * CHUNK - 10)) == dealt.emitted[10 : 2 * CHUNK]
    with pytest.raises(TapeError, match=r"chunk 3 of .* is not what the dealer dealt"):
        opened.read(1)
    with pytest.raises(TapeError):
        opened.read(1)
    opened.close()


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 4), (2, 3)])
def test_swapped_chunks_are_refused(dealt: Dealt, tmp_path: Path, first: int, second: int) -> None:
    folder = dealt.copy(tmp_path / "copy")
    path = folder / f"{dealt.tape}.tape"
    data = path.read_bytes()
    parts = [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)]
    parts[first], parts[second] = parts[second], parts[first]
    path.write_bytes(b"".join(parts))
    opened = dealt.open(folder).open()
    assert bytes(opened.read(first * CHUNK)) == dealt.emitted[: first * CHUNK]
    with pytest.raises(TapeError, match=f"chunk {first + 1} of"):
        opened.read(1)
    opened.close()


def test_foreign_files_are_refused(dealt: Dealt, tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(TapeError, match=r"it is party0's, not party1's"):
        dealt.open(dealt.copy(tmp_path / "a", "party0"), "party1")
    folder = dealt.copy(tmp_path / "b")
    other = "e" * 32
    for suffix in ("json", "seed", "tape"):
        (folder / f"{dealt.tape}.{suffix}").rename(folder / f"{other}.{suffix}")
    with pytest.raises(TapeError, match="under another name"):
        dealt.open(folder, tape=other)
    folder = dealt.copy(tmp_path / "c")
    moved = folder.rename(folder.parent / other)
    with pytest.raises(TapeError, match="under another name"):
        dealt.open(moved)
    second = tapes.deal_toy(dealt.deployment, checkpoint, tmp_path / "second", sessions=1)
    theirs = tmp_path / "second" / "party1" / second.load
    for suffix, message in (("seed", "its seed is not the one"), ("tape", "were dealt|is not what the dealer dealt")):
        folder = dealt.copy(tmp_path / "d")
        shutil.copy(theirs / f"{tapes.session_tapes(theirs)[0]}.{suffix}", folder / f"{dealt.tape}.{suffix}")
        with pytest.raises(TapeError, match=message):
            tapes.everything(dealt.open(folder))


def test_signatures_of_others_are_refused(dealt: Dealt, tmp_path: Path, checkpoint: Path) -> None:
    dealt.deployment.add("stranger", "dealer")
    values = {"name": "stranger", "dealer": None}
    deal = tapes.deal_toy(
        dealt.deployment, checkpoint, tmp_path / "out", sessions=1, config=tapes.other_config(dealt.deployment, **values)
    )
    folder = tmp_path / "out" / "party1" / deal.load
    tape = tapes.session_tapes(folder)[0]
    with pytest.raises(TapeError, match=rf"tape {tape} .*it is signed by 'stranger', not by 'dealer'.*deal again"):
        tapes.tape_file(dealt.deployment, folder, tape)
    create_deployment(tmp_path / "elsewhere", {"dealer": "dealer"})
    foreign = check(tmp_path / "elsewhere", "dealer")
    with pytest.raises(TapeError, match="not of this deployment's authority"):
        TapeFile(dealt.folder, dealt.tape, "party1", 1, dealt.deployment.peer("dealer"), foreign)


def test_an_expired_dealer_is_refused(dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from parties.identity import signatures

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(UTC) + timedelta(days=2)

    monkeypatch.setattr(signatures, "datetime", Later)
    with pytest.raises(TapeError, match="the certificate of 'dealer' was valid until"):
        dealt.open(dealt.folder)


@pytest.mark.parametrize("suffix", ["json", "seed", "tape"])
def test_missing_and_unreadable_files(dealt: Dealt, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = dealt.copy(tmp_path / "copy")
    original = os.open

    def refuse(path: Any, *rest: Any, **options: Any) -> int:
        if str(path).endswith(f"{dealt.tape}.{suffix}"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(path, *rest, **options)

    monkeypatch.setattr(tape_file.os, "open", refuse)
    with pytest.raises(TapeError, match=rf"{suffix} cannot be read \(Permission denied\): make it this user's own"):
        dealt.open(folder)
    monkeypatch.setattr(tape_file.os, "open", original)
    (folder / f"{dealt.tape}.{suffix}").unlink()
    with pytest.raises(TapeError, match=rf"{dealt.tape}.{suffix} is missing: copy the whole folder again"):
        dealt.open(folder)


def test_a_seed_that_others_may_read_is_refused(dealt: Dealt, tmp_path: Path) -> None:
    folder = dealt.copy(tmp_path / "copy")
    (folder / f"{dealt.tape}.seed").chmod(0o644)
    with pytest.raises(TapeError, match=r"others may read its seed \(mode 0644\)"):
        dealt.open(folder)


def test_destroying_overwrites_the_seed(dealt: Dealt, tmp_path: Path) -> None:
    folder = dealt.copy(tmp_path / "copy")
    os.link(folder / f"{dealt.tape}.seed", tmp_path / "same-blocks")
    opened = dealt.open(folder).open()
    destroy(folder, dealt.tape)
    assert (tmp_path / "same-blocks").read_bytes() == bytes(32)
    assert not list(folder.glob(f"{dealt.tape}.*"))
    assert bytes(opened.read(len(dealt.emitted))) == dealt.emitted  # who has it open reads on
    opened.close()


# ---- dealing -------------------------------------------------------------------------------------------------------
def test_a_target_that_is_not_empty(dealt: Dealt, tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for out in (tmp_path / "full", tmp_path / "full" / "file"):
        with pytest.raises(ConfigurationError, match=r"exists and is not an empty folder: choose another one"):
            tapes.deal_toy(dealt.deployment, checkpoint, out)
    (tmp_path / "empty").mkdir()
    assert tapes.deal_toy(dealt.deployment, checkpoint, tmp_path / "empty").sizes["party1"] > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "full"]


@pytest.mark.parametrize("room", [0, 5_000, 20_000])
def test_disk_full(dealt: Dealt, tmp_path: Path, checkpoint: Path, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left, write = [room], os.write

    def full(handle: int, data: Any) -> int:
        if len(data) > left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= len(data)
        return write(handle, data)

    monkeypatch.setattr(tape_file.os, "write", full)
    with pytest.raises(
        EnvironmentProblem, match=r"cannot be written to .*out \(no space left on device\): nothing was dealt"
    ):
        tapes.deal_toy(dealt.deployment, checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "--prompt: give each prompt length once, got none"),
        ({"prompts": [5, 5]}, "--prompt: give each prompt length once, got 5, 5"),
        ({"sessions": 0}, "--sessions: 1 to 1000 tapes a deal, got 0 x 1"),
        ({"sessions": 501, "prompts": [1, 2]}, "got 501 x 2"),
        ({"prompts": [32], "new_tokens": 2}, "need 33 positions"),
        ({"suite": "quantum"}, "unknown suite 'quantum'"),
        ({"policy": "nothing"}, "'nothing'"),
        ({"options": {"no_such": 1}}, "no_such"),
    ],
)
def test_bad_deals_leave_nothing(
    dealt: Dealt, tmp_path: Path, checkpoint: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        tapes.deal_toy(dealt.deployment, checkpoint, tmp_path / "out", **changes)
    assert list(tmp_path.iterdir()) == []


def test_only_a_dealer_deals(dealt: Dealt, tmp_path: Path, checkpoint: Path) -> None:
    config = dealt.deployment.config("client", "client")
    with pytest.raises(ConfigurationError, match="configuration is for role 'client', not for 'dealer'"):
        tapes.deal_toy(dealt.deployment, checkpoint, tmp_path / "out", config=config)


def test_an_interrupted_deal_is_not_taken_for_whole(
    dealt: Dealt, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    def crash(*_: Any, **__: Any) -> None:
        raise Crash

    monkeypatch.setattr(tape_deal.Path, "rename", crash)
    monkeypatch.setattr(tape_deal.shutil, "rmtree", crash)  # as a killed process: nothing is cleaned up
    with pytest.raises(Crash):
        tapes.deal_toy(dealt.deployment, checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_identities_are_checked_before_dealing(tmp_path: Path, checkpoint: Path) -> None:
    deployment = Deployment(tmp_path / "d")
    (deployment.certificates / "dealer.key").unlink()
    (deployment.certificates / "dealer.crt").unlink()
    for file in create_identity(deployment.authority, "dealer", "dealer", 1, start=datetime.now(UTC) - timedelta(days=3)):
        file.replace(deployment.certificates / file.name)
    with pytest.raises(ConfigurationError, match="expired on"):
        tapes.deal_toy(deployment, checkpoint, tmp_path / "out")
