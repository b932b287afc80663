"""Arithmetic of values of the suite `masked`: public tensors, joining, products, scaling by public reals, rotations.

Rounds: those of the conversions that a factor needs, and none beyond them. Bytes: as in `conversion` and `product`.
Leaks: nothing; what is opened is masked (docs/security.md, "Suite masked").
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mpc.constants import derived
from mpc.fixed_point import encode
from mpc.ring import RING_BITS
from protocols.masked import product
from protocols.masked.context import require
from protocols.masked.conversion import Conversion
from protocols.masked.packed_rows import PackedRows
from protocols.masked.shares import Masked, Shared
from protocols.masked.truncation import lift
from protocols.masked.values import MaskedTensor
from protocols.schedule import together
from protocols.suite import Value

FACTOR_BITS = 12  # fraction bits of public factors below the largest
ROTATION_BITS = 20  # fraction bits of public cosines and sines: a score of 1 800 is off by 0.001


def public(convert: Conversion, x: Tensor | float, shape: Sequence[int] | None = None) -> MaskedTensor:
    """Return a public tensor as a value: masked with mask 0. Local."""
    t, device = torch.as_tensor(x, dtype=torch.float64), convert.context.device
    m = encode(t, convert.fraction_bits)
    if shape is not None:
        m = torch.full(tuple(shape), int(m), device=device) if m.dim() == 0 else m.to(device).expand(tuple(shape))
    else:
        m = m.to(device)
    magnitude = max(1, math.ceil(math.log2(float(t.abs().max()) + 1))) if t.numel() else 1
    return convert.new(Masked(m, torch.zeros_like(m), RING_BITS, convert.fraction_bits), magnitude)


def concat(convert: Conversion, values: Sequence[Value], dim: int) -> MaskedTensor:
    """Concatenate along `dim`, masked where all are masked alike, else Shared. Local.

    What parts watch is watched of the whole. Raises `RangeError` for parts that one check cannot serve: of several kinds or
    bounds, or beside larger ones."""
    xs = [convert.tensor(v) for v in values]
    magnitude = max(x.magnitude for x in xs)
    packed = [x.packed for x in xs if x.packed is not None]
    if packed:
        alike = len(packed) == len(xs) and len({(p.bits, p.frac) for p in packed}) == 1 and dim == 1
        require(alike, "concat", "rows that are held with few fraction bits are joined with such rows alone")
        return MaskedTensor(convert.context, magnitude, packed=functools.reduce(PackedRows.joined, packed))
    watched = _watched(xs, magnitude)
    masked = [x.masked for x in xs if x.masked is not None]
    if len(masked) == len(xs) and len({m.frac for m in masked}) == 1:
        bits = min(m.bits for m in masked)
        cut = [m.to_ring(bits) for m in masked]
        joined = Masked(torch.cat([m.m for m in cut], dim), torch.cat([m.lam for m in cut], dim), bits, cut[0].frac)
        return convert.new(joined, magnitude)
    shares = [x.as_shared() for x in xs]
    frac = max(s.frac for s in shares)
    shares = [s.shift_left(frac - s.frac) for s in shares]
    bits = min(s.bits for s in shares)
    out = convert.new(Shared(torch.cat([s.to_ring(bits).x for s in shares], dim), bits, frac), magnitude)
    out.watched = watched
    return out


def _watched(xs: Sequence[MaskedTensor], magnitude: int) -> str | None:
    """Return the kind that is to be checked of joined parts when they are opened, see `concat`."""
    kinds = {x.watched for x in xs if x.watched is not None}
    if not kinds:
        return None
    fits = all(x.magnitude == magnitude if x.watched is not None else x.magnitude < magnitude for x in xs)
    require(len(kinds) == 1 and fits, "concat", f"parts that are checked apart: {', '.join(sorted(kinds))}")
    return kinds.pop()


async def _factors(convert: Conversion, x: Value, y: Value, extra: int) -> tuple[Masked, Masked, int]:
    """Return both factors masked in the ring of their product, and the product's magnitude. extra: bits of its sums."""
    a, b = convert.tensor(x), convert.tensor(y)
    fa, fb = min(a.frac, convert.fraction_bits), min(b.frac, convert.fraction_bits)
    magnitude = a.magnitude + b.magnitude + extra
    bits = max(fa + fb + magnitude + 2, fa + a.magnitude + 2, fb + b.magnitude + 2)
    if bits > RING_BITS:
        require(False, "product", f"{a} by {b} needs {bits} bits")
    ma, mb = await together(convert.masked(a, fa, bits), convert.masked(b, fb, bits))
    return ma, mb, magnitude


async def multiply(convert: Conversion, x: Value, y: Value) -> MaskedTensor:
    """Return the element-wise product, Shared; no round beyond making the factors masked."""
    a, b, magnitude = await _factors(convert, x, y, 0)
    return convert.new(product.multiply(convert.context, a, b), magnitude)


async def matmul(convert: Conversion, x: Value, y: Value) -> MaskedTensor:
    """Return the matrix product, Shared; no round beyond making the factors masked."""
    a, b, magnitude = await _factors(convert, x, y, x.shape[-1].bit_length())
    return convert.new(product.matmul(convert.context, a, b), magnitude)


async def scale(convert: Conversion, x: Value, factor: Tensor | float) -> MaskedTensor:
    """Return x times a public real factor, held with 12 fraction bits. 0 or 1 round. Raises `RangeError` for one that these
    do not hold within a sixteenth: scale in two steps, by a power of two first."""
    t, f = convert.tensor(x), convert.fraction_bits
    real = torch.as_tensor(factor, dtype=torch.float64)
    largest = float(real.abs().max())
    near = abs(round(largest * 2.0**FACTOR_BITS) - largest * 2.0**FACTOR_BITS) * 16 <= largest * 2.0**FACTOR_BITS
    require(near, "scale", f"a factor of {largest:g} is not held by {FACTOR_BITS} fraction bits; take two factors")
    top = max(0, math.ceil(math.log2(max(largest, 2.0**-30))))
    bits = t.frac + t.magnitude + top + 3 + FACTOR_BITS  # one bit to spare: a rotation adds two such products
    if t.frac > f + 2 or bits > t.form.bits:
        wide = f + t.magnitude + top + 3 + FACTOR_BITS
        if t.masked is None:
            t = convert.new(lift(convert.context, await convert.opened(t, f, 0, lifted=True), wide), t.magnitude)
        else:
            t = convert.new(await convert.masked(t, f, wide), t.magnitude)
    integers = torch.round(real * 2.0**FACTOR_BITS).to(torch.int64)  # a single number takes part from the host
    integers = integers.to(convert.context.device) if integers.dim() else integers
    form = t.form.map(lambda v: v * integers)
    return convert.new(form.with_frac(form.frac + FACTOR_BITS), t.magnitude + top)


async def rotate(convert: Conversion, x: Value, cos: Tensor, sin: Tensor) -> MaskedTensor:
    """Return rotary positions of x [G, T, C], cos and sin public [T, C]; x is opened once, then everything is local."""
    t, c, f = convert.tensor(x), convert.context, convert.fraction_bits
    if t.masked is None and t.wide is not None:
        return _rotate_wide(convert, t, cos, sin)
    wide = f + t.magnitude + 3 + ROTATION_BITS  # the sum of two products
    if t.masked is None and t.frac > f:
        t = convert.new(lift(c, await convert.opened(t, f, 0, lifted=True), wide), t.magnitude)
    elif t.masked is not None:
        t = convert.new(await convert.masked(t, f, wide), t.magnitude)
    half = t.shape[-1] // 2
    swapped = concat(convert, [-t[..., half:], t[..., :half]], dim=-1)

    def times(y: MaskedTensor, factor: Tensor) -> Shared:
        shared = y.as_shared()
        return Shared(shared.x * _rotation(factor, c.device), shared.bits, shared.frac + ROTATION_BITS)

    return convert.new(times(t, cos).add(times(swapped, sin)), t.magnitude + 1)


def _rotation(factor: Tensor, device: torch.device, minus: int = 0) -> Tensor:
    """Return public cosines or sines as integers on a device, the first `minus` columns negative; made once."""

    def integers(t: Tensor) -> Tensor:
        found = torch.round(t * 2.0**ROTATION_BITS).to(torch.int64)
        return torch.cat([-found[..., :minus], found[..., minus:]], -1).to(device)

    return derived(factor, ("rotation", minus, device), integers)


def _rotate_wide(convert: Conversion, t: MaskedTensor, cos: Tensor, sin: Tensor) -> MaskedTensor:
    """Return the rotation of what is not opened yet, in a ring that has room for it; local. What is watched stays so, at
    twice its bound: a rotation makes an entry larger by sqrt(2) at most."""
    wide, half = t.wide, t.shape[-1] // 2
    assert wide is not None
    swapped = wide.move(lambda u: torch.cat([u[..., half:], u[..., :half]], -1))
    a, b = (
        part.times(_rotation(factor, convert.context.device, minus), ROTATION_BITS)
        for part, factor, minus in ((wide, cos, 0), (swapped, sin, half))
    )
    rotated = convert.new(a.add(b), t.magnitude + 1)
    rotated.watched = t.watched
    return rotated
