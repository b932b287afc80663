"""GELU, its tanh form, SiLU and ReLU of a masked value: two rounds.

f(x) = [inside] P(x) + [above] x: a piecewise polynomial P where the function is curved, 0 below, x above. Both range
bits are comparisons on a *truncated* value (its fuzz of one unit is covered by the overlap of P and the tails), so they
cost six bits. P(x) needs no round; it is opened together with the range bits, and bits times masked values cost no
round: the result is Shared after one round (the second is the caller's opening).

Range: |x| < 2^magnitude as declared. Error: below 2^-12 over the whole range (tabulated by a test). Leaks nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch

from protocols.masked.comparison import less_than_zero
from protocols.masked.context import Context, open_value, require
from protocols.masked.piecewise import Piecewise, evaluate, fit
from protocols.masked.truncation import truncate
from protocols.masked.wires import Masked, Shared
from protocols.schedule import together

VALUE_BITS = 17  # fraction bits of the result; with these a ring of 24 bits has tables of 40, whole bytes
POWER_BITS = 13

# name -> (half-width of the curved range, segments, degree)
SHAPES = {"gelu": (8, 16, 6), "gelu_tanh": (8, 16, 6), "silu": (16, 32, 5)}


def _numpy(f: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda t: f(torch.from_numpy(np.ascontiguousarray(t))).numpy()


@cache
def curve(kind: str) -> Piecewise:
    """The polynomials of a function on its curved range."""
    half, segments, degree = SHAPES[kind]
    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda t: torch.nn.functional.gelu(t, approximate="tanh"),
        "silu": torch.nn.functional.silu,
    }
    return fit(kind, _numpy(functions[kind]), -half, half, segments, degree)


async def activation(c: Context, x: Masked, kind: str) -> Shared:
    """[f(x)] in x's ring with x's fraction bits. 1 round; x.frac + magnitude + 2 <= x.bits."""
    if kind == "relu":
        negative = await less_than_zero(c, x)
        return c.shared(x).add(negative.times(x).negate())
    require(kind in SHAPES, "activation", f"unknown function '{kind}'; known: relu, {', '.join(sorted(SHAPES))}")
    half, _, _ = SHAPES[kind]
    curved = half.bit_length() + x.frac  # ring of [-half, half)
    unit = truncate(c, x.add_public((half - 1) << x.frac), x.frac)  # floor(x + half - 1) + {0, 1}

    async def value() -> Masked:
        f = curve(kind)
        bits = x.bits + VALUE_BITS + POWER_BITS - x.frac
        require(bits <= 64, kind, f"a ring of {x.bits} bits is too large")
        p = evaluate(c, f, x.to_ring(curved), bits, VALUE_BITS + POWER_BITS, power_bits=POWER_BITS)
        return truncate(c, await open_value(c, p), p.frac - x.frac)

    below, not_above, p = await together(
        less_than_zero(c, unit), less_than_zero(c, unit.add_public(-(2 * half - 3))), value()
    )
    curved_part = not_above.times(p).add(below.times(p).negate())
    above = c.shared(x).add(not_above.times(x).negate())
    out: Shared = curved_part.add(above)
    return out
