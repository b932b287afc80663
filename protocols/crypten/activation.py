"""GELU (both forms), SiLU and ReLU over the whole range of a transformer.

CrypTen's tanh fails beyond 263, its erf everywhere. Here x is compared with a few thresholds; inside, x/2 plus an even
polynomial in x^2; outside, 0 or x; for SiLU, whose tails are long, one more polynomial in |x| in between.

| function | largest error on [-2^15, 2^15] | rounds | bytes per element |
| --- | --- | --- | --- |
| gelu, gelu_tanh | 1.2e-4 | 15 | 132 |
| silu | 1.2e-4 | 16 | 235 |
| relu | 0 (exact) | 8 | 40 |

Coefficients are minimax fits, written out so that all parties hold the same; rounding adds up to 2 units in the last place.
Leaks: nothing (docs/security.md, "Activations, crypten").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protocols.crypten import comparison, ranges
from protocols.crypten.arithmetic import mul, square, truncate
from protocols.crypten.binding.library import CryptenSession
from protocols.suite import Activation

COMPARED_BITS = 12  # fraction bits in which x is compared with the thresholds
POWER_BITS = 20
COEFFICIENT_BITS = 18


@dataclass(frozen=True)
class Tail:
    """relu(x) - f(x) as a polynomial of degree 6 in (|x| - centre) / 4 on inner <= |x| < outer; f(x) is relu(x) beyond."""

    outer: float
    centre: float
    coefficients: tuple[float, ...]


@dataclass(frozen=True)
class Fit:
    """f(x) - x/2 as a polynomial of degree 8 in x^2 / 2^scale - 1 for |x| < inner."""

    inner: float
    scale: int
    coefficients: tuple[float, ...]
    tail: Tail | None = None


_GELU = (
    *(1.407640487, 0.732572762, -0.228405157, 0.157454971, -0.109156211, 0.065267122, -0.055983988, 0.044571615),
    -0.014157742,
)
_GELU_TANH = (
    *(1.408067208, 0.732255372, -0.228574242, 0.160377764, -0.114697802, 0.060347899, -0.045853291, 0.046962024),
    -0.018937927,
)
_SILU = (
    *(1.928049354, 1.105965498, -0.341407825, 0.173249504, -0.123427162, 0.144751978, 0.031254641, -0.091065179),
    -0.16151186,
)
_SILU_TAIL = (0.001110991, -0.004010709, 0.006896984, -0.00735497, 0.006573507, -0.005344504, 0.002165171)

FITS: dict[str, Fit] = {
    "gelu": Fit(4.25, 3, _GELU),
    "gelu_tanh": Fit(4.125, 3, _GELU_TANH),
    "silu": Fit(5.0, 4, _SILU, Tail(13.0, 9.0, _SILU_TAIL)),
}


def relu(s: CryptenSession, x: Tensor) -> Tensor:
    """Return max(x, 0), exact. |x| < 2^63 in ring units. 8 rounds, 40 bytes per element."""
    negative = comparison.less_than(s, x, [0])
    return comparison.select(s, comparison.complement(s, negative), x)[0][0]


def _polynomial(powers: list[Tensor], coefficients: tuple[float, ...]) -> Tensor:
    """Return the sum_i coefficients[i] powers[i], local; COEFFICIENT_BITS more fraction bits than the powers."""
    total = torch.zeros_like(powers[0])
    for power, c in zip(powers, coefficients, strict=True):
        total = total + power * round(c * 2.0**COEFFICIENT_BITS)
    return total


def smooth(s: CryptenSession, x: Tensor, fraction_bits: int, fit: Fit) -> Tensor:
    """Return the function of `fit`, `fraction_bits` fraction bits in and out. |x| < 2^18; flagged from 2^15 on."""
    tail = fit.tail
    thresholds = [-fit.inner, fit.inner] if tail is None else [-tail.outer, -fit.inner, fit.inner, tail.outer]
    drop = max(0, fraction_bits - COMPARED_BITS)
    below = comparison.less_than(s, x, [round(t * 2.0**fraction_bits) for t in thresholds], 32, drop)
    middle = len(thresholds) // 2
    # disjoint intervals, from the monotone bits: XOR is local
    wanted = [below[middle] ^ below[middle - 1], comparison.complement(s, below[middle])]
    if tail is not None:
        wanted += [below[1] ^ below[0], below[3] ^ below[2]]

    def watched(opened: Tensor, mask: Tensor) -> None:
        ranges.watch(s, "activation", opened, mask, fraction_bits, ranges.ACTIVATION_LIMIT)

    parts, flags = comparison.select(s, torch.stack(wanted), x, watched)
    inside, passed = parts[0], parts[1]

    # one row of `variables` per polynomial: its powers come from shared rounds
    bits = POWER_BITS
    ones = [flags[0] << bits]
    variables = truncate(s, square(inside), 2 * fraction_bits + fit.scale - bits)[None] - ones[0]
    coefficients = [fit.coefficients]
    if tail is not None:
        outside = flags[2] + flags[3]
        t = (parts[3] - parts[2] << (bits - fraction_bits)) - outside * round(tail.centre * 2.0**bits)
        variables = torch.cat([variables, truncate(s, t, 2)[None]])
        ones.append(outside << bits)
        coefficients.append(tuple(-c for c in tail.coefficients))
    second = truncate(s, square(variables), bits)
    third, fourth = truncate(s, mul(second, torch.stack([variables, second])), bits).unbind(0)
    uppers = []
    scale = 2 * bits + COEFFICIENT_BITS
    total = inside << (scale - 1 - fraction_bits)
    for row, (one, c) in enumerate(zip(ones, coefficients, strict=True)):
        powers = [one, variables[row], second[row], third[row], fourth[row]]
        total = total + (_polynomial(powers[:4], c[:4]) << bits)
        uppers.append(_polynomial(powers[: len(c) - 4], c[4:]))
    total = total + mul(fourth, torch.stack(uppers)).sum(0)
    return truncate(s, total, scale - fraction_bits) + passed


def activation(s: CryptenSession, x: Tensor, fraction_bits: int, kind: Activation) -> Tensor:
    """Return gelu, gelu_tanh, silu or relu, see the module's table."""
    return relu(s, x) if kind == "relu" else smooth(s, x, fraction_bits, FITS[kind])
