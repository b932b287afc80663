"""Attention of one token to secretly chosen clusters of cached tokens; which ones stays secret, and so does every score.

Products with a choice e have two forms (`gather`), of which the rule of `forms` takes one, by public sizes: products of
three factors, of which nothing but the result is opened and much is dealt; or two products with an opening between them, a
round more. Scores of a choice that is made now are never worth three factors: all clusters' scores are opened while it is
made. With two parties those of the chosen clusters are then picked by their ranks, else by e, one round later.

Rounds: those of `attention`, one for scores that are picked, one for weights that are spread. Bytes: per score of all
clusters' tokens (but for products), per chosen score and per output element; a choice that several layers share is opened
once.

Leaks: nothing; what is opened is masked (docs/security.md, "Attention to chosen clusters").
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass

import torch

from mpc.ledger import operation
from mpc.ring import RING_BITS
from protocols.masked import product
from protocols.masked.attention import (
    Widths,
    mask_queries,
    precision,
    score_bits,
    score_factor,
    values_within_bound,
    weighted_values,
)
from protocols.masked.context import open_value
from protocols.masked.conversion import Conversion
from protocols.masked.exponential import Exponents, exponents
from protocols.masked.forms import choose
from protocols.masked.gather import Sizes, chosen_scores, chosen_values, picked_by_rank, picked_scores, spread_weights
from protocols.masked.rows import Rows
from protocols.masked.shares import Masked, Shared
from protocols.masked.values import MaskedTensor
from protocols.schedule import later, together
from protocols.suite import Value
from protocols.value import there


@dataclass(frozen=True)
class Clusters:
    """Cached tokens in clusters of s, and others.

    keys, values: [G, N, s, C]. always: keys and values [G, m, C] that all queries attend to.
    """

    keys: Value
    values: Value
    always: tuple[Value, Value] | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens to choose from."""
        return self.keys.shape[1] * self.keys.shape[2]

    @property
    def others(self) -> int:
        """Number of tokens that are always attended to."""
        return 0 if self.always is None else self.always[0].shape[1]

    def sizes(self, rows: int, count: int) -> Sizes:
        """Return the public sizes of a choice of `count` clusters for `rows` queries each."""
        groups, clusters, size, channels = self.keys.shape
        return Sizes(groups, rows, count, clusters, size, channels)


@dataclass(frozen=True)
class _Keys:
    """Masked queries [G, R, C] and keys [G, N, s, C]; scores [G, R, N, s] of all clusters, where they are opened; and scores
    [G, R, m] of what is always attended to. Scores are exponents."""

    queries: Masked
    clusters: Masked
    scores: Masked | None
    others: Masked | None


async def selected_attention(convert: Conversion, q: Value, chosen: Value | Awaitable[Value], of: Clusters) -> MaskedTensor:
    """Return the attention of queries q [G, R, C] to the chosen clusters and to what is always attended to, [G, R, C].

    chosen: one-hot rows [G, n, N], or what gives them."""
    c, (groups, heads), size = convert.context, q.shape[:2], of.keys.shape[2]
    opened = True
    if isinstance(chosen, Value):
        forms = of.sizes(heads, chosen.shape[1]).score_forms(score_bits(convert), c.parties)
        opened = choose(forms, c.prefer) == "opened"
    keys = await later(_keys(convert, q, of, opened))
    values = await later(_values(convert, of))
    choice = convert.tensor(await there(chosen))
    count = choice.shape[1]
    taken, sizes = count * size, of.sizes(heads, count)
    rows = Rows.of(torch.Size((groups, heads, taken + of.others)), None)
    widths = Widths(*precision(convert, rows))  # this ring crosses the wire again and again
    found = await keys
    e, near = await _chosen_scores(convert, choice, found, sizes, widths.bits)
    s = near.move(lambda t: t.reshape(groups, heads, taken))
    s = (s if found.others is None else s.beside(found.others)).move(rows.take)
    mv = await values
    spreads = choose(sizes.value_forms(widths.bits, c.parties), c.prefer) == "opened"

    async def weigh(p: Masked) -> Shared:
        near, others = p.move(lambda t: t[..., :taken].reshape(groups, heads, count, size)), None
        if of.others:
            others = product.matmul(c, p.move(lambda t: t[..., taken:]), mv[1])
        if spreads:
            weights = await open_value(c, spread_weights(c, e, near))
            flat = mv[0].move(lambda t: t.reshape(groups, of.tokens, t.shape[-1]))
            out = product.matmul(c, weights.move(lambda t: t.reshape(groups, heads, of.tokens)), flat)
        else:
            out = chosen_values(c, e, near, mv[0])
        return out if others is None else out.add(others)

    out, _, _ = await weighted_values(convert, Exponents(s), rows, weigh, widths)
    return out


async def _values(convert: Conversion, of: Clusters) -> list[Masked]:
    """Return the clusters' values and those that always count, masked modulo 2^64."""
    with operation("values"):
        wanted = [of.values] if of.always is None else [of.values, of.always[1]]
        bounded = [values_within_bound(convert, x) for x in wanted]
        return list(await together(*(convert.masked(x, convert.fraction_bits, RING_BITS, cut=False) for x in bounded)))


async def _keys(convert: Conversion, q: Value, of: Clusters, opened: bool) -> _Keys:
    """Return what scores are made from, and those that need no choice. 1 round beyond the factors' where there are such
    scores."""
    c, f, bits = convert.context, convert.fraction_bits, score_bits(convert)
    groups, clusters, size, channels = of.keys.shape
    with operation("scores"):
        wanted = [of.keys] if of.always is None else [of.keys, of.always[0]]
        mq, mk, *rest = await together(
            score_factor(convert, q, bits), *(score_factor(convert, x, bits, cut=False) for x in wanted)
        )
        if opened:
            rest = [mk.move(lambda t: t.reshape(groups, of.tokens, channels)), *rest]
        if not rest:
            return _Keys(mq, mk, None, None)
        products = [product.matmul(c, mq, x.move(lambda t: t.transpose(1, 2))) for x in rest]
        joined = Shared(torch.cat([s.x for s in products], -1), bits, 2 * f)
        scores = (await exponents(c, joined, f)).x
        if not opened:
            return _Keys(mq, mk, None, scores)
        inside = scores.move(lambda t: t[..., : of.tokens].reshape(groups, q.shape[1], clusters, size))
        return _Keys(mq, mk, inside, scores.move(lambda t: t[..., of.tokens :]) if of.others else None)


async def _chosen_scores(
    convert: Conversion, choice: MaskedTensor, keys: _Keys, sizes: Sizes, bits: int
) -> tuple[Masked, Masked]:
    """Return the one-hot rows [G, n, N], masked modulo 2^bits, and the scores [G, R, n, s] of their clusters. 1 round, and
    one before it where the rows are not masked yet and are needed."""
    c = convert.context

    async def rows() -> Masked:
        with operation("selection"):
            return await convert.masked(choice, 0, bits)

    ranked = choice.unmade
    if ranked is not None and keys.scores is not None:
        ring_bits = max(bits, keys.scores.bits)
        if choose(sizes.pick_forms(ranked.ranks, ring_bits, c.parties), c.prefer) == "ranks":
            with operation("scores"):
                near, choice.shared = picked_by_rank(c, ranked.ranks, ranked.count, keys.scores, ring_bits)
                return await together(rows(), open_value(c, near))
    e = await rows()
    with operation("scores"):
        if keys.scores is not None:
            return e, await open_value(c, picked_scores(c, e.to_ring(keys.scores.bits), keys.scores))
        return e, (await exponents(c, chosen_scores(c, e, keys.queries, keys.clusters), convert.fraction_bits)).x


async def choose_channels(convert: Conversion, q: Value, chosen: Value) -> MaskedTensor:
    """Return the chosen channels of queries, masked as they are; see `Suite.choose_channels`. 1 round, ring bits an
    element."""
    t, bits = convert.tensor(q), score_bits(convert)
    with operation("scores"):
        mq = await score_factor(convert, q, bits)
        one_hot = await convert.masked(convert.tensor(chosen), 0, bits, cut=False)
        out = product.matmul(convert.context, mq, one_hot.to_ring(bits).map(lambda v: v.transpose(1, 2)))
        return await mask_queries(convert, convert.new(out, t.magnitude))
