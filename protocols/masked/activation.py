"""GELU, its tanh form, SiLU and ReLU of a masked value: two rounds.

f(x) = [x >= 0] x + [inside] P(x): f less max(x, 0) falls to nothing on both sides, so a piecewise polynomial P is needed
within +-half only. Both brackets are comparisons on a *truncated* value, which cost few bits and are off by one unit now and
then, as the borrow of what was cut falls. That does no harm:

* P takes its segment from the same digits that [x >= 0] looks at, so with the same borrow: segments below 0 hold f, others
  f - x, each on one segment's width to both sides of its left edge.
* P is periodic. Segment -half is also read for x just below +half, with a borrow: f(x) - x there is f(-x), since
  f(x) - f(-x) = x, so that segment holds f(-half + |t|).
* [inside] is right but within half a unit of +-half, where |f(x) - max(x, 0)| and, to both sides, P are within the bound.

P(x) needs no round; it is opened together with the brackets, and bits times masked values cost no round: the result is
Shared after one round (the second is the caller's opening).

Range: |x| < 2^magnitude as declared. Error: below 2^-12 over the whole range (tabulated by a test).
Leaks: nothing (docs/security.md, "Activations").
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch

from mpc.errors import RangeError
from protocols.masked.comparison import less_than_zero, within
from protocols.masked.context import Context, require
from protocols.masked.piecewise import Piecewise, evaluate, fit
from protocols.masked.shares import Masked, Shared
from protocols.masked.truncation import open_cut, truncate
from protocols.schedule import together

VALUE_BITS = 17  # fraction bits of the result; with these a ring of 24 bits has tables of 40, whole bytes
POWER_BITS = 13

# name -> (half-width of the curved range, degree); segments of width 1
SHAPES = {"gelu": (4, 6), "gelu_tanh": (4, 6), "silu": (16, 5)}
# [inside] looks at units of 2^-k. |GELU(x) - max(x, 0)| is below 2^-12.2 from 3.875 on (its tanh form: 2^-12.9), SiLU's
# below 2^-18 from 15.5 on.
UNIT_BITS = {"gelu": 2, "gelu_tanh": 2, "silu": 0}


def _numpy(f: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda t: f(torch.from_numpy(np.ascontiguousarray(t))).numpy()


@cache
def curve(kind: str) -> Piecewise:
    """Return P of a function: f below 0 and f - x from 0 on."""
    half, degree = SHAPES[kind]
    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda t: torch.nn.functional.gelu(t, approximate="tanh"),
        "silu": torch.nn.functional.silu,
    }
    f = _numpy(functions[kind])

    def parts(t: np.ndarray) -> np.ndarray:
        """Return the curve at t [segments, nodes]."""
        ends = np.abs(t[:1] + half) - half
        return np.concatenate([f(ends), f(t[1:half]), f(t[half:]) - t[half:]])

    return fit(kind, parts, -half, half, 2 * half, degree)


def least_bits(kind: str, frac: int) -> int:
    """Return the smallest ring for x: the curved range on both sides, and as much again."""
    return frac + SHAPES[kind][0].bit_length() + 2 if kind in SHAPES else frac + 2


async def activation(c: Context, x: Masked, kind: str) -> Shared:
    """Return [f(x)] in x's ring with x's fraction bits. 1 round; |x| < 2^(x.bits - x.frac - 1). f(x) > -1."""
    if kind == "relu":
        negative = await less_than_zero(c, x)
        return c.shared(x).add(negative.times(x).negate())
    require(kind in SHAPES, "activation", f"unknown function '{kind}'; known: relu, {', '.join(sorted(SHAPES))}")
    half, _ = SHAPES[kind]
    unit_bits = UNIT_BITS[kind]
    if x.frac <= unit_bits:
        raise RangeError(f"{kind}: {unit_bits + 1} fraction bits or more are needed, got {x.frac}")
    offset = (half << x.frac) - (1 << (x.frac - unit_bits - 1))
    units = truncate(c, x.add_public(offset), x.frac - unit_bits)  # floor((x + half) 2^unit_bits - 1/2) + {0, 1}

    async def value() -> Masked:
        p = evaluate_curve(c, x, kind, x.bits)
        return await open_cut(c, p, p.frac - x.frac)

    inside, negative, p = await together(
        within(c, units, half.bit_length() + unit_bits), less_than_zero(c, truncate(c, x, x.frac)), value()
    )
    out: Shared = c.shared(x).add(negative.times(x).negate()).add(inside.times(p))
    return out


def evaluate_curve(c: Context, x: Masked, kind: str, bits: int) -> Shared:
    """Return [P(x)] for -half <= x < half, precise enough to be truncated to x's fraction bits in a ring of `bits`;
    local."""
    half, _ = SHAPES[kind]
    bits += VALUE_BITS + POWER_BITS - x.frac
    require(bits <= 64, kind, f"a ring of {x.bits} bits is too large")
    return evaluate(
        c, curve(kind), x.to_ring(half.bit_length() + x.frac), bits, VALUE_BITS + POWER_BITS, power_bits=POWER_BITS
    )
