"""Functions of the interface `Suite`, with range and bound in every suite that is checked: one entry a function.

Bounds are for the suites' default precision and for inputs with 16 fraction bits, and are stated here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from launch.measure.gates.check import INPUT_BITS, Function, Judge
from launch.measure.gates.points import absolute, best, normal, one_hot_at, relative, span
from protocols.suite import Activation, Linear, Norm

UNIT = 2.0**-INPUT_BITS
BOUND = 256.0  # |x| < 2^activation of the suite `masked`
VOCABULARY = 50_257
EPSILON = 1e-5


def _same(masked: float, crypten: float) -> Mapping[str, float]:
    return {"masked": masked, "crypten": crypten}


def _activations() -> list[Function]:
    exact: dict[Activation, tuple[Callable[[Tensor], Tensor], float, float]] = {
        "gelu": (torch.nn.functional.gelu, 2.0**-12, 2.0**-13),
        "gelu_tanh": (lambda x: torch.nn.functional.gelu(x, approximate="tanh"), 2.0**-12, 2.0**-13),
        "silu": (torch.nn.functional.silu, 2.0**-12, 2.0**-13),
        "relu": (torch.nn.functional.relu, 2.0**-14, 0.0),
    }
    out = []
    for kind, (oracle, masked, crypten) in exact.items():

        async def program(s: Any, x: Any, kind: Activation = kind) -> Any:
            return await s.activation(x, kind)

        marks = [i / 2 for i in range(-40, 41)]  # all breakpoints and thresholds of every suite are among them
        points = span(-BOUND + UNIT, BOUND - UNIT, 2.0**-14, marks)
        bounds = _same(masked, crypten)
        out.append(Function(kind, "activations", "|x| < 256", "absolute", points, absolute(oracle), program, bounds))
    return out


def _wrong_sign(inputs: Sequence[Tensor], found: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return |x| where the sign of x was not seen; infinite where the result is no bit."""
    wrong = torch.where(found[0] == (inputs[0] < 0), 0.0, inputs[0].abs())
    error = torch.where((found[0] == 0) | (found[0] == 1), wrong, float("inf"))
    return error, error


def _below_largest(inputs: Sequence[Tensor], found: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return how far the chosen value is below the largest; infinite where the result is not one-hot."""
    x, hot = inputs[0], found[0]
    one = ((hot == 0) | (hot == 1)).all(-1) & (hot.sum(-1) == 1)
    error = torch.where(one, x.amax(-1) - (x * hot).sum(-1), float("inf"))
    return error, error


def _rows(columns: int, limit: float) -> Callable[[int], Sequence[Tensor]]:
    def points(count: int) -> list[Tensor]:
        rows = max(count // columns - 3, 1)
        random = normal("rows", rows, columns) * limit / 4
        low = torch.full((1, columns), -limit + UNIT, dtype=torch.float64)
        last = low.clone()
        last[0, -1] = limit - UNIT
        return [torch.cat([random.clamp(-limit + UNIT, limit - UNIT), low, last, torch.zeros_like(low)])]

    return points


def _one_row(columns: int, limit: float) -> Callable[[int], Sequence[Tensor]]:
    def points(count: int) -> list[Tensor]:
        x = (normal("vocabulary", 1, columns) * limit / 8).clamp(-limit + UNIT, limit - UNIT)
        x[0, columns - 2] = limit - UNIT
        return [x]

    return points


def _comparisons() -> list[Function]:
    async def negative(s: Any, x: Any) -> Any:
        return await s.less_than_zero(x)

    async def largest(s: Any, x: Any) -> Any:
        return await s.max(x)

    async def place(s: Any, x: Any) -> Any:
        return await s.argmax(x)

    def sign(name: str, points: Callable[[int], Sequence[Tensor]], judge: Judge, program: Any, bounds: Any) -> Function:
        return Function(name, "comparisons", "|x| < 256", "absolute", points, judge, program, bounds)

    top = absolute(lambda x: x.amax(-1, keepdim=True))
    whole = span(-BOUND + UNIT, BOUND - UNIT, UNIT)
    return [
        sign("less than zero", whole, _wrong_sign, negative, _same(2.0**-14, 0.0)),
        sign("max of 300", _rows(300, BOUND), top, largest, _same(2.0**-14, 0.0)),
        sign("argmax of 300", _rows(300, BOUND), _below_largest, place, _same(2.0**-9, 0.0)),
        sign("argmax of 50 257", _one_row(VOCABULARY, BOUND), _below_largest, place, _same(2.0**-9, 0.0)),
    ]


def _softmaxes() -> list[Function]:
    scores: dict[str, Tensor] = {
        "softmax, 1 024 equal": torch.zeros(2, 1024),
        "softmax, 1 024 normal": normal("softmax", 4, 1024) * 3,
        "softmax, one outlier of 100": torch.cat([torch.full((1, 1), 100.0), torch.zeros(1, 1023)], 1),
        "softmax, range of 60": torch.linspace(-30, 30, 512)[None],
        "softmax, spread of 111": torch.tensor([[55.0, -56.0, 54.0, 0.0], [-120.0, -120.0, -119.5, -9.0]] * 8),
        "softmax, every bin's edges": torch.cat([torch.arange(-56, 53, 4.0)[:, None] + d for d in (-UNIT, 0, UNIT)], 1),
    }

    async def program(s: Any, x: Any) -> Any:
        return await s.softmax(x)

    judge = absolute(lambda x: torch.softmax(x, -1))
    words = "a row's spread below 112"
    bounds = _same(2.0**-11, 2.0**-11)

    def fixed(x: Tensor) -> Callable[[int], Sequence[Tensor]]:
        return lambda count: [x.to(torch.float64)]

    return [Function(name, "softmax", words, "absolute", fixed(x), judge, program, bounds) for name, x in scores.items()]


def _moment(x: Tensor, kind: str) -> Tensor:
    square = x.var(-1, unbiased=False, keepdim=True) if kind == "layer" else x.square().mean(-1, keepdim=True)
    return 1 / torch.sqrt(square + EPSILON)


def _norms() -> list[Function]:
    width = 256

    def points(smallest: float, largest: float) -> Callable[[int], Sequence[Tensor]]:
        def rows(count: int) -> list[Tensor]:
            number = max(count // width, 8)
            logs = torch.linspace(smallest, largest, number, dtype=torch.float64)
            x = normal("norm", number, width).clamp(-3.9, 3.9) * 2.0 ** logs[:, None]
            x[::3, 7] *= 4  # outliers
            return [x.clamp(-BOUND * 8 + UNIT, BOUND * 8 - UNIT)]

        return rows

    def inverse(name: str, kind: str) -> Function:
        async def program(s: Any, x: Any) -> Any:
            return await s.rsqrt_moment(x, Norm(kind, EPSILON))  # type: ignore[arg-type]

        judge = relative(lambda x: _moment(x, kind))
        words = "|x| < 2^11, deviation from 2^-5 to 2^8, width 256"
        bounds = _same(2.0**-12, 2.0**-12)
        return Function(f"{name}: 1 / deviation", "norms", words, "relative", points(-5, 8), judge, program, bounds)

    def applied(name: str, kind: str) -> Function:
        centring = torch.eye(width, dtype=torch.float64) - (1 / width if kind == "layer" else 0)

        async def program(s: Any, x: Any, w: Any) -> Any:
            (out,) = await s.norm_linear(x, Norm(kind, EPSILON), [Linear(w)])  # type: ignore[arg-type]
            return out

        judge = absolute(lambda x: x @ (torch.round(centring * 2.0**16) / 2.0**16) * _moment(x, kind))
        words = "|x| < 2^11, deviation from 2^-3 to 2^8, width 256"
        # suite masked: 1 / deviation has 18 fraction bits, so |x| 2^-18 is lost
        bounds = _same(2.0**-7 + 2.0**-11, 2.0**-12)
        return Function(name, "norms", words, "absolute", points(-3, 8), judge, program, bounds, (centring,))

    return [
        inverse("LayerNorm", "layer"),
        inverse("RMSNorm", "rms"),
        applied("LayerNorm", "layer"),
        applied("RMSNorm", "rms"),
    ]


def _selection() -> list[Function]:
    def grid(columns: int) -> Callable[[int], Sequence[Tensor]]:
        def points(count: int) -> list[Tensor]:
            rows = max(count // columns, 24)  # rounding both ends to the bound is a matter of chance
            x = (torch.round(normal("grid", rows, columns) * 8) / 4).clamp(-7.75, 7.75)
            ends = 8 - UNIT  # which a suite may round to the bound itself
            x[::2, 1], x[::2, columns // 2] = -ends, ends
            x[1::2, 1], x[1::2, columns // 2] = ends, -ends
            return [x]

        return points

    async def ranked(s: Any, x: Any) -> Any:
        return await s.top_k(x, 16, 8.0)

    async def kept(s: Any, x: Any) -> Any:
        return await s.keep_largest(x, 100, 8.0)

    async def moved(s: Any, x: Any, marks: Any) -> Any:
        return (await s.compact(await s.keep_largest(marks, 10, 2.0), [x], 10))[0]

    def rows(count: int) -> list[Tensor]:
        number = max(count // (24 * 8), 2)
        marks = torch.zeros(number, 24, dtype=torch.float64)
        marks.scatter_(1, normal("kept", number, 24).argsort(-1)[:, :10], 1.0)
        return [normal("values", number, 24, 8).clamp(-4, 4), marks]

    top = absolute(lambda x: one_hot_at(best(x, 16), x.shape[-1]))
    keep = absolute(lambda x: one_hot_at(best(x, 100), x.shape[-1]).sum(-2))
    packed = absolute(lambda x, marks: x[marks.bool()].reshape(len(x), 10, x.shape[-1]))
    words = "|x| < 8, ties"
    exact = _same(0.0, 0.0)
    return [
        Function("top-k: 16 of 48", "selection", words, "exact", grid(48), top, ranked, exact),
        Function("keep-largest: 100 of 300", "selection", words, "exact", grid(300), keep, kept, exact),
        Function(
            "compaction: 24 rows to 10", "selection", "|x| <= 4", "absolute", rows, packed, moved, _same(2.0**-14, 0.0)
        ),
    ]


def _merging() -> list[Function]:
    rows, kept, channels, most = 12, 40, 16, 30.0

    def sums(count: int) -> list[Tensor]:
        number = max(count // 8, 64)
        weights = torch.exp(torch.linspace(0, math.log(most), number, dtype=torch.float64))[:, None]
        weights = torch.round(weights * 1024) / 1024
        return [normal("means", number, 8).clamp(-7, 7) * weights, weights]

    def vectors(count: int) -> list[Tensor]:
        number = max(count // (channels * (rows + kept)), 2)
        return [normal(name, number, n, channels) * 3 for name, n in (("gone", rows), ("stays", kept))]

    async def decayed(s: Any, x: Any) -> Any:
        return await s.exp_negative(x, 16.0)

    async def averaged(s: Any, total: Any, weights: Any) -> Any:
        like = s.public(8.0, tuple(total.shape))  # no mean is larger
        return await s.averaged(await s.rounded(total), await s.rounded(weights), like, (1.0, most))

    async def unit(s: Any, x: Any, _: Any) -> Any:
        return await s.normalised(await s.mask_for_cache(x))

    async def nearest(s: Any, x: Any, y: Any) -> Any:
        return (await s.most_similar(await s.normalised(x), await s.normalised(y)))[1]

    def cosines(x: Tensor, y: Tensor) -> Tensor:
        x, y = (torch.nn.functional.normalize(z, dim=-1) for z in (x, y))
        return (x @ y.transpose(1, 2)).amax(-1)

    def entry(name: str, words: str, points: Any, judge: Judge, program: Any, bound: float) -> Function:
        return Function(name, "merging", words, "absolute", points, judge, program, _same(bound, bound))

    small = "|x| < 16"
    return [
        entry("e^-x", "0 <= x <= 16", span(0.0, 16.0, UNIT), absolute(lambda x: torch.exp(-x)), decayed, 2.0**-12),
        entry("average", "weights of 1 to 30", sums, absolute(lambda x, w: x / w), averaged, 2.0**-12),
        entry("row of length 1", small, vectors, absolute(lambda x, y: x / x.norm(dim=-1, keepdim=True)), unit, 2.0**-12),
        entry("largest cosine of 40", small, vectors, absolute(cosines), nearest, 2.0**-11),
    ]


def functions() -> list[Function]:
    """Return all functions, in the order of the table."""
    return [f for part in (_comparisons, _activations, _softmaxes, _norms, _selection, _merging) for f in part()]
