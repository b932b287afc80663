"""Rows of a registered prefix: keys and values of a text that sessions begin behind, computed once (`models.prefixes`).

What is stored of them is each party's share in Z_2^64 with the suite's fraction bits. They are taken as weights are
(`Suite.lasting_rows`): masked when they are loaded, by a mask that later sessions of the same load go on with, since a
product with them needs fresh randomness for itself and nothing else. A session appends to a copy of its own, and a policy
that drops or merges rows does so in that copy.

Axis names as in `protocols.suite`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from models.architecture import Architecture
from models.architectures import without_encoder
from models.cache import CachePolicy, KVCache
from models.prefix_scores import SCORES, begin_scored, scores_of
from mpc.errors import ConfigurationError
from protocols.suite import Suite, Value

LOAD_ROWS = "prefix load"
PARTS = ("keys", "values")
Shares = Callable[[str], Tensor | None]
"""By a name of `rows_shapes`: this party's share of these rows; None at the dealer and in estimates."""


def rows_name(layer: int, part: str) -> str:
    """Return the name of a layer's keys or values of a prefix.

    >>> rows_name(3, "keys")
    'prefix.3.keys'
    """
    return f"prefix.{layer}.{part}"


def rows_shapes(architecture: Architecture, tokens: int, scores: str = "") -> dict[str, tuple[int, int, int]]:
    """Return names and shapes [G, S, C] of what a prefix of so many tokens leaves in the cache, in order; of a layer with a
    sliding window its last tokens. scores: kind of those beside them, [G, S, 1]; empty without."""
    a = architecture
    return {
        rows_name(layer, part): (
            a.kv_heads,
            min(tokens, a.window(layer) or tokens),
            1 if part == SCORES else a.head_channels,
        )
        for layer in range(a.layers)
        for part in parts_of(scores)
    }


def parts_of(scores: str) -> tuple[str, ...]:
    """Return what there is of each layer. scores: as in `rows_shapes`."""
    return (*PARTS, SCORES) if scores else PARTS


async def load_rows(
    suite: Suite, architecture: Architecture, tokens: int, shares: Shares, scores: str = ""
) -> dict[str, Value]:
    """Return the rows of a prefix by name, for this and later sessions with a suite instance of the same kind; recorded
    under stage `LOAD_ROWS`. Costs: those of `Suite.lasting_rows`, one layer after the other. scores: as in `rows_shapes`."""
    suite.begin(architecture.layers + 1, architecture.score_cap)
    found: dict[str, Value] = {}
    with suite.ledger.timed(LOAD_ROWS):
        shapes = rows_shapes(architecture, tokens, scores)
        for layer in range(architecture.layers):
            suite.at(layer)
            names = [rows_name(layer, part) for part in parts_of(scores)]
            given = [shares(name) for name in names]
            both = await suite.together(
                *(suite.lasting_rows(shapes[name], share) for name, share in zip(names, given, strict=True))
            )
            found |= dict(zip(names, both, strict=True))
    return found


def begin_behind(suite: Suite, cache: KVCache, policy: CachePolicy, rows: Mapping[str, Value], tokens: int) -> None:
    """Let an empty cache hold a prefix of so many tokens, with scores that a policy begins with. rows: by name, with others.
    Local.

    Raises `ConfigurationError` for rows that are missing.
    """
    cache.seen = cache.behind = tokens
    for layer, entry in enumerate(cache.layers):
        keys, values = (rows.get(rows_name(layer, part)) for part in PARTS)
        if keys is None or values is None:
            raise ConfigurationError(f"rows of the prefix are missing in layer {layer}: load those that the manifest names")
        entry.k, entry.v = suite.own_rows(keys), suite.own_rows(values)
    if scores_of(policy):
        given = {layer: suite.own_rows(rows[rows_name(layer, SCORES)]) for layer in range(len(cache.layers))}
        begin_scored(suite, cache, policy, given, tokens)


def check_registrable(architecture: Architecture, tokens: int) -> None:
    """Raise `ConfigurationError` where rows of a prefix of so many tokens cannot be used by sessions behind it."""
    without_encoder(architecture, "a registered prefix")
    for layer in range(architecture.layers):
        rotary = architecture.rotary_of(layer)
        if rotary is not None and rotary.scaling == "dynamic" and tokens > rotary.original_positions:
            raise ConfigurationError(
                f"a prefix and what stands behind it have {tokens} tokens, of which each turns the others' keys by another "
                f"angle from {rotary.original_positions} tokens on in this model (rotary scaling 'dynamic'): shorten both, "
                "or ask without a prefix"
            )


def check_behind(policy: CachePolicy, architecture: Architecture, behind: int, prompt: int) -> None:
    """Raise `ConfigurationError`, naming the policy and what it lacks, unless it can work on a prompt of `prompt` tokens
    behind a prefix of `behind` tokens, whose queries nobody computes again."""
    check_registrable(architecture, behind + prompt)
    if not prompt:
        raise ConfigurationError("the prompt is the registered prefix alone; give at least one token behind it")
    for lacking in _lacking(policy, architecture, behind, prompt):
        raise ConfigurationError(
            f"policy {policy.spec} {lacking}; behind a registered prefix use a policy such as full, streaming-llm, or "
            "mpcache or snapkv that look at no more queries than the prompt has tokens, one that begins with a prefix's "
            "scores (h2o, locret), or ask without a prefix"
        )


def _lacking(policy: CachePolicy, a: Architecture, behind: int, prompt: int) -> Iterator[str]:
    if policy.probes:
        yield f"reads the first {policy.probes} tokens of a prompt as its probes, which a prefix of {behind} tokens has not"
    for layer in range(a.layers):
        asked, noted = policy.observation(behind + prompt, layer), policy.noted_queries(behind + prompt, layer)
        if scores_of(policy):
            continue
        if asked.features:
            yield f"scores each token by its queries, which are not kept of the prefix of {behind} tokens"
        if (queries := max(asked.queries, noted)) > prompt:
            yield (
                f"looks at the prompt's last {queries} queries, of which {prompt} are behind the prefix of {behind} tokens"
            )
