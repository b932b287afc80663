"""Between the two forms of a value: a sharing is opened, a masked value is brought to the ring and precision of its next
use.

Every operation asks for the form that it needs (`Conversion.masked`), with as few ring bits as its public bounds allow;
asking opens it, once, and the result is kept in the value, so later operations on the same tensor cost nothing for it. An
operation whose ring would be too small for the declared bounds is a `RangeError` at plan time. Values are checked where they
are opened anyway (`protocols.masked.ranges`).

Rounds: 0 to 2. Bytes: ring bits per opened element to each other party; of what is opened in a smaller ring first, the bits
that the larger one has more. Leaks: nothing; what is opened is masked
(docs/security.md, "Openings").
"""

from __future__ import annotations

import math

from mpc.ring import RING_BITS
from protocols.masked import veiled
from protocols.masked.context import Context, require
from protocols.masked.magnitudes import PlaceBounds
from protocols.masked.ranges import RangeFlags
from protocols.masked.shares import Masked, Shared, WideShared
from protocols.masked.truncation import raise_ring, truncate
from protocols.masked.values import MaskedTensor, MaskedWeight
from protocols.masked.veiled import Veiled
from protocols.masked.wide import open_any
from protocols.suite import Value


class Conversion:
    """One role's conversions in one session. fraction_bits: of activations. bounds: in force. ranges: the range flags."""

    def __init__(self, context: Context, fraction_bits: int, bounds: PlaceBounds) -> None:
        self.context = context
        self.fraction_bits = fraction_bits
        self.bounds = bounds
        self.ranges = RangeFlags(context, bounds.places)
        self.score_cap: float | None = None

    def begin(self, places: int, score_cap: float | None = None) -> None:
        """Start a program with so many places, and perhaps a soft cap of attention's scores."""
        self.bounds.begin(places)
        self.score_cap = score_cap
        self.ranges = RangeFlags(self.context, places)

    def at(self, place: int) -> None:
        """Let what follows belong to a place: its bounds apply, its flags are set."""
        self.bounds.at(place)
        self.ranges.place = place

    def tensor(self, x: Value) -> MaskedTensor:
        """Return a value of this suite as a tensor; a weight as an ordinary value of this session."""
        if isinstance(x, MaskedWeight):
            return x.tensor(self.context)
        assert isinstance(x, MaskedTensor)
        return x

    def new(self, x: Shared | WideShared | Masked | Veiled, magnitude: int) -> MaskedTensor:
        """Return a sharing, behind a veil or not, or a masked value as a value, |x| < 2^magnitude."""
        if isinstance(x, Shared):
            return MaskedTensor(self.context, magnitude, x)
        if isinstance(x, WideShared):
            return MaskedTensor(self.context, magnitude, wide=x)
        if isinstance(x, Veiled):
            return MaskedTensor(self.context, magnitude, veiled=x)
        return MaskedTensor(self.context, magnitude, masked=x)

    def with_bound(self, x: Value, bound: float) -> MaskedTensor:
        """Return x, known to lie within +-bound."""
        t = self.tensor(x)
        t.magnitude = min(t.magnitude, max(1, math.ceil(math.log2(bound))))
        return t

    async def masked(self, value: Value, frac: int, bits: int, cut: bool = True, lifted: bool = False) -> Masked:
        """Return <x> with exactly `frac` fraction bits modulo 2^bits: 0 to 2 rounds, whatever is cheapest from what there
        is.

        cut: False where a larger ring does as well, as for a factor: what is there is then not copied into a smaller one.
        lifted: whether what is opened will be lifted on the way (`protocols.masked.lifted`).
        """
        x = self.tensor(value)
        c = self.context
        need = x.needs(frac)
        if need > bits and x.magnitude != 0:
            require(False, "masked", f"{need} bits do not fit a ring of {bits}")
        found = x.masked
        if found is not None and found.frac == frac and found.bits >= bits:
            return found.to_ring(bits) if cut else found
        if found is None:
            found = await self.opened(x, frac, bits, lifted)
        excess = found.frac - frac
        if excess < 0:
            found = Masked(found.m << -excess, found.lam << -excess, min(found.bits - excess, RING_BITS), frac)
            found = found.to_ring(found.bits)
            excess = 0
        if found.bits - excess >= bits:
            result = truncate(c, found, excess).to_ring(bits)
        else:
            offset = 1 << found.frac if x.positive else None
            result = await raise_ring(c, found, excess, bits, offset)
        x.masked, x.shared, x.wide = result, None, None
        return result

    async def opened(self, x: MaskedTensor, frac: int, bits: int, lifted: bool = False) -> Masked:
        """Return <x> of a sharing with `frac` fraction bits, modulo 2^bits where its ring is large enough, else in a ring
        that holds it. 1 round. Further fraction bits are cut as it is opened. A watched x is checked."""
        if x.unmade is not None:
            x.shared = x.unmade.make(bits)
        shared = x.veiled if x.veiled is not None and x.veiled.frac > frac else x.widest()
        if shared.frac < frac:
            shared = x.as_shared().shift_left(frac - shared.frac)
        excess = shared.frac - frac
        least = max(frac + x.magnitude + 2 + int(x.watched is not None) - int(x.positive), 2)
        if x.magnitude:
            require(least + excess <= shared.bits, "open", f"{shared} with |x| < 2^{x.magnitude}")
        most = shared.bits - excess
        opened = max(min(least, most), bits if most >= bits else 0)
        wraps = lifted or opened < bits
        if isinstance(shared, Veiled):
            found = await veiled.open_cut(self.context, shared.to_ring(opened + excess), excess, wraps)
            x.masked, x.veiled = found, None  # once: what a veil hides is not read in another way
        else:
            found = await open_any(self.context, shared.to_ring(opened + excess), excess, wraps)
        if x.watched is not None:
            self.ranges.check(x.watched, found.to_ring(least), 2.0 ** (x.magnitude - 1))
            x.watched, x.checked = None, True
        return found
