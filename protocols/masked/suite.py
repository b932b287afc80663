"""The suite `masked`: transformer operations in few rounds on masked values. Any number of parties, semi-honest, a dealer.

A `MaskedTensor` is whatever its producer left: a sharing (not yet opened), a masked value, or both. Every operation asks for
the form that it needs (`masked`), with as few ring bits as its public bounds allow; asking opens it, once, and the result is
kept, so later operations on the same tensor (a cached key, say) cost nothing for it. Openings that wait at the same time
leave in one message.

Bounds. |x| < 2^magnitude is declared by `Magnitudes` (public configuration, not data) for each kind of tensor; rings follow
from them and an operation whose ring would be too small is an error at plan time. Values outside the declared bounds wrap:
`mpcache check` reports a model's magnitudes in plaintext against them.

Security: semi-honest, any parties - 1 compute parties may collude, the dealer with none. Leaks: shapes only.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
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
from protocols.masked import activation as activations
from protocols.masked import product, ranking, selection, softmax
from protocols.masked.comparison import less_than_zero
from protocols.masked.context import Context, open_value, require
from protocols.masked.dealing import one_hot
from protocols.masked.growth import grown
from protocols.masked.power import power
from protocols.masked.tensor import MaskedTensor, MaskedWeight
from protocols.masked.truncation import truncate, truncate_and_lift
from protocols.masked.wires import Masked, Shared
from protocols.suite import Activation, Linear, Norm, OutputShare, Suite, Value

TABLE = "embedding.tokens"  # is multiplied by one-hot rows only, in a small ring
WEIGHT_BITS = 16  # fraction bits of the weights' shares, as the model owner gives them
SCALE_BITS = 18  # fraction bits of 1/deviation and 1/sum
RESIDUAL_EXTRA = 2  # further fraction bits of the residual stream: early layers are small, and norms amplify
PRODUCT_BITS = 18  # fraction bits of a product before a norm scales it; h itself has fewer
MANY_ROWS = 4  # from here on a norm scales its input and not its output
FULL = 64
SELECTED_BITS = 22  # fraction bits of the numerators of chosen tokens; the largest is above e^-4


@dataclass(frozen=True)
class Magnitudes:
    """Public bounds: |x| < 2^bound for every tensor of a kind.

    residual: the residual stream (GPT-2 has outliers of 3 000). activation: outputs of linear layers, logits included.
    value: cached values and attention outputs. score: attention scores lie within +-(2^score - 8).
    """

    residual: int = 12
    activation: int = 8
    value: int = 6
    score: int = 7

    def __post_init__(self) -> None:
        for name, low, high in (("residual", 4, 16), ("activation", 3, 12), ("value", 2, 12), ("score", 5, 10)):
            found = getattr(self, name)
            if not isinstance(found, int) or not low <= found <= high:
                raise RangeError(f"{name} = {found!r} must be a whole number from {low} to {high} (log2 of the bound)")


class MaskedSuite(Suite):
    """One role's instance for one session. channel None: the dealer, or estimation. residual ... score: see `Magnitudes`."""

    name: ClassVar[str] = "masked"
    prepares: ClassVar[bool] = True
    rides_along: ClassVar[bool] = True
    weight_fraction_bits = WEIGHT_BITS

    def __init__(
        self,
        *,
        parties: int,
        tape: Tape,
        channel: Channel | None,
        fraction_bits: int = 14,
        device: torch.device | str = "cpu",
        residual: int = 12,
        activation: int = 8,
        value: int = 6,
        score: int = 7,
    ) -> None:
        if not 8 <= fraction_bits <= 16:
            raise RangeError(f"suite 'masked' needs 8 to 16 fraction bits, got {fraction_bits}")
        self.context = Context(tape, channel, parties, device)
        super().__init__(parties, fraction_bits, self.context.ledger, device)
        self.magnitudes = Magnitudes(residual, activation, value, score)
        self.range_bits = self.magnitudes.score + 1
        self.similarity_bound = 2.0 ** (self.range_bits + selection.SIMILARITY_ROOM)

    def _flush(self, requests: list[Any]) -> Sequence[Any]:
        return self.context.flush(requests)

    # ---- forms -----------------------------------------------------------------------------------------------------
    def as_tensor(self, x: Value) -> MaskedTensor:
        """A value of this suite; a weight as an ordinary value."""
        if isinstance(x, MaskedWeight):
            return x.tensor(self)
        assert isinstance(x, MaskedTensor)
        return x

    def bounded(self, x: Value, bound: float) -> MaskedTensor:
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
        need = frac + x.magnitude + 2
        if need > bits and x.magnitude != 0:
            require(False, "masked", f"{need} bits do not fit a ring of {bits}")
        found = x.masked
        if found is not None and found.frac == frac and found.bits >= bits:
            return found.to_ring(bits) if cut else found
        if found is None:
            shared = x.as_shared()
            if shared.frac <= frac:
                shared = shared.shift_left(frac - shared.frac)
                if shared.bits >= bits:
                    x.masked = await open_value(c, shared.to_ring(bits))
                    return x.masked
            opened = min(shared.bits, max(shared.frac + x.magnitude + 2, 2))
            if shared.frac + x.magnitude + 2 > shared.bits:
                require(False, "open", f"{shared} with |x| < 2^{x.magnitude}")
            excess = max(shared.frac - frac, 0)
            if shared.bits - excess >= bits:
                opened = max(opened, bits + excess)
            found = await open_value(c, shared.to_ring(opened))
        excess = found.frac - frac
        if excess < 0:
            found = Masked(found.m << -excess, found.lam << -excess, min(found.bits - excess, FULL), frac)
            found = found.to_ring(found.bits)
            excess = 0
        if found.bits - excess >= bits:
            result = truncate(c, found, excess).to_ring(bits)
        else:
            result = await open_value(c, truncate_and_lift(c, found, excess, bits))
        x.masked, x.shared = result, None
        return result

    # ---- values in and out -----------------------------------------------------------------------------------------
    async def weight(self, name: str, shape: Sequence[int], share: Tensor | None) -> MaskedWeight:
        """Open the weight's masked form once, 8 bytes per element to each other party, 1 round."""
        c = self.context
        with operation("weight"):
            x = Shared(share.to(self.device) if share is not None else c.blank(shape), FULL, WEIGHT_BITS)
            opened = await open_value(c, x)
        magnitude = self.magnitudes.residual - 1 if len(shape) == 1 or name.startswith("embedding") else 6
        home = copy.copy(self)  # what outlives the session keeps neither its tape nor its channel
        home.context = c.local()
        home.ledger = home.context.ledger
        largest = self._embed_bits if name == TABLE else FULL
        return MaskedWeight(home, product.FixedWeight(opened, c, largest), magnitude)

    def input(self, shape: Sequence[int], share: Tensor | None, fraction_bits: int) -> MaskedTensor:
        """A secret input from this party's share in Z_2^64."""
        x = share.to(self.device) if share is not None else self.context.blank(shape)
        magnitude = 1 if fraction_bits == 0 else self.magnitudes.activation
        return self.new(Shared(x, FULL, fraction_bits), magnitude)

    def output(self, x: Value) -> OutputShare:
        """This party's share plus a dealt sharing of zero: the sum says nothing but x."""
        s = self.as_tensor(x).as_shared()
        zero = self.context.deal("zero", s.shape, s.bits, lambda: torch.zeros(s.shape, dtype=torch.int64))
        share = ring.reduce(s.x + zero, s.bits) if self.context.evaluating else s.x
        return OutputShare(share, s.bits, s.frac)

    async def rounded(self, x: Value, room: int = 4) -> MaskedTensor:
        """A product still carries the fraction bits of both factors; they are cut, so that nobody learns from them."""
        t = self.as_tensor(x)
        f = min(t.frac, self.fraction_bits)
        with operation("round"):
            return self.new(await self.masked(t, f, f + t.magnitude + room), t.magnitude)

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
                shared = t.as_shared()
                opened = await open_value(self.context, shared.to_ring(shared.frac + t.magnitude + 2))
                cut = truncate_and_lift(self.context, opened, shared.frac - self.fraction_bits, wide)
                t = self.new(cut, t.magnitude)
            else:
                t = self.new(m, t.magnitude)
        integers = torch.round(real * 2.0**12).to(torch.int64).to(self.device)
        form = t.form.map(lambda v: v * integers.to(v.device))
        out = Shared(form.x, form.bits, form.frac + 12) if isinstance(form, Shared) else None
        if isinstance(form, Masked):
            return self.new(Masked(form.m, form.lam, form.bits, form.frac + 12), t.magnitude + top)
        assert out is not None
        return self.new(out, t.magnitude + top)

    async def linear(self, x: Value, layer: Linear, residual: Value | None = None) -> MaskedTensor:
        """x W + b (+ residual), Shared, fraction_bits + 16 fraction bits."""
        t = self.as_tensor(x)
        bound = self.magnitudes.residual if residual is not None else self.magnitudes.activation
        frac = min(t.frac, self.fraction_bits)
        bits = frac + WEIGHT_BITS + max(bound, t.magnitude) + 2
        with operation("linear"):
            m = await self.masked(t, frac, bits)
            out = self._weight_product(m, layer.weight, bound)
        if layer.bias is not None:
            out = out + self.as_tensor(layer.bias)
        if residual is not None:
            out = out + residual
        out.magnitude = bound
        return out

    def _weight_product(self, x: Masked, weight: Value, magnitude: int) -> MaskedTensor:
        if not isinstance(weight, MaskedWeight):
            raise RangeError("linear: the layer's weight must come from Suite.weight")
        return self.new(product.weight_product(self.context, "linear", x, weight.weight), magnitude)

    @property
    def _embed_bits(self) -> int:
        """The ring of products with the token table."""
        return WEIGHT_BITS + self.magnitudes.residual + 2

    async def embed(self, one_hot: Value, table: Value) -> MaskedTensor:
        """One-hot rows times the table; the one-hot is opened (masked) in the table's ring."""
        with operation("embed"):
            m = await self.masked(self.as_tensor(one_hot), 0, self._embed_bits)
            return self._weight_product(m, table, self.magnitudes.residual - 1)

    # ---- normalisation ---------------------------------------------------------------------------------------------
    async def _residual(self, x: Value) -> Masked:
        """The residual stream, masked with `fraction_bits` in the ring that both its square and its products need."""
        f = self.fraction_bits + RESIDUAL_EXTRA
        bits = max(f + WEIGHT_BITS + SCALE_BITS + self.magnitudes.activation + 3, 2 * f + 2 * self.magnitudes.residual + 2)
        require(bits <= FULL, "residual", f"{bits} bits are needed")
        with operation("residual"):
            return await self.masked(self.as_tensor(x), f, bits)

    async def _inverse(self, h: Masked, norm: Norm) -> MaskedTensor:
        """[1 / sqrt(moment + eps)] of each row, [..., 1], Shared. 3 rounds."""
        width = h.shape[-1]
        c = self.context
        with operation("norm statistics"):
            if norm.kind == "layer":
                # the mean is cut by more than the ring can lose, hence one round for its lift; a model whose residual
                # stream is centred by its weights uses the kind "rms" and needs no mean
                precision = 12 + width.bit_length()
                total = self._times_public(h.map(lambda t: t.sum(-1, keepdim=True)), 1 / width, precision)
                mean = truncate_and_lift(c, total, precision, h.bits)
                h = await open_value(c, c.shared(h).add(mean.map(torch.neg).map(lambda t: t.expand(h.shape))))
            squares = product.multiply(c, h, h).map(lambda t: t.sum(-1, keepdim=True))
            epsilon = max(1, round(norm.epsilon * width * 2.0**squares.frac))
            moment = c.add_public(squares, torch.full((*h.shape[:-1], 1), epsilon, dtype=torch.int64, device=self.device))
            # |row|^2 stays below 2^(2 residual + 1): an outlier at the bound and a thousand values a thirtieth of it
            high = min(squares.frac + 2 * self.magnitudes.residual + 1, squares.bits - 1)
            opened = await open_value(c, moment.to_ring(high + 1))
            low_bit = max(epsilon.bit_length() - 1, 1)
            inverse = await power(c, opened, low_bit, high, -0.5, math.sqrt(width))
        magnitude = max(1, math.ceil(-0.5 * math.log2(norm.epsilon)) + 1)
        return self.new(inverse, magnitude)

    def _times_public(self, x: Masked, factor: float, bits: int) -> Masked:
        y = x.map(lambda t: t * round(factor * 2.0**bits))
        return Masked(y.m, y.lam, y.bits, y.frac + bits)

    async def rsqrt_moment(self, x: Value, norm: Norm) -> MaskedTensor:
        """1 / sqrt(moment + eps), [..., D] -> [..., 1]."""
        return await self._inverse(await self._residual(x), norm)

    async def norm_linear(self, x: Value, norm: Norm, layers: Sequence[Linear]) -> list[Value]:
        """One token: the statistics run beside the matrix product, whose result is scaled (fewest rounds). Many tokens: the
        input is scaled first, two rounds more, but nothing is opened in the product's large ring (fewest bytes)."""
        h = await self._residual(x)
        if math.prod(h.shape[:-1]) > MANY_ROWS:
            return await self._scale_first(h, norm, layers)
        bits = h.frac + WEIGHT_BITS + SCALE_BITS + self.magnitudes.activation + 3  # 1 to spare: an arg-max compares logits
        require(bits <= FULL, "norm_linear", f"{bits} bits are needed")
        c = self.context
        cut = h.frac + WEIGHT_BITS - PRODUCT_BITS  # the scaled product is opened with so many bits fewer

        async def inverse() -> Masked:
            found = await self._inverse(h, norm)
            with operation("norm scale"):
                return await self.masked(found, SCALE_BITS, bits - cut)

        async def before(layer: Linear) -> Masked:
            with operation("linear"):
                opened = await open_value(c, self._weight_product(h.to_ring(bits), layer.weight, 0).as_shared())
                return truncate(c, opened, cut)

        (r, *products) = await self.together(inverse(), *(before(layer) for layer in layers))
        out: list[Value] = []
        for pre, layer in zip(products, layers, strict=True):
            with operation("norm scale"):
                y = self.new(product.multiply(c, pre, r), self.magnitudes.activation)
            if layer.bias is not None:
                y = y + self.as_tensor(layer.bias)
                y.magnitude = self.magnitudes.activation
            out.append(y)
        return out

    async def _scale_first(self, h: Masked, norm: Norm, layers: Sequence[Linear]) -> list[Value]:
        """h / deviation, then the linear layers. |h / deviation| <= sqrt(D), whatever h is."""
        f, bound = self.fraction_bits, self.magnitudes.activation
        magnitude = math.ceil(math.log2(h.shape[-1]) / 2)
        found = await self._inverse(h, norm)
        with operation("norm scale"):
            r = await self.masked(found, SCALE_BITS, h.frac + SCALE_BITS + max(magnitude, found.magnitude) + 2)
            y = self.new(product.multiply(self.context, h.to_ring(r.bits), r), magnitude)
            scaled = self.new(await self.masked(y, f, f + WEIGHT_BITS + bound + 2), magnitude)
        outputs = await self.together(*(self.linear(scaled, layer) for layer in layers))
        return list(outputs)

    # ---- attention -------------------------------------------------------------------------------------------------
    def value_bits(self, rows: softmax.Rows) -> tuple[int, int]:
        """(fraction bits of the numerators, ring of numerators times values)."""
        spare = FULL - 2 - self.fraction_bits - softmax.PEAK_BITS - self.magnitudes.value
        return min(28, spare - max(rows.longest, 1).bit_length()), FULL

    def selected_value_bits(self, rows: softmax.Rows) -> tuple[int, int]:
        """The same where the ring crosses the wire again and again, with a choice: as small as the products allow."""
        spare = FULL - 2 - self.fraction_bits - softmax.PEAK_BITS - self.magnitudes.value
        frac = min(SELECTED_BITS, spare - max(rows.longest, 1).bit_length())
        return frac, FULL - spare + max(rows.longest, 1).bit_length() + frac

    async def attention(self, q: Value, k: Value, v: Value, mask: Tensor | None) -> MaskedTensor:
        """softmax(q k^T) v; the division comes after the product with v."""
        return await selection.attention(self, q, k, v, mask)

    async def attention_received(
        self, q: Value, k: Value, v: Value, mask: Tensor | None, observed: Tensor
    ) -> tuple[Value, Value]:
        """`attention` and what each cached token receives from the observed queries, [G, S]; no further rounds."""
        return await selection.attention_received(self, q, k, v, mask, observed)

    async def biased_attention(self, q: Value, k: Value, v: Value, bias: Value) -> MaskedTensor:
        """`attention` with a secret bias, which joins the scores before they are opened."""
        return await selection.biased_attention(self, q, k, v, bias)

    async def selected_attention(
        self, q: Value, chosen: Value, k: Value, v: Value, always: tuple[Value, Value] | None
    ) -> MaskedTensor:
        """Attention to secretly chosen clusters by three-factor products, in the rounds of `attention`."""
        return await selection.selected_attention(self, q, chosen, k, v, always)

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
            await self.masked(t, f, selection.query_bits(self) if x.shape[1] == 1 else 2 * f + self.range_bits + 2)
        return t

    async def append(self, cache: Value | None, new: Value, dim: int) -> MaskedTensor:
        """Cached keys and values stay masked: the new rows are opened in the full ring, once."""
        x = self.as_tensor(new)
        with operation("cache"):
            x.masked = await self.masked(x, self.fraction_bits, FULL)
            x.shared = None
        if self.context.tape.preparing:  # no term that is computed ahead needs a cached value's mask
            x.masked = Masked(self.context.blank(x.shape), self.context.blank(x.shape), FULL, x.masked.frac)
        if cache is None:
            return x
        old = self.as_tensor(cache)
        if old.masked is None or (old.masked.frac, old.masked.bits) != (x.masked.frac, FULL):
            return self.concat([cache, x], dim)
        rows = old.rows if old.rows is not None and old.rows.value is old.masked and old.rows.dim == dim else None
        out = old.of_rows((rows or grown(old.masked, dim)).append(x.masked))
        out.magnitude = max(old.magnitude, x.magnitude)
        return out

    def keep_first(self, x: Value, count: int, dim: int) -> Value:
        """As in `Suite`; what is given up of a cache is written over by what is appended next."""
        t = self.as_tensor(x)
        masked = t.masked if t.masked is not None else None
        if masked is None:
            return super().keep_first(x, count, dim)
        rows = t.rows if t.rows is not None and t.rows.value is masked and t.rows.dim == dim else grown(masked, dim)
        return t.of_rows(rows.release(count))

    # ---- non-linear functions --------------------------------------------------------------------------------------
    async def softmax(self, x: Value, mask: Tensor | None = None) -> MaskedTensor:
        """Probabilities, Shared; masked positions are exactly 0."""
        c, f = self.context, self.fraction_bits
        rows = softmax.Rows.of(x.shape, mask)
        t = self.as_tensor(x)
        t.magnitude = min(t.magnitude, self.range_bits)
        s = await self.masked(t, f, f + self.range_bits + 2)
        y = Masked(rows.take(s.m), rows.take(s.lam), s.bits, s.frac)
        frac = min(26, FULL - 2 - SCALE_BITS - 8 - softmax.PEAK_BITS - 1)
        p, inverse = await softmax.numerators(c, y, rows, frac, FULL, self.range_bits)
        r = await self.masked(self.new(inverse, softmax.PEAK_BITS + 1), SCALE_BITS + 8, FULL)
        spread = Masked(rows.spread(r.m), rows.spread(r.lam), r.bits, r.frac)
        out = product.multiply(c, p, spread)
        return self.new(Shared(rows.put(out.x).reshape(x.shape), out.bits, out.frac), 1)

    async def activation(self, x: Value, kind: Activation) -> MaskedTensor:
        """gelu, gelu_tanh, silu or relu."""
        t = self.as_tensor(x)
        with operation(kind):
            m = await self.masked(t, self.fraction_bits, self.fraction_bits + t.magnitude + 2)
            return self.new(await activations.activation(self.context, m, kind), t.magnitude)

    async def gated_activation(self, gate: Value, up: Value, kind: Activation) -> MaskedTensor:
        """activation(gate) * up; `up` is made masked beside the activation."""
        f, bound = self.fraction_bits, self.magnitudes.activation
        u = self.as_tensor(up)
        bits = 2 * f + 2 * bound + 2

        async def activated() -> Masked:
            return await self.masked(await self.activation(gate, kind), f, bits)

        a, b = await self.together(activated(), self.masked(u, f, bits))
        return self.new(product.multiply(self.context, a, b), 2 * bound)

    async def less_than_zero(self, x: Value) -> MaskedTensor:
        """1 where x < 0; 1 round."""
        t = self.as_tensor(x)
        f = self.fraction_bits
        m = await self.masked(t, min(t.frac, f), min(t.frac, f) + t.magnitude + 2)
        with operation("less than zero"):
            return self.new((await less_than_zero(self.context, m)).share(FULL), 1)

    async def max(self, x: Value, aside: bool = False) -> MaskedTensor:
        """Maximum over the last axis, [..., n] -> [..., 1]; exact in fixed point."""
        t = self.as_tensor(x)
        f = self.fraction_bits
        m = await self.masked(t, f, f + t.magnitude + 3)
        with operation("max"):
            found = await ranking.best(self.context, m, f + t.magnitude, False, aside)
        return self.new(found.value.map(lambda v: v[..., None]), t.magnitude)

    async def argmax(self, x: Value) -> MaskedTensor:
        """One-hot of the maximum, ties (within 2^-10) to the earlier position."""
        t = self.as_tensor(x)
        c = self.context
        f = min(10, self.fraction_bits)
        n = x.shape[-1]
        with operation("argmax"):
            m = await self.masked(t, f, f + t.magnitude + 3)
            found = await ranking.best(c, m, f + t.magnitude, True)
            bits = WEIGHT_BITS + self.magnitudes.residual + 2
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
