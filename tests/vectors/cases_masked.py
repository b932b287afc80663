"""The vectors of the suite `masked`: a file a gate, and every gate with two and three parties."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mpc import ring
from protocols.masked import (
    comparison,
    dealing,
    digits,
    one_hot,
    piecewise,
    power,
    product,
    tokens,
    truncation,
    veiled,
    zero_test,
)
from protocols.masked.activation import Plan, Rings, activation
from protocols.masked.context import open_value
from protocols.masked.dpf import one_hot_dpf
from protocols.masked.exponential import UNIT_BITS, UNITS
from protocols.masked.ranking import first_largest, maximum
from protocols.masked.selection_matrix import selection_matrix
from protocols.masked.shares import Masked, Shared
from protocols.masked.suite import MaskedSuite
from protocols.masked.threshold import top_k_by_threshold
from protocols.masked.top_k import ranks, top_k, top_k_indicator
from protocols.masked.weights import fixed_weight
from protocols.masked.wide import open_any
from protocols.options import MaskedOptions
from protocols.schedule import together
from protocols.suite import Norm
from tests.vectors.recording import Case, Input, Output, Program, Role, whole

Function = Callable[..., Any]
Kinds = dict[str, Any]
ACTIVATIONS = [
    ("gelu", "segments", "opened", (2, 3)),
    ("gelu", "brackets", "lifted", (2, 3)),
    ("gelu", "waves", "lifted", (2,)),
    ("gelu_tanh", "segments", "opened", (2,)),
    ("gelu_tanh", "halved digits", "opened", (2, 3)),
    ("silu", "segments", "opened", (2,)),
    ("silu", "brackets", "opened", (2,)),
    ("relu", "one step", "opened", (2,)),
    ("relu", "two steps", "lifted", (2, 3)),
]


def program(f: Function, inputs: Sequence[Input], opened: bool, options: Kinds) -> Program:
    """f(suite, *inputs, **arguments), its inputs as sharings or, with `opened`, as masked values."""

    def run(role: Role, shares: Sequence[Tensor] | None, arguments: Kinds) -> list[Output]:
        suite = MaskedSuite(parties=role.parties, tape=role.tape, channel=role.channel, options=MaskedOptions(**options))
        c = suite.context
        xs = [Shared(c.blank(g.x.shape) if shares is None else shares[i], g.bits, g.frac) for i, g in enumerate(inputs)]

        async def main() -> Any:
            values = await together(*(open_value(c, x) for x in xs)) if opened else xs
            found = f(suite, *values, **arguments)
            return await found if isinstance(found, Awaitable) else found

        found = suite.run(main())
        listed = found if isinstance(found, list | tuple) else [found]
        return [_output(suite, v) for v in listed] if shares is not None else []

    return run


def _output(suite: MaskedSuite, found: Any) -> Output:
    if isinstance(found, Tensor):
        return Output(found, 64, 0, "xor")  # range flags
    x = suite.context.shared(found) if isinstance(found, Masked) else found
    return Output(x.x, x.bits, x.frac)


def cases(
    gate: str,
    f: Function,
    inputs: Sequence[Input],
    arguments: Kinds | None = None,
    parties: Sequence[int] = (2, 3),
    opened: bool = True,
    options: Kinds | None = None,
) -> list[Case]:
    """One gate for several numbers of parties."""
    given = arguments or {}
    words = ", ".join(f"{k} {v}" for k, v in given.items())
    out = []
    for n in parties:
        name = f"{gate}, {words + ', ' if words else ''}{'/'.join(str(i.bits) for i in inputs)} bits, {n} parties"
        out.append(Case(name, gate, n, inputs, program(f, inputs, opened, options or {}), given))
    return out


def real(values: Any, bits: int, frac: int) -> Input:
    """Real numbers in fixed point."""
    return Input(torch.round(torch.tensor(values, dtype=torch.float64) * 2.0**frac).to(torch.int64), bits, frac)


def some(shape: Sequence[int], bits: int, frac: int, used: int | None = None) -> Input:
    """Arbitrary elements of a ring, or of `used` of its bits."""
    return Input(whole(shape, f"{list(shape)} {frac}", used or bits), bits, frac)


# ---- linear ----------------------------------------------------------------------------------------------------------
def _linear() -> dict[str, list[Case]]:
    async def fixed(s: MaskedSuite, weight: Shared, bits: int) -> product.FixedWeight:
        c = s.context
        return await fixed_weight(c, tuple(weight.shape), weight.x if c.evaluating else None, (weight.frac, bits))

    async def weighted(s: MaskedSuite, x: Shared, weight: Shared) -> Shared:
        kept, opened = await fixed(s, weight, 64), await open_value(s.context, x)
        if len(weight.shape) == 1:
            return product.weight_multiply(s.context, "gain", opened, kept)
        return product.weight_product(s.context, "linear", opened, kept)

    async def looked_up(s: MaskedSuite, index: Shared, table: Shared, bits: int) -> Shared:
        return await tokens.by_rows(s.context, index, await fixed(s, table, bits), bits)

    async def looked_up_by_bits(s: MaskedSuite, index: Shared, table: Shared, bits: int) -> Shared:
        return await tokens.by_bits(s.context, index, await fixed(s, table, bits), bits)

    async def behind_a_veil(s: MaskedSuite, x: Shared, y: Shared, count: int, frac: int) -> Shared:
        a, b = await open_value(s.context, x), await open_value(s.context, y)
        behind = veiled.product(s.context, "matmul", a, b, ring.matmul).times_odd(UNITS, UNIT_BITS)
        return s.context.shared(await veiled.open_cut(s.context, behind, count))

    def made_fresh(s: MaskedSuite, x: Shared) -> Shared:
        found = s.output(s.convert.new(x, s.convert.bounds.here.activation))
        return Shared(found.share, found.bits, found.fraction_bits)

    x, y = some((2, 3), 40, 12, 14), some((3,), 36, 10, 16)
    a, b = some((2, 3), 40, 12, 16), some((3, 2), 44, 10, 16)
    return {
        "opening": cases("open", lambda s, x: x, [some((5,), 13, 4)]) + cases("open", lambda s, x: x, [some((3,), 64, 16)]),
        "output": cases("output", made_fresh, [some((3,), 40, 14)], opened=False),
        "product": cases("multiply", lambda s, x, y: product.multiply(s.context, x, y), [x, y])
        + cases("matmul", lambda s, x, y: product.matmul(s.context, x, y), [a, b]),
        "veiled": cases(
            "veiled product",
            behind_a_veil,
            [some((2, 3), 46, 12, 14), some((3, 2), 50, 10, 16)],
            {"count": 20, "frac": 15},
            opened=False,
        ),
        "fixed_weight": cases("weight product", weighted, [some((2, 3), 48, 14, 18), some((3, 2), 64, 16, 16)], opened=False)
        + cases("gain", weighted, [some((2, 3), 46, 14, 18), some((3,), 64, 16, 16)], opened=False),
        "look_up": cases(
            "look up",
            looked_up,
            [Input(torch.tensor([4, 0, 1]), 64, 0), some((5, 2), 64, 16, 20)],
            {"bits": 32},
            opened=False,
        )
        + cases(
            "look up by bits",
            looked_up_by_bits,
            [Input(torch.tensor([4, 0, 1, 10, 7, 9, 3, 2]), 64, 0), some((11, 2), 64, 16, 20)],
            {"bits": 32},
            opened=False,
        ),
    }


def _truncation() -> dict[str, list[Case]]:
    async def cut(s: MaskedSuite, x: Shared, count: int, frac: int) -> Masked:
        return await truncation.open_cut(s.context, x, count)

    async def raised(s: MaskedSuite, x: Shared, count: int, bits: int, frac: int, wraps: bool) -> Shared:
        opened = await open_value(s.context, x, wraps)
        return s.context.shared(await truncation.raise_ring(s.context, opened, count, bits))

    ends = [7, -7, (1 << 41) + 5, -(1 << 42), 0, -1, 123456789]
    x = Input(torch.tensor(ends), 44, 28)
    narrow = Input(torch.tensor([7, -7, (1 << 21) + 5, -(1 << 22), 0, -1]), 24, 14)
    lift = truncation.truncate_and_lift
    return {
        "truncation": cases(
            "truncate", lambda s, x, count, frac: truncation.truncate(s.context, x, count), [x], {"count": 14, "frac": 28}
        )
        + cases("open cut", cut, [x], {"count": 14, "frac": 28}, opened=False)
        + cases("open cut", cut, [some((8,), 20, 4)], {"count": 2, "frac": 4}, opened=False)
        + cases(
            "truncate and lift",
            lambda s, x, count, bits, frac: lift(s.context, x, count, bits),
            [x],
            {"count": 14, "bits": 64, "frac": 28},
        )
        + cases(
            "truncate and lift",
            lambda s, x, count, bits, frac, offset: lift(s.context, x, count, bits, offset),
            [Input(torch.tensor([7, -7, -(1 << 28), (1 << 43) - (1 << 28) - 1]), 44, 28)],
            {"count": 14, "bits": 64, "frac": 28, "offset": 1 << 28},
            (2,),
        )
        + cases("raised ring", raised, [narrow], {"count": 6, "bits": 40, "frac": 14, "wraps": False}, opened=False)
        + cases("raised ring", raised, [narrow], {"count": 0, "bits": 40, "frac": 14, "wraps": True}, opened=False)
        + cases("lift", lambda s, x, bits: truncation.lift(s.context, x, bits), [narrow], {"bits": 64}),
    }


# ---- comparisons and lookups -----------------------------------------------------------------------------------------
def _comparison() -> dict[str, list[Case]]:
    def shaped(f: Function) -> Function:
        async def run(s: MaskedSuite, x: Masked, result: str, **arguments: Any) -> Shared:
            bit = await f(s.context, x, **arguments)
            found: Shared = bit.times(x) if result == "times" else bit.share(64)
            return found

        return run

    def edges(bits: int) -> Input:
        half = 1 << (bits - 1)
        return Input(torch.tensor([0, -1, 1, half - 1, -half, half // 3, -half // 5]), bits, 0)

    less = shaped(comparison.less_than_zero)
    numbers = {2: (2,), 8: (3,), 13: (2, 3), 20: (2,), 28: (2, 3)}
    found = [c for bits, n in numbers.items() for c in cases("less than zero", less, [edges(bits)], {"result": "bit"}, n)]
    found += cases("less than zero", less, [edges(20)], {"result": "times"})
    return {"less_than_zero": found}


def _lookup() -> dict[str, list[Case]]:
    async def by_digits(s: MaskedSuite, x: Masked, widths: Sequence[int]) -> list[Masked]:
        return await digits.exact_digits(s.context, x, widths)

    async def matrix(s: MaskedSuite, x: Shared, k: int, bits: int) -> Shared:
        return await selection_matrix(s.context, x, k, bits)

    table = cases(
        "one-hot by table",
        lambda s, x, width, bits: one_hot.one_hot_table(s.context, x, 0, width, bits),
        [Input(torch.tensor([0, 5, -1]), 4, 0)],
        {"width": 4, "bits": 20},
    )
    keys = []
    for width, bits in ((5, 64), (6, 30), (7, 11)):
        keys += cases(
            "one-hot by point functions",
            lambda s, x, width, bits: one_hot_dpf(s.context, x, 0, width, bits),
            [Input(torch.tensor([3, -2]), width, 0)],
            {"width": width, "bits": bits},
            parties=(2,),
        )

    def cheaper(s: MaskedSuite, x: Masked, width: int, bits: int) -> Shared:
        """sum_v v e_v: the digit in another ring."""
        hot = dealing.one_hot(s.context, x, 0, width, bits)
        return hot.map(lambda t: (t * torch.arange(1 << width)).sum(-1) if isinstance(t, Tensor) else t.sum(-1))

    many = Input(torch.arange(-8, 8) * 63, 10, 0)
    chosen = cases("one-hot, the cheaper way", cheaper, [many], {"width": 10, "bits": 64})
    zeros = []
    for width, bits in ((5, 9), (24, 6), (40, 64)):
        zeros += cases(
            "zero test by points",
            lambda s, x, bits: zero_test.by_points(s.context, x, bits),
            [real([0, 3, -1], width, 0)],
            {"bits": bits},
            parties=(2,),
        )
    zeros += cases(
        "zero test by table",
        lambda s, x, bits: zero_test.by_table(s.context, x, bits),
        [real([0, 3, -1], 4, 0)],
        {"bits": 7},
    )
    flags = torch.tensor([0, 1, 0, 0, 1, 1, 0, 0])
    return {
        "one_hot": table + keys + chosen + zeros,
        "digits": cases("digits", by_digits, [some((4,), 17, 0)], {"widths": [6, 6, 5]}),
        "selection_matrix": cases("selection matrix", matrix, [Input(flags, 6, 0)], {"k": 3, "bits": 20}, opened=False),
    }


# ---- functions -------------------------------------------------------------------------------------------------------
def _functions() -> dict[str, list[Case]]:
    def polynomial(s: MaskedSuite, x: Masked, kind: str) -> Shared:
        return piecewise.evaluate(s.context, piecewise.normalised_power(float(kind.split()[1])), x, 44, 26)

    async def active(s: MaskedSuite, x: Masked, kind: str, curve: Any, result: Any, wanted: int) -> Shared:
        plan = Plan(Rings(x.frac, x.bits - int(curve == "waves"), wanted), curve, result)
        found = await activation(s.context, x, kind, plan)
        excess = found.frac - x.frac
        if excess == 0:
            assert isinstance(found, Shared)
            return found
        return s.context.shared(await open_any(s.context, found.to_ring(plan.left + excess), excess))

    async def powered(s: MaskedSuite, x: Masked, lowest: int, highest: int, exponent: float) -> Shared:
        return await power.power(s.context, x, power.Power(lowest, highest, exponent))

    curves = [
        c
        for kind in ("power -1", "power -0.5")
        for c in cases("piecewise polynomial", polynomial, [real([0.25, 0.7, 0.99], 19, 18)], {"kind": kind})
    ]
    points, small = real([-200.5, -0.7, 3.9], 24, 14), real([-11.9, 0.3, 23.9], 21, 14)
    inverse = {"lowest": 12, "highest": 20}
    return {
        "piecewise": curves,
        "activation": [
            c
            for kind, curve, result, parties in ACTIVATIONS
            for c in cases(
                "activation",
                active,
                [small if curve == "waves" else points],
                {"kind": kind, "curve": curve, "result": result, "wanted": 50},
                parties,
            )
        ],
        "power": [
            c
            for exponent in (-1.0, -0.5)
            for c in cases(
                "power", powered, [Input(torch.tensor([4097, (1 << 20) - 1]), 24, 10)], {**inverse, "exponent": exponent}
            )
        ],
    }


def _rows() -> dict[str, list[Case]]:
    async def moment(s: MaskedSuite, x: Shared, kind: Any, epsilon: float, **_: Any) -> list[Any]:
        found = await s.rsqrt_moment(s.convert.new(x, s.convert.bounds.here.residual + 2), Norm(kind, epsilon))
        return [found.as_shared(), s.flags()]

    def flags(s: MaskedSuite, x: Masked, limit: float, signed_value: bool, width: int) -> Any:
        s.convert.ranges.check("activation", x, limit, signed_value, width)
        return s.convert.ranges.take()

    row = real([[1.5, -0.25, 3.0, 0.125, -2.0, 0.5, 0.0, 1.0]], 64, 16)
    norms, within = [], {"limit": 16.0, "signed_value": True, "width": 5}
    for kind, prefer in (("rms", "bytes"), ("layer", "auto")):
        bounds: Kinds = {"residual": 5, "activation": 8, "prefer": prefer}
        given = {"kind": kind, "epsilon": 2.0**-10, "frac": 14, **bounds}
        norms += cases("norm", moment, [row], given, opened=False, options=bounds)
    return {
        "norm": norms,
        "range_flags": cases("range flags", flags, [real([3.5, -15.75, 9.0], 20, 14)], within)
        + cases("range flags", flags, [real([3.5, -20.0, 9.0], 20, 14)], within),
    }


# ---- orders and rows -------------------------------------------------------------------------------------------------
def _orders() -> dict[str, list[Case]]:
    async def chosen(s: MaskedSuite, x: Masked, k: int, bits: int, order: Any) -> Shared:
        if order == "indicator":
            return await top_k_indicator(s.context, x, k, bits)
        return await top_k(s.context, x, k, bits, order)

    async def ranked(s: MaskedSuite, x: Masked) -> Masked:
        return await ranks(s.context, x)

    async def threshold(s: MaskedSuite, x: Masked, k: int, bits: int, digit_bits: int) -> Shared:
        return await top_k_by_threshold(s.context, x, k, bits, digit_bits)

    top, first = (lambda s, x, g=g, **how: g(s.context, x, *how.values()) for g in (maximum, first_largest))

    async def position(s: MaskedSuite, x: Shared, bits: int, magnitude: int) -> Shared:
        return (await s.argmax(s.convert.new(x, magnitude))).as_shared()

    few = Input(torch.tensor([[5, -3, 5, 900, 0, -900]]), 12, 0)
    many = Input(torch.tensor([[5, -3, 5, 200, 0, -200, 7, 5, 5]]), 10, 0)
    more, twenty = Input(torch.tensor([[*range(-8, 5), 9, 9, -511, 6]]), 12, 0), Input(torch.arange(20)[None] * 7 % 20, 7, 0)
    seven = Input(torch.tensor([[4, 77, -3, 8, 77, -511, 6]]), 12, 0)
    return {
        "top_k": cases("ranks", ranked, [few])
        + [
            c
            for order in ("value", "position", "indicator")
            for c in cases("top-k", chosen, [few], {"k": 2, "bits": 24, "order": order})
        ],
        "threshold": cases("top-k by threshold", threshold, [many], {"k": 4, "bits": 16, "digit_bits": 3}),
        "ranking": [
            c
            for groups in ([7], [3, 3])
            for c in cases("maximum", top, [seven], {"reach": 511, "groups": groups})
            + cases("first largest", first, [seven], {"reach": 511, "groups": groups, "bits": 20})
        ]
        + cases("first largest", first, [more], {"reach": 511, "groups": [2, 4, 3], "bits": 20}, parties=(2,))
        + cases("first largest", first, [twenty], {"reach": 20, "groups": [17, 2], "bits": 20}, parties=(2,)),
        "argmax": cases(
            "argmax", position, [real([[1.5, -3.0, 4.25, 4.0]], 64, 16)], {"bits": 32, "magnitude": 8}, opened=False
        ),
    }


def masked_files() -> dict[str, list[Case]]:
    """File -> its cases."""
    parts = (_linear, _truncation, _comparison, _lookup, _functions, _rows, _orders)
    return {name: found for part in parts for name, found in part().items()}
