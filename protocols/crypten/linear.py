"""The linear half of the suite `crypten`: values in and out, products, scaling, linear layers, rows of tables.

Leaks: nothing; outputs go to the client alone (docs/security.md, "Suite crypten").
"""

from __future__ import annotations

import math
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mpc.channel import Channel
from mpc.errors import ConfigurationError, RangeError
from mpc.fixed_point import encode
from mpc.ledger import Ledger, operation
from mpc.tape import Tape
from protocols.crypten import arithmetic, masked_factors, output
from protocols.crypten.binding.library import CryptenSession, open_session, use
from protocols.crypten.own import CryptenOwn
from protocols.crypten.ranges import Ranges
from protocols.crypten.value import CryptenValue, CryptenWeight, label, own_value
from protocols.gumbel import scaled_gumbel
from protocols.masked.tokens import blocks
from protocols.options import CryptenOptions
from protocols.suite import Linear, OutputShare, Suite, Value

USUAL = CryptenOptions()
CONSTANT_BITS = 24
MAX_CONSTANT_BITS = 30
WEIGHT_BITS = 20


class CryptenLinear(Suite):
    """What `protocols.crypten.suite.CryptenSuite` builds on: values in and out, and what is linear in secrets."""

    name: ClassVar[str] = "crypten"
    similarity_bound = 2.0**12

    def __init__(
        self,
        *,
        parties: int,
        tape: Tape | None,
        channel: Channel | None,
        options: CryptenOptions = USUAL,
        ledger: Ledger | None = None,
    ) -> None:
        self.bounds = options.bounds
        crypten_own = options.crypten_own
        self.session: CryptenSession = open_session(
            parties=parties,
            tape=tape,
            channel=channel,
            ledger=ledger,
            precision=options.fraction_bits,
            shape_only=not crypten_own,
        )
        super().__init__(parties, options.fraction_bits, self.session.ledger, self.session.device)
        self.weight_fraction_bits = options.fraction_bits if crypten_own else WEIGHT_BITS
        self.crypten_own = crypten_own
        self.experts = options.way
        self._own = CryptenOwn(self.session) if crypten_own else None
        self._ranges = Ranges(self.session)
        self.session.ranges = None if crypten_own else self._ranges

    # ---- running -------------------------------------------------------------------------------------------------
    def begin(self, places: int, score_cap: float | None = None) -> None:
        super().begin(places, score_cap)
        self._ranges.begin(places)

    def at(self, place: int) -> None:
        super().at(place)
        self._ranges.place = place

    def flags(self) -> Tensor | None:
        """Return this party's XOR share of the range flags since the last call; CrypTen's own way has none. Local."""
        return None if self.crypten_own else self._ranges.words()

    def run(self, program: Coroutine[Any, Any, Any]) -> Any:
        """Run a program to its end in this thread's CrypTen session. The first run agrees on zero-sharing seeds: 1 round."""
        self.session.agreed_pairs()
        with use(self.session):
            return super().run(program)

    # ---- values in and out ---------------------------------------------------------------------------------------
    def _value(self, share: Tensor, fraction_bits: int | None = None) -> CryptenValue:
        return CryptenValue(share, self.fraction_bits if fraction_bits is None else fraction_bits, self.session.party)

    def _take(self, what: str, shape: Sequence[int], share: Tensor | None) -> Tensor:
        if self.session.channel is None:
            return self.session.without_content(shape)
        if share is None:
            raise ConfigurationError(f"{what}: a compute party needs its share of shape {list(shape)}, got None")
        if tuple(share.shape) != tuple(shape) or share.dtype != torch.int64:
            raise ConfigurationError(f"{what}: the share must be int64 {list(shape)}, got {share.dtype} {list(share.shape)}")
        return share.to(self.device)

    async def weight(self, name: str, shape: Sequence[int], share: Tensor | None) -> Value:
        """Return a fixed secret with `weight_fraction_bits` fraction bits; W - b is opened once: 1 round, 8 bytes per
        element.

        The result may be used by later suites of the same party in the same process, if the dealer does the same.
        """
        taken = self._take(f"weight '{name}'", shape, share)
        if self._own is not None:
            return self._value(taken, self.weight_fraction_bits)
        with operation("weight"):
            mask = self.session.tape.random("weight mask", shape)
            difference = self.session.open(taken - self.session.held(mask))
        if self.session.channel is None:
            kept = _columns(mask) if self.session.dealing else None
            return CryptenWeight(taken, self.weight_fraction_bits, 0, None, kept)
        party = self.session.party
        return CryptenWeight(_columns(taken), self.weight_fraction_bits, party, _columns(difference), None)

    def input(self, shape: Sequence[int], share: Tensor | None, fraction_bits: int, bound: float | None = None) -> Value:
        """Return a secret input from this party's share."""
        return self._value(self._take("input", shape, share), fraction_bits)

    def indices(self, count: int, share: Tensor | None, size: int) -> Value:
        """Return the places from this party's share, of which the bits of an index count."""
        return self._value(self._take("indices", (count,), share), 0)

    def output(self, x: Value) -> OutputShare:
        """Return this party's share of x plus its part of a fresh zero-sharing."""
        x = own_value(x)
        with operation("output"):
            share = x.share + self.session.zero_sharing(x.shape)
        if self.session.channel is None:
            share = torch.empty(x.shape, dtype=torch.int64, device="meta")
        return OutputShare(share, 64, x.fraction_bits)

    async def released(self, x: Value) -> Value:
        """Return x cut to `fraction_bits` fraction bits by an exact floor; see `protocols.crypten.output`."""
        x = own_value(x)
        with operation("release"):
            wanted = min(x.fraction_bits, self.fraction_bits)
            return self._value(output.floor(self.session, x.share, x.fraction_bits - wanted), wanted)

    async def perturbed(self, x: Value, temperature: float) -> Value:
        """Return x plus dealt Gumbel noise with x's fraction bits; local. Offline: 8 bytes per element."""
        x = own_value(x)
        with operation("sample"):
            noise = self.session.tape.dependent(
                "gumbel",
                x.shape,
                lambda: scaled_gumbel(x.shape, temperature, x.fraction_bits, device=self.session.tape.device),
            )
            return x.like(x.share + self.session.held(noise))

    def public(self, x: Tensor | float, shape: Sequence[int] | None = None) -> Value:
        """Return a public tensor as a value: party 0 holds it, the others zeros."""
        real = torch.as_tensor(x)
        target = tuple(real.shape if shape is None else shape)
        if self.session.channel is None:
            return self._value(self.session.without_content(target))
        return self._value(torch.zeros(target, dtype=torch.int64, device=self.device)) + real

    def with_bound(self, x: Value, bound: float) -> Value:
        """Return x, known to lie within +-bound: not watched when it is kept."""
        own = own_value(x)
        return own if isinstance(own, CryptenWeight) else CryptenValue(own.share, own.fraction_bits, own.party, True)

    def concat(self, values: Sequence[Value], dim: int) -> Value:
        """Concatenate along `dim`, at the largest number of fraction bits; local."""
        own = [own_value(v) for v in values]
        kept = [v for v in own if isinstance(v, CryptenWeight)]
        if len(kept) == len(own) and len({v.fraction_bits for v in kept}) == 1:
            return masked_factors.joined(kept, dim)
        bits = max(v.fraction_bits for v in own)
        return self._value(torch.cat([v.raised(bits) for v in own], dim=dim), bits)

    # ---- arithmetic ----------------------------------------------------------------------------------------------
    def _standard(self, x: Value) -> CryptenValue:
        """Return x with `fraction_bits` fraction bits: 1 round where it had more."""
        x = own_value(x)
        share = arithmetic.rescale(self.session, x.share, x.fraction_bits, self.fraction_bits)
        return self._value(share)

    def _back(self, product: Tensor, bits: int) -> CryptenValue:
        """Return a product's share with at most `fraction_bits` fraction bits."""
        wanted = min(bits, self.fraction_bits)
        return self._value(arithmetic.rescale(self.session, product, bits, wanted), wanted)

    async def mul(self, x: Value, y: Value) -> Value:
        """Return the element-wise product, |x y| < 2^(62 - bits of x - bits of y), within one unit. 2 rounds, 16 + 8
        bytes."""
        x, y = own_value(x), own_value(y)
        with label("mul"):
            if self._own is not None:
                return self._own.mul(x, y)
            return self._back(arithmetic.mul(x.share, y.share), x.fraction_bits + y.fraction_bits)

    async def matmul(self, x: Value, y: Value) -> Value:
        """Return the matrix product, within one unit. 2 rounds, 8 bytes per element of x, of y (not if fixed) and of the
        result."""
        x, y = own_value(x), own_value(y)
        with label("matmul"):
            if self._own is not None:
                return self._own.matmul(x, y)
            return self._back(self._product(x, y), x.fraction_bits + y.fraction_bits)

    def _product(self, x: CryptenValue, y: CryptenValue) -> Tensor:
        if isinstance(y, CryptenWeight):
            if y.share.dim() == 2:
                return arithmetic.matmul_fixed(self.session, x.share, [y])[0]
            return masked_factors.matmul(self.session, x, y)
        return arithmetic.matmul(x.share, y.share)

    async def scale(self, x: Value, factor: Tensor | float) -> Value:
        """Return x times public reals, encoded with 24 bits below the largest: 1 round, 8 bytes (none for integers).

        |x factor| < 2^(38 - fraction_bits) with 24 bits; relative error of a factor 2^-24 of the largest one.
        """
        x = own_value(x)
        real = torch.as_tensor(factor, dtype=torch.float64)
        if bool((real == real.round()).all()) and bool((real.abs() < 2.0**31).all()):
            return self._value((x * real.to(torch.int64)).share, x.fraction_bits)
        if not bool(torch.isfinite(real).all()):
            raise RangeError(f"scale: the factor (shape {list(real.shape)}) must be finite")
        with label("scale"):
            if self._own is not None:
                return self._own.scale(x, real.to(torch.float32))
            magnitude = math.ceil(math.log2(float(real.abs().max())))
            bits = min(MAX_CONSTANT_BITS, CONSTANT_BITS - magnitude)
            return self._back((x * encode(real, bits)).share, x.fraction_bits + bits)

    async def linear(self, x: Value, layer: Linear, residual: Value | None = None) -> Value:
        """Return x W + b (+ residual), within one unit. 2 rounds, 8 bytes per input and 8 per output element."""
        x = own_value(x)
        with label("linear"):
            return (await self._linears(x, [layer], residual))[0]

    async def _linears(self, x: CryptenValue, layers: Sequence[Linear], residual: Value | None = None) -> list[Value]:
        """Apply several linear layers to one x: it is opened once, one truncation round for all."""
        weights = [own_value(layer.weight) for layer in layers]
        if self._own is not None or not all(isinstance(w, CryptenWeight) for w in weights):
            out: list[Value] = []
            for layer in layers:
                y = await self.matmul(x, layer.weight)
                y = y if layer.bias is None else y + layer.bias
                out.append(y if residual is None else y + residual)
            return out
        kept = [w for w in weights if isinstance(w, CryptenWeight)]
        products = arithmetic.matmul_fixed(self.session, x.share, kept)
        bits = [x.fraction_bits + w.fraction_bits for w in kept]
        items = []
        for product, b, layer in zip(products, bits, layers, strict=True):
            y = self._value(product, b)
            y = y if layer.bias is None else y + own_value(layer.bias)
            y = y if residual is None else y + own_value(residual)
            items.append((y.share, y.fraction_bits - min(y.fraction_bits, self.fraction_bits)))
        shares = arithmetic.truncate_together(self.session, items)
        return [self._value(y, min(b, self.fraction_bits)) for y, b in zip(shares, bits, strict=True)]

    async def one_hot(self, index: Value, size: int) -> Value:
        """As in `Operations`, by a dealt one-hot vector for each place: 1 round, w bits each."""
        with label("embed"):
            opened = masked_factors.opened_indices(self.session, own_value(index).share, size)
            return self._value(masked_factors.one_hot_rows(self.session, opened, slice(None), size), 0)

    async def look_up(self, index: Value, table: Value) -> Value:
        """Return the rows of a fixed secret table, see `protocols.masked.tokens`: 1 round, and 1 more each time that so many
        rows are held as the table's size allows. w bits and 8 V bytes a token; offline a one-hot vector beside what `embed`
        needs."""
        index, size = own_value(index), table.shape[0]
        with label("embed"):
            rows = []
            opened = masked_factors.opened_indices(self.session, index.share, size)
            for cut in blocks(index.shape[0], size):
                one_hot = self._value(masked_factors.one_hot_rows(self.session, opened, cut, size), 0)
                rows.append(await self.embed(one_hot, table))
            return self.concat(rows, 0)

    def _whole(self, x: CryptenValue, layer: Linear) -> Value:
        """Return x W + b with the fraction bits of x and W, none of them cut. 1 round, 8 bytes per input element."""
        w = own_value(layer.weight)
        y = self._value(self._product(x, w), x.fraction_bits + w.fraction_bits)
        return y if layer.bias is None else y + own_value(layer.bias)

    async def embed(self, one_hot: Value, table: Value) -> Value:
        """Return the rows of a fixed secret table, exact, with the table's fraction bits. 1 round, 8 bytes per element of
        one_hot."""
        one_hot = own_value(one_hot)
        with label("embed"):
            table = own_value(table)
            if self._own is not None:
                return self._own.matmul(one_hot, table)
            product = self._product(one_hot, table)
            return self._value(product, one_hot.fraction_bits + table.fraction_bits)


def _columns(x: Tensor) -> Tensor:
    """Return a matrix laid out column by column: products with few rows read it at memory speed."""
    return x.t().contiguous().t() if x.dim() == 2 else x
