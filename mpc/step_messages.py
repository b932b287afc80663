"""Messages of sessions in step (`mpc.in_step`): a list of sections, then their bytes.

Header: the group's round, the number of sections. A section's entry: the member's number, the number of its exchange, bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from mpc.errors import WireError

HEADER = struct.Struct("<II")  # round, sections
SECTION = struct.Struct("<III")  # member, exchange, bytes

Section = tuple[int, int, bytes]
"""Member, exchange, what it sends."""


def overhead(sections: int) -> int:
    """Return the bytes of a message of so many sections that belong to none of them.

    >>> overhead(8)
    104
    """
    return HEADER.size + SECTION.size * sections


def packed(round: int, sections: Sequence[Section]) -> bytes:
    """Return the message of a round."""
    lists = [SECTION.pack(number, exchange, len(payload)) for number, exchange, payload in sections]
    return b"".join([HEADER.pack(round, len(sections)), *lists, *(payload for *_, payload in sections)])


def sections_of(name: str, message: bytes, round: int) -> Iterator[Section]:
    """Yield the sections of the message of a round that `name` sent. Raises `WireError` for anything else, at the latest at
    the end."""
    view = memoryview(message)
    if len(view) < HEADER.size:
        raise WireError(f"{name} sent {len(view)} bytes where a message of sessions in step was expected")
    made, count = HEADER.unpack_from(view)
    start = overhead(count)
    if made != round or len(view) < start:
        raise WireError(f"{name} sent round {made} of {count} sections where round {round} was expected")
    for place in range(count):
        number, exchange, size = SECTION.unpack_from(view, overhead(place))
        if len(view) < start + size:
            raise WireError(f"{name} sent a message of {len(view)} bytes whose sections take more")
        yield number, exchange, bytes(view[start : start + size])
        start += size
    if start != len(view):
        raise WireError(f"{name} sent a message of {len(view)} bytes whose sections take {start}")
