"""Incremental point functions: every point of small domains, large rings, what a key says, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mpc import ring, wide
from mpc.channel import memory_channels
from mpc.errors import RangeError
from mpc.preprocessing import PrecomputedTape, PrecomputedValues, PreprocessingTape
from mpc.random import Prg, new_seed
from mpc.tape import HEADER_BYTES, CountingTape, DealerTape, PartyTape, chunks
from mpc.wide import Wide, Words
from protocols.masked import idpf, power, zero_test
from protocols.masked.context import Context, open_value
from protocols.masked.idpf import Points
from protocols.masked.shares import Masked, Shared
from tests.protocols.gate_harness import chi_square, chi_square_limit, predict, run


def integers(x: Words, bits: int) -> list[int]:
    """Canonical elements, flat."""
    if isinstance(x, Wide):
        pairs = zip(x.low.flatten().tolist(), x.high.flatten().tolist(), strict=True)
        return [(low % (1 << 64) + (high << 64)) % (1 << bits) for low, high in pairs]
    return [v % (1 << bits) for v in x.flatten().tolist()]


def uniform(shape: Sequence[int], bits: int) -> Words:
    """Payloads."""
    prg = Prg(new_seed())
    low = prg.ring(shape, min(bits, 64))
    return low if bits <= 64 else Wide(low, prg.ring(shape, bits - 64))


def together(alpha: Tensor, m: Tensor, p: Points, payloads: Words) -> list[int]:
    """What both parties' shares add up to: [elements, levels, points, values], flat."""
    prg = Prg(new_seed())
    roots = [prg.ring((len(alpha), 2)) for _ in range(2)]
    key = idpf.generate(alpha, roots, p, payloads)

    def first(share: Words, _: slice) -> Words:
        return idpf.moved(share, lambda t: t.permute(2, 0, 1, 3))  # type: ignore[no-any-return]

    total: Any = idpf.evaluate(0, roots[0], key, m, p, first)
    return integers(wide.reduce(total + idpf.evaluate(1, roots[1], key, m, p, first), p.bits), p.bits)


def expected(alpha: Tensor, m: Tensor, p: Points, payloads: Words) -> list[int]:
    """The same by comparing prefixes, with integers."""
    given = iter(integers(idpf.moved(payloads, lambda t: t.movedim(0, 1)), p.bits))
    rows = [[[next(given) for _ in range(p.values)] for _ in p.levels] for _ in range(len(alpha))]
    out = []
    for a, b, row in zip(integers(alpha, p.depth), integers(m, p.depth), rows, strict=True):
        for level, values in zip(p.levels, row, strict=True):
            for y in range(p.first, p.last + 1):
                hit = ((b >> p.depth - level) - y - (a >> p.depth - level)) % (1 << level) == 0
                out += [v if hit else 0 for v in values]
    return out


@pytest.mark.parametrize(
    "p",
    [
        Points((1,), 0, 0, 1, 1),
        Points((5,), 0, 0, 1, 6),
        Points((6,), -5, 0, 1, 82),
        Points((3, 6), -2, 3, 3, 16),
        Points((2, 3, 5), 0, 3, 5, 40),
        Points((4, 6), 12, 15, 2, 128),
        Points((6,), -31, 32, 1, 8),
    ],
    ids=str,
)
def test_every_point_of_a_small_domain(p: Points) -> None:
    size = 1 << p.depth
    alpha, m = (t.reshape(-1) for t in torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
    payloads = uniform((len(p.levels), len(alpha), p.values), p.bits)
    assert together(alpha, m, p, payloads) == expected(alpha, m, p, payloads)


@pytest.mark.parametrize(
    "p", [Points((64,), -1, 1, 1, 64), Points(tuple(range(5, 65)), 12, 23, 4, 102), Points((40,), 0, 0, 16, 6)], ids=str
)
def test_long_points_beside_their_prefix(p: Points) -> None:
    count = 40
    alpha = Prg(new_seed()).ring((count,), p.depth)
    near = torch.randint(p.first - 1, p.last + 2, (count,)) << torch.randint(0, p.depth - p.levels[0] + 1, (count,))
    m = ring.reduce(alpha + near, p.depth)
    payloads = uniform((len(p.levels), count, p.values), p.bits)
    found = together(alpha, m, p, payloads)
    assert found == expected(alpha, m, p, payloads)
    assert sum(map(bool, found)) > count // 4


def test_a_key_alone_does_not_depend_on_the_point_nor_on_payloads() -> None:
    """All that a party gets is uniform for a fixed point and fixed payloads, and its own output too; with one root for both
    parties the corrections show the payloads."""
    p = Points((4, 7, 9), 0, 2, 3, 8)
    alpha, count = torch.full((4000,), 333), 4000
    payloads = torch.zeros((3, count, 3), dtype=torch.int64)
    prg = Prg(new_seed())
    roots = [prg.ring((count, 2)) for _ in range(2)]
    words, output = idpf.generate(alpha, roots, p, payloads)
    assert isinstance(output, Tensor)
    for level in range(p.depth):
        for word in range(2):
            for low in range(0, 64, 8):
                assert chi_square(ring.shift_right(words[level, :, word], low, 64) & 255, 256) < chi_square_limit(256)
    for level in range(3):
        for value in range(3):
            assert chi_square(output[level, :, value], 256) < chi_square_limit(256)
    for party in (0, 1):
        seen: list[Tensor] = []

        def keep(share: Words, _: slice, seen: list[Tensor] = seen) -> Words:
            seen.append(ring.reduce(share, 8))  # type: ignore[arg-type]
            return share[0, 0, :, 0]  # type: ignore[index]

        idpf.evaluate(party, roots[party], (words, output), alpha, p, keep)
        for one in torch.cat(seen, 2).movedim(2, 3).reshape(-1, count):
            assert chi_square(one, 256) < chi_square_limit(256)
    same = idpf.generate(alpha, [roots[0], roots[0]], p, payloads)[1]
    assert isinstance(same, Tensor)
    assert chi_square(same[2, :, 0], 256) > 1000


def test_keys_are_as_large_as_counted() -> None:
    p = Points((4, 9), 0, 2, 3, 20)

    async def gate(c: Context, s: Shared) -> Shared:
        x = await open_value(c, s)
        ones = torch.ones((2, x.shape.numel(), 3), dtype=torch.int64)
        return Shared(idpf.read_narrow(c, x, p, lambda: ones, lambda share, m, cut: share[0, 0, :, 0]), 20, 0)  # type: ignore

    found = run(gate, [(torch.arange(30).reshape(5, 6), 12)])
    for cost in found.costs:
        assert cost.offline_bytes == p.key_bytes(30) + 4 * HEADER_BYTES
    assert p.key_bytes(30) == 30 * 9 * 16 + 2 * 30 * 3 * 20 // 8
    assert found.costs[0].rounds == 1
    assert Points((4,), 0, 0, 1, 8).work == 4 + 1  # a node a level, and the payload


def test_keys_of_a_tape_that_is_expanded_ahead() -> None:
    x = torch.arange(300) & 63
    seeds, pieces = [new_seed(), new_seed()], [[], []]  # type: ignore[var-annotated]

    def test(c: Context, m: Tensor) -> Shared:
        lam = c.tape.random("open", (300,), 6)
        return zero_test.by_points(c, Masked(ring.reduce(m + lam, 6) if c.tape.dealing else m, lam, 6, 0), 16)

    test(Context(DealerTape(seeds, lambda i, piece: pieces[i].append(piece)), None, 2), x)
    masks = [Prg(seed).ring((300,), 6) for seed in seeds]  # both parties' parts of the mask: the test opens x itself
    total = torch.zeros(300, dtype=torch.int64)
    for party, channel in enumerate(memory_channels(2)):
        tape, store = PartyTape(seeds[party], party == 1, chunks(iter(pieces[party]))), PrecomputedValues()
        ahead = Context(PreprocessingTape(tape, store), None, 2)
        test(ahead, ahead.blank((300,)))
        online = Context(PrecomputedTape(store, channel.ledger), channel, 2)
        total += test(online, ring.reduce(x + masks[0] + masks[1], 6)).x
        assert len(store) == 0
    assert torch.equal(ring.reduce(total, 16), (x == 0).to(torch.int64))


def test_a_power_at_both_ends_of_every_octave() -> None:
    """2^p, the integers beside it, and what is a piece's edge; from the smallest low on."""
    low, high = 0, 40
    marks = torch.cat([(1 << torch.arange(high)) + d for d in (-1, 0, 1)] + [y << torch.arange(35) for y in (12, 23, 24)])
    x = marks[(marks >= 1) & (marks < 1 << high)].repeat(20)
    for exponent in (-1.0, -0.5):
        p = power.Power(low, high, exponent, significant=20 if exponent == -1.0 else 30)

        async def gate(c: Context, s: Shared, p: power.Power = p) -> Shared:
            return await power.power(c, await open_value(c, s), p)

        found = run(gate, [(x, high + 1)]).out.double() / 2.0 ** p.frac(Masked(x, x, high + 1, 0))
        error = (found - x.double() ** exponent).abs() / x.double() ** exponent
        assert error.max() < (2.0**-14 if exponent == -0.5 else 2.0**-6)  # few significant bits of the smallest results
        assert error[x < 1 << 20].max() < 2.0**-14


def test_what_incremental_points_cannot_do_is_named() -> None:
    bad = [
        (3, Points((8,), 0, 0, 1, 8), "for two parties, there are 3"),
        (2, Points((9,), 0, 0, 1, 8), "points of 9 bits cannot be read from a ring of 8 bits"),
        (2, Points((), 0, 0, 1, 8), "ascending numbers of bits"),
        (2, Points((4, 4), 0, 0, 1, 8), "ascending numbers of bits"),
        (2, Points((8,), 0, 0, 1, 129), "payloads 1 to 128"),
        (2, Points((2,), 0, 4, 1, 8), "5 points at a level of 2 bits"),
    ]
    for parties, p, words in bad:
        c = Context(CountingTape(), None, parties)
        with pytest.raises(RangeError, match=words):
            idpf.read(c, Masked(c.blank((4,)), c.blank((4,)), 8, 0), p, lambda: torch.zeros(0), lambda share, m, cut: share)


def test_what_a_power_cannot_do_is_named() -> None:
    def predicted(p: power.Power, bits: int = 48) -> None:
        async def gate(c: Context, s: Shared) -> Any:
            return await power.power(c, await open_value(c, s), p)

        predict(gate, [((3,), bits)], 2)

    for p, words in (
        (power.Power(4, 40, -2.0), "exponent must be -1 or -0.5, got -2"),
        (power.Power(9, 9, -1.0), "a range of 2.9 to 2.9 is none"),
        (power.Power(4, 48, -1.0), "a ring of 48 bits cannot hold values up to 2.48"),
        (power.Power(4, 44, -1.0), "a range of 2.4 to 2.44 is too wide"),
        (power.Power(4, 20, -1.0, bits=80), "does not fit a word"),
    ):
        with pytest.raises(RangeError, match=words):
            predicted(p)
