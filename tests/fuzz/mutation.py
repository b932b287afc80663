"""Cases from valid samples: bytes that are nearly right, which go deeper into a decoder than random ones."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

NUMBERS = (
    b"0",
    b"-1",
    b"1e999",
    b"NaN",
    b"18446744073709551616",
    b"9" * 5000,
    b"true",
    b"null",
    b'""',
    b"[]",
    b"{}",
    b"1.5",
)
PIECES = (
    b"\x00",
    b"\xff" * 9,
    b"\xff\xff\xff\xff\x0f",
    b"\x80" * 10,
    b"[" * 3000,
    b'{"a":' * 2000,
    b"\xed\xa0\x80",
    b"\\ud800",
    b"%s%n",
    b"../../x",
    b"\x1b[2J",
)
NUMBER = re.compile(rb"-?\d+")
LONGEST = 1 << 17


def case(rng: random.Random, samples: Sequence[bytes]) -> bytes:
    """One case: a sample with one to four changes, or (rarely) noise."""
    if rng.random() < 0.05:
        return rng.randbytes(rng.randrange(200))
    data = bytearray(rng.choice(samples))
    for _ in range(rng.randint(1, 4)):
        data = bytearray(_changed(rng, bytes(data), samples))
    return bytes(data[:LONGEST])


def _changed(rng: random.Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 64)))
    kind = rng.randrange(9)
    if kind == 0 and data:  # flip a bit
        place = rng.randrange(len(data))
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    if kind == 1:  # cut off
        return data[:at]
    if kind == 2:  # leave out
        return data[:at] + data[end:]
    if kind == 3:  # repeat
        return data[:end] + data[at:end] * rng.choice((1, 2, 50)) + data[end:]
    if kind == 4:  # put in
        return data[:at] + rng.choice(PIECES) + data[at:]
    if kind == 5:  # another sample's end
        other = rng.choice(samples)
        return data[:at] + other[rng.randrange(len(other) + 1) :]
    if kind == 6 and (numbers := list(NUMBER.finditer(data))):  # another number
        found = rng.choice(numbers)
        return data[: found.start()] + rng.choice(NUMBERS) + data[found.end() :]
    if kind == 7:  # noise in place of what was there
        return data[:at] + rng.randbytes(end - at) + data[end:]
    return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]
