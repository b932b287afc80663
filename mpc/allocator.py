"""The C library's allocator: how much freed memory a process keeps from the system.

With its defaults every thread may get an arena of its own, and what one session has freed serves no other one: a party of a
small model held twice the memory that it used, and more with every session. And numbers of 32 MiB or more are mapped and
unmapped each time: the system fills every new page of theirs with zeros, which takes longer than to compute what is written
there. Of a prompt of 128 tokens of GPT-2 that was a third of a dealer's processor time, and a tenth of a party's."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
_MAPPED = 1 << 30  # bytes from which on memory is mapped, and given back when it is freed
_KEPT = (1 << 31) - 1  # bytes free at the end of the arena that stay with the process, until `give_back`


def one_arena() -> None:
    """Let all threads of this process allocate from one arena, so that what one has freed serves the others. To be called
    before there are many threads; does nothing where the C library has no such call."""
    _set(_ARENA_MAX, 1)


def keep_freed() -> None:
    """Keep what is freed until `give_back`, for a process that computes on shares. Does nothing where the C library has no
    such call."""
    _set(_MMAP_THRESHOLD, _MAPPED)
    _set(_TRIM_THRESHOLD, _KEPT)


def _set(name: int, value: int) -> None:
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is not None:
        option(name, value)


def give_back() -> None:
    """Return freed memory to the system: making weights ready leaves some hundred megabytes with the allocator otherwise.
    Does nothing where the C library has no such call. Takes milliseconds for each gigabyte."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
