"""The C library's allocator: how much freed memory it keeps from the system.

With its defaults every thread may get an arena of its own, and what one session has freed serves no other one: a party of a
small model held twice the memory that it used, and more with every session."""

from __future__ import annotations

import ctypes

_ARENA_MAX = -8  # M_ARENA_MAX of glibc's malloc.h


def one_arena() -> None:
    """Let all threads of this process allocate from one arena, so that what one has freed serves the others. To be called
    before there are many threads; does nothing where the C library has no such call."""
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is not None:
        option(_ARENA_MAX, 1)


def give_back() -> None:
    """Return freed memory to the system: making weights ready leaves some hundred megabytes with the allocator otherwise.
    Does nothing where the C library has no such call. Takes milliseconds for each gigabyte."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
