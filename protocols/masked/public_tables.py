"""The integers by which parties multiply shares, as one hash: they must be equal at all parties to the last bit.

All public coefficients of shares, and why they are equal:

| coefficients | from |
| --- | --- |
| powers of 2^(3/2) (`powers_of_two`, `exponential`) | decimals of 48 digits, rounded, multiplied as integers |
| cosines of waves (`curves.cosines`), rotary positions (`models.rotary`) | float64 sums and products (`mpc.trigonometry`) |
| segments and amplitudes of GELU, its tanh form, SiLU (`curves`) | the host's erf, tanh, exp, rounded far from ties |
| pieces of 1/x and 1/sqrt(x) (`power`, at the host; powers of m in `piecewise`) | float64 sums, products, quotients, roots |
| means of norms (`normalisation`), public factors (`arithmetic.scale`), CrypTen's fits | one operation on numbers, rounded |
| all other ones | integers |

What stands in the first four rows is hashed; the manifest has the hash, and a role that finds another one refuses.
Leaks: nothing; everything here is public.
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import torch

from protocols.masked import curves
from protocols.masked.activation import LONGEST_PERIOD, PERIOD
from protocols.masked.power import pieces
from protocols.masked.powers_of_two import powers

COSINE_BITS = 19  # the table of a shorter period is every second, fourth ... entry
POWERS = ((1, 12, 11, 0, 20), (-1, 12, 10, 0, 30))
"""sign, width, fraction bits, octaves and fraction bits of the result: as others are made."""


@cache
def digest() -> str:
    """Return the SHA-256 of the tables, which this machine makes once."""
    host = torch.device("cpu")
    whole = hashlib.sha256()

    def add(name: str, table: np.ndarray) -> None:
        whole.update(f"{name} {table.shape} {table.dtype.str}".encode() + np.ascontiguousarray(table).tobytes())

    for kind in sorted(curves.HALF):
        add(f"segments {kind}", curves.coefficients(kind, host).numpy())
        for period in range(PERIOD[kind], LONGEST_PERIOD + 1):
            add(f"amplitudes {kind} {period}", np.array(curves.amplitudes(kind, period), np.int64))
    add("cosines", curves.cosines(COSINE_BITS, host).numpy())
    for sign, width, frac, octaves, out in POWERS:
        add(f"powers {sign}", powers(sign, width, frac, octaves, out).numpy())
    for exponent in (-1.0, -0.5):
        add(f"pieces {exponent}", pieces(exponent))
    return whole.hexdigest()
