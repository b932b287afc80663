"""The vectors of the suite `crypten`: its own protocols, which are deterministic given tape and inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from protocols.crypten import (
    activation,
    arithmetic,
    comparison,
    masked_factors,
    maximum,
    normalisation,
    reciprocal,
    selection,
    softmax,
)
from protocols.crypten.binding.library import CryptenSession, open_session, use
from protocols.crypten.ranges import Ranges
from protocols.crypten.value import CryptenValue, CryptenWeight
from protocols.suite import Norm
from tests.vectors.cases_masked import real, some
from tests.vectors.recording import Case, Input, Output, Program, Role

Kinds = dict[str, Any]
Function = Callable[..., Sequence[Output]]


def program(f: Function, inputs: Sequence[Input]) -> Program:
    """f(session, *shares, **arguments) in a session of each role."""

    def run(role: Role, shares: Sequence[Tensor] | None, arguments: Kinds) -> Sequence[Output]:
        session = open_session(parties=role.parties, tape=role.tape, channel=role.channel, shape_only=True)
        xs = [session.without_content(g.x.shape) if shares is None else shares[i].clone() for i, g in enumerate(inputs)]
        with use(session):
            return f(session, *xs, **arguments)

    return run


def cases(
    gate: str, f: Function, inputs: Sequence[Input], arguments: Kinds | None = None, parties: Sequence[int] = (2, 3)
) -> list[Case]:
    """One protocol for several numbers of parties; it is the same for all."""
    given = arguments or {}
    words = ", ".join(f"{k} {v}" for k, v in given.items())
    names = f"crypten {gate}, {words + ', ' if words else ''}"
    return [Case(f"{names}{n} parties", f"crypten {gate}", n, inputs, program(f, inputs), given) for n in parties]


def one(x: Tensor, frac: int) -> list[Output]:
    """The only result, modulo 2^64."""
    return [Output(x, 64, frac)]


def _arithmetic() -> dict[str, list[Case]]:
    def weighted(s: CryptenSession, x: Tensor, weight: Tensor) -> Sequence[Output]:
        mask = s.tape.random("weight mask", weight.shape)
        difference = s.open(weight - s.held(mask))
        kept = CryptenWeight(weight, 16, s.party, None if s.dealing else difference, mask if s.dealing else None)
        return one(arithmetic.matmul_fixed(s, x, [kept])[0], 32)

    def cached(s: CryptenSession, x: Tensor, y: Tensor) -> Sequence[Output]:
        kept = masked_factors.mask_for_reuse(s, CryptenValue(y, 16, s.party))
        return one(masked_factors.matmul(s, CryptenValue(x, 16, s.party), kept), 32)

    def cut(s: CryptenSession, x: Tensor, y: Tensor, counts: Sequence[int]) -> Sequence[Output]:
        found = arithmetic.truncate_together(s, [(x, counts[0]), (y, counts[1])])
        return [Output(v, 64, 32 - t) for v, t in zip(found, counts, strict=True)]

    def zero(s: CryptenSession, shape: Sequence[int]) -> Sequence[Output]:
        return one(s.zero_sharing(shape), 0)

    x, y, matrix = some((2, 3), 64, 16, 24), some((3,), 64, 16, 24), some((3, 2), 64, 16, 24)
    ends = Input(torch.tensor([5, -5, 1 << 61, -(1 << 61), 0, -1]), 64, 32)
    return {
        "crypten_product": cases("mul", lambda s, x, y: one(arithmetic.mul(x, y), 32), [x, y])
        + cases("square", lambda s, x: one(arithmetic.square(x), 32), [x])
        + cases("matmul", lambda s, x, y: one(arithmetic.matmul(x, y), 32), [x, matrix])
        + cases("fixed product", weighted, [x, matrix])
        + cases("cached product", cached, [x, matrix]),
        "crypten_truncation": cases("truncate", cut, [ends, some((2, 2), 64, 32, 60)], {"counts": [16, 40]}),
        "crypten_zero_sharing": cases("zero-sharing", zero, [], {"shape": [2, 2]}),
    }


def _comparison() -> dict[str, list[Case]]:
    def bits(s: CryptenSession, x: Tensor, thresholds: Sequence[int], bits: int, drop: int) -> Sequence[Output]:
        below = comparison.less_than(s, x, thresholds, bits, drop)
        return [Output(below, 1, 0, "xor"), Output(comparison.to_arithmetic(s, below), 64, 0)]

    def chosen(s: CryptenSession, x: Tensor, thresholds: Sequence[int]) -> Sequence[Output]:
        product, as_sum = comparison.select(s, comparison.less_than(s, x, thresholds), x)
        return [Output(product, 64, 0), Output(as_sum, 64, 0)]

    def under(s: CryptenSession, x: Tensor, thresholds: Sequence[int]) -> Sequence[Output]:
        b = comparison.less_than(s, x, thresholds)
        return [Output(v, 64, 0) for v in comparison.to_arithmetic_under(s, b[0], b[1:2], b[2:])]

    def flagged(s: CryptenSession, x: Tensor, y: Tensor, limit: int) -> Sequence[Output]:
        s.ranges = Ranges(s)
        s.ranges.place = 0
        factors = [CryptenValue(v, 16, s.party) for v in (x, y)]
        product = masked_factors.mul_watched(s, *factors, ("activation", "activation"), limit)
        below = comparison.less_than(s, x, [0])
        return [Output(product, 64, 32), Output(below, 1, 0, "xor"), Output(s.ranges.words(), 64, 0, "xor")]

    small, large = real([1.5, -3.0, 900.0], 64, 16), real([1.5, -40000.0, 900.0], 64, 16)
    factor = real([0.5, 2.0, -8.0], 64, 16)
    x = Input(torch.tensor([0, -1, 5, -16000, 9000]), 64, 0)
    found = cases("less than", bits, [x], {"thresholds": [0, 6], "bits": 16, "drop": 0})
    found += cases("less than", bits, [x], {"thresholds": [0], "bits": 64, "drop": 0})
    wide = Input(torch.tensor([0, -64, 4096, -(1 << 33), 1 << 33]), 64, 0)
    found += cases("less than", bits, [wide], {"thresholds": [2048], "bits": 32, "drop": 4})
    given = {"thresholds": [-5, 0, 6]}
    return {
        "crypten_comparison": found,
        "crypten_range_flags": cases("range flags", flagged, [small, factor], {"limit": 15}, (2,))
        + cases("range flags", flagged, [large, factor], {"limit": 15}, (3,)),
        "crypten_select": cases("select", chosen, [x], {"thresholds": [0, 6]})
        + cases("bits under a condition", under, [x], given),
    }


def _functions() -> dict[str, list[Case]]:
    def moment(s: CryptenSession, x: Tensor, kind: Any, epsilon: float, bound: int) -> Sequence[Output]:
        _, inverse, bits = normalisation.rsqrt_moment(s, normalisation.Rows(x, 16, bound), Norm(kind, epsilon))
        return one(inverse, bits)

    def inverted(s: CryptenSession, x: Tensor, low: int, high: int, wanted: int) -> Sequence[Output]:
        return one(reciprocal.reciprocal(s, x, 16, low, high, wanted), wanted)

    row = real([[1.5, -0.25, 3.0, 0.125, -2.0, 0.5, 0.0, 1.0]], 64, 16)
    outlier = real([[1500.0, -0.25, 3.0, 0.125]], 64, 16)
    scores, points = real([[3.0, -2.5, 9.75, 0.5, 1.0]], 64, 16), real([-7.5, -0.7, 3.9], 64, 16)
    given = {"low": 14, "high": 24, "wanted": 30}
    rows: list[tuple[str, Input, int, tuple[int, ...]]] = [("rms", row, 12, (2,)), ("layer", outlier, 16, (3,))]
    numbers = {"gelu": (2, 3), "gelu_tanh": (2,), "silu": (3,), "relu": (2,)}
    return {
        "crypten_reciprocal": cases("reciprocal", inverted, [real([0.3, 1.0, 200.0], 64, 16)], given),
        "crypten_softmax": cases(
            "exponential",
            lambda s, x: one(softmax.exp_negative(s, x, 16), 30),
            [real([0.0, -0.5, -900.0], 64, 16)],
            parties=(2,),
        )
        + cases("softmax", lambda s, x: one(softmax.softmax(s, x, 16), 16), [scores], parties=(3,)),
        "crypten_activation": [
            c
            for kind, parties in numbers.items()
            for c in cases(
                "activation",
                lambda s, x, kind: one(activation.activation(s, x, 16, kind), 16),
                [points],
                {"kind": kind},
                parties,
            )
        ],
        "crypten_norm": [
            c
            for kind, x, bound, parties in rows
            for c in cases("norm", moment, [x], {"kind": kind, "epsilon": 2.0**-10, "bound": bound}, parties)
        ],
    }


def _selection() -> dict[str, list[Case]]:
    few = Input(torch.tensor([[5, -3, 5, 900, 0]]), 64, 0)
    marks, rows = Input(torch.tensor([[0, 1, 1, 0, 1]]), 64, 0), some((1, 5, 2), 64, 16, 30)
    return {
        "crypten_maximum": cases("maximum", lambda s, x: one(maximum.maximum(s, x), 0), [few])
        + cases("argmax", lambda s, x: one(maximum.argmax(s, x), 0), [few], parties=(3,)),
        "crypten_selection": cases(
            "top-k", lambda s, x, k, bits: one(selection.top_k(s, x, k, bits), 0), [few], {"k": 2, "bits": 12}
        )
        + cases(
            "keep largest",
            lambda s, x, k, bits: one(selection.keep_largest(s, x, k, bits), 0),
            [few],
            {"k": 2, "bits": 12},
            (3,),
        )
        + cases(
            "keep by threshold",
            lambda s, x, k, bits: one(selection._by_threshold(s, x, k, bits), 0),
            [Input(torch.tensor([[5, -3, 5, 7, 0]]), 64, 0)],
            {"k": 2, "bits": 4},
            (2,),
        )
        + cases("compaction", lambda s, x, r, k: one(selection.compact(s, x, [r], k)[0], 16), [marks, rows], {"k": 3}),
    }


def crypten_files() -> dict[str, list[Case]]:
    """File -> its cases."""
    parts = (_arithmetic, _comparison, _functions, _selection)
    return {name: found for part in parts for name, found in part().items()}
