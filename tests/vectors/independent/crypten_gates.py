"""The suite `crypten`: its protocols and functions by the names that vectors call them, and what results must be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.vectors.independent import crypten, crypten_functions, crypten_ranges, leaving, linear
from tests.vectors.independent.curves import REAL
from tests.vectors.independent.results import Judge, by_rank, close, exact, hots, softmax_of
from tests.vectors.independent.world import Masked, Shared, Steps, World

UNIT = 2.0**-16  # of the suite's default precision


def _raw(f: Callable[..., Steps], frac: Callable[..., int]) -> Callable[..., Steps]:
    """f on shares [parties, ...]; frac: of the result, from the inputs' and the arguments."""

    def program(w: World, *xs: Shared, **arguments: Any) -> Steps:
        found = yield from f(w, *(x.x for x in xs), **arguments)
        return Shared(found, 64, frac(*(x.frac for x in xs), **arguments))

    return program


def _truncate(w: World, x: Shared, y: Shared, counts: Sequence[int]) -> Steps:
    found = yield from crypten.truncate_together(w, [(x.x, counts[0]), (y.x, counts[1])])
    return [Shared(v, 64, g.frac - t) for v, g, t in zip(found, (x, y), counts, strict=True)]


def _bits(w: World, x: Shared, thresholds: Sequence[int], bits: int, drop: int) -> Steps:
    """[x < threshold] as XOR shares, then as additive ones."""
    below = yield from crypten.less_than(w, x.x, thresholds, bits, drop)
    return [below, Shared((yield from crypten.to_arithmetic(w, below)), 64, 0)]


def _chosen(w: World, x: Shared, thresholds: Sequence[int]) -> Steps:
    below = yield from crypten.less_than(w, x.x, thresholds, 64)
    product, as_sum = yield from crypten.select(w, below, x.x)
    return [Shared(product, 64, x.frac), Shared(as_sum, 64, 0)]


def _under(w: World, x: Shared, thresholds: Sequence[int]) -> Steps:
    below = yield from crypten.less_than(w, x.x, thresholds, 64)
    one, masked, others = yield from crypten.to_arithmetic_under(w, below[:, 0], below[:, 1:2], below[:, 2:])
    return [Shared(v, 64, 0) for v in (one, masked, others)]


def _fixed(w: World, x: Shared, weight: Shared) -> Steps:
    difference, mask = yield from crypten.keep(w, "weight mask", weight.x)
    found = yield from crypten.matmul_fixed(w, x.x, weight.x, difference, mask)
    return Shared(found, 64, x.frac + weight.frac)


def _cached(w: World, x: Shared, y: Shared) -> Steps:
    difference, _ = yield from crypten.keep(w, "cache mask", y.x)
    opened, own = yield from crypten.keep(w, "factor mask", x.x)
    rest = -y.x  # a cached value's mask is shared as what its own shares leave of it
    rest[0] += difference
    left, right = Masked(opened, -own, 64, x.frac), Masked(difference, rest, 64, y.frac)
    return linear.product(w, "cached product", left, right, np.matmul)


def _norm(w: World, x: Shared, kind: str, epsilon: float, bound: int) -> Steps:
    found, bits = yield from crypten_functions.norm(w, x.x, x.frac, kind, epsilon, bound)
    return Shared(found, 64, bits)


def _with_frac(f: Callable[..., Steps]) -> Callable[..., Steps]:
    """f(w, x, fraction bits, ...) with the same fraction bits in and out."""

    def program(w: World, x: Shared, **arguments: Any) -> Steps:
        return Shared((yield from f(w, x.x, x.frac, **arguments)), 64, x.frac)

    return program


def _reciprocal(w: World, x: Shared, low: int, high: int, wanted: int) -> Steps:
    return Shared((yield from crypten_functions.reciprocal(w, x.x, x.frac, low, high, wanted)), 64, wanted)


def _exp(w: World, x: Shared) -> Steps:
    return Shared((yield from crypten_functions.exp_negative(w, x.x, x.frac)), 64, 30)


# ---- what results must be --------------------------------------------------------------------------------------------
def _less(x: np.ndarray, thresholds: Sequence[int]) -> np.ndarray:
    return (x < np.array(thresholds).reshape(-1, *[1] * x.ndim)).astype(float)


def _judge_bits(x: np.ndarray, thresholds: Sequence[int], bits: int, drop: int) -> Any:
    return [exact(-_less(x, thresholds)), exact(_less(x, thresholds))]  # one bit, read as signed: -1 where it is set


def _judge_under(x: np.ndarray, thresholds: Sequence[int]) -> Any:
    b = _less(x, thresholds)
    return [exact(b[0]), exact(b[:1] * b[1:2]), exact(b[2:])]


def _judge_norm(x: np.ndarray, kind: str, epsilon: float, bound: int) -> Any:
    centred = x - x.mean(-1, keepdims=True) if kind == "layer" else x
    value = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return close(value, 5e-5 * value)


def _judge_exp(x: np.ndarray) -> Any:
    value = np.exp(x)
    return close(value, np.where(x > -1, 3e-7 * value, np.where(x > -8, 2e-5 * value, 1e-8)))


def _judge_truncate(x: np.ndarray, y: np.ndarray, counts: Sequence[int]) -> Any:
    return [close(v, 2.0 ** (t - 32)) for v, t in zip((x, y), counts, strict=True)]  # 32 fraction bits in


def _marks(x: np.ndarray, k: int, bits: int) -> Any:
    return exact(hots(by_rank(x)[..., :k], x.shape[-1]).sum(-2))


def _summed(a: int, b: int) -> int:
    return a + b


def _same(a: int, *_: int, **__: Any) -> int:
    return a


def _none(*_: int, **__: Any) -> int:
    return 0


def _zero(w: World, shape: Sequence[int]) -> Steps:
    return Shared((yield from crypten.zero_sharing(w, shape)), 64, 0)


f = crypten_functions
CRYPTEN: dict[str, tuple[Callable[..., Steps], Judge]] = {
    "crypten zero-sharing": (_zero, lambda shape: exact(np.zeros(shape))),
    "crypten range flags": (crypten_ranges.program, crypten_ranges.judge),
    "crypten mul": (_raw(crypten.mul, _summed), lambda x, y: exact(x * y)),
    "crypten square": (_raw(crypten.square, lambda a: 2 * a), lambda x: exact(x * x)),
    "crypten matmul": (_raw(crypten.matmul, _summed), lambda x, y: exact(x @ y)),
    "crypten fixed product": (_fixed, lambda x, y: exact(x @ y)),
    "crypten cached product": (_cached, lambda x, y: exact(x @ y)),
    "crypten truncate": (_truncate, _judge_truncate),
    "crypten floor": (leaving.crypten_cut, lambda x, count: leaving.floored(x, 36 - count)),
    "crypten released": (leaving.crypten_released, lambda x: leaving.floored(x, 16)),
    "crypten perturbed": (leaving.crypten_perturbed, leaving.judge_perturbed),
    "crypten less than": (_bits, _judge_bits),
    "crypten select": (_chosen, lambda x, thresholds: [exact(_less(x, thresholds) * x), exact(_less(x, thresholds))]),
    "crypten bits under a condition": (_under, _judge_under),
    "crypten maximum": (
        _raw(lambda w, x: f.maximum(w, x), _same),
        lambda x: exact(x.max(-1, keepdims=True)),
    ),
    "crypten argmax": (_raw(f.argmax, _none), lambda x: exact(hots(np.argmax(x, -1), x.shape[-1]))),
    "crypten reciprocal": (_reciprocal, lambda x, **_: close(1 / x, 2.0**-24 / x + 2.0**-30)),
    "crypten exponential": (_exp, _judge_exp),
    "crypten softmax": (_with_frac(f.softmax), lambda x: close(softmax_of(x), 5e-5)),
    "crypten activation": (_with_frac(f.activation), lambda x, kind: close(REAL[kind](x), 1.2e-4 + 2 * UNIT)),
    "crypten norm": (_norm, _judge_norm),
    "crypten top-k": (_raw(f.top_k, _none), lambda x, k, bits: exact(hots(by_rank(x)[..., :k], x.shape[-1]))),
    "crypten keep largest": (_raw(f.keep_largest, _none), _marks),
    "crypten keep by threshold": (_raw(f.by_threshold, _none), _marks),
    "crypten compaction": (
        _raw(f.compact, lambda a, b, k: b),
        lambda marks, x, k: exact(x[marks > 0].reshape(len(x), k, -1)),
    ),
}
