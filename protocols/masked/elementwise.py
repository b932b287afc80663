"""Element-wise functions of values of the suite `masked`: activations, gated activations, the sign.

Rounds: those of the gates (`activation`, `comparison`: 1) and of making a value masked. Bytes: as there.
Leaks: nothing; what is opened is masked (docs/security.md, "Suite masked").
"""

from __future__ import annotations

from mpc.ledger import operation
from mpc.ring import RING_BITS
from protocols.masked import activation as gate
from protocols.masked import comparison, product
from protocols.masked.conversion import Conversion
from protocols.masked.shares import Masked
from protocols.masked.values import MaskedTensor
from protocols.schedule import together
from protocols.suite import Activation, Value


async def activation(convert: Conversion, x: Value, kind: Activation) -> MaskedTensor:
    """Return gelu, gelu_tanh, silu or relu of x, Shared."""
    t, f = convert.tensor(x), convert.fraction_bits
    with operation(kind):
        m = await convert.masked(t, f, max(t.needs(f), gate.least_bits(kind, f)))
        out = convert.new(await gate.activation(convert.context, m, kind), t.magnitude)
        out.positive = True
        return out


async def gated_activation(convert: Conversion, gated: Value, up: Value, kind: Activation) -> MaskedTensor:
    """Return activation(gated) * up, Shared; `up` is made masked beside the activation."""
    f, bound = convert.fraction_bits, convert.bounds.here.activation
    bits = 2 * f + 2 * bound + 4

    async def activated() -> Masked:
        return await convert.masked(await activation(convert, gated, kind), f, bits)

    a, b = await together(activated(), convert.masked(up, f, bits))
    return convert.new(product.multiply(convert.context, a, b), 2 * bound + 2)


async def less_than_zero(convert: Conversion, x: Value) -> MaskedTensor:
    """Return 1 where x < 0, else 0, Shared. 1 round from a masked x."""
    t = convert.tensor(x)
    frac = min(t.frac, convert.fraction_bits)
    m = await convert.masked(t, frac, frac + t.magnitude + 2)
    with operation("less than zero"):
        return convert.new((await comparison.less_than_zero(convert.context, m)).share(RING_BITS), 1)
