"""The suite `masked`: transformer operations in few rounds on masked values. Any number of parties, semi-honest, a dealer.

A `MaskedTensor` is whatever its producer left: a sharing (not yet opened), a masked value, or both. Every operation asks for
the form that it needs (`masked`), with as few ring bits as its public bounds allow; asking opens it, once, and the result is
kept, so later operations on the same tensor (a cached key, say) cost nothing for it. Openings that wait at the same time
leave in one message.

Bounds. |x| < 2^bound is declared by `Declared` (public configuration, not data) for each kind of tensor and each layer;
rings follow from them and an operation whose ring would be too small is an error at plan time. Values are checked where they
are opened anyway (`ranges`): one outside its bound is flagged for the client, surely from 3/2 of the bound on, and right
until then, so rings have one bit more than the bound; two bits more where a value is opened to be checked.

Security: semi-honest, any parties - 1 compute parties may collude, the dealer with none. Leaks: to
parties and dealer shapes only; to the client, beside its answer, which kinds left their bounds in which layers (`ranges`)
(docs/security.md, "Suite masked").
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mpc import ring
from mpc.channel import Channel
from mpc.errors import RangeError
from mpc.fixed_point import encode
from mpc.ledger import operation
from mpc.tape import Tape
from protocols.bounds import Bounds, largest
from protocols.masked import activation as activations
from protocols.masked import output, product, ranges, ranking, selection, softmax, tokens
from protocols.masked.append_buffer import append_buffer
from protocols.masked.comparison import less_than_zero
from protocols.masked.context import Context, open_value, require
from protocols.masked.dealing import one_hot
from protocols.masked.power import power
from protocols.masked.ranges import RangeFlags
from protocols.masked.shares import Masked, Shared
from protocols.masked.truncation import lift, open_cut, truncate, truncate_and_lift
from protocols.masked.values import MaskedTensor, MaskedWeight
from protocols.masked.weights import fixed_weight
from protocols.options import MaskedOptions
from protocols.suite import RANGE_KINDS, Activation, Linear, Norm, OutputShare, Suite, Value

USUAL = MaskedOptions()
TABLE = "embedding.tokens"  # is multiplied by one-hot rows only, in a small ring
WEIGHT_BITS = 16  # fraction bits of the weights' shares, as the model owner gives them
SCALE_BITS = 18  # fraction bits of 1/sum, and of 1/deviation at least
RELATIVE_BITS = 10  # 1/deviation at the residual stream's bound keeps a relative precision of 2^-10
RESIDUAL_BITS = (12, 16)  # fraction bits of the residual stream: early layers are small, and norms amplify
PRODUCT_BITS = 18  # fraction bits of a product before a norm scales it; h itself has fewer
ROTATION_BITS = 20  # fraction bits of public cosines and sines: a score of 1 800 is off by 0.001
ROOM = 2  # bits between a bound and what a ring holds where it is checked
SMALLEST_DEVIATION = 9  # a row whose deviation is below 2^-9 is flagged: the stream's fraction bits do not suffice for it
MANY_ROWS = 4  # from here on a norm scales its input and not its output
FULL = 64
SELECTED_BITS = 22  # fraction bits of the numerators of chosen tokens; the largest is above e^-4


@dataclass(frozen=True)
class Magnitudes:
    """Public bounds at one place: |x| < 2^bound for every tensor of a kind, see `Declared`."""

    residual: int
    activation: int
    value: int
    score: int
    logits: int


class Declared:
    """Public bounds by layer, of each kind (`protocols.options.MaskedOptions`)."""

    def __init__(self, bounds: Mapping[str, Bounds]) -> None:
        self._bounds = bounds

    def at(self, place: int) -> Magnitudes:
        """The bounds of a layer or of the head."""
        return Magnitudes(**{name: bounds.at(place) for name, bounds in self._bounds.items()})


@dataclass(frozen=True)
class NormBits:
    """stream: fraction bits of the residual stream. scale: of 1 / deviation. bits: the stream's ring. product_first: whether
    a product fits it before it is scaled."""

    stream: int
    scale: int
    bits: int
    product_first: bool


def _fixed(weight: Value) -> product.FixedWeight:
    """A weight's masked form. Raises `RangeError` for a value that is none."""
    if not isinstance(weight, MaskedWeight):
        raise RangeError("the weight of a layer, or the token table, must come from Suite.weight")
    return weight.weight


def _rsqrt_magnitude(norm: Norm) -> int:
    """1 / sqrt(moment + eps) < 2^magnitude."""
    return max(1, math.ceil(-0.5 * math.log2(norm.epsilon)) + 1)


class MaskedSuite(Suite):
    """One role's instance for one session. channel None: the dealer, or estimation."""

    name: ClassVar[str] = "masked"
    prepares: ClassVar[bool] = True
    overlaps_rounds: ClassVar[bool] = True
    flag_bytes: ClassVar[int] = 8 * len(RANGE_KINDS)
    weight_fraction_bits = WEIGHT_BITS

    def __init__(
        self,
        *,
        parties: int,
        tape: Tape,
        channel: Channel | None,
        options: MaskedOptions = USUAL,
        device: torch.device | str = "cpu",
    ) -> None:
        self.context = Context(tape, channel, parties, device)
        super().__init__(parties, options.fraction_bits, self.context.ledger, device)
        self.declared = Declared(options.bounds)
        self.magnitudes = self.declared.at(0)
        self.ranges = RangeFlags(self.context, self.places)

    def begin(self, places: int) -> None:
        """A program with so many places begins."""
        super().begin(places)
        self.magnitudes = self.declared.at(0)
        self.ranges = RangeFlags(self.context, places)

    def at(self, place: int) -> None:
        """What follows belongs to this place."""
        super().at(place)
        self.magnitudes = self.declared.at(place)

    def flags(self) -> Tensor | None:
        """This party's share of the range flags since the last call."""
        return self.ranges.take()

    def flag(self, kind: str, x: Masked, limit: float, signed: bool = True, width: int = ranges.DIGIT) -> None:
        """Flag `kind` here unless x lies within `limit`, see `ranges.RangeFlags.check`."""
        self.ranges.check(kind, self.place, x, limit, signed, width)

    @property
    def range_bits(self) -> int:
        """Differences of scores are read modulo 2^range_bits."""
        return self.magnitudes.score + 1

    @property
    def similarity_bound(self) -> float:  # type: ignore[override]
        """Bound on the spread of similarities."""
        return 2.0 ** (self.range_bits + selection.SIMILARITY_ROOM)

    @property
    def _linear_kind(self) -> tuple[str, int]:
        """What the outputs of linear layers are here, and their bound."""
        if self.place and self.place == self.places - 1:
            return "logits", self.magnitudes.logits
        return "activation", self.magnitudes.activation

    def _flush(self, requests: list[Any]) -> Sequence[Any]:
        return self.context.flush(requests)

    # ---- forms -----------------------------------------------------------------------------------------------------
    def as_tensor(self, x: Value) -> MaskedTensor:
        """A value of this suite; a weight as an ordinary value."""
        if isinstance(x, MaskedWeight):
            return x.tensor(self)
        assert isinstance(x, MaskedTensor)
        return x

    def with_bound(self, x: Value, bound: float) -> MaskedTensor:
        """x, known to lie within +-bound."""
        t = self.as_tensor(x)
        t.magnitude = min(t.magnitude, max(1, math.ceil(math.log2(bound))))
        return t

    def new(self, x: Shared | Masked, magnitude: int) -> MaskedTensor:
        """A sharing or a masked value as a value, |x| < 2^magnitude."""
        if isinstance(x, Shared):
            return MaskedTensor(self, magnitude, x)
        return MaskedTensor(self, magnitude, masked=x)

    async def masked(self, value: Value, frac: int, bits: int, cut: bool = True) -> Masked:
        """<x> with exactly `frac` fraction bits modulo 2^bits: 0 to 2 rounds, whatever is cheapest from what there is.

        cut: False where a larger ring does as well, as for a factor: what is there is then not copied into a smaller one.
        """
        x = self.as_tensor(value)
        c = self.context
        need = x.needs(frac)
        if need > bits and x.magnitude != 0:
            require(False, "masked", f"{need} bits do not fit a ring of {bits}")
        found = x.masked
        if found is not None and found.frac == frac and found.bits >= bits:
            return found.to_ring(bits) if cut else found
        if found is None:
            found = await self._open(x, frac, bits)
        excess = found.frac - frac
        if excess < 0:
            found = Masked(found.m << -excess, found.lam << -excess, min(found.bits - excess, FULL), frac)
            found = found.to_ring(found.bits)
            excess = 0
        if found.bits - excess >= bits:
            result = truncate(c, found, excess).to_ring(bits)
        else:
            offset = 1 << found.frac if x.positive else None
            result = await open_value(c, truncate_and_lift(c, found, excess, bits, offset))
        x.masked, x.shared = result, None
        return result

    async def _open(self, x: MaskedTensor, frac: int, bits: int) -> Masked:
        """<x> of a sharing with `frac` fraction bits, modulo 2^bits where its ring is large enough, else in a ring that
        holds it; further fraction bits are cut as it is opened. A watched x is checked."""
        shared = x.as_shared()
        if shared.frac < frac:
            shared = shared.shift_left(frac - shared.frac)
        excess = shared.frac - frac
        least = max(frac + x.magnitude + 2 + int(x.watched is not None) - int(x.positive), 2)
        if x.magnitude:
            require(least + excess <= shared.bits, "open", f"{shared} with |x| < 2^{x.magnitude}")
        most = shared.bits - excess
        opened = max(min(least, most), bits if most >= bits else 0)
        found = await open_cut(self.context, shared.to_ring(opened + excess), excess)
        if x.watched is not None:
            self.flag(x.watched, found.to_ring(least), 2.0 ** (x.magnitude - 1))
            x.watched, x.checked = None, True
        return found

    # ---- values in and out -----------------------------------------------------------------------------------------
    async def weight(self, name: str, shape: Sequence[int], share: Tensor | None) -> MaskedWeight:
        """Open the weight's masked form once, 8 bytes per element to each other party, 1 round."""
        with operation("weight"):
            bits = self._embed_bits if name == TABLE else FULL
            weight = await fixed_weight(self.context, shape, share, WEIGHT_BITS, bits)
        magnitude = self.declared.at(0).residual if len(shape) == 1 or name.startswith("embedding") else 6
        home = copy.copy(self)  # what outlives the session keeps neither its tape nor its channel
        home.context = self.context.local()
        home.ledger = home.context.ledger
        return MaskedWeight(home, weight, magnitude)

    def input(
        self, shape: Sequence[int], share: Tensor | None, fraction_bits: int, bound: float | None = None
    ) -> MaskedTensor:
        """A secret input from this party's share in Z_2^64."""
        x = share.to(self.device) if share is not None else self.context.blank(shape)
        magnitude = 1 if fraction_bits == 0 else self.magnitudes.activation
        if bound is not None:
            magnitude = math.ceil(math.log2(bound))
        return self.new(Shared(x, FULL, fraction_bits), magnitude)

    def indices(self, count: int, share: Tensor | None, size: int) -> MaskedTensor:
        """Places from this party's share in Z_2^64, of which the bits of an index count."""
        x = share.to(self.device) if share is not None else self.context.blank((count,))
        bits = tokens.index_bits(size)
        return self.new(Shared(x, FULL, 0).to_ring(bits), bits)

    def output(self, x: Value) -> OutputShare:
        """This party's share plus a dealt sharing of zero: the sum says nothing but x."""
        s = self.as_tensor(x).as_shared()
        zero = self.context.deal("zero", s.shape, s.bits, lambda: torch.zeros(s.shape, dtype=torch.int64))
        share = ring.reduce(s.x + zero, s.bits) if self.context.evaluating else s.x
        return OutputShare(share, s.bits, s.frac)

    async def rounded(self, x: Value, room: int = 4) -> MaskedTensor:
        """A product still carries the fraction bits of both factors; they are cut."""
        t = self.as_tensor(x)
        f = min(t.frac, self.fraction_bits)
        with operation("round"):
            return self.new(await self.masked(t, f, f + t.magnitude + room), t.magnitude)

    async def released(self, x: Value) -> MaskedTensor:
        """x cut to `fraction_bits` fraction bits by an exact floor, Shared. 2 rounds, 1 where x is masked already."""
        return await output.released(self, self.as_tensor(x))

    async def perturbed(self, x: Value, temperature: float) -> MaskedTensor:
        """x plus dealt Gumbel noise, masked as the arg-max needs it: what is opened here it then need not open."""
        return await output.perturbed(self, self.as_tensor(x), temperature)

    def public(self, x: Tensor | float, shape: Sequence[int] | None = None) -> MaskedTensor:
        """A public tensor as a value: masked with mask 0."""
        t = torch.as_tensor(x, dtype=torch.float64)
        t = t.expand(tuple(shape)) if shape is not None else t
        m = encode(t, self.fraction_bits).to(self.device)
        magnitude = max(1, math.ceil(math.log2(float(t.abs().max()) + 1))) if t.numel() else 1
        return self.new(Masked(m, torch.zeros_like(m), FULL, self.fraction_bits), magnitude)

    def concat(self, values: Sequence[Value], dim: int) -> MaskedTensor:
        """Concatenate along `dim`; local."""
        xs = [self.as_tensor(v) for v in values]
        magnitude = max(x.magnitude for x in xs)
        masked = [x.masked for x in xs if x.masked is not None]
        if len(masked) == len(xs) and len({m.frac for m in masked}) == 1:
            bits = min(m.bits for m in masked)
            cut = [m.to_ring(bits) for m in masked]
            joined = Masked(torch.cat([m.m for m in cut], dim), torch.cat([m.lam for m in cut], dim), bits, cut[0].frac)
            return self.new(joined, magnitude)
        shares = [x.as_shared() for x in xs]
        frac = max(s.frac for s in shares)
        shares = [s.shift_left(frac - s.frac) for s in shares]
        bits = min(s.bits for s in shares)
        return self.new(Shared(torch.cat([s.to_ring(bits).x for s in shares], dim), bits, frac), magnitude)

    # ---- arithmetic ------------------------------------------------------------------------------------------------
    async def _operands(self, x: Value, y: Value, extra: int) -> tuple[Masked, Masked, int]:
        a, b = self.as_tensor(x), self.as_tensor(y)
        fa, fb = min(a.frac, self.fraction_bits), min(b.frac, self.fraction_bits)
        magnitude = a.magnitude + b.magnitude + extra
        bits = max(fa + fb + magnitude + 2, fa + a.magnitude + 2, fb + b.magnitude + 2)
        if bits > FULL:
            require(False, "product", f"{a} by {b} needs {bits} bits")
        ma, mb = await self.together(self.masked(a, fa, bits), self.masked(b, fb, bits))
        return ma, mb, magnitude

    async def mul(self, x: Value, y: Value) -> MaskedTensor:
        """Element-wise product; no round beyond making the factors masked."""
        a, b, magnitude = await self._operands(x, y, 0)
        return self.new(product.multiply(self.context, a, b), magnitude)

    async def matmul(self, x: Value, y: Value) -> MaskedTensor:
        """Matrix product; no round beyond making the factors masked."""
        a, b, magnitude = await self._operands(x, y, x.shape[-1].bit_length())
        return self.new(product.matmul(self.context, a, b), magnitude)

    async def scale(self, x: Value, factor: Tensor | float) -> MaskedTensor:
        """Times a public real factor, held with 12 fraction bits below its largest entry; 0 or 1 round."""
        t = self.as_tensor(x)
        real = torch.as_tensor(factor, dtype=torch.float64)
        top = max(0, math.ceil(math.log2(max(float(real.abs().max()), 2.0**-30))))
        bits = t.frac + t.magnitude + top + 3 + 12  # one bit to spare: a rotation adds two such products
        if t.frac > self.fraction_bits + 2 or bits > t.form.bits:
            wide = self.fraction_bits + t.magnitude + top + 3 + 12
            m = await self.masked(t, self.fraction_bits, wide) if t.masked is not None else None
            if m is None:
                opened = await self._open(t, self.fraction_bits, 0)
                t = self.new(lift(self.context, opened, wide), t.magnitude)
            else:
                t = self.new(m, t.magnitude)
        integers = torch.round(real * 2.0**12).to(torch.int64).to(self.device)
        form = t.form.map(lambda v: v * integers.to(v.device))
        out = Shared(form.x, form.bits, form.frac + 12) if isinstance(form, Shared) else None
        if isinstance(form, Masked):
            return self.new(Masked(form.m, form.lam, form.bits, form.frac + 12), t.magnitude + top)
        assert out is not None
        return self.new(out, t.magnitude + top)

    async def rotate(self, x: Value, cos: Tensor, sin: Tensor) -> MaskedTensor:
        """Rotary positions; x is opened once, then everything is local."""
        t = self.as_tensor(x)
        f = self.fraction_bits
        wide = f + t.magnitude + 3 + ROTATION_BITS  # the sum of two products
        if t.masked is None and t.frac > f:
            t = self.new(lift(self.context, await self._open(t, f, 0), wide), t.magnitude)
        elif t.masked is not None:
            t = self.new(await self.masked(t, f, wide), t.magnitude)
        half = t.shape[-1] // 2
        swapped = self.concat([-t[..., half:], t[..., :half]], dim=-1)

        def times(y: MaskedTensor, factor: Tensor) -> Shared:
            integers = torch.round(factor * 2.0**ROTATION_BITS).to(torch.int64).to(self.device)
            shared = y.as_shared()
            return Shared(shared.x * integers, shared.bits, shared.frac + ROTATION_BITS)

        return self.new(times(t, cos).add(times(swapped, sin)), t.magnitude + 1)

    async def linear(self, x: Value, layer: Linear, residual: Value | None = None) -> MaskedTensor:
        """x W + b (+ residual), Shared, fraction_bits + 16 fraction bits."""
        t = self.as_tensor(x)
        kind, bound = self._linear_kind
        watched = kind if residual is None else None
        magnitude = self._stream_bound + ROOM if residual is not None else bound + 1
        frac = min(t.frac, self.fraction_bits)
        bits = frac + WEIGHT_BITS + max(magnitude + int(residual is None), t.magnitude) + 2
        with operation("linear"):
            m = await self.masked(t, frac, bits)
            out = self._weight_product(m, layer.weight, magnitude)
        if layer.bias is not None:
            out = out + self.as_tensor(layer.bias)
        if residual is not None:
            out = out + residual
        out.magnitude, out.watched = magnitude, watched
        return out

    @property
    def _stream_bound(self) -> int:
        """Bound on the residual stream that is written here: it is read here and at the next place."""
        return max(self.magnitudes.residual, self.declared.at(self.place + 1).residual)

    def _weight_product(self, x: Masked, weight: Value, magnitude: int) -> MaskedTensor:
        return self.new(product.weight_product(self.context, "linear", x, _fixed(weight)), magnitude)

    @property
    def _embed_bits(self) -> int:
        """The ring of products with the token table."""
        return WEIGHT_BITS + self.declared.at(0).residual + ROOM + 2

    async def look_up(self, index: Value, table: Value) -> MaskedTensor:
        """Rows of the table, see `protocols.masked.tokens`. 2 rounds."""
        with operation("embed"):
            found = await tokens.look_up(self.context, self.as_tensor(index).as_shared(), _fixed(table), self._embed_bits)
            return self.new(found, self._embed_bound)

    async def embed(self, one_hot: Value, table: Value) -> MaskedTensor:
        """One-hot rows times the table; the one-hot is opened (masked) in the table's ring."""
        with operation("embed"):
            m = await self.masked(self.as_tensor(one_hot), 0, self._embed_bits)
            return self._weight_product(m, table, self._embed_bound)

    @property
    def _embed_bound(self) -> int:
        """Bound on rows of the token table; positions may join."""
        return self.declared.at(0).residual + ROOM - 1

    # ---- normalisation ---------------------------------------------------------------------------------------------
    def _norm_bits(self, width: int) -> NormBits:
        """Fraction bits and rings of a norm here, for rows of `width` channels."""
        residual, bound = self.magnitudes.residual, self._linear_kind[1]
        scale = max(SCALE_BITS, math.ceil(residual - math.log2(width) / 2 + RELATIVE_BITS))
        fixed = WEIGHT_BITS + bound + 1 + 3
        low, high = RESIDUAL_BITS
        stream = max(low, min(high, self.fraction_bits + 2, FULL - fixed - scale))
        bits = max(stream + fixed + scale, 2 * stream + 2 * residual + ROOM + 2)
        return NormBits(stream, scale, min(bits, FULL), stream + fixed + scale <= FULL)

    async def _residual(self, x: Value, b: NormBits) -> Masked:
        """The residual stream, masked in the ring that both its square and its products need."""
        with operation("residual"):
            return await self.masked(self.as_tensor(x), b.stream, b.bits)

    async def _inverse(self, h: Masked, norm: Norm) -> MaskedTensor:
        """[1 / sqrt(moment + eps)] of each row, [..., 1], Shared. 3 rounds."""
        width = h.shape[-1]
        c = self.context
        residual = self.magnitudes.residual
        with operation("norm statistics"):
            if norm.kind == "layer":
                # the mean is cut by more than the ring can lose, hence one round for its lift; a model whose residual
                # stream is centred by its weights uses the kind "rms" and needs no mean
                precision = 12 + width.bit_length()
                total = self._times_public(h.map(lambda t: t.sum(-1, keepdim=True)), 1 / width, precision)
                mean = truncate_and_lift(c, total, precision, h.bits)
                h = await open_value(c, c.shared(h).add(mean.map(torch.neg).map(lambda t: t.expand(h.shape))))
            # a copy with fewer fraction bits is squared where the ring could not hold the square with room above the bound
            h = truncate(c, h, max(0, 2 * h.frac + 2 * residual + ROOM + 2 - h.bits))
            squares = product.multiply(c, h, h).map(lambda t: t.sum(-1, keepdim=True))
            epsilon = max(1, round(norm.epsilon * width * 2.0**squares.frac))
            moment = c.add_public(squares, torch.full((*h.shape[:-1], 1), epsilon, dtype=torch.int64, device=self.device))
            opened = await open_value(c, moment)
            near = opened.to_ring(min(opened.bits, opened.frac + 2 * residual + 7))  # norms up to eleven times the bound
            self.flag("residual", near, 4.0**residual, signed=False, width=8)
            high = squares.frac + 2 * residual + 1
            low_bit = max(epsilon.bit_length() - 1, 1)
            inverse = await power(c, opened.to_ring(high + 1), low_bit, high, -0.5, math.sqrt(width))
        return self.new(inverse, _rsqrt_magnitude(norm))

    async def _scale(self, h: Masked, norm: Norm, frac: int, bits: int) -> Masked:
        """1 / deviation of each row, masked. 4 rounds. Rows that are too small for the stream's precision are flagged."""
        found = await self._inverse(h, norm)
        with operation("norm scale"):
            r = await self.masked(found, frac, bits)
            if _rsqrt_magnitude(norm) > SMALLEST_DEVIATION + 1:
                wide = r.to_ring(min(r.bits, frac + _rsqrt_magnitude(norm) + 2))
                self.flag("residual", wide, 2.0**SMALLEST_DEVIATION, signed=False, width=8)
            return r

    def _times_public(self, x: Masked, factor: float, bits: int) -> Masked:
        y = x.map(lambda t: t * round(factor * 2.0**bits))
        return Masked(y.m, y.lam, y.bits, y.frac + bits)

    async def rsqrt_moment(self, x: Value, norm: Norm) -> MaskedTensor:
        """1 / sqrt(moment + eps), [..., D] -> [..., 1]."""
        return await self._inverse(await self._residual(x, self._norm_bits(x.shape[-1])), norm)

    async def norm_linear(self, x: Value, norm: Norm, layers: Sequence[Linear], whole: bool = False) -> list[Value]:
        """One token: the statistics run beside the matrix product, whose result is scaled (fewest rounds). Many tokens: the
        input is scaled first, two rounds more, but nothing is opened in the product's large ring (fewest bytes). So too
        where large bounds leave no room for the product before it is scaled, and where the product is wanted `whole`."""
        b = self._norm_bits(x.shape[-1])
        h = await self._residual(x, b)
        if math.prod(h.shape[:-1]) > MANY_ROWS or whole or not b.product_first:
            return await self._scale_first(h, norm, layers, b)
        c = self.context
        kind, bound = self._linear_kind
        cut = max(h.frac + WEIGHT_BITS - PRODUCT_BITS, 0)  # the scaled product is opened with so many bits fewer

        async def before(layer: Linear) -> Masked:
            with operation("linear"):
                return await open_cut(c, self._weight_product(h.to_ring(b.bits), layer.weight, 0).as_shared(), cut)

        (r, *products) = await self.together(
            self._scale(h, norm, b.scale, b.bits - cut), *(before(layer) for layer in layers)
        )
        out: list[Value] = []
        for pre, layer in zip(products, layers, strict=True):
            with operation("norm scale"):
                y = self.new(product.multiply(c, pre, r), bound + 1)
            if layer.bias is not None:
                y = y + self.as_tensor(layer.bias)
                y.magnitude = bound + 1
            y.watched = kind
            out.append(y)
        return out

    async def _scale_first(self, h: Masked, norm: Norm, layers: Sequence[Linear], b: NormBits) -> list[Value]:
        """h / deviation, then the linear layers. |h / deviation| <= sqrt(D), whatever h is."""
        f, bound = self.fraction_bits, self._linear_kind[1]
        magnitude = math.ceil(math.log2(h.shape[-1]) / 2)
        r = await self._scale(h, norm, b.scale, h.frac + b.scale + max(magnitude, _rsqrt_magnitude(norm)) + 2)
        with operation("norm scale"):
            y = self.new(product.multiply(self.context, h.to_ring(r.bits), r), magnitude)
            scaled = self.new(await self.masked(y, f, f + WEIGHT_BITS + bound + 2 + ROOM), magnitude)
        outputs = await self.together(*(self.linear(scaled, layer) for layer in layers))
        return list(outputs)

    # ---- attention -------------------------------------------------------------------------------------------------
    def value_bits(self, rows: softmax.Rows) -> tuple[int, int]:
        """(fraction bits of the numerators, ring of numerators times values)."""
        spare = FULL - 3 - self.fraction_bits - softmax.PEAK_BITS - self.magnitudes.value
        return min(28, spare - max(rows.longest, 1).bit_length()), FULL

    def selected_value_bits(self, rows: softmax.Rows) -> tuple[int, int]:
        """The same where the ring crosses the wire again and again, with a choice: as small as the products allow."""
        spare = FULL - 3 - self.fraction_bits - softmax.PEAK_BITS - self.magnitudes.value
        frac = min(SELECTED_BITS, spare - max(rows.longest, 1).bit_length())
        return frac, FULL - spare + max(rows.longest, 1).bit_length() + frac

    async def attention(self, q: Value, k: Value, v: Value, mask: Tensor | None) -> MaskedTensor:
        """softmax(q k^T) v; the division comes after the product with v."""
        return await selection.attention(self, q, k, v, mask)

    async def attention_with_mass(
        self, q: Value, k: Value, v: Value, mask: Tensor | None, observed: Tensor
    ) -> tuple[Value, Value]:
        """`attention` and what each cached token receives from the observed queries, [G, S]; no further rounds."""
        return await selection.attention_with_mass(self, q, k, v, mask, observed)

    async def biased_attention(self, q: Value, k: Value, v: Value, bias: Value) -> MaskedTensor:
        """`attention` with a secret bias, which joins the scores before they are opened."""
        return await selection.biased_attention(self, q, k, v, bias)

    async def selected_attention(
        self, q: Value, chosen: Value, k: Value, v: Value, always: tuple[Value, Value] | None
    ) -> MaskedTensor:
        """Attention to secretly chosen clusters by three-factor products, in the rounds of `attention`."""
        return await selection.selected_attention(self, q, chosen, k, v, always)

    def relative(self, x: Value) -> MaskedTensor:
        """x less its last entry along the last axis, modulo x's ring."""
        return selection.relative(self, x)

    async def scores(self, q: Value, k: Value) -> MaskedTensor:
        """Products with cluster representatives, Shared; no round where both are masked already."""
        return await selection.similarity(self, q, k)

    async def absolute(self, x: Value) -> MaskedTensor:
        """|x| of queries, in the ring of their similarities. 1 round."""
        return await selection.absolute(self, x)

    async def choose(self, chosen: Value, rows: Value) -> MaskedTensor:
        """Rows of a small table, in the full ring: the result of a choice is a choice again."""
        return await selection.choose(self, chosen, rows)

    async def top_k(self, x: Value, k: int, bound: float) -> MaskedTensor:
        """One-hot rows of the k largest, [..., C] -> [..., k, C]. 2 rounds from a masked x."""
        return await selection.ranked_rows(self, x, k, bound)

    async def keep_largest(self, x: Value, k: int, bound: float) -> MaskedTensor:
        """1 at the k largest, [..., n] -> [..., n]."""
        return await selection.kept(self, x, k, bound)

    async def compact(self, keep: Value, rows: Sequence[Value], k: int) -> list[Value]:
        """The marked rows in their order, [B, n, width] -> [B, k, width]."""
        return await selection.compacted(self, keep, rows, k)

    async def replace(self, rows: Value, place: Value, new: Value) -> MaskedTensor:
        """Cached rows [G, n, C] with the marked one replaced by `new`, masked again. 2 rounds."""
        return await selection.replace(self, rows, place, new)

    async def prepare(self, x: Value) -> Value:
        """Queries [H, T, C], masked in the ring of their scores while keys and values are made ready for the cache; a single
        token's in one that serves similarities too."""
        t = self.as_tensor(x)
        f = self.fraction_bits
        with operation("scores"):
            await self.masked(t, f, selection.query_bits(self) if x.shape[1] == 1 else selection.score_bits(self))
        return t

    async def append(self, cache: Value | None, new: Value, dim: int, kind: str | None = None) -> MaskedTensor:
        """Cached keys and values stay masked: the new rows are opened in the full ring, once."""
        x = self.as_tensor(new)
        with operation("cache"):
            x.masked = await self.masked(x, self.fraction_bits, FULL)
            x.shared = None
            if kind is not None:
                bound = getattr(self.magnitudes, kind)
                self.flag(kind, x.masked.to_ring(self.fraction_bits + bound + 2 + ROOM), 2.0**bound)
        if self.context.tape.preparing:  # no term that is computed ahead needs a cached value's mask
            x.masked = Masked(self.context.blank(x.shape), self.context.blank(x.shape), FULL, x.masked.frac)
        if cache is None:
            return x
        old = self.as_tensor(cache)
        if old.masked is None or (old.masked.frac, old.masked.bits) != (x.masked.frac, FULL):
            return self.concat([cache, x], dim)
        rows = old.rows if old.rows is not None and old.rows.value is old.masked and old.rows.dim == dim else None
        out = old.of_rows((rows or append_buffer(old.masked, dim)).append(x.masked))
        out.magnitude = max(old.magnitude, x.magnitude)
        return out

    def keep_first(self, x: Value, count: int, dim: int) -> Value:
        """As in `Suite`; what is given up of a cache is written over by what is appended next."""
        t = self.as_tensor(x)
        masked = t.masked if t.masked is not None else None
        if masked is None:
            return super().keep_first(x, count, dim)
        rows = t.rows if t.rows is not None and t.rows.value is masked and t.rows.dim == dim else append_buffer(masked, dim)
        return t.of_rows(rows.release(count))

    # ---- non-linear functions --------------------------------------------------------------------------------------
    def flag_scores(self, difference: Masked) -> None:
        """Flag a score that is too far from the last one of its row."""
        near = difference.to_ring(difference.frac + self.range_bits + 1)
        self.flag("score", near, largest("score", self.magnitudes.score), width=6)

    async def softmax(self, x: Value, mask: Tensor | None = None) -> MaskedTensor:
        """Probabilities, Shared; masked positions are exactly 0."""
        c, f = self.context, self.fraction_bits
        rows = softmax.Rows.of(x.shape, mask)
        t = self.as_tensor(x)
        t.magnitude = min(t.magnitude, self.range_bits)
        s = await self.masked(t, f, f + self.range_bits + 2)
        y = Masked(rows.take(s.m), rows.take(s.lam), s.bits, s.frac)
        frac = min(26, FULL - 2 - SCALE_BITS - 8 - softmax.PEAK_BITS - 1)
        p, inverse = await softmax.numerators(c, y, rows, frac, FULL, self.range_bits, self.flag_scores)
        r = await self.masked(self.new(inverse, softmax.PEAK_BITS + 1), SCALE_BITS + 8, FULL)
        spread = Masked(rows.spread(r.m), rows.spread(r.lam), r.bits, r.frac)
        out = product.multiply(c, p, spread)
        return self.new(Shared(rows.put(out.x).reshape(x.shape), out.bits, out.frac), 1)

    async def activation(self, x: Value, kind: Activation) -> MaskedTensor:
        """gelu, gelu_tanh, silu or relu."""
        t = self.as_tensor(x)
        with operation(kind):
            f = self.fraction_bits
            m = await self.masked(t, f, max(t.needs(f), activations.least_bits(kind, f)))
            out = self.new(await activations.activation(self.context, m, kind), t.magnitude)
            out.positive = True
            return out

    async def gated_activation(self, gate: Value, up: Value, kind: Activation) -> MaskedTensor:
        """activation(gate) * up; `up` is made masked beside the activation."""
        f, bound = self.fraction_bits, self.magnitudes.activation
        u = self.as_tensor(up)
        bits = 2 * f + 2 * bound + 4

        async def activated() -> Masked:
            return await self.masked(await self.activation(gate, kind), f, bits)

        a, b = await self.together(activated(), self.masked(u, f, bits))
        return self.new(product.multiply(self.context, a, b), 2 * bound + 2)

    async def less_than_zero(self, x: Value) -> MaskedTensor:
        """1 where x < 0; 1 round."""
        t = self.as_tensor(x)
        f = self.fraction_bits
        m = await self.masked(t, min(t.frac, f), min(t.frac, f) + t.magnitude + 2)
        with operation("less than zero"):
            return self.new((await less_than_zero(self.context, m)).share(FULL), 1)

    async def max(self, x: Value, background: bool = False) -> MaskedTensor:
        """Maximum over the last axis, [..., n] -> [..., 1]; exact in fixed point."""
        t = self.as_tensor(x)
        f = self.fraction_bits
        m = await self.masked(t, f, f + t.magnitude + 3)
        with operation("max"):
            found = await ranking.best(self.context, m, 1 << (f + t.magnitude), False, background)
        return self.new(found.value.map(lambda v: v[..., None]), t.magnitude)

    async def argmax(self, x: Value) -> MaskedTensor:
        """One-hot of the maximum, ties (within 2^-10) to the earlier position."""
        t = self.as_tensor(x)
        c = self.context
        f = min(output.CHOICE_BITS, self.fraction_bits)
        n = x.shape[-1]
        with operation("argmax"):
            reach, ring_bits = t.reach_bits(f)
            found = await ranking.best(c, await self.masked(t, f, ring_bits), reach, True)
            bits = self._embed_bits
            hots = [one_hot(c, d, 0, d.bits, bits) for d in found.digits]
            if len(hots) == 1:
                return self.new(hots[0].map(lambda v: v[..., :n]), 1)
            low = await self.together(*(open_value(c, h) for h in hots))
            out = low[0]
            total: Shared | None = None
            for high in low[1:]:
                total = product.multiply(c, high.map(lambda v: v[..., :, None]), out.map(lambda v: v[..., None, :]))
                total = total.map(lambda v: v.flatten(-2))
                if high is not low[-1]:
                    out = await open_value(c, total)
            assert total is not None
            return self.new(total.map(lambda v: v[..., :n]), 1)
