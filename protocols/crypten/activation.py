"""GELU (both forms), SiLU and ReLU over the whole range of a transformer.

CrypTen's tanh fails beyond 263, its erf everywhere. Here x is compared with a few thresholds; inside, x/2 plus an even
polynomial in x^2; outside, 0 or x; for SiLU, whose tails are long, one more polynomial in |x| in between.

| function | largest error on [-2^15, 2^15] | rounds | bytes per element |
| --- | --- | --- | --- |
| gelu, gelu_tanh | 2.7e-4 | 15 | 132 |
| silu | 3.2e-4 | 17 | 219 |
| relu | 0 (exact) | 8 | 40 |

Coefficients are minimax fits, written out so that all parties hold the same; rounding adds up to 2 units in the last place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mpc.crypten_binding import CryptenSession
from protocols.crypten import comparison
from protocols.crypten.arithmetic import mul, square, truncate
from protocols.suite import Activation

COMPARED_BITS = 12  # fraction bits in which x is compared with the thresholds
POWER_BITS = 20
COEFFICIENT_BITS = 18


@dataclass(frozen=True)
class Tail:
    """relu(x) - f(x) as a polynomial in (|x| - centre) / 4 on inner <= |x| < outer; f(x) is relu(x) beyond."""

    outer: int
    centre: float
    coefficients: tuple[float, ...]


@dataclass(frozen=True)
class Fit:
    """f(x) - x/2 as a polynomial of degree 7 in x^2 / 2^scale - 1 for |x| < inner."""

    inner: int
    scale: int
    coefficients: tuple[float, ...]
    tail: Tail | None = None


_GELU = (1.407768457, 0.732611139, -0.232284319, 0.157012716, -0.090487499, 0.066357284, -0.08499678, 0.043840399)
_GELU_TANH = (1.408246496, 0.732240697, -0.234001651, 0.160064149, -0.088886118, 0.061706502, -0.085322649, 0.045825615)
_SILU = (1.92788814, 1.104485606, -0.333465434, 0.203763593, -0.173121379, -0.027786805, 0.060527658, 0.201179942)
_SILU_TAIL = (0.001808774, -0.00482593, 0.009236937, -0.018334263, 0.013466663)

FITS: dict[str, Fit] = {
    "gelu": Fit(4, 3, _GELU),
    "gelu_tanh": Fit(4, 3, _GELU_TANH),
    "silu": Fit(5, 4, _SILU, Tail(12, 8.5, _SILU_TAIL)),
}


def relu(s: CryptenSession, x: Tensor) -> Tensor:
    """max(x, 0), exact. |x| < 2^63 in ring units. 8 rounds, 40 bytes per element."""
    negative = comparison.less_than(s, x, [0])
    return comparison.select(s, comparison.complement(s, negative), x)[0][0]


def _polynomial(powers: list[Tensor], coefficients: tuple[float, ...]) -> Tensor:
    """sum_i coefficients[i] powers[i] without a constant, local."""
    total = torch.zeros_like(powers[0])
    for power, c in zip(powers, coefficients, strict=True):
        total = total + power * round(c * 2.0**COEFFICIENT_BITS)
    return total


def smooth(s: CryptenSession, x: Tensor, fraction_bits: int, fit: Fit) -> Tensor:
    """The function of `fit`, `fraction_bits` fraction bits in and out. |x| < 2^18."""
    tail = fit.tail
    thresholds = [-fit.inner, fit.inner] if tail is None else [-tail.outer, -fit.inner, fit.inner, tail.outer]
    drop = max(0, fraction_bits - COMPARED_BITS)
    below = comparison.less_than(s, x, [t << fraction_bits for t in thresholds], 32, drop)
    middle = len(thresholds) // 2
    # disjoint intervals, from the monotone bits: XOR is local
    wanted = [below[middle] ^ below[middle - 1], comparison.complement(s, below[middle])]
    if tail is not None:
        wanted += [below[1] ^ below[0], below[3] ^ below[2]]
    parts, flags = comparison.select(s, torch.stack(wanted), x)
    inside, passed = parts[0], parts[1]

    bits = POWER_BITS
    v = truncate(s, square(inside), 2 * fraction_bits + fit.scale - bits) - (flags[0] << bits)
    if tail is None:
        tail_value = None
        v2 = truncate(s, square(v), bits)
        v3, v4 = truncate(s, mul(v2, torch.stack([v, v2])), bits).unbind(0)
    else:
        outside = flags[2] + flags[3]
        t = (parts[3] - parts[2] << (bits - fraction_bits)) - outside * round(tail.centre * 2.0**bits)
        t = truncate(s, t, 2)
        v2, t2 = truncate(s, square(torch.stack([v, t])), bits).unbind(0)
        c = tail.coefficients
        upper = truncate(s, _polynomial([t, t2], (c[3], c[4])), COEFFICIENT_BITS)
        products = truncate(s, mul(torch.stack([v2, v2, t2]), torch.stack([v, v2, upper])), bits)
        v3, v4, high = products.unbind(0)
        tail_value = _polynomial([outside << bits, t, t2], c[:3]) + (high << COEFFICIENT_BITS)

    c = fit.coefficients
    one = flags[0] << bits
    upper = _polynomial([one, v, v2, v3], c[4:])
    lower = _polynomial([one, v, v2, v3], c[:4])
    total = mul(v4, upper) + (lower << bits)
    scale = 2 * bits + COEFFICIENT_BITS
    total = total + (inside << (scale - 1 - fraction_bits))
    if tail_value is not None:
        total = total - (tail_value << bits)
    return truncate(s, total, scale - fraction_bits) + passed


def activation(s: CryptenSession, x: Tensor, fraction_bits: int, kind: Activation) -> Tensor:
    """gelu, gelu_tanh, silu or relu, see the module's table."""
    return relu(s, x) if kind == "relu" else smooth(s, x, fraction_bits, FITS[kind])
