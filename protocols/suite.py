"""The interface that model code is written against, once, for every suite.

Vocabulary. A *suite* is one way to compute on values that nobody sees: `plain` (floats, no secrecy), `crypten` (CrypTen's
Beaver protocols), `masked` (masked evaluation), `estimate` (shapes only). A *value* is a tensor inside a suite. A
*party* holds a share of it; the *dealer* runs the same program to deal correlated randomness and holds no input.

Two rules make programs readable:
* an operator or method of a `Value` is local: no round, no byte, exact;
* whatever may communicate is an awaited method of the suite. `await suite.together(a, b)` shares rounds (see
  `protocols.schedule`); for suites that cannot interleave, it runs them one after the other.

No method opens a value to a compute party. `output` hands a party's share of a result to whoever is to learn it.

Shapes are public. Axis names used below: T tokens, S cached tokens, D model width, H query heads, G key/value heads,
R = H / G query heads per key/value head, C channels of a head, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from mpc.errors import ConfigurationError
from mpc.ledger import Ledger, operation
from mpc.ranks import Ranks
from protocols import schedule
from protocols.expert_ways import ExpertsWay
from protocols.held_rows import HeldRows
from protocols.merging import Merging
from protocols.observed import Attended, Observed
from protocols.value import Activation, Linear, Norm, OutputShare, Part, Value, there

__all__ = ["Activation", "Linear", "Norm", "OutputShare", "Part", "Suite", "Value"]

SQUARED_BITS = 18  # fraction bits of probabilities whose squares are added up


class Suite(Merging, HeldRows):
    """One way of computing on secrets. One instance per party (or dealer) and session.

    parties: number of compute parties. fraction_bits: of activations. ledger: where costs are counted.
    experts: how mixtures of experts are computed.

    What a suite must write is in `protocols.operations`; what is here, in `protocols.merging` and in `protocols.held_rows`
    is written in terms of it, and a suite overrides what it can do in fewer rounds. Rounds and bytes of an operation are a
    suite's own, see its module.
    """

    name: ClassVar[str]
    preprocesses: ClassVar[bool] = False
    """Whether a party can run a preprocessing pass of its program, see `mpc.preprocessing`."""
    overlaps_rounds: ClassVar[bool] = False
    """Whether rounds of work that runs in the background (`protocols.schedule.later`) are shared with the work beside it."""
    flag_bytes: ClassVar[int] = 0
    """Offline bytes of the last party for the flags of one place, beside those of the values that are checked."""
    weight_fraction_bits: int = 0
    """Fraction bits that the shares of weights must have; 0 for `plain`, which takes floats."""
    similarity_bound: float = 2.0**15
    """Public bound on the results of `scores`."""
    router_bound: ClassVar[float] = 2.0**17
    """Public bound on the logits of a router."""

    def __init__(self, parties: int, fraction_bits: int, ledger: Ledger, device: torch.device | str = "cpu") -> None:
        self.parties = parties
        self.fraction_bits = fraction_bits
        self.ledger = ledger
        self.device = torch.device(device)
        self.scheduler = schedule.Scheduler(self._flush)
        self.places = 1
        self.score_cap: float | None = None
        self.place = 0
        self.experts = ExpertsWay()

    # ---- running -------------------------------------------------------------------------------------------------
    def begin(self, places: int, score_cap: float | None = None) -> None:
        """Begin a program with so many places: the layers, and the head after them.

        score_cap: c, where attention takes c tanh(score / c) for each score; public.
        """
        self.places = places
        self.score_cap = score_cap
        self.place = 0

    def at(self, place: int) -> None:
        """Let what follows belong to this layer (or to the head): its bounds apply, its range flags are set."""
        self.place = place

    def split_weights(self, ranks: Ranks) -> None:
        """Load weights over the ranks of this party from now on. Raises `ConfigurationError` in suites that cannot."""
        raise ConfigurationError(f"suite '{self.name}' keeps weights in one process: use suite masked, or 'workers: 1'")

    def run(self, program: Coroutine[Any, Any, Any]) -> Any:
        """Run a program (an `async def` written against this interface) to its end."""
        return self.scheduler.run(program)

    async def together(self, *programs: Coroutine[Any, Any, Any]) -> tuple[Any, ...]:
        """Run programs that do not depend on each other; their openings share rounds where the suite can."""
        return await schedule.together(*programs)

    def _flush(self, requests: list[Any]) -> Sequence[Any]:
        raise NotImplementedError(f"suite {self.name} has no asynchronous openings")

    def flags(self) -> Tensor | None:
        """Return this party's XOR share of the range flags since the last call: int64 words [kinds, places], or None.

        At the host. kinds: `RANGE_KINDS`. A word is zero when no value of that kind left its declared range there, and a
        uniformly random word otherwise (chance: 2^-64). Only the client opens them, with the answer that they belong to.
        """
        return None

    # ---- precision and bounds --------------------------------------------------------------------------------------
    async def rounded(self, x: Value, room: int = 4) -> Value:
        """Return x with `fraction_bits` fraction bits and nothing below them. Same value otherwise.

        room: bits that sums of a few such values may need beyond x's own bound.
        """
        return x

    async def released(self, x: Value) -> Value:
        """Return floor(x 2^fraction_bits) / 2^fraction_bits, exact: what may be output of a value with more fraction bits.

        The truncations inside a program round up or down by chance, and each compute party knows its chance: with the
        client it could tell, over many equal questions, what was cut. This one says the same of equal x, so that output and
        openings together are a function of the output and of fresh uniform masks.
        """
        return x

    def relative(self, x: Value) -> Value:
        """Return x, of which only the differences along the last axis matter; suites whose rings must hold it bring it near
        0."""
        return x

    def streams_added(self, x: Value, y: Value) -> Value:
        """Return the sum of what two parts of a layer wrote to the residual stream, whose bound the sum keeps. Local."""
        return x + y

    async def squared(self, x: Value, fraction_bits: int) -> Value:
        """Return x^2 with twice the fraction bits that are left of x, at most `fraction_bits`, and none cut of it."""
        return await self.mul(x, x)

    # ---- functions ---------------------------------------------------------------------------------------------------
    async def absolute(self, x: Value) -> Value:
        """Return |x|, exact."""
        return x - (await self.mul(await self.less_than_zero(x), x)) * 2

    async def gated_activation(self, gate: Value, up: Value, kind: Activation) -> Value:
        """Return activation(gate) * up, element-wise."""
        return await self.mul(await self.activation(gate, kind), up)

    async def rotate(self, x: Value, cos: Tensor, sin: Tensor) -> Value:
        """Return rotary position embeddings (half-split form): x: [G, T, C], cos and sin: public [T, C]."""
        half = x.shape[-1] // 2
        swapped = self.concat([-x[..., half:], x[..., :half]], dim=-1)
        both = await self.scale(self.concat([x, swapped], dim=-1), torch.cat([cos, sin], dim=-1))
        return both[..., : 2 * half] + both[..., 2 * half :]

    async def soft_cap(self, x: Value, cap: float) -> Value:
        """Return cap tanh(x / cap), element-wise: 2 cap (p - 1/2) for the softmax p of x / cap and -x / cap."""
        near = (await self.scale(x, 1.0 / cap)).reshape(*x.shape, 1)
        p = await self.softmax(self.concat([near, -near], -1))
        return await self.scale(p[..., 0] - p[..., 1], cap)

    async def norm_gain(self, x: Value, norm: Norm, gain: Value, residual: Value | None = None) -> Value:
        """Return x / sqrt(moment(x) + eps) over the last axis, times a fixed secret gain (+ residual): what stands before no
        linear layer. x: outputs of a linear layer, [..., D] or [..., H, D]; gain: [D], or [H D]."""
        flat = x.reshape(-1, gain.shape[0])
        inverse, scaled = await self.together(self.output_moment(x, norm), self.mul(flat, gain))
        scaled = scaled.reshape(*x.shape)
        with operation("norm scale"):
            y: Value = await self.mul(scaled, inverse)
        return y if residual is None else y + residual

    async def norm_linear(self, x: Value, norm: Norm | None, layers: Sequence[Linear], whole: bool = False) -> list[Value]:
        """Normalise x [..., D], then apply each (folded, see `Norm`) linear layer; where there is no norm, apply them.

        whole: no fraction bit of the products is cut, for what is to be `released`.
        """
        if norm is None:
            return list(await self.together(*(self.linear(x, layer) for layer in layers)))
        (inverse, *products) = await self.together(
            self.rsqrt_moment(x, norm), *(self.linear(x, Linear(layer.weight)) for layer in layers)
        )
        with operation("norm scale"):
            scaled = await self.together(*(self.mul(product, inverse) for product in products))
        return [y if layer.bias is None else y + layer.bias for y, layer in zip(scaled, layers, strict=True)]

    async def post_norm(self, x: Value, norm: Norm) -> Value:
        """Return `normalise` of rows that a residual path reads too (`gained`); they need not be centred."""
        if norm.kind == "layer":
            x = x - await self.scale(x.sum(-1, keepdim=True), 1.0 / x.shape[-1])
        return await self.mul(x, await self.rsqrt_moment(x, norm))

    async def gained(self, x: Value, gain: Value) -> Value:
        """Return normalised rows times a fixed secret vector, [..., D] x [D], no fraction bit cut; a residual path."""
        return await self.mul(x, gain)

    async def whole_linear(self, x: Value, layer: Linear) -> Value:
        """Return x W + b of which no fraction bit is cut, for what is to be `released`."""
        return await self.linear(x, layer)

    async def tanh(self, x: Value) -> Value:
        """Return tanh(x) = p - q of the softmax (p, q) of (x, -x)."""
        sides = self.concat([x.reshape(*x.shape, 1), (-x).reshape(*x.shape, 1)], -1)
        both = await self.softmax(sides)
        return both[..., 0] - both[..., 1]

    # ---- attention ---------------------------------------------------------------------------------------------------
    async def attention_scores(self, q: Value, k: Value) -> Value:
        with operation("scores"):
            scores = await self.matmul(q, k.transpose(1, 2))
            return scores if self.score_cap is None else await self.soft_cap(scores, self.score_cap)

    async def attention(self, q: Value, k: Value, v: Value, mask: Tensor | None) -> Value:
        """Return softmax(q k^T) v per key/value head; the score scale is already in q's weights.

        q: [G, R T, C] with the R query heads of a key/value head stacked on the token axis, k: [G, S, C], v: [G, S, C],
        mask: public bool broadcastable to [G, R T, S] or None. Returns [G, R T, C].
        """
        scores = await self.attention_scores(q, k)
        with operation("softmax"):
            probabilities = await self.softmax(scores, mask)
        with operation("values"):
            return await self.matmul(probabilities, v)

    async def observed_attention(
        self, q: Value, k: Value, v: Value | None, mask: Tensor | None, observed: Observed
    ) -> Attended:
        """Return `attention`, if values are given, and what cached tokens get of it from some queries."""
        scores = await self.attention_scores(q, k)
        with operation("softmax"):
            probabilities = await self.softmax(scores, mask)
        seen, out = observed.taken(probabilities), None
        if v is not None:
            with operation("values"):
                out = await self.matmul(probabilities, v)
        squares = (await self.squared(seen, SQUARED_BITS)).sum(1) if observed.squares else None
        late = None if observed.late is None else seen[:, observed.late].sum(1)
        return Attended(out, seen.sum(1), squares, late)

    @final
    async def attention_with_mass(
        self, q: Value, k: Value, v: Value, mask: Tensor | None, observed: Tensor
    ) -> tuple[Value, Value]:
        """Return `attention`, and the attention mass of each cached token over some queries: [G, R T, C] and [G, S].

        observed: public bool [R T]; the second result is the sum of these queries' probabilities.
        """
        found = await self.observed_attention(q, k, v, mask, Observed.of_rows(observed, q.shape[0]))
        assert found.out is not None
        return found.out, found.mass

    async def biased_attention(self, q: Value, k: Value, v: Value, bias: Value, mask: Tensor | None = None) -> Value:
        """Return `attention` of queries q [G, R T, C] with a secret `bias`, broadcastable to [G, R T, S], added to the
        scores: beside what is declared of these, it may be as large as its own bound says."""
        return await self.relative_attention(q, k, v, bias, mask)

    async def relative_attention(self, q: Value, k: Value, v: Value, bias: Value, mask: Tensor | None) -> Value:
        """Return `biased_attention` where what is declared of scores holds for their sums with the bias: as of one that a
        checkpoint has learned, for relative positions."""
        scores = await self.attention_scores(q, k) + bias
        with operation("softmax"):
            probabilities = await self.softmax(scores, mask)
        with operation("values"):
            return await self.matmul(probabilities, v)

    async def unattended(self, mass: Value) -> None:
        """Flag "score" where attention that must go nowhere, 0 to 1, is 1/64 or more; never where it is below 1/1 024."""
        return None

    async def selected_attention(
        self, q: Value, chosen: Value | Awaitable[Value], k: Value, v: Value, always: tuple[Value, Value] | None
    ) -> Value:
        """Return the attention of one token to the tokens of secretly chosen clusters, and to others that are always
        attended to.

        q: [G, R, C]; chosen: one-hot rows [G, n, N] (`top_k`), or what gives them beside whatever of the attention needs no
        choice; k, v: clusters of s tokens [G, N, s, C]; always: keys and values [G, m, C]. Returns [G, R, C]. A cluster that
        is chosen twice counts twice.
        """
        return await self.gathered_attention(q, await there(chosen), k, v, always)

    async def gathered_attention(
        self, q: Value, chosen: Value, k: Value, v: Value, always: tuple[Value, Value] | None
    ) -> Value:
        """Return `selected_attention` by gathering: the choice times keys and values, then attention to what comes out."""
        groups, clusters, size, channels = k.shape
        with operation("gather"):
            flat = [x.reshape(groups, clusters, size * channels) for x in (k, v)]
            keys, values = await self.together(*(self.choose(chosen, x) for x in flat))
            tokens = chosen.shape[1] * size
            keys, values = (x.reshape(groups, tokens, channels) for x in (keys, values))
            keys, values = await self.together(self.mask_for_cache(keys), self.mask_for_cache(values))
        if always is not None:
            keys, values = self.concat([keys, always[0]], 1), self.concat([values, always[1]], 1)
        return await self.attention(q, keys, values, None)

    async def scores(self, q: Value, k: Value) -> Value:
        """Return products of queries and keys (or cluster representatives) to be ranked: [G, R, C] x [G, N, C] ->
        [G, R, N]."""
        with operation("similarity"):
            return await self.matmul(q, k.transpose(1, 2))

    async def choose(self, chosen: Value, rows: Value) -> Value:
        """Return the rows of a small secret table: one-hot chosen [G, n, N] times rows [G, N, width] -> [G, n, width]."""
        return await self.matmul(chosen, rows)

    # ---- mixtures of experts: nobody learns which experts a token took, nor how many tokens an expert has ---------------
    async def route(self, logits: Value, chosen: int, renormalised: bool) -> tuple[Value, Value]:
        """Return which experts each token takes, marks 0 or 1 with 0 fraction bits, and how much each counts, both
        [T, E]: the softmax of a router's logits [T, E] at the `chosen` largest, exactly 0 elsewhere.

        renormalised: divided by its sum over the chosen, that is the softmax over them alone. Ties go to the earlier expert.
        """
        with operation("routing"):
            rows = await self.mask_for_reuse(await self.top_k(logits, chosen, self.router_bound))
            marks = rows.sum(1)
            if not renormalised:
                return marks, await self.mul(marks, await self.softmax(logits))
            tokens, experts = logits.shape
            near = await self.matmul(logits.reshape(tokens, 1, experts), rows.transpose(1, 2))
            counts = await self.softmax(near)
            return marks, (await self.matmul(counts, rows)).reshape(tokens, experts)

    async def weigh(self, x: Value, gates: Value) -> Value:
        """Return x times what it counts, broadcasting; x is what a gated activation gives, gates as of `route`."""
        return await self.mul(x, gates)

    async def normalise(self, x: Value, norm: Norm) -> Value:
        """Return rows [..., D] divided by their deviation: of norm sqrt(D)."""
        return await self.mul(x, await self.rsqrt_moment(x, norm))

    async def slots(self, marks: Value, capacity: int) -> tuple[Value, Value]:
        """Return the places of experts that have `capacity` of them: [E, capacity, T], row j of an expert one-hot at the
        j-th token from the last that marks it, zero where there is none; and how many marks of [T, E] found no place, [1].
        Both have 0 fraction bits."""
        tokens, experts = marks.shape
        with operation("dispatch"):
            backwards = torch.arange(tokens - 1, -1, -1)
            counts = marks[backwards].transpose(0, 1).cumsum(1).reshape(experts, 1, tokens)
            places = torch.arange(1, capacity + 1, dtype=torch.float64).reshape(capacity, 1)
            below = await self.less_than_zero(counts.expand(experts, capacity, tokens) - places)
            over = counts[:, 0, -1] - float(capacity)
            dropped = over - await self.mul(await self.less_than_zero(over), over)
            before = self.concat([below[:, :, :1] * 0 + 1.0, below[:, :, :-1]], 2)
            return (before - below)[:, :, backwards], dropped.sum(0, keepdim=True)

    async def gather(self, slots: Value, rows: Value) -> Value:
        """Return the rows that `slots` [E, C, T] name, of [T, D], or of each expert's own [E, T, D]: [E, C, D]."""
        experts, capacity, tokens = slots.shape
        with operation("dispatch"):
            if len(rows.shape) == 3:
                return await self.matmul(slots, rows)
            found = await self.matmul(slots.reshape(experts * capacity, tokens), rows)
            return found.reshape(experts, capacity, rows.shape[1])

    async def scatter(self, slots: Value, rows: Value, stream: Value) -> Value:
        """Return the residual stream [T, D] plus, at each token, the rows [E, C, D] whose `slots` [E, C, T] name it."""
        experts, capacity, tokens = slots.shape
        with operation("dispatch"):
            flat = slots.reshape(experts * capacity, tokens).transpose(0, 1)
            return stream + await self.matmul(flat, rows.reshape(experts * capacity, rows.shape[2]))

    # ---- masked once, used in many products: the same value, for suites that open a factor masked -----------------------
    async def mask_queries(self, q: Value, weighed: bool = False) -> Value:
        """Return queries [G, R T, C], masked for all their products with cached keys, beside other work. weighed: for
        products with weights, too."""
        return q

    async def mask_for_reuse(self, chosen: Value) -> Value:
        """Return a choice (one-hot rows), masked for the several layers that use it."""
        return chosen

    async def mask_for_cache(self, new: Value, kind: str | None = None, limit: int | None = None) -> Value:
        """Return keys, values or what else is cached, masked for all products to come.

        kind: of `RANGE_KINDS`; `new` is flagged where it is outside that bound or, with `limit`, outside +-2^limit: never
        within it, always from 8 times as much on, in between maybe.
        """
        return new

    async def append(self, cache: Value, new: Value, dim: int, kind: str | None = None) -> Value:
        """Return the cache with `new` appended along `dim`, masked as `mask_for_cache` does."""
        return self.concat([cache, await self.mask_for_cache(new, kind)], dim)

    async def replace(self, rows: Value, place: Value, new: Value) -> Value:
        """Return cached rows [G, n, C] with the one that `place` [G, n] (one-hot or zero) marks replaced by `new`
        [G, 1, C]."""
        groups, count, channels = rows.shape
        with operation("replace"):
            marks = place.reshape(groups, count, 1).expand(groups, count, channels)
            change = await self.mul(marks, new.expand(groups, count, channels) - rows)
            return await self.mask_for_cache(rows + change)

    def keep_first(self, x: Value, count: int, dim: int) -> Value:
        """Return the first `count` entries of a cache along `dim`; what follows is given up, and x may not be used any
        more."""
        return x[(*(slice(None),) * dim, slice(count))]
