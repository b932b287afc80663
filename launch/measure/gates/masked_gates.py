"""Every gate of the suite `masked` with its range and bound: one entry a gate.

Bounds are stated here and nowhere else; docs/gates.md is generated from them. A value outside a range wraps: the ring is the
range, and what the gate gives then is some number of the ring.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from launch.measure.gates.check import Gate
from launch.measure.gates.points import absolute, best, normal, one_hot_at, relative, span, whole_ring
from protocols.masked import activation, comparison, exponential, power, soft_cap, truncation, zero_test, zero_words
from protocols.masked.compaction import Method, compact
from protocols.masked.context import Context
from protocols.masked.dpf import one_hot_dpf
from protocols.masked.one_hot import one_hot_table
from protocols.masked.partitioning import partition
from protocols.masked.scan import copy_scan
from protocols.masked.shares import Masked, Shared
from protocols.masked.shuffle import shuffle
from protocols.masked.threshold import top_k_by_threshold
from protocols.masked.top_k import top_k
from protocols.masked.wide import open_any

FRAC = 14  # the suite's default
UNIT = 2.0**-FRAC
OUT = 64
WIDE = 44


def _truncation() -> list[Gate]:
    cut = 14

    async def truncate(c: Context, x: Masked) -> Shared:
        return c.shared(truncation.truncate(c, x, cut))

    async def floor(c: Context, x: Masked) -> Shared:
        return await truncation.floor(c, x, truncation.truncate(c, x, cut))

    async def truncate_and_lift(c: Context, x: Masked) -> Shared:
        return truncation.truncate_and_lift(c, x, cut, OUT)

    async def lift(c: Context, x: Masked) -> Shared:
        return truncation.lift(c, x, OUT)

    top = 2.0 ** (44 - 1 - 28)
    half = 2.0 ** (44 - 2 - 28)
    fine = 2.0**-28
    same = absolute(lambda x: x)
    down = absolute(lambda x: torch.floor(x / UNIT) * UNIT)
    words = "the whole ring but its last unit"
    quarter = "|x| < 2^(bits - 2) ring units"
    ends = span(-half, half - fine, fine)
    narrow = span(-256.0, 256.0 - UNIT, UNIT)
    return [
        Gate("truncation", "truncation", words, "absolute", span(-top, top - UNIT, fine), same, truncate, UNIT, 44, 28),
        Gate("exact floor", "truncation", words, "exact", span(-top, top - UNIT, fine), down, floor, 0.0, 44, 28),
        Gate("truncation and lift", "truncation", quarter, "absolute", ends, same, truncate_and_lift, UNIT, 44, 28),
        Gate("lift", "truncation", quarter, "exact", narrow, same, lift, 0.0, 24, FRAC),
    ]


def _comparison() -> list[Gate]:
    async def negative(c: Context, x: Masked) -> Shared:
        return (await comparison.less_than_zero(c, x)).share(OUT)

    found = [
        Gate(
            f"less than zero, {bits} bits",
            "comparison",
            "the whole ring",
            "exact",
            whole_ring(bits),
            absolute(lambda x: x < 0),
            negative,
            0.0,
            bits,
            0,
        )
        for bits in (2, 8, 9, 16, 17, 24, 25, 32)
    ]
    return [*found, _zero_test(7, zero_test.by_table), *(_zero_test(bits, zero_test.by_points) for bits in (7, 24, 40))]


def _zero_test(bits: int, way: Callable[[Context, Masked, int], Shared]) -> Gate:
    """Return the gate on zero, small numbers, and what differs from zero in one bit."""

    async def program(c: Context, x: Masked) -> Shared:
        return way(c, x, OUT)

    def points(count: int) -> list[Tensor]:
        single = -(2.0 ** torch.arange(bits, dtype=torch.float64))  # -2^(bits - 1) is the ring's smallest
        near = torch.arange(-(count // 4), count // 4, dtype=torch.float64).clamp(
            -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
        )
        return [torch.cat([single, near, torch.zeros(max(count // 4, 1), dtype=torch.float64)])]

    by, parties = ("point function", 2) if way is zero_test.by_points else ("table", None)
    name, judge = f"zero test by {by}, {bits} bits", absolute(lambda x: x == 0)
    return Gate(name, "comparison", "the whole ring", "exact", points, judge, program, 0.0, bits, 0, parties)


CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "silu": torch.nn.functional.silu,
    "relu": torch.relu,
}


def _activations() -> list[Gate]:
    """Every form: of the curve, and of a result that is wanted in 50 bits."""
    out = []
    for kind, oracle in CURVES.items():
        edges = {"gelu": 12, "gelu_tanh": 12, "silu": 20, "relu": 1}[kind]  # what is curved, and a bracket's unit beside it
        for least in (24, 21):
            limit = 3 * 2.0 ** (least - FRAC - 3)
            for plan in activation.plans(kind, activation.Rings(FRAC, least, 50)):
                if (plan.curve == "waves") == (least == 24):
                    continue

                async def program(c: Context, x: Masked, kind: str = kind, plan: activation.Plan = plan) -> Shared:
                    found = await activation.activation(c, x, kind, plan)
                    excess = found.frac - FRAC
                    opened = await open_any(c, found.to_ring(plan.left + excess), excess)
                    return truncation.truncate_and_lift(c, opened, 0, OUT, 1 << FRAC)

                name = f"{kind}, {plan.curve}, {plan.result}"
                breaks = [e / 4 for e in range(-4 * edges, 4 * edges + 1)]
                bound = 0.0 if kind == "relu" else 2.0**-12
                points = span(-limit, limit, UNIT, breaks)
                words = f"|x| <= {limit:g}"
                rings = (plan.x_bits, FRAC)
                gate = Gate(name, "activation", words, "absolute", points, absolute(oracle), program, bound, *rings)
                out.append(replace(gate, meaning="exact") if kind == "relu" else gate)
    return out


def _soft_cap() -> list[Gate]:
    cap, period = 50.0, 11

    async def program(c: Context, x: Masked) -> Shared:
        found = soft_cap.soft_cap(c, x, cap, period, OUT)
        assert isinstance(found, Shared)
        return found

    limit = 2.0 ** (period - 2)
    judge = absolute(lambda x: cap * torch.tanh(x / cap))
    points = span(-limit, limit - UNIT, UNIT, [0.0, cap, -cap])
    return [Gate("soft cap of 50", "soft_cap", "|x| < 512", "absolute", points, judge, program, 2.0**-12, 25, FRAC)]


def _lookup() -> list[Gate]:
    def hot(width: int) -> Callable[[Tensor], Tensor]:
        return lambda x: one_hot_at(x.long() & ((1 << width) - 1), 1 << width)

    def table(width: int) -> Callable[[Context, Masked], Any]:
        async def program(c: Context, x: Masked) -> Shared:
            return one_hot_table(c, x, 0, width, 32)

        return program

    def keys(width: int) -> Callable[[Context, Masked], Any]:
        async def program(c: Context, x: Masked) -> Shared:
            return one_hot_dpf(c, x, 0, width, 32)

        return program

    def entry(name: str, width: int, program: Callable[[Context, Masked], Any], parties: int | None) -> Gate:
        points = whole_ring(width)
        judge = absolute(hot(width))
        return Gate(
            f"{name}, {width} bits", "lookup", "the whole ring", "exact", points, judge, program, 0.0, width, 0, parties
        )

    return [
        *(entry("one-hot by truth table", width, table(width), None) for width in (4, 8)),
        *(entry("one-hot by point function", width, keys(width), 2) for width in (8, 10)),
    ]


def _ranked(columns: int, frac: int, limit: float) -> Callable[[int], Sequence[Tensor]]:
    """Return rows of random values, of both ends, of ties, of equal values, of ascending ones."""

    def points(count: int) -> list[Tensor]:
        rows = max(count // columns - 5, 1)
        random = normal("ranked", rows, columns).clamp(-3, 3) / 3 * limit
        ends = torch.tensor([limit, -limit], dtype=torch.float64).repeat(columns)[:columns]
        ties = torch.round(normal("ties", 2, columns)) * 2.0**-frac
        rising = torch.linspace(-limit, limit, columns, dtype=torch.float64)
        equal = torch.zeros(columns, dtype=torch.float64)
        return [torch.cat([random, ends[None], ties, rising[None], equal[None]])]

    return points


def _selection() -> list[Gate]:
    async def by_value(c: Context, x: Masked) -> Shared:
        return await top_k(c, x, 16, OUT)

    async def by_position(c: Context, x: Masked) -> Shared:
        return await top_k(c, x, 16, OUT, "position")

    def by_threshold(k: int, digit: int) -> Callable[[Context, Masked], Any]:
        async def program(c: Context, x: Masked) -> Shared:
            return await top_k_by_threshold(c, x, k, 16, digit)

        return program

    bits, frac = 20, 8
    limit = 2.0 ** (bits - 2 - frac) - 2.0**-frac
    limits = "|x| < 2^(bits - 2) ring units, ties to the earlier"
    words, long = f"16 of 64, {limits}", f"300 of 1 024, {limits}"
    few, many = _ranked(64, frac, limit), _ranked(1024, frac, limit)
    values = absolute(lambda x: one_hot_at(best(x, 16), x.shape[-1]))
    places = absolute(lambda x: one_hot_at(best(x, 16).sort(-1).values, x.shape[-1]))
    marks = absolute(lambda x: one_hot_at(best(x, 300), x.shape[-1]).sum(-2))
    return [
        Gate("top-k by ranks, by value", "selection", words, "exact", few, values, by_value, 0.0, bits, frac),
        Gate("top-k by ranks, by position", "selection", words, "exact", few, places, by_position, 0.0, bits, frac),
        *(
            Gate(
                f"top-k by threshold, digits of {digit}",
                "selection",
                long,
                "exact",
                many,
                marks,
                by_threshold(300, digit),
                0.0,
                bits,
                frac,
            )
            for digit in (4, 6, 8)
        ),
    ]


def _powers() -> list[Gate]:
    low, frac = 20, 28

    def entry(name: str, exponent: float, high: int, bound: float) -> Gate:
        async def program(c: Context, x: Masked) -> Shared:
            return await power.power(c, x, power.Power(low, high, exponent))

        def points(count: int) -> list[Tensor]:
            logs = torch.linspace(low - frac, high - frac, max(count, 2), dtype=torch.float64)
            marks = 2.0 ** torch.arange(low - frac, high - frac + 1, dtype=torch.float64)
            beside = torch.cat([marks, marks - 2.0**-frac, marks + 2.0**-frac, marks * 0.985]).repeat(8)
            return [torch.cat([2.0**logs, beside]).clamp(2.0 ** (low - frac), 2.0 ** (high - frac) - 2.0**-frac)]

        words = f"2^{low - frac} <= x < 2^{high - frac}"
        return Gate(
            name, "powers", words, "relative", points, relative(lambda x: x**exponent), program, bound, high + 4, frac
        )

    return [entry("reciprocal", -1.0, 48, 2.0**-14), entry("reciprocal square root", -0.5, 52, 2.0**-14)]


def _exponential() -> list[Gate]:
    frac, ring_bits = 28, 62

    async def by_window(c: Context, x: Masked) -> Shared:
        return c.shared(await exponential.by_window(c, x, frac, ring_bits))

    async def by_bits(c: Context, x: Masked) -> Shared:
        return c.shared(await exponential.by_bits(c, x, frac, ring_bits))

    def entry(name: str, highest: float, program: Any, parties: int | None) -> Gate:
        points = span(-192.0, highest - UNIT, UNIT, [float(x) for x in range(-192, int(highest), 4)])
        judge = relative(lambda x: torch.exp2(1.5 * x), 2.0**-12)
        words = f"-192 <= x < {highest:g}; relative to 2^(3/2 x) + 2^-12"
        return Gate(name, "softmax", words, "relative", points, judge, program, 2.0**-14, 8 + FRAC, FRAC, parties)

    return [entry("2^(3/2 x), window", 0.0, by_window, None), entry("2^(3/2 x), one-hot bits", -4.0, by_bits, 2)]


def _zero_words() -> list[Gate]:
    judge = absolute(lambda x: x == 0)
    found = []
    for way, rounds in (("one", "one round"), ("two", "two rounds")):

        async def program(c: Context, x: Masked, way: Any = way) -> Shared:
            return await zero_words.zero_words(c, x, way, 7)

        name = f"x = 0, 30 bits, {rounds}"
        found.append(Gate(name, "softmax", "the whole ring", "exact", whole_ring(30), judge, program, 0.0, 30, 0))
    return found


def _rows() -> list[Gate]:
    columns, count, kept = 8, 64, 40

    def table(points: int) -> Tensor:
        batch = max(points // (count * columns), 1)
        line = torch.arange(count, dtype=torch.float64)[:, None] + count * torch.arange(columns)
        return line.expand(batch, count, columns).contiguous()

    def marks(batch: int) -> Tensor:
        out = torch.zeros(batch, count, dtype=torch.float64)
        out.scatter_(1, normal("marks", batch, count).argsort(-1)[:, :kept], 1.0)
        out[0] = (torch.arange(count) >= count - kept).to(torch.float64)
        return out

    async def moved(c: Context, x: Masked) -> Shared:
        (out,) = await shuffle(c, [x], 1)
        return out

    def judge_shuffle(inputs: Sequence[Tensor], found: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Judge whole rows, each once: the first column names a row, the others must follow from it."""
        first = found[0][..., :1]
        whole = first + count * torch.arange(columns)
        error = torch.cat(
            [(found[0] - whole).abs().reshape(-1), (first.sort(1).values - inputs[0][..., :1]).abs().reshape(-1)]
        )
        return error, error

    def by(name: str, what: str, move: Callable[..., Awaitable[list[Shared]]], oracle: Callable[..., Tensor]) -> list[Gate]:
        def gate(method: Method) -> Gate:
            async def program(c: Context, x: Masked, mark: Masked) -> Shared:
                (out,) = await move(c, mark, [x], kept, method)
                return out

            def points(wanted: int) -> list[Tensor]:
                x = table(wanted)
                return [x, marks(len(x))]

            return Gate(f"{name} by {method}", "rows", what, "exact", points, absolute(oracle), program, 0.0, 40, 0)

        return [gate("shuffle"), gate("matrix")]

    def chosen(x: Tensor, mark: Tensor, one: int = 1) -> Tensor:
        return x[mark == one].reshape(len(x), -1, columns)

    def split(x: Tensor, mark: Tensor) -> Tensor:
        return torch.cat([chosen(x, mark), chosen(x, mark, 0)], 1)

    return [
        Gate(
            "shuffle", "rows", f"{count} rows, any values", "exact", lambda n: [table(n)], judge_shuffle, moved, 0.0, 40, 0
        ),
        *by("compaction", f"{count} rows to {kept}, exactly so many marks", compact, chosen),
        *by("partition", f"{count} rows, {kept} marked ones in front", partition, split),
    ]


def _scan() -> Gate:
    count = 64

    async def program(c: Context, x: Masked, mark: Masked) -> Shared:
        return await copy_scan(c, c.shared(mark), c.shared(x))

    def points(wanted: int) -> list[Tensor]:
        marks = (torch.arange(count * count).reshape(count, count) * 2654435761 >> 7) % 5 == 0
        return [torch.arange(-31.0, 33.0) * marks, marks.to(torch.float64)]

    def oracle(x: Tensor, mark: Tensor) -> Tensor:
        last = (mark * torch.arange(1, count + 1)).cummax(-1).values.long()
        return torch.nn.functional.pad(x, (1, 0)).gather(-1, last)

    words = f"rows of {count}, any values"
    return Gate("copying along a row", "scan", words, "exact", points, absolute(oracle), program, 0.0, 8, 0)


def masked_gates() -> list[Gate]:
    """Return all gates, in the order of the table."""
    curves = (_activations, _soft_cap, _powers, _exponential)
    parts = (_truncation, _comparison, *curves[:2], _lookup, _selection, *curves[2:], _zero_words, _rows)
    return [*(gate for part in parts for gate in part()), _scan()]
