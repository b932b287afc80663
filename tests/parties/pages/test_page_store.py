"""The store of pages: what is on disk after a kill at any step, who may use it, and what damage looks like."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mpc.errors import CheckpointError, ConfigurationError, EnvironmentProblem
from parties.pages.cache_memory import CacheMemory
from parties.pages.index import Index, Owner
from parties.pages.inspection import Shelves
from parties.pages.page_store import PageStore, needless
from parties.pages.shelf import SessionPages

OLD, NEW, SESSION = "a" * 32, "b" * 32, "c" * 32
PAGES = 3
STEPS = ("open", "write", "fsync", "mkdir", "unlink", "rmdir")


def rows(number: int) -> dict[str, torch.Tensor]:
    return {"share": torch.arange(number, number + 40).reshape(2, 5, 4)}


def register(store: PageStore, id: str) -> Owner:
    incoming = store.begin(id, "register again")
    for number in range(PAGES):
        incoming.write(f"{number:04d}", rows(number))
    incoming.commit({"name": id[:4]})
    return incoming.owner


def life(folder: Path, key: Path | None) -> None:
    """A party's life: it starts, a session has pages, a prefix is registered, an old one goes, the party ends."""
    store = PageStore(folder, "party0", key)
    pages = SessionPages(store, SESSION, lambda size: None)
    pages.write("0000-k-00000000", [rows(7)["share"]])
    register(store, NEW)
    store.remove(next(owner for owner in store.owners("prefix") if owner.id == OLD))
    pages.close()
    store.close()


def killed_at(step: int, work: Callable[[], None]) -> bool:
    """Run work in a process that is killed at the given step of writing; whether it was, and did not end before."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = [step]

    def watched(real: Any) -> Any:
        def call(*args: Any, **how: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **how)

        return call

    try:
        for name in STEPS:
            setattr(os, name, watched(getattr(os, name)))
        Index._write = watched(Index._write)  # type: ignore[method-assign]
        Index.remove = watched(Index.remove)  # type: ignore[method-assign]
        work()
    finally:
        os._exit(0)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_kill_at_any_step_leaves_whole_prefixes_and_no_session(tmp_path: Path, sealed: bool) -> None:
    key = None
    if sealed:
        key = tmp_path / "key"
        key.write_text("5" * 64)
        key.chmod(0o600)
    step, kills, bits = 0, 0, set[str]()
    while True:
        folder = tmp_path / f"store-{step}"
        store = PageStore(folder, "party0", key)
        bits.add(register(store, OLD).bits)
        store.close()
        if not killed_at(step, lambda folder=folder: life(folder, key)):  # type: ignore[misc]
            break
        kills += 1
        store = PageStore(folder, "party0", key)
        owners = store.owners("prefix")
        assert {owner.id for owner in owners} in ({OLD}, {OLD, NEW}, {NEW})
        for owner in owners:
            named = store.index.pages(owner)
            assert sorted(named) == [f"{number:04d}" for number in range(PAGES)]
            for number, (name, row) in enumerate(sorted(named.items())):
                assert torch.equal(store.read(owner, name, row, "again")["share"], rows(number)["share"])
        assert store.owners("session") == []
        assert needless(store.root, {owner.folder for owner in owners}) == []
        if NEW not in {owner.id for owner in owners}:  # can be registered anew, under another key than before
            owner = register(store, NEW)
            assert owner.bits not in bits
            bits.add(owner.bits)
        store.close()
        step += 5 if sealed else 2
    assert kills > (6 if sealed else 15)


def test_whose_store_it_is(tmp_path: Path) -> None:
    PageStore(tmp_path, "party0").close()
    with (tmp_path / "pages" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EnvironmentProblem, match="another process of party0 uses the store: stop it first"):
            PageStore(tmp_path, "party0")
    with pytest.raises(ConfigurationError, match=r"the store belongs to party party0 .* this is party1"):
        PageStore(tmp_path, "party1")
    with Shelves(tmp_path, "party0"), pytest.raises(ConfigurationError, match="the store belongs to party party0"):
        Shelves(tmp_path, "party1").__enter__()
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match=r"cannot be written .*: choose another folder in 'store'"):
        PageStore(tmp_path / "file", "party0")


def test_while_its_party_runs_another_one_is_told_whose_it_is(tmp_path: Path) -> None:
    script = f"from parties.pages.page_store import Path, PageStore; PageStore(Path('{tmp_path}'), 'party1')"
    store = PageStore(tmp_path, "party0")
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert "the store belongs to party party0 (format 1), this is party1" in found.stderr
    store.close()


@pytest.mark.parametrize("lost", ["emptied", "gone"])
def test_prefixes_are_not_taken_for_what_a_crash_left_where_the_index_is_lost(tmp_path: Path, lost: str) -> None:
    store = PageStore(tmp_path, "party0")
    folder = store.root / register(store, NEW).folder
    store.close()
    index = tmp_path / "pages" / "index" / "data.mdb"
    kept = index.read_bytes()
    if lost == "emptied":
        index.write_bytes(b"")
    else:
        shutil.rmtree(index.parent)
    with pytest.raises(CheckpointError, match=r"index \(pages/index\) is empty or gone, but prefixes lie beside it: put it"):
        PageStore(tmp_path, "party0")
    assert len(list(folder.iterdir())) > 0
    index.parent.mkdir(exist_ok=True)
    index.write_bytes(kept)
    again = PageStore(tmp_path, "party0")
    assert [owner.id for owner in again.owners("prefix")] == [NEW]
    again.close()


def test_what_is_removed_at_the_start_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    PageStore(tmp_path, "party0").close()
    (tmp_path / "pages" / "prefix-left").mkdir()
    with caplog.at_level("INFO"):
        PageStore(tmp_path, "party0").close()
    assert "pages/prefix-left is removed: a crash has left it" in caplog.text


def test_keys(tmp_path: Path) -> None:
    key, other = tmp_path / "key", tmp_path / "other"
    for file, digit in ((key, "1"), (other, "2")):
        file.write_text(digit * 64)
        file.chmod(0o600)
    store = PageStore(tmp_path / "s", "party0", key)
    owner = register(store, NEW)
    file = store.root / owner.folder / "0000.safetensors"
    assert rows(0)["share"].numpy().tobytes() not in file.read_bytes()
    row = store.index.pages(owner)
    assert torch.equal(store.read(owner, "0000", row["0000"], "")["share"], rows(0)["share"])
    (store.root / owner.folder / "0001.safetensors").write_bytes(file.read_bytes())  # swapped
    with pytest.raises(CheckpointError, match="is not what was stored, or was stored with another key"):
        store.read(owner, "0001", row["0000"], "")
    store.close()
    with pytest.raises(ConfigurationError, match="was encrypted with another key: set the right one"):
        PageStore(tmp_path / "s", "party0", other)
    with pytest.raises(ConfigurationError, match="needs its key: set 'store_key'"):
        PageStore(tmp_path / "s", "party0")
    key.chmod(0o644)
    with pytest.raises(ConfigurationError, match=r"others may read the store's key .*run `chmod 600"):
        PageStore(tmp_path / "s", "party0", key)
    other.write_text("short")
    with pytest.raises(ConfigurationError, match="does not hold 64 hexadecimal digits: make one with `mpcache store key"):
        PageStore(tmp_path / "s", "party0", other)


def test_damage_and_quota(tmp_path: Path) -> None:
    store = PageStore(tmp_path, "party0")
    owner = register(store, NEW)
    with Shelves(tmp_path) as shelves:
        assert shelves.problem(owner, whole=True) == ""
        file = store.root / owner.folder / "0002.safetensors"
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert shelves.problem(owner, whole=False) == ""
        assert "0002.safetensors is not what was stored" in shelves.problem(owner, whole=True)
        file.write_bytes(data[:-1])
        assert "0002.safetensors has" in shelves.problem(owner, whole=False)
    memory = CacheMemory(store, 1, 400)
    pages = SessionPages(store, SESSION, memory.book)
    sums = pages.write("k", [rows(0)["share"]])
    with pytest.raises(
        EnvironmentProblem, match=r"the store is full: sessions have 320 bytes .* 'max_paged_bytes' .* is 400"
    ):
        pages.write("v", [rows(0)["share"]])
    assert torch.equal(pages.read("k", sums)[0], rows(0)["share"])
    page = next((store.root / f"session-{SESSION}").iterdir())
    page.write_bytes(page.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match=r"pages/session-c+/k.safetensors of the store is not what was stored"):
        pages.read("k", sums)
    page.unlink()
    with pytest.raises(
        CheckpointError, match=r"k.safetensors of the store cannot be read .*: check the disk, and ask again"
    ):
        pages.read("k", sums)
    pages.close()
    assert (memory.paged_bytes, store.owners("session")) == (0, [])
    store.close()


def test_a_full_disk_ends_sessions_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = PageStore(tmp_path / "store", "party0")
    memory = CacheMemory(store, 1, 1 << 20)
    one, two = (SessionPages(store, digit * 32, memory.book) for digit in "cd")
    sums = one.write("k", [rows(0)["share"]])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", full)
        with pytest.raises(EnvironmentProblem, match=r"cannot be written \(No space left on device\)"):
            two.write("k", [rows(1)["share"]])
        two.close()
    assert [owner.id for owner in store.owners("session")] == ["c" * 32]
    assert torch.equal(one.read("k", sums)[0], rows(0)["share"])
    with monkeypatch.context() as patch:
        patch.setattr(Index, "remove", lambda *_: (_ for _ in ()).throw(EnvironmentProblem("the disk is full")))
        one.close()  # the session that ends there must come to its end
    assert memory.paged_bytes == 0
    store.close()
    store = PageStore(tmp_path / "store", "party0")
    assert store.owners("session") == []
    store.close()
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)  # a mapped table of readers without room would be a signal
        with pytest.raises(EnvironmentProblem, match="free disk space at this party"):
            PageStore(tmp_path / "new", "party0")
