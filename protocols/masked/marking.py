"""Marks of the k largest, by the form that is done soonest: ranks of all pairs, or a threshold found digit by digit.

Both are exact and break ties alike. Ranks (`top_k`) take 2 rounds and n^2 / 2 comparisons a row, a threshold (`threshold`)
14 to 21 rounds and a few hundred bytes a value. What each costs is predicted by running it on shapes (`forms.choose`).
Valid range: that of both, |x| < 2^(x.bits - 2) ring units. Error: none.
Leaks: nothing; public sizes decide, and what is opened is masked (docs/security.md, "Marks of the largest").
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from mpc.tape import CountingTape
from protocols.masked.context import Context
from protocols.masked.forms import Form, by_bytes, choose
from protocols.masked.shares import Masked, Shared
from protocols.masked.threshold import top_k_by_threshold
from protocols.masked.top_k import top_k_indicator
from protocols.schedule import Scheduler

DIGITS = (4, 6, 8)  # bits of a threshold's digit
MOST_PAIRS = 1 << 20  # of all rows: some 40 MB dealt
RANKS = "ranks"


async def _run(c: Context, x: Masked, k: int, bits: int, form: str) -> Shared:
    if form == RANKS:
        return await top_k_indicator(c, x, k, bits)
    return await top_k_by_threshold(c, x, k, bits, int(form))


@lru_cache(1 << 10)
def costs(shape: Sequence[int], x_bits: int, k: int, bits: int, parties: int) -> tuple[Form, ...]:
    """Return what each form costs for values of a shape [..., n] in a ring of `x_bits` bits, marks modulo 2^bits."""
    rows, n = 1, shape[-1]
    for length in shape[:-1]:
        rows *= length
    names = [str(digit) for digit in DIGITS if digit < x_bits]
    if rows * n * (n - 1) // 2 <= MOST_PAIRS:
        names = [RANKS, *names]
    out = []
    for name in names:
        c = Context(CountingTape(), None, parties)
        x = Masked(c.blank(shape), c.blank(shape), x_bits, 0)
        Scheduler(c.flush).run(_run(c, x, k, bits, name))
        found = c.ledger.total()
        out.append(by_bytes(name, found.rounds, found.bytes_sent, found.offline_bytes))
    return tuple(out)


async def mark_largest(c: Context, x: Masked, k: int, bits: int) -> Shared:
    """Return marks 0/1 modulo 2^bits, [..., n] -> [..., n], with a one at the k largest, ties to the earlier position."""
    name = choose(costs(tuple(x.shape), x.bits, k, bits, c.parties), c.prefer)
    return await _run(c, x.with_frac(0), k, bits, name)
