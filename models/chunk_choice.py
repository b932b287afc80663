"""Which chunks a prompt reads, as a secret among candidates: the rows of each slot are those of one of N registered chunks.

All candidates have one length. Their rows are loaded as registered, at the first places, as one table a layer [1, N, G S C],
which serves every session that names the same candidates. The client shares a number below N for each slot. Of it the suite
makes a one-hot row (`Operations.one_hot`), so that no linear combination of chunks can be asked for, and the slot's rows are
its product with the table (`Suite.choose`), exact: every candidate is read, and nothing depends on which. Keys are turned to
the slot's place behind that, by public angles, and both are masked for the session's own cache, as a prompt's are. The first
tokens of the chosen chunks, which are computed again, are chosen in the same way from shares of all candidates' token ids.

Costs, of m slots and k kept tokens a chunk, beside the tokens that are computed again: 1 round for the choice, 1 for the
tokens (`masked`; each layer's rows come beside the rounds of its norm); sent by a party 16 m G k C bytes a layer for the
slots' rows, 8 (m N + N a) bytes in all for the choice and the ids of a first tokens each; dealt 8 bytes for each of these
products; local work m N G k C products a layer at parties and dealer.

Source: Agarwal et al., "Cache-Craft" (arXiv 2502.15734) for chunks; the choice is a product of a one-hot row with a fixed
table (Beaver 1991), whose masks are dealt.

Leaks: to parties and dealer the candidates, how many slots there are and how many tokens are computed again; not which
candidate stands in which slot, or whether one stands in several (docs/security.md, "Registered prefixes").

Axis names as in `protocols.suite`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from models.architecture import Architecture
from models.cache import KVCache
from models.chunks import BlockShares, ChunkPlan, load_chunks
from models.prefix_rows import LOAD_ROWS, PARTS, load_rows, rows_name, rows_shapes
from models.rotary import cosines_and_sines
from protocols.suite import Suite, Value

STAGE = "chunks"


def table_name(layer: int, part: str) -> str:
    """Return the name of a layer's keys or values of all candidates.

    >>> table_name(3, "keys")
    'candidates.3.keys'
    """
    return f"candidates.{layer}.{part}"


async def load_blocks(
    suite: Suite, architecture: Architecture, behind: int, plan: ChunkPlan | None, shares: BlockShares, scores: str = ""
) -> dict[str, Value]:
    """Return the rows that a session begins behind, by name: of the prefix, and of its chunks or of all candidates. scores:
    of a prefix alone, as in `models.prefix_rows.rows_shapes`."""
    if plan is not None and not plan.among:
        return await load_chunks(suite, architecture, behind, plan, shares)
    rows = await load_rows(suite, architecture, behind, lambda name: shares(0, name), scores) if behind else {}
    return rows if plan is None else rows | await load_candidates(suite, architecture, plan, shares)


async def load_candidates(suite: Suite, a: Architecture, plan: ChunkPlan, shares: BlockShares) -> dict[str, Value]:
    """Return the rows of all candidates that slots keep, by `table_name`, [1, N, G S C], lasting. Recorded under stage
    `LOAD_ROWS`. Costs: those of `Suite.lasting`, one layer after the other; nothing where all tokens are computed again."""
    suite.begin(a.layers + 1, a.score_cap)
    found: dict[str, Value] = {}
    tokens, first = plan.lengths[0], plan.firsts[0]
    if first == tokens:
        return found
    shapes = rows_shapes(a, tokens)
    with suite.ledger.timed(LOAD_ROWS):
        for layer in range(a.layers):
            suite.at(layer)
            tables = []
            for part in PARTS:
                name = rows_name(layer, part)
                rows = [suite.stored_rows(shapes[name], shares(number, name)) for number in range(1, plan.among + 1)]
                flat = [one[:, first:].reshape(1, 1, a.kv_heads * (tokens - first) * a.head_channels) for one in rows]
                tables.append(suite.lasting(flat[0] if len(flat) == 1 else suite.concat(flat, 1)))
            both = await suite.together(*tables)
            found |= {table_name(layer, part): table for part, table in zip(PARTS, both, strict=True)}
    return found


async def chosen_chunks(
    suite: Suite, a: Architecture, weights: Mapping[str, Value], cache: KVCache, plan: ChunkPlan, given: Tensor | None
) -> Value | None:
    """Let the cache hold, as each of its layers is entered, what its slots keep of the chunks that are chosen, behind its
    prefix; return the first tokens of each, as indices [m a] in the order of the slots, which are to be computed again; None
    where there are none.

    weights: with `load_candidates`'s. given: this party's int64 share [N a + m] of the first tokens of all candidates, one
    behind the other, and of the choice, a number below N for each slot; None at the dealer. Recorded under stage `STAGE`.
    """
    slots, first, count = len(plan.lengths), plan.firsts[0], plan.among
    own = (None, None) if given is None else (given[: count * first].reshape(1, count, first), given[count * first :])
    behind, again = cache.behind, None
    with suite.ledger.timed(STAGE):
        marks = await suite.one_hot(suite.indices(slots, own[1], count), count)
        chosen = await suite.mask_for_reuse(marks.reshape(1, slots, count))
        if first:
            ids = suite.input((1, count, first), own[0], 0, bound=float(a.vocabulary))
            again = (await suite.choose(chosen, ids)).reshape(slots * first)
    if first < plan.lengths[0]:
        cache.seen = cache.behind = behind + sum(plan.kept)
        cache.rows_of = partial(_slot_rows, suite, a, weights, cache, plan, behind, chosen)
    return again


async def _slot_rows(
    suite: Suite,
    a: Architecture,
    weights: Mapping[str, Value],
    cache: KVCache,
    plan: ChunkPlan,
    behind: int,
    chosen: Value,
    layer: int,
) -> None:
    """Append what slots keep to a layer of the cache; keys are turned to their places. behind: tokens of the prefix. chosen:
    one-hot [1, m, N]."""
    kept, groups, channels = plan.kept[0], a.kv_heads, a.head_channels
    shape = (len(plan.lengths), groups, kept, channels)
    found = []
    for part in PARTS:
        rows = await suite.choose(chosen, suite.own_rows(weights[table_name(layer, part)]))
        found.append(rows.reshape(*shape).permute(1, 0, 2, 3).reshape(groups, sum(plan.kept), channels))
    keys, values = found
    if (rotary := a.rotary_of(layer)) is not None:
        turns = [cosines_and_sines(rotary, channels, start, 1) for start in plan.starts(behind)]
        cos, sin = (torch.cat([one.expand(kept, -1) for one in both]) for both in zip(*turns, strict=True))
        keys = await suite.rotate(keys, cos, sin)
    entry = cache.layers[layer]
    if entry.k is None or entry.v is None:
        entry.k, entry.v = await suite.together(suite.mask_for_cache(keys), suite.mask_for_cache(values))
    else:
        entry.k, entry.v = await suite.together(suite.append(entry.k, keys, 1), suite.append(entry.v, values, 1))
