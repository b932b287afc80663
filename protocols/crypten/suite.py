"""The suite `crypten`: CrypTen's Beaver protocols over our channel and our dealer, for any number of parties.

Right where CrypTen is not: every function states its range and error (`protocols.crypten`). Setting as everywhere: semi-
honest, n-1 of the compute parties may collude, the dealer colludes with none. Everything that is opened is masked by a
value that is uniform and unknown to the parties.
Leaks: to parties and dealer shapes only; to the client, beside its answer, range flags (docs/security.md, "Suite crypten").

| step | bytes per element to each peer | rounds |
| --- | --- | --- |
| product of two secrets, truncated | 16 + 8 | 2 |
| product with a fixed secret, truncated | 8 per input + 8 per output | 2 |
| comparison with 0, 64 bits | 31.7 | 8 |
| maximum of n | 40 | 8 ceil(log2 n) |
| softmax of n | 184, and 210 to 420 per row | 7 ceil(log2 n) + 44 |
| 1 / sqrt(moment + eps) of a row | 8, and 700 to 850 per row | 25; "layer" 26 |
| gelu, gelu_tanh; silu; relu | 133; 236; 40 | 15; 16; 8 |
| arg-max of n | 71 | 8 ceil(log2 n) + 8 |

Ranges. Options `residual`, `score`, `value`, `activation`, `logits` declare bounds as in the suite `masked`, each a number
or a text by layer (`protocols.bounds`). Rings have 64 bits here, so only `residual` decides on anything: how many bits
1 / deviation has, and from where on a row is flagged. Whatever else can be declared lies within the table.

| what | right | flagged as (`Suite.flags`) |
| --- | --- | --- |
| norm of a residual row | below 2^residual, or 2^14 if that is more | residual: from 2^residual on, certain to 2^26 |
| norm of a row of D outputs before a gain | below 2^(activation + 1) sqrt(D) | activation: from there on, certain to 2^26 |
| distance from the largest score | to 2^17, scores to 2^22 | score: from 2^16, certain to 2^23, never below 9 200 |
| cached keys (64 channels) | while scores stay below 2^30 | value: from 2^15, certain to 2^22, never below 4 600 |
| activation's input, gated factor | to 2^18, product to 2^30 | activation: from 2^15, certain to 2^22, never below 4 600 |
| queries (64 channels) | as keys | activation: from 2^14, certain to 2^21, never below 2 300 |
| cached values | as linear outputs | |
| logits, with a sample's noise | to 2^27 | |

Limits but the first are norms of 32 neighbours; "never" is for every element, see `protocols.crypten.ranges`. The scale of a
residual row has a relative error below 5e-5, whatever other rows hold; before the first layer 2^14 above is 2^10.

A linear layer's output, bias and residual included, must stay below 2^22 after a norm and below 2^26 elsewhere, or it
wraps unseen. A normalised row has the norm sqrt(D), so the first holds for every input if the columns of the weight have
norms below 2^21 / sqrt(D), 75 000 for GPT-2. Weights have the fraction bits that they were shared with, 16 as a rule: a
token table of deviation d is off by 4.4e-6 / d of itself, 0.4 % at 0.001.

`crypten_own=True` keeps CrypTen's own way (weights opened at every product, its truncation and functions, wrong results
where those are wrong) as a baseline: see `protocols.crypten.own`.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Sequence

import torch
from torch import Tensor

from mpc.ledger import operation
from protocols.crypten import (
    activation,
    arithmetic,
    comparison,
    masked_factors,
    maximum,
    normalisation,
    reciprocal,
    selection,
    softmax,
)
from protocols.crypten.linear import WEIGHT_BITS, CryptenLinear
from protocols.crypten.ranges import ACTIVATION_LIMIT, ELEMENT_BITS, KEY_LIMIT, query_limit, unattended_limit
from protocols.crypten.value import CryptenValue, CryptenWeight, label, own_value
from protocols.held_rows import ENERGY_BOUND, two_to
from protocols.suite import Activation, Linear, Norm, Value
from protocols.value import there

INVERSE_BITS = 26
MOST_BITS = 46  # ring bits of what is divided by, where no bound is known


class CryptenSuite(CryptenLinear):
    """A compute party (channel given), the dealer (channel None, a dealer's tape) or an estimate (both None).

    options: the bounds are those of the module's table. Weights have 20 fraction bits (CrypTen's own way: as activations);
    CrypTen's own way has no flags. ledger: by default the channel's (else
    the tape's). Operations that do not depend on each other run one after the other: CrypTen's protocols
    cannot interleave.
    """

    # ---- non-linear functions --------------------------------------------------------------------------------------
    async def rsqrt_moment(self, x: Value, norm: Norm) -> Value:
        """Return 1 / sqrt(moment + eps), as many fraction bits as the bound `residual` asks for; see
        `protocols.crypten.normalisation`."""
        with operation("norm"):
            if self._own is not None:
                return self._own.rsqrt_moment(own_value(x), norm)
            return self._moment(own_value(x), norm)[1]

    async def output_moment(self, x: Value, norm: Norm) -> Value:
        """As `rsqrt_moment`, for rows of elements within the bound `activation`."""
        if self._own is not None:
            return await super().output_moment(x, norm)
        with operation("norm"):
            return self._moment(own_value(x), norm, "activation")[1]

    def _moment(self, x: CryptenValue, kind: Norm, flag: str = "residual") -> tuple[CryptenValue, CryptenValue]:
        """Return rows, centred if `kind` says so, and 1 / their deviation. flag: what bounds rows, and is set beyond."""
        if not self.fraction_bits <= x.fraction_bits <= max(WEIGHT_BITS, self.fraction_bits):
            x = self._standard(x)
        bound = self.bounds[flag].at(self.place)
        if flag == "activation":  # each element is below it, and a margin
            bound += 1 + math.ceil(math.log2(x.shape[-1]) / 2)
        rows = normalisation.Rows(x.share, x.fraction_bits, bound, flag)
        centred, inverse, bits = normalisation.rsqrt_moment(self.session, rows, kind)
        return x.like(centred), self._value(inverse, bits)

    async def norm_linear(self, x: Value, norm: Norm | None, layers: Sequence[Linear], whole: bool = False) -> list[Value]:
        """Normalise x [..., D], then apply each linear layer: x is normalised first, since it is narrower than they are."""
        if norm is None or (self._own is not None and not whole):
            return await super().norm_linear(x, norm, layers)
        normalised = await self._normalised(x, norm)
        with label("linear"):
            if whole:
                return [self._whole(normalised, layer) for layer in layers]
            return await self._linears(normalised, layers)

    async def post_norm(self, x: Value, norm: Norm) -> Value:
        """Return normalised rows with 20 fraction bits."""
        return await self._normalised(x, norm) if self._own is None else await super().post_norm(x, norm)

    async def gained(self, x: Value, gain: Value) -> Value:
        """Return x * gain with the fraction bits of both, |x gain| < 2^22. 1 round, 8 bytes per element of each."""
        if self._own is not None:
            return await super().gained(x, gain)
        a, b = own_value(x), own_value(gain)
        with operation("gain"):
            return self._value(arithmetic.mul(a.share, b.share), a.fraction_bits + b.fraction_bits)

    async def whole_linear(self, x: Value, layer: Linear) -> Value:
        """Return x W + b with the fraction bits of x and W."""
        with operation("linear"):
            return self._whole(own_value(x), layer) if self._own is None else await self.linear(x, layer)

    async def _normalised(self, x: Value, norm: Norm) -> CryptenValue:
        """Return rows [..., D] of norm sqrt(D); in CrypTen's own way not centred, which folded weights are (see `Norm`)."""
        if self._own is not None:
            inverse = await self.rsqrt_moment(x, norm)
            with operation("norm scale"):
                return own_value(await self.mul(x, inverse))
        with operation("norm"):
            centred, inverse = self._moment(own_value(x), norm)
        with operation("norm scale"):
            product = arithmetic.mul(centred.share, inverse.share)
            bits = centred.fraction_bits + inverse.fraction_bits
            share = arithmetic.rescale(self.session, product, bits, max(WEIGHT_BITS, self.fraction_bits))
            return self._value(share, max(WEIGHT_BITS, self.fraction_bits))

    async def squared(self, x: Value, fraction_bits: int) -> Value:
        """As in `Suite`; |x| < 2^(31 - fraction bits). 1 round, 8 bytes per element."""
        if self._own is not None:
            return await self.mul(x, x)
        with operation("square"):
            own = self._with_bits(x, fraction_bits)
            return self._value(arithmetic.square(own.share), 2 * own.fraction_bits)

    async def softmax(self, x: Value, mask: Tensor | None = None) -> Value:
        """Return the softmax over the last axis; see `protocols.crypten.softmax`."""
        with operation("softmax"):
            if self._own is not None:
                return self._own.softmax(own_value(x), mask)
            return self._value(softmax.softmax(self.session, self._standard(x).share, self.fraction_bits, mask))

    async def activation(self, x: Value, kind: Activation) -> Value:
        """Return gelu, gelu_tanh, silu or relu; see `protocols.crypten.activation`."""
        with operation(kind):
            if self._own is not None:
                return self._own.activation(own_value(x), kind)
            return self._value(activation.activation(self.session, self._standard(x).share, self.fraction_bits, kind))

    async def gated_activation(self, gate: Value, up: Value, kind: Activation) -> Value:
        """Return activation(gate) * up. Right for |activation up| < 2^30: both factors are flagged from 2^15 on."""
        if self._own is not None:
            return await super().gated_activation(gate, up, kind)
        active, factor = own_value(await self.activation(gate, kind)), self._standard(up)
        with operation("mul"):
            kinds = ("activation" if kind == "relu" else None, "activation")  # others have watched their input
            product = masked_factors.mul_watched(self.session, active, factor, kinds, ACTIVATION_LIMIT)
            return self._back(product, active.fraction_bits + factor.fraction_bits)

    async def less_than_zero(self, x: Value, fraction_bits: int | None = None) -> Value:
        """Return 1 where x < 0, exact, 0 fraction bits. 8 rounds, 31.7 bytes per element."""
        x = own_value(x)
        with operation("comparison"):
            if self._own is not None:
                return self._own.less_than_zero(x)
            bit = comparison.less_than(self.session, x.share, [0])[0]
            return self._value(comparison.to_arithmetic(self.session, bit), 0)

    async def max(self, x: Value, background: bool = False) -> Value:
        """Return the maximum over the last axis, exact for |x| < 2^62 in ring units. 8 ceil(log2 n) rounds, 40 bytes per
        element."""
        x = own_value(x)
        with operation("max"):
            if self._own is not None:
                return self._own.max(x)
            return x.like(maximum.maximum(self.session, x.share))

    async def argmax(self, x: Value) -> Value:
        """Return the one-hot of the maximum over the last axis, ties to the earlier; see `protocols.crypten.maximum`."""
        x = own_value(x)
        with operation("argmax"):
            if self._own is not None:
                return self._own.argmax(x)
            return self._value(maximum.argmax(self.session, x.share), 0)

    # ---- the cache -------------------------------------------------------------------------------------------------
    async def mask_queries(self, q: Value, weighed: bool = False) -> Value:
        """As in `Suite`: 1 round, 8 bytes per element."""
        if self._own is not None:
            return q
        with operation("scores"):
            return masked_factors.mask_for_reuse(self.session, self._standard(q), "activation", query_limit(q.shape[-1]))

    async def mask_for_cache(self, new: Value, kind: str | None = None, limit: int | None = None) -> Value:
        """As in `Suite`: 1 round, 8 bytes per element.

        Keys are watched, since scores must stay below 2^30; values are right whatever a linear layer can hold.
        """
        x = own_value(new)
        if self._own is not None or isinstance(x, CryptenWeight):
            return x
        with operation("cache"):
            if limit is not None:
                return masked_factors.mask_for_reuse(self.session, self._standard(x), kind, limit + ELEMENT_BITS)
            watched = "value" if kind is None and not x.bounded else None
            return masked_factors.mask_for_reuse(self.session, self._standard(x), watched, KEY_LIMIT)

    async def append(self, cache: Value, new: Value, dim: int, kind: str | None = None) -> Value:
        """As in `Suite`."""
        found, before = own_value(await super().append(cache, new, dim, kind)), own_value(cache)
        if dim == 1:
            found.lineage = before.lineage
        return found

    async def unattended(self, mass: Value) -> None:
        """As in `Suite`: 1 round, 8 bytes per element; CrypTen's own way has no flags."""
        if self._own is None:
            with operation("attention"):
                masked_factors.mask_for_reuse(
                    self.session, self._standard(own_value(mass)), "score", unattended_limit(self.fraction_bits)
                )

    async def mask_for_reuse(self, chosen: Value) -> Value:
        """As in `Suite`: 1 round, 8 bytes per element."""
        x = own_value(chosen)
        if self._own is not None or isinstance(x, CryptenWeight):
            return x
        with operation("selection"):
            return masked_factors.mask_for_reuse(self.session, x)

    async def choose(self, chosen: Value, rows: Value) -> Value:
        """Return the rows of a small secret table, of which nothing needs to be watched again."""
        return self.with_bound(await self.matmul(chosen, rows), math.inf)

    async def selected_attention(
        self, q: Value, chosen: Value | Awaitable[Value], k: Value, v: Value, always: tuple[Value, Value] | None
    ) -> Value:
        """Attention to secretly chosen clusters by products of three factors, of which none has the cache's size."""
        if self._own is not None or self.score_cap is not None:
            return await super().selected_attention(q, chosen, k, v, always)
        chosen = await there(chosen)
        s, held, x = self.session, await self.mask_for_reuse(chosen), own_value(q)
        assert isinstance(held, CryptenWeight)
        groups, rows, count, size = q.shape[0], q.shape[1], chosen.shape[1], k.shape[2]
        with operation("scores"):
            keys = own_value(k)
            near = masked_factors.scores_of_chosen(s, held, x, keys).reshape(groups, rows, count * size)
            if always is not None:
                near = torch.cat([near, self._product(x, own_value(always[0].transpose(1, 2)))], -1)
            scores = self._back(near, x.fraction_bits + keys.fraction_bits)
        with operation("softmax"):
            p = own_value(await self.softmax(scores))
        with operation("values"):
            values, taken = own_value(v), p[..., : count * size].reshape(groups, rows, count, size)
            out = masked_factors.values_of_chosen(s, held, taken, values)
            if always is not None:
                out = out + self._product(p[..., count * size :], own_value(always[1]))
            return self._back(out, p.fraction_bits + values.fraction_bits)

    async def channel_energies(self, q: Value, k: Value) -> tuple[Value, float]:
        """As in `Suite`: of what is masked for its products already 3 rounds, 24 bytes a channel."""
        a, b = own_value(q), own_value(k)
        if not isinstance(a, CryptenWeight) or not isinstance(b, CryptenWeight):
            return await super().channel_energies(q, k)
        with operation("energies"):
            means = []
            for x in (a, b):
                bits = 2 * x.fraction_bits + two_to(x.shape[1]).bit_length() - 1
                means.append(self._standard(self._value(masked_factors.squares(self.session, x), bits)))
            return await self.mul(*means), ENERGY_BOUND

    async def recast(self, x: Value, fraction_bits: int) -> Value:
        """As in `Suite`: 1 round, 8 bytes per element."""
        own = own_value(x)
        wanted = min(own.fraction_bits, fraction_bits)
        with operation("cache"):
            share = arithmetic.rescale(self.session, own.share, own.fraction_bits, wanted)
            return self.with_bound(self._value(share, wanted), math.inf)

    # ---- selection -------------------------------------------------------------------------------------------------
    async def top_k(self, x: Value, k: int, bound: float) -> Value:
        """Return the one-hot rows of the k largest, [..., C] -> [..., k, C]; see `protocols.crypten.selection`."""
        with operation("ranking"):
            return self._value(selection.top_k(self.session, self._standard(x).share, k, self._ranked_bits(bound)), 0)

    async def keep_largest(self, x: Value, k: int, bound: float, fraction_bits: int | None = None) -> Value:
        """Return 1 at the k largest, [..., n] -> [..., n]; see `protocols.crypten.selection`."""
        with operation("ranking"):
            ranked = self._standard(x) if fraction_bits is None else self._with_bits(x, fraction_bits)
            kept = selection.keep_largest(
                self.session, ranked.share, k, self._ranked_bits(bound) + ranked.fraction_bits - self.fraction_bits
            )
            return self._value(kept, 0)

    def _ranked_bits(self, bound: float) -> int:
        return self.fraction_bits + max(0, math.ceil(math.log2(bound))) + 1

    def _with_bits(self, x: Value, most: int) -> CryptenValue:
        """Return x with its fraction bits, at most so many."""
        own = own_value(x)
        bits = min(own.fraction_bits, most)
        return self._value(arithmetic.rescale(self.session, own.share, own.fraction_bits, bits), bits)

    async def compact(self, keep: Value, rows: Sequence[Value], k: int) -> list[Value]:
        """Return the marked rows in their order, [B, n, width] -> [B, k, width]; see `protocols.crypten.selection`."""
        own = [own_value(x) for x in rows]
        with operation("compaction"):
            moved = selection.compact(self.session, own_value(keep).share, [x.share for x in own], k)
        return [x.like(share) for x, share in zip(own, moved, strict=True)]

    # ---- merging ---------------------------------------------------------------------------------------------------
    async def reciprocal(self, x: Value, least: float, most: float) -> Value:
        """Return 1 / x with 26 fraction bits; see `protocols.crypten.reciprocal`."""
        if self._own is not None:
            return await super().reciprocal(x, least, most)
        own = own_value(x)
        low = max(0, math.floor(math.log2(least) + own.fraction_bits))
        high = min(MOST_BITS, math.floor(math.log2(min(most, 2.0**MOST_BITS)) + own.fraction_bits) + 1)
        with operation("merging"):
            share = reciprocal.reciprocal(self.session, own.share, own.fraction_bits, low, high, INVERSE_BITS)
            return self._value(share, INVERSE_BITS)

    async def exp_negative(self, x: Value, most: float) -> Value:
        """Return e^-x with 30 fraction bits, x at most 2^17; see `protocols.crypten.softmax`."""
        if self._own is not None:
            return await super().exp_negative(x, most)
        with operation("exponential"):
            below = self._standard(-own_value(x)).share
            return self._value(softmax.exp_negative(self.session, below, self.fraction_bits), softmax.EXP_BITS)
