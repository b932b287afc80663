"""The suite `masked`: transformer operations in few rounds on masked values. Any number of parties, semi-honest, a dealer.

A `MaskedTensor` is whatever its producer left: a sharing (not yet opened), a masked value, or both. Every operation asks for
the form that it needs (`masked`), with as few ring bits as its public bounds allow; asking opens it, once, and the result is
kept, so later operations on the same tensor (a cached key, say) cost nothing for it. Openings that wait at the same time
leave in one message.

Bounds. |x| < 2^bound is declared (`protocols.options.MaskedOptions`; public configuration, not data) for each kind of tensor
and each layer; rings follow from them and an operation whose ring would be too small is an error at plan time. Values are
checked where they are opened anyway (`ranges`): one outside its bound is flagged for the client, surely from 3/2 of the
bound on, and right until then, so rings have one bit more than the bound; two bits more where a value is opened to be
checked.

Security: semi-honest, any parties - 1 compute parties may collude, the dealer with none. Leaks: to
parties and dealer shapes only; to the client, beside its answer, which kinds left their bounds in which layers (`ranges`)
(docs/security.md, "Suite masked").
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Sequence
from typing import Any, ClassVar

from torch import Tensor

from mpc.channel import Channel
from mpc.ranks import Ranks
from mpc.ring import RING_BITS
from mpc.tape import Tape
from protocols.bounds import RANGE_KINDS
from protocols.held_rows import Factor
from protocols.masked import (
    arithmetic,
    attention,
    cache,
    elementwise,
    held,
    linear,
    merging,
    mixture,
    normalisation,
    output,
    selected_attention,
    selection,
)
from protocols.masked.context import Context
from protocols.masked.conversion import Conversion
from protocols.masked.magnitudes import SIMILARITY_ROOM, WEIGHT_BITS, PlaceBounds
from protocols.masked.shares import Shared
from protocols.masked.tokens import index_bits
from protocols.masked.values import MaskedTensor, MaskedWeight
from protocols.observed import Attended, Observed
from protocols.options import MaskedOptions
from protocols.suite import Activation, Linear, Norm, OutputShare, Part, Suite, Value
from protocols.value import there

USUAL = MaskedOptions()


class MaskedSuite(Suite):
    """One role's instance for one session. channel None: the dealer, or estimation.

    A facade: each method is a function of a module beside this one, over `convert`, which knows the role, the bounds in
    force and how a value gets the form that an operation needs.
    """

    name: ClassVar[str] = "masked"
    preprocesses: ClassVar[bool] = True
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
    ) -> None:
        self.context = Context(tape, channel, parties)
        self.context.prefer = options.prefer
        super().__init__(parties, options.fraction_bits, self.context.ledger, tape.device)
        self.experts = options.way
        self.convert = Conversion(self.context, options.fraction_bits, PlaceBounds(options.bounds))

    def begin(self, places: int, score_cap: float | None = None) -> None:
        super().begin(places, score_cap)
        self.convert.begin(places, score_cap)

    def at(self, place: int) -> None:
        super().at(place)
        self.convert.at(place)

    def flags(self) -> Tensor | None:
        return self.convert.ranges.take()

    def split_weights(self, ranks: Ranks) -> None:
        self.context.ranks = ranks

    def _flush(self, requests: list[Any]) -> Sequence[Any]:
        return self.context.flush(requests)

    # ---- values in and out -----------------------------------------------------------------------------------------
    async def weight(self, name: str, shape: Sequence[int], share: Tensor | None) -> MaskedWeight:
        return await linear.weight(self.convert, name, shape, share)

    def input(
        self, shape: Sequence[int], share: Tensor | None, fraction_bits: int, bound: float | None = None
    ) -> MaskedTensor:
        x = share.to(self.device) if share is not None else self.context.blank(shape)
        magnitude = 1 if fraction_bits == 0 else self.convert.bounds.here.activation
        if bound is not None:
            magnitude = math.ceil(math.log2(bound))
        return self.convert.new(Shared(x, RING_BITS, fraction_bits), magnitude)

    def indices(self, count: int, share: Tensor | None, size: int) -> MaskedTensor:
        """Return the places from this party's share in Z_2^64, of which the bits of an index count."""
        x = share.to(self.device) if share is not None else self.context.blank((count,))
        bits = index_bits(size)
        return self.convert.new(Shared(x, RING_BITS, 0).to_ring(bits), bits)

    def output(self, x: Value) -> OutputShare:
        return output.output(self.convert, x)

    async def rounded(self, x: Value, room: int = 4) -> MaskedTensor:
        return await output.rounded(self.convert, x, room)

    async def released(self, x: Value) -> MaskedTensor:
        return await output.released(self.convert, x)

    async def perturbed(self, x: Value, temperature: float) -> MaskedTensor:
        return await output.perturbed(self.convert, x, temperature)

    def public(self, x: Tensor | float, shape: Sequence[int] | None = None) -> MaskedTensor:
        return arithmetic.public(self.convert, x, shape)

    def concat(self, values: Sequence[Value], dim: int) -> MaskedTensor:
        return arithmetic.concat(self.convert, values, dim)

    def streams_added(self, x: Value, y: Value) -> MaskedTensor:
        return linear.streams_added(self.convert, x, y)

    def with_bound(self, x: Value, bound: float) -> MaskedTensor:
        return self.convert.with_bound(x, bound)

    def bounded_as(self, x: Value, like: Value, room: int) -> MaskedTensor:
        return self.convert.with_bound(x, 2.0 ** (self.convert.tensor(like).magnitude + room))

    # ---- arithmetic ------------------------------------------------------------------------------------------------
    async def mul(self, x: Value, y: Value) -> MaskedTensor:
        return await arithmetic.multiply(self.convert, x, y)

    async def matmul(self, x: Value, y: Value) -> MaskedTensor:
        return await arithmetic.matmul(self.convert, x, y)

    async def scale(self, x: Value, factor: Tensor | float) -> MaskedTensor:
        return await arithmetic.scale(self.convert, x, factor)

    async def rotate(self, x: Value, cos: Tensor, sin: Tensor) -> MaskedTensor:
        return await arithmetic.rotate(self.convert, x, cos, sin)

    async def linear(self, x: Value, layer: Linear, residual: Value | None = None) -> MaskedTensor:
        return await linear.linear(self.convert, x, layer, residual)

    async def one_hot(self, index: Value, size: int) -> MaskedTensor:
        return await linear.one_hot(self.convert, index, size)

    async def look_up(self, index: Value, table: Value) -> MaskedTensor:
        return await linear.look_up(self.convert, index, table)

    async def embed(self, one_hot: Value, table: Value) -> MaskedTensor:
        return await linear.embed(self.convert, one_hot, table)

    # ---- norms and functions -----------------------------------------------------------------------------------------
    async def rsqrt_moment(self, x: Value, norm: Norm) -> MaskedTensor:
        return await normalisation.rsqrt_moment(self.convert, x, norm)

    async def norm_linear(self, x: Value, norm: Norm | None, layers: Sequence[Linear], whole: bool = False) -> list[Value]:
        return await normalisation.norm_linear(self.convert, x, norm, layers, whole)

    async def post_norm(self, x: Value, norm: Norm) -> MaskedTensor:
        return await normalisation.post_norm(self.convert, x, norm)

    async def gained(self, x: Value, gain: Value) -> MaskedTensor:
        return await linear.gained(self.convert, x, gain)

    async def norm_gain(self, x: Value, norm: Norm, gain: Value, residual: Value | None = None) -> MaskedTensor:
        return await normalisation.norm_gain(self.convert, x, norm, gain, residual)

    async def soft_cap(self, x: Value, cap: float) -> MaskedTensor:
        return await elementwise.soft_cap(self.convert, x, cap)

    async def tanh(self, x: Value) -> MaskedTensor:
        return await elementwise.tanh(self.convert, x)

    async def activation(self, x: Value, kind: Activation) -> MaskedTensor:
        return await elementwise.activation(self.convert, x, kind)

    async def gated_activation(self, gate: Value, up: Value, kind: Activation) -> MaskedTensor:
        return await elementwise.gated_activation(self.convert, gate, up, kind)

    async def less_than_zero(self, x: Value, fraction_bits: int | None = None) -> MaskedTensor:
        return await elementwise.less_than_zero(self.convert, x, fraction_bits)

    async def squared(self, x: Value, fraction_bits: int) -> MaskedTensor:
        return await elementwise.squared(self.convert, x, fraction_bits)

    async def max(self, x: Value, background: bool = False) -> MaskedTensor:
        return await selection.largest(self.convert, x, background)

    async def argmax(self, x: Value) -> MaskedTensor:
        return await selection.argmax(self.convert, x)

    # ---- attention -------------------------------------------------------------------------------------------------
    async def softmax(self, x: Value, mask: Tensor | None = None) -> MaskedTensor:
        return await attention.softmax(self.convert, x, mask)

    async def attention(self, q: Value, k: Value, v: Value, mask: Tensor | None) -> Value:
        return (await attention.attention(self.convert, [Part(q, k, v)], mask))[0]

    async def observed_attention(
        self, q: Value, k: Value, v: Value | None, mask: Tensor | None, observed: Observed
    ) -> Attended:
        return await attention.observed(self.convert, (q, k, v), mask, observed)

    async def biased_attention(self, q: Value, k: Value, v: Value, bias: Value, mask: Tensor | None = None) -> Value:
        joined = attention.Bias(bias, self.convert.tensor(bias).reach)
        return (await attention.attention(self.convert, [Part(q, k, v)], mask, joined))[0]

    async def relative_attention(self, q: Value, k: Value, v: Value, bias: Value, mask: Tensor | None) -> Value:
        return (await attention.attention(self.convert, [Part(q, k, v)], mask, attention.Bias(bias)))[0]

    async def attention_over(
        self, parts: Sequence[Part], mask: Tensor | None = None, observed: Observed | None = None
    ) -> tuple[list[Value], Value | None]:
        if observed is None:
            return await attention.attention(self.convert, parts, mask), None
        return await attention.attention_over(self.convert, parts, mask, observed)

    async def unattended(self, mass: Value) -> None:
        await attention.unattended(self.convert, mass)

    async def selected_attention(
        self, q: Value, chosen: Value | Awaitable[Value], k: Value, v: Value, always: tuple[Value, Value] | None
    ) -> Value:
        if self.score_cap is not None:  # scores of what is chosen are capped, so they are opened first
            return await self.gathered_attention(q, await there(chosen), k, v, always)
        of = selected_attention.Clusters(k, v, always)
        return await selected_attention.selected_attention(self.convert, q, chosen, of)

    # ---- selection -------------------------------------------------------------------------------------------------
    @property
    def similarity_bound(self) -> float:  # type: ignore[override]
        return 2.0 ** (self.convert.bounds.here.range_bits + SIMILARITY_ROOM)

    def relative(self, x: Value) -> MaskedTensor:
        return selection.relative(self.convert, x)

    async def scores(self, q: Value, k: Value) -> MaskedTensor:
        return await selection.scores(self.convert, q, k)

    async def absolute(self, x: Value) -> MaskedTensor:
        return await selection.absolute(self.convert, x)

    async def choose(self, chosen: Value, rows: Value) -> MaskedTensor:
        return await selection.choose(self.convert, chosen, rows)

    async def top_k(self, x: Value, k: int, bound: float) -> MaskedTensor:
        return await selection.largest_rows(self.convert, x, k, bound)

    async def keep_largest(self, x: Value, k: int, bound: float, fraction_bits: int | None = None) -> MaskedTensor:
        return await selection.keep_largest(self.convert, x, k, bound, fraction_bits)

    async def compact(self, keep: Value, rows: Sequence[Value], k: int) -> list[Value]:
        return await selection.compact(self.convert, keep, rows, k)

    # ---- merging -----------------------------------------------------------------------------------------------------
    async def select(self, bit: Value, x: Value, room: int = 0) -> MaskedTensor:
        return await merging.select(self.convert, bit, x, room)

    async def weighted(self, weights: Value, rows: Value, room: int) -> MaskedTensor:
        return await merging.weighted(self.convert, weights, rows, room)

    async def copy_scan(self, marks: Value, values: Value, reverse: bool = False) -> MaskedTensor:
        return await merging.copy_scan(self.convert, marks, values, reverse)

    async def merge_runs(self, ends: Value, rows: Sequence[Value], k: int) -> list[Value]:
        return await merging.merge_runs(self.convert, ends, rows, k)

    async def reciprocal(self, x: Value, least: float, most: float) -> MaskedTensor:
        return await merging.reciprocal(self.convert, x, (least, most))

    async def exp_negative(self, x: Value, most: float) -> MaskedTensor:
        return await elementwise.exp_negative(self.convert, x, most)

    async def averaged(self, sums: Value, weights: Value, like: Value, limits: tuple[float, float]) -> MaskedTensor:
        return await merging.averaged(self.convert, sums, weights, like, limits)

    async def normalised(self, x: Value) -> MaskedTensor:
        return await merging.normalised(self.convert, x)

    async def most_similar(self, x: Value, y: Value, least: float | None = None, room: int = 0) -> tuple[Value, Value]:
        return await merging.most_similar(self.convert, (x, y), least, room)

    # ---- mixtures of experts -----------------------------------------------------------------------------------------
    async def route(self, logits: Value, chosen: int, renormalised: bool) -> tuple[Value, Value]:
        return await mixture.route(self.convert, logits, chosen, renormalised)

    async def weigh(self, x: Value, gates: Value) -> MaskedTensor:
        return await mixture.weigh(self.convert, x, gates)

    async def normalise(self, x: Value, norm: Norm) -> MaskedTensor:
        return await normalisation.normalise(self.convert, x, norm)

    async def slots(self, marks: Value, capacity: int) -> tuple[Value, Value]:
        return mixture.slots(self.convert, marks, capacity)

    async def gather(self, slots: Value, rows: Value) -> MaskedTensor:
        return await mixture.gather(self.convert, slots, rows)

    async def scatter(self, slots: Value, rows: Value, stream: Value) -> MaskedTensor:
        return await mixture.scatter(self.convert, slots, rows, stream)

    # ---- the cache ---------------------------------------------------------------------------------------------------
    async def mask_queries(self, q: Value, weighed: bool = False) -> MaskedTensor:
        return await attention.mask_queries(self.convert, q, weighed)

    async def mask_for_cache(self, new: Value, kind: str | None = None, limit: int | None = None) -> MaskedTensor:
        return await cache.mask_for_cache(self.convert, new, kind, limit)

    def stored_rows(self, shape: Sequence[int], share: Tensor | None) -> MaskedTensor:
        return cache.stored_rows(self.convert, shape, share)

    async def lasting(self, rows: Value) -> MaskedTensor:
        return await cache.lasting(self.convert, rows)

    def own_rows(self, rows: Value) -> MaskedTensor:
        return cache.own_rows(self.convert, rows)

    async def append(self, cached: Value, new: Value, dim: int, kind: str | None = None) -> MaskedTensor:
        return await cache.append(self.convert, cached, new, dim, kind)

    async def recast(self, x: Value, fraction_bits: int) -> MaskedTensor:
        return await held.recast(self.convert, x, fraction_bits)

    async def hold(self, x: Value, fraction_bits: int, factor: Factor) -> MaskedTensor:
        return await held.hold(self.convert, x, fraction_bits, factor)

    async def channel_energies(self, q: Value, k: Value) -> tuple[Value, float]:
        return await held.channel_energies(self.convert, q, k)

    async def choose_channels(self, q: Value, chosen: Value) -> MaskedTensor:
        return await selected_attention.choose_channels(self.convert, q, chosen)

    async def partition(self, keep: Value, rows: Sequence[Value], k: int) -> list[Value]:
        return await selection.partition(self.convert, keep, rows, k)

    async def replace(self, rows: Value, place: Value, new: Value) -> MaskedTensor:
        return await cache.replace(self.convert, rows, place, new)

    def keep_first(self, x: Value, count: int, dim: int) -> Value:
        return cache.keep_first(self.convert.tensor(x), count, dim)
