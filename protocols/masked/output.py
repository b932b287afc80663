"""What leaves a program to the client: values cut exactly, and scores with a sample's noise.

released. A product has the fraction bits of both factors. x is opened masked with all of them, in the ring that its bound
and its kind's range check need; `truncation.floor` cuts what is above `fraction_bits`. Rounds 2; online f + magnitude + 3 +
t bits and a comparison of t bits per element, t the bits that are cut. Exact: the result is a function of x alone.

Why exact. `truncation.truncate` gives floor(x / 2^t) + [x mod 2^t > c] with a coin c that each party knows (m mod 2^t, or
the low bits of its own share), fresh in each session. A client that repeats a question and shares what it opens with one
party learns one comparison of x mod 2^t with a known number each time: the cut bits, bit by bit. After an exact floor, a
coalition of the client and all parties but one sees this of the output: openings m = x + lam, uniform and independent of x
since the honest party's part of lam is unknown to it; comparison bits under dealt random bits, uniform; and the honest
party's output share. `Suite.output` has added a dealt sharing of zero to it, so that honest parties' shares are uniform but
for their sum, which is the output less the coalition's own shares. All of that can be drawn from the output and fresh coins.
Truncations inside the program keep theirs: an output is a function of inputs, weights and coins that each party knows.

perturbed. <x> = (m, lam) is masked anyway before it is compared. The dealer, who knows lam, deals shares of fresh noise g
(`protocols.gumbel`): <x + g> = (m, lam - g), the very same m. No round and no byte online beyond those of the arg-max while
the sum fits its ring (to a temperature of 3.4 for logits below 2^8; above, the arg-max of a larger bound, and a lift's
round where the logits' product has no room for it); offline the bits of that ring, 21 to 26, per element. lam is uniform
and unknown to the parties, so m says nothing of x or g. Noise has the fraction bits with which the arg-max compares, 2^-10
at most.

Leaks: nothing; the client learns what its decoding gives (docs/security.md, "Outputs").
"""

from __future__ import annotations

import math

import torch

from mpc import ring
from mpc.ledger import operation
from protocols import gumbel
from protocols.masked.context import open_value, require
from protocols.masked.conversion import Conversion
from protocols.masked.shares import Masked
from protocols.masked.truncation import floor, truncate
from protocols.masked.values import MaskedTensor
from protocols.suite import OutputShare, Value

MOST_CUT = 32  # fraction bits that one exact floor cuts
CHOICE_BITS = 10  # fraction bits with which scores are compared


def output(convert: Conversion, x: Value) -> OutputShare:
    """Return this party's share plus a dealt sharing of zero: the sum says nothing but x. Local."""
    c, s = convert.context, convert.tensor(x).as_shared()
    zero = c.deal("zero", s.shape, s.bits, lambda: torch.zeros(s.shape, dtype=torch.int64, device=c.device))
    share = ring.reduce(s.x + zero, s.bits) if c.evaluating else s.x
    return OutputShare(share, s.bits, s.frac)


async def rounded(convert: Conversion, x: Value, room: int = 4) -> MaskedTensor:
    """Return x with `fraction_bits` fraction bits: a product still carries those of both factors; they are cut."""
    t = convert.tensor(x)
    f = min(t.frac, convert.fraction_bits)
    with operation("round"):
        return convert.new(await convert.masked(t, f, f + t.magnitude + room), t.magnitude)


async def released(convert: Conversion, value: Value) -> MaskedTensor:
    """Return a value with at most `fraction_bits` fraction bits by an exact floor, Shared; see the module. A watched value
    is checked. 2 rounds, 1 where it is masked already; as many again where more than `MOST_CUT` bits are cut."""
    c, x = convert.context, convert.tensor(value)
    whole = max(0, x.frac - convert.fraction_bits)
    excess = min(whole, MOST_CUT)
    with operation("release"):
        found = x.masked
        if found is None:
            shared = x.as_shared()
            bits = x.frac + x.magnitude + 2 + int(x.watched is not None)
            require(bits <= shared.bits, "release", f"{shared} with |x| < 2^{x.magnitude}")
            found = await open_value(c, shared.to_ring(bits))
        cut = truncate(c, found, excess)
        if x.watched is not None:
            convert.ranges.check(x.watched, cut, 2.0 ** (x.magnitude - 1))
            x.watched, x.checked = None, True
        out = convert.new(await floor(c, found, cut), x.magnitude)
    return out if excess == whole else await released(convert, out)


async def perturbed(convert: Conversion, value: Value, temperature: float) -> MaskedTensor:
    """Return a value plus fresh dealt noise times `temperature`, masked as the arg-max needs it: what is opened here it then
    need not open; see the module."""
    c, x = convert.context, convert.tensor(value)
    frac = min(CHOICE_BITS, convert.fraction_bits)
    most = x.reach + gumbel.LARGEST * temperature + 2.0**-8  # and what rounding adds
    scored = MaskedTensor(c, math.ceil(math.log2(most)), most=most)
    with operation("sample"):
        scores = await convert.masked(x, frac, scored.reach_bits(frac)[1])
        noise = c.deal(
            "gumbel",
            scores.shape,
            scores.bits,
            lambda: gumbel.scaled_gumbel(scores.shape, temperature, frac, scores.bits, scores.lam.device),
        )
        scored.masked = Masked(scores.m, lambda: ring.reduce(scores.lam - noise, scores.bits), scores.bits, frac)
        return scored
