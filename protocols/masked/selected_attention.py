"""Attention of one token to secretly chosen clusters of cached tokens: nothing of the cache's size is opened.

Values are weighed by three-factor products (`gather`), and keys too where there are more than `OPENED_TOKENS` to choose
from: the rounds of `attention`. Fewer keys have their scores opened beside the choice, which takes a tenth of the dealt
bytes, and a round more where the choice is not new. Bytes: per score, per chosen score and per output element; a choice that
several layers share is opened once.

Leaks: nothing; what is opened is masked (docs/security.md, "Attention to chosen clusters").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpc.ledger import operation
from protocols.masked import product
from protocols.masked.attention import Widths, precision, score_bits, score_factor, values_within_bound, weighted_values
from protocols.masked.context import open_value
from protocols.masked.conversion import Conversion
from protocols.masked.exponential import Exponents, exponents
from protocols.masked.gather import chosen_scores, chosen_values, picked_scores
from protocols.masked.rows import Rows
from protocols.masked.shares import Masked, Shared
from protocols.masked.values import MaskedTensor
from protocols.schedule import together
from protocols.suite import Value

OPENED_TOKENS = 1024  # up to so many tokens to choose from have their scores opened


@dataclass(frozen=True)
class Clusters:
    """Cached tokens in clusters of s, and which of them are attended to.

    chosen: one-hot rows [G, n, N]. keys, values: [G, N, s, C]. always: keys and values [G, m, C] that all attend to.
    """

    chosen: Value
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

    @property
    def opens_scores(self) -> bool:
        """Whether the scores of all tokens to choose from are opened."""
        return self.tokens <= OPENED_TOKENS


@dataclass(frozen=True)
class _Keys:
    """Masked queries [G, R, C]; the clusters' keys [G, N, s, C], or their scores [G, R, N, s] where those are opened; and
    the scores [G, R, m] of what is always attended to. Scores are exponents."""

    queries: Masked
    clusters: Masked
    others: Masked | None


async def selected_attention(convert: Conversion, q: Value, of: Clusters) -> MaskedTensor:
    """Return the attention of queries q [G, R, C] to the chosen clusters and to what is always attended to, [G, R, C]."""
    c, (groups, heads) = convert.context, q.shape[:2]
    count, size = of.chosen.shape[1], of.keys.shape[2]
    taken = count * size
    rows = Rows.of(torch.Size((groups, heads, taken + of.others)), None)
    widths = Widths(*precision(convert, rows))  # this ring crosses the wire again and again

    async def choice() -> Masked:
        with operation("selection"):
            return await convert.masked(convert.tensor(of.chosen), 0, widths.bits)

    async def values() -> list[Masked]:
        with operation("values"):
            wanted = [of.values] if of.always is None else [of.values, of.always[1]]
            bounded = [values_within_bound(convert, x) for x in wanted]
            return list(await together(*(convert.masked(x, convert.fraction_bits, widths.bits, cut=False) for x in bounded)))

    e, keys, mv = await together(choice(), _keys(convert, q, of), values())
    s = (await _chosen_scores(convert, e, keys, of)).move(lambda t: t.reshape(groups, heads, taken))
    s = (s if keys.others is None else s.beside(Exponents(keys.others))).move(rows.take)

    def weigh(p: Masked) -> Shared:
        out = chosen_values(c, e, p.move(lambda t: t[..., :taken].reshape(groups, heads, count, size)), mv[0])
        return out if not of.others else out.add(product.matmul(c, p.move(lambda t: t[..., taken:]), mv[1]))

    out, _, _ = await weighted_values(convert, s, rows, weigh, widths)
    return out


async def _keys(convert: Conversion, q: Value, of: Clusters) -> _Keys:
    """Return what the choice is applied to, and the scores that need no choice. 1 round beyond the factors' where there are
    such scores."""
    c, f, bits = convert.context, convert.fraction_bits, score_bits(convert)
    groups, clusters, size, channels = of.keys.shape
    with operation("scores"):
        wanted = [of.keys] if of.always is None else [of.keys, of.always[0]]
        mq, mk, *rest = await together(score_factor(convert, q), *(score_factor(convert, x, cut=False) for x in wanted))
        if of.opens_scores:
            rest = [mk.move(lambda t: t.reshape(groups, of.tokens, channels)), *rest]
        if not rest:
            return _Keys(mq, mk, None)
        products = [product.matmul(c, mq, x.move(lambda t: t.transpose(1, 2))) for x in rest]
        joined = Shared(torch.cat([s.x for s in products], -1), bits, 2 * f)
        scores = (await exponents(c, joined, f)).x
        if not of.opens_scores:
            return _Keys(mq, mk, scores)
        inside = scores.move(lambda t: t[..., : of.tokens].reshape(groups, q.shape[1], clusters, size))
        return _Keys(mq, inside, scores.move(lambda t: t[..., of.tokens :]) if of.others else None)


async def _chosen_scores(convert: Conversion, e: Masked, keys: _Keys, of: Clusters) -> Exponents:
    """Return the scores [G, R, n, s] of the chosen clusters. 1 round."""
    c = convert.context
    with operation("scores"):
        if of.opens_scores:
            return Exponents(await open_value(c, picked_scores(c, e.to_ring(keys.clusters.bits), keys.clusters)))
        return await exponents(c, chosen_scores(c, e, keys.queries, keys.clusters), convert.fraction_bits)
