"""The suite `crypten`: CrypTen's Beaver protocols over our channel and our dealer, for any number of parties.

Right where CrypTen is not: every function states its range and error (`protocols.crypten`). Setting as everywhere: semi-
honest, n-1 of the compute parties may collude, the dealer colludes with none. Everything that is opened is masked by a
value that is uniform and unknown to the parties.

| step | bytes per element to each peer | rounds |
| --- | --- | --- |
| product of two secrets, truncated | 16 + 8 | 2 |
| product with a fixed secret, truncated | 8 per input + 8 per output | 2 |
| comparison with 0, 64 bits | 31.7 | 8 |
| maximum of n | 40 | 8 ceil(log2 n) |
| softmax of n | 183, and 210 to 420 per row | 7 ceil(log2 n) + 44 |
| 1 / sqrt(moment + eps) of a row | 8, and 670 per row | 26 |
| gelu, gelu_tanh; silu; relu | 132; 235; 40 | 15; 16; 8 |
| arg-max of n | 71 | 8 ceil(log2 n) + 8 |

`crypten_own=True` keeps CrypTen's own way (weights opened at every product, its truncation and functions, wrong results
where those are wrong) as a baseline: see `protocols.crypten.own`.
"""

from __future__ import annotations

import math
from collections.abc import Coroutine, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor

from mpc.channel import Channel
from mpc.crypten_binding import CryptenSession, open_session, use
from mpc.errors import ConfigurationError, RangeError
from mpc.fixed_point import encode
from mpc.ledger import Ledger, current, operation
from mpc.tape import Tape
from protocols.bounds import Bounds
from protocols.crypten import activation, arithmetic, comparison, fixed, maximum, norm, selection, softmax
from protocols.crypten.own import CryptenOwn
from protocols.crypten.ranges import ACTIVATION_LIMIT, VALUE_LIMIT, Ranges, query_limit
from protocols.crypten.value import CryptenValue, CryptenWeight
from protocols.suite import Activation, Linear, Norm, OutputShare, Suite, Value

MIN_FRACTION_BITS, MAX_FRACTION_BITS = 8, 20
CONSTANT_BITS = 24
MAX_CONSTANT_BITS = 30
NO_OPERATION = "other"
WEIGHT_BITS = 20


class CryptenSuite(Suite):
    """A compute party (channel given), the dealer (channel None, a dealer's tape) or an estimate (both None).

    fraction_bits: of activations, 8 to 20; weights have 20 (CrypTen's own way: as activations). ledger: by default the
    channel's (else the tape's). Operations that do not depend on each other run one after the other: CrypTen's protocols
    cannot interleave.
    """

    name: ClassVar[str] = "crypten"
    similarity_bound = 2.0**12

    def __init__(
        self,
        *,
        parties: int,
        tape: Tape | None,
        channel: Channel | None,
        fraction_bits: int = 16,
        device: torch.device | str = "cpu",
        crypten_own: bool = False,
        residual: int | str = 12,
        score: int | str = 7,
        value: int | str = 6,
        activation: int | str = 8,
        logits: int | str | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        if not MIN_FRACTION_BITS <= fraction_bits <= MAX_FRACTION_BITS:
            raise ConfigurationError(
                f"fraction_bits must be between {MIN_FRACTION_BITS} and {MAX_FRACTION_BITS}, got {fraction_bits}"
            )
        self.bounds = {
            "residual": Bounds.parse("residual", residual, 4, 18),
            "score": Bounds.parse("score", score, 5, 10),
            "value": Bounds.parse("value", value, 2, 12),
            "activation": Bounds.parse("activation", activation, 3, 12),
            "logits": Bounds.parse("logits", activation if logits is None else logits, 3, 12),
        }
        self.session: CryptenSession = open_session(
            parties=parties,
            tape=tape,
            channel=channel,
            ledger=ledger,
            device=device,
            precision=fraction_bits,
            ghosts=not crypten_own,
        )
        super().__init__(parties, fraction_bits, self.session.ledger, self.session.device)
        self.weight_fraction_bits = fraction_bits if crypten_own else WEIGHT_BITS
        self.crypten_own = crypten_own
        self._own = CryptenOwn(self.session) if crypten_own else None
        self._ranges = Ranges(self.session)
        self.session.ranges = None if crypten_own else self._ranges

    # ---- running -------------------------------------------------------------------------------------------------
    def begin(self, places: int) -> None:
        """A program with so many places begins."""
        super().begin(places)
        self._ranges.places, self._ranges.place = places, 0

    def at(self, place: int) -> None:
        """What follows belongs to this place."""
        super().at(place)
        self._ranges.place = place

    def flags(self) -> Tensor | None:
        """This party's XOR share of the range flags since the last call; CrypTen's own way has none. Local."""
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
        """A fixed secret with `weight_fraction_bits` fraction bits; W - b is opened once: 1 round, 8 bytes per element.

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

    def input(self, shape: Sequence[int], share: Tensor | None, fraction_bits: int) -> Value:
        """A secret input from this party's share."""
        return self._value(self._take("input", shape, share), fraction_bits)

    def output(self, x: Value) -> OutputShare:
        """This party's share of x plus its part of a fresh zero-sharing."""
        x = _own_value(x)
        with operation("output"):
            share = x.share + self.session.zero_sharing(x.shape)
        if self.session.channel is None:
            share = torch.empty(x.shape, dtype=torch.int64, device="meta")
        return OutputShare(share, 64, x.fraction_bits)

    def public(self, x: Tensor | float, shape: Sequence[int] | None = None) -> Value:
        """A public tensor as a value: party 0 holds it, the others zeros."""
        real = torch.as_tensor(x)
        target = tuple(real.shape if shape is None else shape)
        if self.session.channel is None:
            return self._value(self.session.without_content(target))
        return self._value(torch.zeros(target, dtype=torch.int64, device=self.device)) + real

    def concat(self, values: Sequence[Value], dim: int) -> Value:
        """Concatenate along `dim`, at the largest number of fraction bits; local."""
        own = [_own_value(v) for v in values]
        kept = [v for v in own if isinstance(v, CryptenWeight)]
        if len(kept) == len(own) and len({v.fraction_bits for v in kept}) == 1:
            return fixed.joined(kept, dim)
        bits = max(v.fraction_bits for v in own)
        return self._value(torch.cat([v.raised(bits) for v in own], dim=dim), bits)

    # ---- arithmetic ----------------------------------------------------------------------------------------------
    def _standard(self, x: Value) -> CryptenValue:
        """x with `fraction_bits` fraction bits: 1 round where it had more."""
        x = _own_value(x)
        share = arithmetic.rescale(self.session, x.share, x.fraction_bits, self.fraction_bits)
        return self._value(share)

    def _back(self, product: Tensor, bits: int) -> CryptenValue:
        """A product's share with at most `fraction_bits` fraction bits."""
        wanted = min(bits, self.fraction_bits)
        return self._value(arithmetic.rescale(self.session, product, bits, wanted), wanted)

    async def mul(self, x: Value, y: Value) -> Value:
        """Element-wise product, |x y| < 2^(62 - bits of x - bits of y), within one unit. 2 rounds, 16 + 8 bytes."""
        x, y = _own_value(x), _own_value(y)
        with _label("mul"):
            if self._own is not None:
                return self._own.mul(x, y)
            return self._back(arithmetic.mul(x.share, y.share), x.fraction_bits + y.fraction_bits)

    async def matmul(self, x: Value, y: Value) -> Value:
        """Matrix product, within one unit. 2 rounds, 8 bytes per element of x, of y (not if fixed) and of the result."""
        x, y = _own_value(x), _own_value(y)
        with _label("matmul"):
            if self._own is not None:
                return self._own.matmul(x, y)
            return self._back(self._product(x, y), x.fraction_bits + y.fraction_bits)

    def _product(self, x: CryptenValue, y: CryptenValue) -> Tensor:
        if isinstance(y, CryptenWeight):
            if y.share.dim() == 2:
                return arithmetic.matmul_fixed(self.session, x.share, [y])[0]
            return fixed.matmul(self.session, x, y)
        return arithmetic.matmul(x.share, y.share)

    async def scale(self, x: Value, factor: Tensor | float) -> Value:
        """x times public reals, encoded with 24 bits below the largest: 1 round, 8 bytes (none for integers).

        |x factor| < 2^(38 - fraction_bits) with 24 bits; relative error of a factor 2^-24 of the largest one.
        """
        x = _own_value(x)
        real = torch.as_tensor(factor, dtype=torch.float64)
        if bool((real == real.round()).all()) and bool((real.abs() < 2.0**31).all()):
            return self._value((x * real.to(torch.int64)).share, x.fraction_bits)
        if not bool(torch.isfinite(real).all()):
            raise RangeError(f"scale: the factor (shape {list(real.shape)}) must be finite")
        with _label("scale"):
            if self._own is not None:
                return self._own.scale(x, real.to(torch.float32))
            magnitude = math.ceil(math.log2(float(real.abs().max())))
            bits = min(MAX_CONSTANT_BITS, CONSTANT_BITS - magnitude)
            return self._back((x * encode(real, bits)).share, x.fraction_bits + bits)

    async def linear(self, x: Value, layer: Linear, residual: Value | None = None) -> Value:
        """x W + b (+ residual), within one unit. 2 rounds, 8 bytes per input and 8 per output element."""
        x = _own_value(x)
        with _label("linear"):
            return (await self._linears(x, [layer], residual))[0]

    async def _linears(self, x: CryptenValue, layers: Sequence[Linear], residual: Value | None = None) -> list[Value]:
        """Several linear layers of one x: it is opened once, one truncation round for all."""
        weights = [_own_value(layer.weight) for layer in layers]
        if self._own is not None or not all(isinstance(w, CryptenWeight) for w in weights):
            out: list[Value] = []
            for layer in layers:
                y = await self.matmul(x, layer.weight)
                y = y if layer.bias is None else y + layer.bias
                out.append(y if residual is None else y + residual)
            return out
        kept = [w for w in weights if isinstance(w, CryptenWeight)]
        products = arithmetic.matmul_fixed(self.session, x.share, kept)
        items = []
        for product, w, layer in zip(products, kept, layers, strict=True):
            y = self._value(product, x.fraction_bits + w.fraction_bits)
            y = y if layer.bias is None else y + _own_value(layer.bias)
            y = y if residual is None else y + _own_value(residual)
            items.append((y.share, y.fraction_bits - min(y.fraction_bits, self.fraction_bits)))
        bits = [x.fraction_bits + w.fraction_bits for w in kept]
        shares = arithmetic.truncate_together(self.session, items)
        return [self._value(y, min(b, self.fraction_bits)) for y, b in zip(shares, bits, strict=True)]

    async def embed(self, one_hot: Value, table: Value) -> Value:
        """Rows of a fixed secret table, exact, with the table's fraction bits. 1 round, 8 bytes per element of one_hot."""
        one_hot = _own_value(one_hot)
        with _label("embed"):
            table = _own_value(table)
            if self._own is not None:
                return self._own.matmul(one_hot, table)
            product = self._product(one_hot, table)
            return self._value(product, one_hot.fraction_bits + table.fraction_bits)

    # ---- non-linear functions --------------------------------------------------------------------------------------
    async def rsqrt_moment(self, x: Value, norm: Norm) -> Value:
        """1 / sqrt(moment + eps), as many fraction bits as the bound `residual` asks for; see `protocols.crypten.norm`."""
        with operation("norm"):
            if self._own is not None:
                return self._own.rsqrt_moment(_own_value(x), norm)
            return self._moment(_own_value(x), norm)[1]

    def _moment(self, x: CryptenValue, kind: Norm) -> tuple[CryptenValue, CryptenValue]:
        if not self.fraction_bits <= x.fraction_bits <= max(WEIGHT_BITS, self.fraction_bits):
            x = self._standard(x)
        bound = self.bounds["residual"].at(self.place)
        centred, inverse, bits = norm.rsqrt_moment(self.session, x.share, x.fraction_bits, kind, bound)
        return x.like(centred), self._value(inverse, bits)

    async def norm_linear(self, x: Value, norm: Norm, layers: Sequence[Linear]) -> list[Value]:
        """Normalise x [..., D], then apply each linear layer: x is normalised first, since it is narrower than they are."""
        if self._own is not None:
            return await super().norm_linear(x, norm, layers)
        with operation("norm"):
            centred, inverse = self._moment(_own_value(x), norm)
        with operation("norm scale"):
            product = arithmetic.mul(centred.share, inverse.share)
            bits = centred.fraction_bits + inverse.fraction_bits
            share = arithmetic.rescale(self.session, product, bits, max(WEIGHT_BITS, self.fraction_bits))
            normalised = self._value(share, max(WEIGHT_BITS, self.fraction_bits))
        with _label("linear"):
            return await self._linears(normalised, layers)

    async def softmax(self, x: Value, mask: Tensor | None = None) -> Value:
        """Softmax over the last axis; see `protocols.crypten.softmax`."""
        with operation("softmax"):
            if self._own is not None:
                return self._own.softmax(_own_value(x), mask)
            return self._value(softmax.softmax(self.session, self._standard(x).share, self.fraction_bits, mask))

    async def activation(self, x: Value, kind: Activation) -> Value:
        """gelu, gelu_tanh, silu or relu; see `protocols.crypten.activation`."""
        with operation(kind):
            if self._own is not None:
                return self._own.activation(_own_value(x), kind)
            return self._value(activation.activation(self.session, self._standard(x).share, self.fraction_bits, kind))

    async def gated_activation(self, gate: Value, up: Value, kind: Activation) -> Value:
        """activation(gate) * up. Right for |activation up| < 2^30; both are flagged from 2^15 on."""
        if self._own is not None:
            return await super().gated_activation(gate, up, kind)
        active, factor = _own_value(await self.activation(gate, kind)), self._standard(up)
        with operation("mul"):
            product = fixed.mul_watched(self.session, active, factor, "activation", ACTIVATION_LIMIT)
            return self._back(product, active.fraction_bits + factor.fraction_bits)

    async def less_than_zero(self, x: Value) -> Value:
        """1 where x < 0, exact, 0 fraction bits. 8 rounds, 31.7 bytes per element."""
        x = _own_value(x)
        with operation("comparison"):
            if self._own is not None:
                return self._own.less_than_zero(x)
            bit = comparison.less_than(self.session, x.share, [0])[0]
            return self._value(comparison.to_arithmetic(self.session, bit), 0)

    async def max(self, x: Value, aside: bool = False) -> Value:
        """Maximum over the last axis, exact for |x| < 2^62 in ring units. 8 ceil(log2 n) rounds, 40 bytes per element."""
        x = _own_value(x)
        with operation("max"):
            if self._own is not None:
                return self._own.max(x)
            return x.like(maximum.maximum(self.session, x.share))

    async def argmax(self, x: Value) -> Value:
        """One-hot of the maximum over the last axis, ties to the earlier; see `protocols.crypten.maximum`."""
        x = _own_value(x)
        with operation("argmax"):
            if self._own is not None:
                return self._own.argmax(x)
            return self._value(maximum.argmax(self.session, x.share), 0)

    # ---- the cache -------------------------------------------------------------------------------------------------
    async def prepare(self, x: Value) -> Value:
        """Queries, masked once for all their products with cached keys: 1 round, 8 bytes per element."""
        if self._own is not None:
            return x
        with operation("scores"):
            return fixed.keep(self.session, self._standard(x), "activation", query_limit(x.shape[-1]))

    async def append(self, cache: Value | None, new: Value, dim: int) -> Value:
        """Cached values are masked once, when they join: 1 round, 8 bytes per element of `new`."""
        x = _own_value(new)
        if self._own is not None:
            return x if cache is None else self.concat([cache, x], dim)
        with operation("cache"):
            if not isinstance(x, CryptenWeight):
                x = fixed.keep(self.session, self._standard(x), "value", VALUE_LIMIT)
        return x if cache is None else self.concat([cache, x], dim)

    async def hold(self, chosen: Value) -> Value:
        """A choice, masked once for all layers that use it: 1 round, 8 bytes per element."""
        x = _own_value(chosen)
        if self._own is not None or isinstance(x, CryptenWeight):
            return x
        with operation("selection"):
            return fixed.keep(self.session, x)

    async def selected_attention(
        self, q: Value, chosen: Value, k: Value, v: Value, always: tuple[Value, Value] | None
    ) -> Value:
        """Attention to secretly chosen clusters by products of three factors, of which none has the cache's size."""
        if self._own is not None:
            return await super().selected_attention(q, chosen, k, v, always)
        s, held, x = self.session, await self.hold(chosen), _own_value(q)
        assert isinstance(held, CryptenWeight)
        groups, rows, count, size = q.shape[0], q.shape[1], chosen.shape[1], k.shape[2]
        with operation("scores"):
            keys = _own_value(k)
            near = fixed.scores_of_chosen(s, held, x, keys).reshape(groups, rows, count * size)
            if always is not None:
                near = torch.cat([near, self._product(x, _own_value(always[0].transpose(1, 2)))], -1)
            scores = self._back(near, x.fraction_bits + keys.fraction_bits)
        with operation("softmax"):
            p = _own_value(await self.softmax(scores))
        with operation("values"):
            values, taken = _own_value(v), p[..., : count * size].reshape(groups, rows, count, size)
            out = fixed.values_of_chosen(s, held, taken, values)
            if always is not None:
                out = out + self._product(p[..., count * size :], _own_value(always[1]))
            return self._back(out, p.fraction_bits + values.fraction_bits)

    # ---- selection -------------------------------------------------------------------------------------------------
    async def top_k(self, x: Value, k: int, bound: float) -> Value:
        """One-hot rows of the k largest, [..., C] -> [..., k, C]; see `protocols.crypten.selection`."""
        with operation("ranking"):
            return self._value(selection.top_k(self.session, self._standard(x).share, k, self._ranked_bits(bound)), 0)

    async def keep_largest(self, x: Value, k: int, bound: float) -> Value:
        """1 at the k largest, [..., n] -> [..., n]; see `protocols.crypten.selection`."""
        with operation("ranking"):
            kept = selection.keep_largest(self.session, self._standard(x).share, k, self._ranked_bits(bound))
            return self._value(kept, 0)

    def _ranked_bits(self, bound: float) -> int:
        return self.fraction_bits + max(0, math.ceil(math.log2(bound))) + 1

    async def compact(self, keep: Value, rows: Sequence[Value], k: int) -> list[Value]:
        """The marked rows in their order, [B, n, width] -> [B, k, width]; see `protocols.crypten.selection`."""
        own = [_own_value(x) for x in rows]
        with operation("compaction"):
            moved = selection.compact(self.session, _own_value(keep).share, [x.share for x in own], k)
        return [x.like(share) for x, share in zip(own, moved, strict=True)]


def _label(name: str) -> AbstractContextManager[None]:
    """Book under `name`, unless the caller has already said what it is computing."""
    return operation(name) if current()[1] == NO_OPERATION else nullcontext()


def _own_value(x: Value) -> CryptenValue:
    if not isinstance(x, CryptenValue):
        raise ConfigurationError(f"suite 'crypten' computes on its own values, got {type(x).__name__}")
    return x


def _columns(x: Tensor) -> Tensor:
    """A matrix laid out column by column: products with few rows read it at memory speed."""
    return x.t().contiguous().t() if x.dim() == 2 else x
