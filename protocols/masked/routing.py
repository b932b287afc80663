"""Secret routing to experts: which of them each token takes, how much each counts, and which token has which place.

`route`. Marks of the k largest logits come from their ranks (`top_k`), beside the exponentials of all of them (`softmax`).
Both are masked, so that their product, opened once, is the numerators of the chosen alone; their sum, or that of all where
the chosen ones are not renormalised, is local, its inverse is one gate, and the product with it the result. A softmax over
the chosen alone is the same as exponentials of all, marked and divided by what is left: no logit has to be moved.

`slots`. The running count of an expert's marks is masked as the marks are: no opening. A dealt one-hot vector of it gives
the rows of a selection matrix (`selection_matrix`), here of any number of marks: row j is zero where an expert has fewer,
and what it has beyond its places is in no row. How many those are is linear in the last position's one-hot vector.

Rounds from masked logits: those of the exponentials (3 to 6) or 3, whichever are more; 1 for the chosen numerators and 1
for the inverse of their sum, with more than two parties 3. `slots`: none. Offline of `slots`, T tokens: E T one-hot vectors
of 2^w entries, w = bit_length(T). Valid range: |logit| < 2^(compared - 2 - x.frac), compared <= 32; ranges of the softmax,
whose exponents take 13 bits of x's ring. Error: of a gate below 2^-11, exactly 0 outside the chosen; marks are exact on the
ring elements. Leaks: nothing; ranks, marks, numerators and inverse sums are opened under fresh uniform masks
(docs/security.md, "Routing to experts"). Sources: those of the gates used; capacity: Lepikhin et al. 2021 (GShard), Fedus et
al. 2022 (Switch).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mpc.ring import RING_BITS
from protocols.masked import lifted, product, softmax, top_k
from protocols.masked.context import Context, open_value
from protocols.masked.dealing import one_hot
from protocols.masked.exponential import exponents_of_masked
from protocols.masked.rows import Rows
from protocols.masked.selection_matrix import check_budget, count_bits, rows_of_counts
from protocols.masked.shares import Masked, Shared, WideShared
from protocols.masked.truncation import open_cut
from protocols.schedule import together

FRAC = 28  # fraction bits of numerators; a row's largest is above e^-8
INVERSE = 26  # of the inverse of their sum
ENTRIES = 1 << 24  # of one-hot vectors at the same time


@dataclass(frozen=True)
class Choice:
    """How many experts a token takes, whether what they count is divided by its sum over them, and the ring's bits in which
    logits are compared."""

    chosen: int
    renormalised: bool
    compared: int


async def _marks(c: Context, x: Masked, k: int, bits: int) -> Masked:
    """Return marks 0 or 1 at the k largest, <[..., E]> modulo 2^bits. 3 rounds, none if k = E but the opening."""
    return await open_value(c, await top_k.top_k_indicator(c, x.with_frac(0), k, bits))


async def route(c: Context, x: Masked, choice: Choice, spread: softmax.Spread) -> tuple[Masked, Shared | WideShared]:
    """Return marks and gates of masked logits x [T, E]: <0 or 1> with 0 fraction bits, and how much each expert counts, with
    `FRAC` + `INVERSE` fraction bits modulo 2^64."""
    check_budget("routing", choice.chosen, x.shape[-1])
    rows = Rows(x.shape)
    bits = FRAC + x.shape[-1].bit_length() + 2  # of numerators, whose sum is read in them
    scores = exponents_of_masked(c, x.move(rows.take))
    marks, flat = await together(
        _marks(c, x.to_ring(choice.compared), choice.chosen, bits),
        softmax.exponentials(c, scores, rows, (FRAC, bits), spread),
    )
    every = flat.move(rows.put)

    async def chosen() -> Masked:
        return await open_value(c, product.multiply(c, every, marks))

    async def inverse(p: Masked) -> Masked:
        found = await softmax.inverse_sum(c, p.move(rows.take), rows)
        excess = found.frac - INVERSE
        return await open_cut(c, found.to_ring(INVERSE + softmax.LEAST_BITS + 2 + excess), excess)

    if choice.renormalised:
        kept = await chosen()
        divided = await inverse(kept)
    else:
        kept, divided = await together(chosen(), inverse(every))
    return marks, lifted.multiply(c, "gates", kept, divided.move(lambda t: t[..., None]), RING_BITS)


def slots(c: Context, marks: Masked, capacity: int, bits: int) -> tuple[Shared, Shared]:
    """Return one-hot or zero rows [E, capacity, T] of marks [T, E], the last token's first, and how many marks are in none
    of them, [1]; both modulo 2^bits; local."""
    tokens, experts = marks.shape
    width = count_bits(tokens)
    counts = marks.map(lambda t: t.flip(0).transpose(0, 1).cumsum(1)).to_ring(width)
    step = max(1, ENTRIES // (tokens << width))
    rows, dropped = [], []
    for start in range(0, experts, step):
        part = counts.map(lambda t, at=slice(start, start + step): t[at])  # type: ignore[misc]
        hot = one_hot(c, part, 0, width, bits)
        rows.append(hot.map(lambda t: rows_of_counts(t, capacity).flip(-1)).x)
        dropped.append(hot.map(lambda t: _beyond(t[:, -1], capacity)).x)
    every, lost = torch.cat(rows), torch.stack(dropped).sum(0)
    return Shared(every, bits, 0), Shared(lost, bits, 0)


def _beyond(hot: Tensor, capacity: int) -> Tensor:
    """Return the sum of what one-hot counts [E, values] are more than `capacity`, [1]; linear."""
    more = (torch.arange(hot.shape[-1], dtype=torch.int64, device=hot.device) - capacity).clamp(min=0)
    return (hot * more).sum(0).sum(0, keepdim=True)
