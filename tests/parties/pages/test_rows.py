"""Rows that leave memory come back as they were, whatever happened to them in between; real masked values, no session."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from models.cache import LayerCache
from models.learned import Learned
from mpc.errors import MpcacheError
from parties.pages import shelf
from parties.pages.cache_memory import CacheMemory, SessionPager
from parties.pages.page_store import PageStore
from parties.pages.replacement import FAR, NEVER, Entered, Sessions, distinct, replay, steps_until
from parties.wire.manifest import new_id
from protocols.crypten.value import CryptenWeight
from protocols.masked.append_buffer import append_buffer
from protocols.masked.cache import keep_first
from protocols.masked.packed_rows import PackedRows
from protocols.masked.shares import Masked
from protocols.masked.values import MaskedTensor
from tests.tools import page_schedules

LAYERS, HEADS, CHANNELS = 4, 2, 3
generator = torch.Generator().manual_seed(1)


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "PAGE_BYTES", 1)
    monkeypatch.setattr(shelf, "LEAST_ROWS", 4)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PageStore]:
    found = PageStore(tmp_path, "party0")
    yield found
    found.close()


def words(rows: int) -> torch.Tensor:
    return torch.randint(-(2**62), 2**62, (HEADS, rows, CHANNELS), generator=generator)


def masked(rows: int) -> Masked:
    return Masked(words(rows), words(rows), 64, 14)


def value(rows: int) -> MaskedTensor:
    return MaskedTensor(cast(Any, SimpleNamespace()), 5, masked=masked(rows), checked=True)


def whole(x: Any) -> list[torch.Tensor]:
    return [t.clone() for t in x.row_tensors().tensors]


def appended(x: MaskedTensor, rows: int) -> MaskedTensor:
    assert x.masked is not None
    buffer = x.rows if x.rows is not None and x.rows.value is x.masked else append_buffer(x.masked, 1)
    return x.of_rows(buffer.append(masked(rows)))


def session(memory: CacheMemory, rows: int = 10) -> tuple[SessionPager, list[LayerCache]]:
    pager = memory.pager(new_id())
    assert pager is not None
    layers = [LayerCache(Learned({}, n, "gelu")) for n in range(LAYERS)]
    pager.begin(layers)
    for n, entry in enumerate(layers):
        pager.enter(n)
        entry.k, entry.v = value(rows), value(rows)
    return pager, layers


def away(layers: list[LayerCache]) -> list[int]:
    return [n for n, entry in enumerate(layers) if not isinstance(entry.__dict__["_k"], MaskedTensor)]


def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    write = shelf.SessionPages.write
    monkeypatch.setattr(shelf.SessionPages, "write", lambda self, name, t: (names.append(name), write(self, name, t))[1])
    return names


def test_rows_come_back_and_are_written_once(store: PageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    names = written(monkeypatch)
    pager, layers = session(CacheMemory(store, 1, 1 << 20))
    kept = [[whole(entry.k), whole(entry.v)] for entry in layers]  # looking has brought all of them back
    for token in range(7):
        for n, entry in enumerate(layers):
            pager.enter(n)
            assert n in away(layers) or n == pager._now
            assert entry.length == 10 + token
            for place, x in enumerate((entry.k, entry.v)):
                assert isinstance(x, MaskedTensor)
                assert all(torch.equal(a, b) for a, b in zip(whole(x), kept[n][place], strict=True))
                assert (x.magnitude, x.checked) == (5, token == 0)
            entry.k, entry.v = appended(entry.k, 1), appended(entry.v, 1)  # type: ignore[arg-type]
            kept[n] = [whole(entry.k), whole(entry.v)]
    assert len(names) == len(set(names))  # no page twice: 16 rows are 4 pages of a value
    assert len(names) <= LAYERS * 2 * 4
    pager.close()
    assert list(store.root.glob("session-*")) == []


def test_rows_that_move_are_given_up_or_leave_a_window(store: PageStore) -> None:
    pager, layers = session(CacheMemory(store, 1, 1 << 20), 13)
    for token in range(12):
        for n, entry in enumerate(layers):
            pager.enter(n)
            for name in ("k", "v"):
                x = getattr(entry, name)
                if n == 0:  # a window
                    x = appended(x, 1)[:, -13:]
                elif n == 1:  # rows of a draft, of which some are given up
                    x = appended(keep_first(appended(x, 3), x.shape[1] + token % 3, 1), 1)
                elif n == 2:  # an eviction
                    x = MaskedTensor(x.context, 5, masked=Masked(x.masked.m[:, 1:] + 1, x.masked.lam[:, 1:], 64, 14))
                setattr(entry, name, x)
            expected = whole(entry.k), whole(entry.v)
            pager.evict(n, own=True)
            assert n in away(layers)
            for x, wanted in zip((entry.k, entry.v), expected, strict=True):
                assert x is not None
                assert all(torch.equal(a, b) for a, b in zip(whole(x), wanted, strict=True))
    assert [entry.length for entry in layers] == [13, 13 + 12 * 2, 1, 13]
    pager.close()


def test_other_kinds_of_rows() -> None:
    small = Masked(words(9) & 0xFFFFFF, words(9) & 0xFFFFFF, 24, 2)
    packed = MaskedTensor(cast(Any, SimpleNamespace()), 3, packed=PackedRows.of(small))
    crypten = CryptenWeight(words(9), 16, 1, words(9), None)
    for x in (packed, crypten):
        rows = x.row_tensors()
        assert rows is not None
        tensors, made = rows.empty(9)
        for there, given in zip(tensors, rows.tensors, strict=True):
            there.copy_(given)
        again = made(0)
        assert type(again) is type(x)
        assert again.shape == x.shape
        assert all(torch.equal(a, b) for a, b in zip(again.row_tensors().tensors, rows.tensors, strict=True))
    other = value(5)
    other.shared = other.form  # type: ignore[assignment]  # a share of its own beside the masked value stays with it
    assert other.row_tensors() is None


def test_a_session_that_waits_gives_its_memory_to_others(store: PageStore) -> None:
    size = 2 * 2 * HEADS * (10 + 64) * CHANNELS * 8
    schedule: list[Entered] = []
    memory = CacheMemory(store, LAYERS * size + size // 2, 1 << 20, schedule.append)
    first, mine = session(memory)
    waits, over = threading.Event(), threading.Event()

    def wait() -> None:
        with first.waits():
            waits.set()
            over.wait(10)

    first._guard.release()
    thread = threading.Thread(target=lambda: (first._guard.acquire(), wait()))
    thread.start()
    waits.wait(10)
    assert away(mine) == []
    second, others = session(memory)
    for n in range(LAYERS):
        second.enter(n)
        others[n].k, others[n].v = appended(others[n].k, 1), appended(others[n].v, 1)  # type: ignore[arg-type]
    second.enter(0)
    assert away(others) == []
    assert away(mine)
    assert away(mine) == list(range(min(away(mine)), LAYERS))  # what is needed latest
    over.set()
    thread.join()
    assert all(entry.length == 10 for entry in mine)
    assert whole(mine[LAYERS - 1].k)
    assert sum(line.waits for line in schedule) == 1
    assert replay(schedule, memory.most or 0, "ours").needed == LAYERS + 1
    for pager in (first, second):
        pager.close()
    assert (memory.used_bytes, memory.paged_bytes) == (0, 0)


def test_a_session_that_computes_gives_up_one_layer_that_another_asks_for(store: PageStore) -> None:
    size = 2 * 2 * HEADS * 10 * CHANNELS * 8
    memory = CacheMemory(store, (LAYERS + 2) * size, 1 << 20)
    first, mine = session(memory)
    first.enter(0)
    kept = whole(mine[3].k)
    second, others = session(memory)
    second.enter(0)
    assert first.asked == 3  # behind layers 1 and 2, which it needs before
    assert away(mine) == []  # its own thread moves its rows
    assert away(others) == [2, 3]  # the rest is the second session's own, of which a last page that is not full stays
    first.enter(1)
    assert away(mine) == [3]
    assert first.asked is None
    assert memory.used_bytes <= (memory.most or 0) + size
    assert all(torch.equal(a, b) for a, b in zip(whole(mine[3].k), kept, strict=True))
    for pager in (first, second):
        pager.close()
    assert (memory.used_bytes, memory.paged_bytes) == (0, 0)


def test_no_more_than_one_layer_is_asked_of_a_session_at_a_time(store: PageStore) -> None:
    memory = CacheMemory(store, 1 << 30, 1 << 20)
    (first, mine), (second, others) = session(memory), session(memory)
    memory.most = 1
    second.enter(0)
    assert first.asked == 1  # of layers 0 and 1; it is in the others, as in a prompt
    assert away(others) == [1, 2, 3]
    assert away(mine) == []
    for pager in (first, second):
        pager.close()


def test_what_is_asked_for_stays_where_it_is_needed_by_now_and_goes_before_a_wait(store: PageStore) -> None:
    memory = CacheMemory(store, 1 << 30, 1 << 20)
    pager, layers = session(memory)
    pager.asked = 2
    pager.enter(2)
    assert (pager.asked, away(layers), memory.counts.read) == (None, [], 0)
    pager.asked = 1
    with pager.waits():
        assert (pager.asked, away(layers)) == (None, [1])
    pager.close()


def test_a_disk_that_refuses_ends_the_session_whose_rows_they_are(store: PageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = CacheMemory(store, 1, 64)  # less than a page
    pager, layers = session(CacheMemory(store, 1 << 30, 1 << 20))
    pager._memory = pager._pages._book.__self__  # type: ignore[attr-defined]
    monkeypatch.setattr(pager._pages, "_book", memory.book)
    with pytest.raises(MpcacheError, match="the store is full"):
        pager.evict(2, own=True)
    assert whole(layers[2].k)
    memory.book(-memory.paged_bytes)
    pager._memory = CacheMemory(store, 1 << 30, 1 << 20)  # there seems to be room, as where a disk is full
    pager.waiting = True
    pager._guard.release()
    assert not pager.evict(1, own=False)
    pager._guard.acquire()
    pager.waiting = False
    with pytest.raises(MpcacheError, match="the store is full"), pager.waits():
        pass


def test_a_full_store_ends_no_session_for_the_sake_of_another(store: PageStore) -> None:
    """Neither one that waits nor one that computes; who needs the room is told."""
    memory = CacheMemory(store, 1 << 30, 1 << 20)
    (first, mine), (second, _) = session(memory), session(memory)
    kept = [whole(entry.k) for entry in mine]
    memory.most, memory._paged = 1, 64  # less than a page
    with pytest.raises(MpcacheError, match="the store is full"):
        second.enter(0)
    memory.most, first.asked = 1 << 30, 1
    first.enter(0)
    with first.waits():
        second_asks = [layer for layer in first.may_go(own=False) if first.evict(layer, own=False)]
    assert (second_asks, away(mine), first.asked) == ([], [], None)
    for entry, rows in zip(mine, kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(whole(entry.k), rows, strict=True))


def test_when_a_session_that_waits_is_needed_again_is_predicted_from_its_last_wait() -> None:
    sessions = Sessions()

    def token(name: str, wait: int) -> None:
        for layer in range(3):
            sessions.enter(Entered(name, layer, (1,) * 3))
        sessions.enter(Entered(name, 2, (1,) * 3, waits=True))
        for _ in range(wait):
            sessions.enter(Entered("b", 0, (1,) * 9))

    token("a", 4)
    assert sessions.until(("a", 0))[0] >= FAR  # it has never answered
    token("a", 1)
    # the wait took 5 (4 layers of another session and the one that ended it), of which 1 is over; then layers 0, 1, 2
    assert [sessions.until(("a", layer))[0] for layer in range(3)] == [4 + 1, 4 + 2, 4 + 3]
    sessions.enter(Entered("a", 0, (1,) * 3))
    # it waits after every token, and two sessions compute: layer 1 is next, layer 0 is behind the next wait of 2
    assert [sessions.until(("a", layer))[0] for layer in range(3)] == [3 * 2 + 2, 2, 4]


def test_within_three_points_of_what_knows_the_future() -> None:
    """Where all of it is known, the same; where clients answer at times of their own, nearly."""
    for name, schedule in page_schedules.schedules().items():
        for share in (0.25, 0.5) if "48" not in name else ():
            most = round(share * distinct(schedule))
            belady, ours, lru = (replay(schedule, most, rule).hit_rate for rule in ("belady", "ours", "lru"))
            assert ours > belady - (1e-9 if name.startswith("one") else 0.03), name
            assert ours > lru + 0.05, name


def test_nothing_is_needed_behind_the_last_token() -> None:
    sessions = Sessions()
    for token in range(2):
        for layer in range(2):
            sessions.enter(Entered("a", layer, (1,) * 3, last=token == 1))
    assert [sessions.until(("a", layer))[0] for layer in range(3)] == [NEVER, NEVER, 1]
    sessions.enter(Entered("b", 0, (1,) * 3))
    sessions.enter(Entered("b", 0, (1,) * 3, waits=True))
    assert FAR <= sessions.until(("b", 0))[0] < NEVER  # nobody has waited yet: it goes first of what is needed again


def test_a_first_wait_is_expected_to_be_as_long_as_the_last_one_of_another() -> None:
    sessions = Sessions()
    sessions.enter(Entered("a", 0, (1,) * 3))
    sessions.enter(Entered("a", 2, (1,) * 3, waits=True))
    for _ in range(4):
        sessions.enter(Entered("b", 0, (1,) * 3))
    sessions.enter(Entered("a", 0, (1,) * 3))  # the wait took 5
    sessions.enter(Entered("b", 2, (1,) * 3, waits=True))
    sessions.enter(Entered("a", 1, (1,) * 3))
    assert [sessions.until(("b", layer))[0] for layer in range(3)] == [4 + 1, 4 + 2, 4 + 3]


def test_the_rule() -> None:
    assert [steps_until(layer, 3, 4) for layer in range(4)] == [1, 2, 3, 4]
    lines = [Entered("a", layer, (1,) * 6) for _ in range(5) for layer in range(6)]
    for most in (1, 2, 4, 6):
        belady, ours, lru = (replay(lines, most, rule) for rule in ("belady", "ours", "lru"))
        assert belady.read == ours.read
        assert lru.read == (24 if most < 6 else 0)
        assert ours.hit_rate == pytest.approx((most - 1) / 5, abs=0.05)
