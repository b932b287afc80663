"""A growing masked value: what was handed out never changes, whoever appends to whatever part of it."""

from __future__ import annotations

import torch

from protocols.masked.append_buffer import SPARE, append_buffer
from protocols.masked.shares import Masked


def rows(start: int, count: int) -> Masked:
    m = torch.arange(start, start + count).reshape(1, count, 1).expand(2, count, 3).clone()
    return Masked(m, -m, 64, 14)


def values(x: Masked) -> list[int]:
    assert torch.equal(x.m, -x.lam)
    assert x.m.shape == (2, x.shape[1], 3)
    assert torch.equal(x.m, x.m[:1, :, :1].expand(x.m.shape))
    return [int(v) for v in x.m[0, :, 0]]


def test_appending_copies_only_when_the_buffer_is_full() -> None:
    now, places, kept = append_buffer(rows(0, 5), 1), set(), []
    for n in range(5, 5 + 3 * SPARE):
        now = now.append(rows(n, 1))
        kept.append(now)
        places.add(now.value.m.untyped_storage().data_ptr())
        assert values(now.value) == list(range(n + 1))
    assert len(places) <= 4
    for n, one in enumerate(kept, 6):
        assert values(one.value) == list(range(n))


def test_many_rows_at_once_have_room() -> None:
    for count in (SPARE, SPARE + 1, 5 * SPARE):
        now = append_buffer(rows(0, 3), 1).append(rows(3, count)).append(rows(3 + count, 1))
        assert values(now.value) == list(range(4 + count))


def test_two_continuations_of_one_value_do_not_touch_each_other() -> None:
    start = append_buffer(rows(0, 4), 1)
    first = start.append(rows(10, 2))
    second = start.append(rows(20, 1))
    third = first.append(rows(30, 1))
    assert values(start.value) == [0, 1, 2, 3]
    assert values(first.value) == [0, 1, 2, 3, 10, 11]
    assert values(second.value) == [0, 1, 2, 3, 20]
    assert values(third.value) == [0, 1, 2, 3, 10, 11, 30]


def test_a_window_goes_on_in_place() -> None:
    now = append_buffer(rows(0, 4), 1)
    storage = now.value.m.untyped_storage().data_ptr()
    for n in range(4, 20):
        now = now.append(rows(n, 1)).part(1, 5)
        assert values(now.value) == list(range(n - 3, n + 1))
        assert now.value.m.untyped_storage().data_ptr() == storage
    inner = now.part(0, 2).append(rows(90, 1))
    assert (values(inner.value), values(now.value)) == ([16, 17, 90], [16, 17, 18, 19])


def test_what_is_released_is_written_over() -> None:
    whole = append_buffer(rows(0, 3), 1).append(rows(3, 1))
    back = whole.release(3)
    storage = back.value.m.untyped_storage().data_ptr()
    again = back.append(rows(50, 1))
    assert values(again.value) == [0, 1, 2, 50]
    assert again.value.m.untyped_storage().data_ptr() == storage
