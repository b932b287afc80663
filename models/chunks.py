"""Chunks of documents behind a prefix: rows that were registered on their own, put together in any order for one prompt.

A chunk is a registered text (`models.prefixes`), whose rows were computed at the first places, behind nothing. A session
gives each chunk its places behind the prefix and the chunks before it. Keys turn with their place: they are turned by the
public angles of the distance, which is linear, and masked anew; values stay as they are. What a chunk's rows lack is that
its tokens have not seen what stands before it. So the first `again` tokens of each are computed again, in the prompt's own
batch, where every token sees all before its place; the chunks' other rows are taken as they are.

Source: Agarwal et al., "Cache-Craft" (arXiv 2502.15734), whose share of tokens is given here and public; the first ones are
taken, which attend to what stands before most (Hu et al., "EPIC", arXiv 2410.15332).

Leaks: to parties and dealer the number of chunks, their lengths and how many tokens are computed again
(docs/security.md, "Registered prefixes").

Axis names as in `protocols.suite`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from models.architecture import Architecture
from models.architectures import without_encoder
from models.cache import CachePolicy, KVCache
from models.masks import Places
from models.prefix_rows import PARTS, rows_name
from models.rotary import cosines_and_sines
from mpc.errors import ConfigurationError
from protocols.suite import Suite, Value

MOST_CHUNKS = 64


@dataclass(frozen=True)
class ChunkPlan:
    """What is public about the chunks of a prompt. lengths: of each, in order, in tokens; again: the first tokens of each
    that are computed again, all of a chunk that has no more. Raises `ConfigurationError` naming the argument and its value.

    >>> ChunkPlan((5, 2), again=3).kept, ChunkPlan((5, 2), again=3).repaired
    ((2, 0), 5)
    """

    lengths: tuple[int, ...]
    again: int

    def __post_init__(self) -> None:
        if not 1 <= len(self.lengths) <= MOST_CHUNKS or min(self.lengths) < 1:
            raise ConfigurationError(f"chunks: 1 to {MOST_CHUNKS} of them, each of a token or more, got {self.lengths}")
        if self.again < 0:
            raise ConfigurationError(f"again must be 0 or more tokens of each chunk, got {self.again}")

    @property
    def firsts(self) -> tuple[int, ...]:
        """Tokens of each chunk that are computed again."""
        return tuple(min(self.again, length) for length in self.lengths)

    @property
    def kept(self) -> tuple[int, ...]:
        """Tokens of each chunk whose rows are taken as they are."""
        return tuple(length - first for length, first in zip(self.lengths, self.firsts, strict=True))

    @property
    def repaired(self) -> int:
        """Tokens of all chunks that are computed again."""
        return sum(self.firsts)

    @property
    def tokens(self) -> int:
        """Tokens of all chunks."""
        return sum(self.lengths)

    def starts(self, behind: int) -> list[int]:
        """Return the place of each chunk's first token, behind a prefix of so many tokens."""
        return [behind + sum(self.lengths[:number]) for number in range(len(self.lengths))]

    def places(self, behind: int, prompt: int) -> Places:
        """Return the places of all tokens of a prompt of `prompt` tokens behind prefix and chunks."""
        held = list(range(behind))
        batch: list[int] = []
        for start, first, length in zip(self.starts(behind), self.firsts, self.lengths, strict=True):
            batch += range(start, start + first)
            held += range(start + first, start + length)
        return Places(tuple(held), (*batch, *range(behind + self.tokens, behind + self.tokens + prompt)))

    def check(self, policy: CachePolicy, architecture: Architecture) -> None:
        """Raise `ConfigurationError`, naming what is in the way, unless rows can move and the policy keeps all."""
        a = without_encoder(architecture, "chunks")
        if policy.spec != "full":
            raise ConfigurationError(f"policy {policy.spec}: chunks lie in the cache out of order, so all stay; use full")
        if a.learned_positions:
            raise ConfigurationError(
                f"'{a.family}' has learned positions: a chunk's rows are right at their own place alone; give the text as a "
                "prefix, or use a model with rotary positions"
            )
        if any(a.window(layer) is not None for layer in range(a.layers)):
            raise ConfigurationError(f"'{a.family}' has sliding windows, which chunks are not computed with; give a prefix")
        if any(rotary.scaling == "dynamic" for rotary in a.rotaries):
            raise ConfigurationError("rotary scaling 'dynamic' turns keys by the length of the whole; give a prefix")


def chunk_rows(number: int, rows: Mapping[str, Value]) -> dict[str, Value]:
    """Return the loaded rows of a chunk by the names that `begin_with` asks for. number: of the chunk, from 0."""
    return {f"chunk {number}/{name}": value for name, value in rows.items()}


async def begin_with(
    suite: Suite, architecture: Architecture, cache: KVCache, rows: Mapping[str, Value], plan: ChunkPlan
) -> None:
    """Let a cache that holds a prefix, or nothing, hold the rows of its chunks behind it. rows: by name, with others.

    Keys that move are turned and masked anew, of all layers together: rounds and bytes are those of `Suite.rotate` and
    `Suite.mask_for_cache`. Values move without any. Raises `ConfigurationError` for rows that are missing.
    """
    behind = cache.behind

    async def filled(layer: int) -> None:
        entry = cache.layers[layer]
        suite.at(layer)
        parts: list[list[Value]] = [[x] for x in (entry.k, entry.v) if x is not None] or [[], []]
        found = [_rows_of(rows, number, layer) for number in range(len(plan.lengths))]
        turns = [
            _turned(suite, architecture, (layer, start), suite.own_rows(keys)[:, first:])
            for start, first, kept, (keys, _) in zip(plan.starts(behind), plan.firsts, plan.kept, found, strict=True)
            if kept
        ]
        parts[0] += await suite.together(*turns)
        parts[1] += [
            suite.own_rows(values)[:, first:]
            for first, kept, (_, values) in zip(plan.firsts, plan.kept, found, strict=True)
            if kept
        ]
        entry.k, entry.v = (suite.concat(each, 1) if len(each) > 1 else each[0] if each else None for each in parts)

    await suite.together(*(filled(layer) for layer in range(architecture.layers)))
    cache.seen = cache.behind = behind + sum(plan.kept)


def _rows_of(rows: Mapping[str, Value], number: int, layer: int) -> tuple[Value, Value]:
    keys, values = (rows.get(f"chunk {number}/{rows_name(layer, part)}") for part in PARTS)
    if keys is None or values is None:
        raise ConfigurationError(f"rows of chunk {number + 1} are missing in layer {layer}: load those of the manifest")
    return keys, values


async def _turned(suite: Suite, a: Architecture, at: tuple[int, int], keys: Value) -> Value:
    """Return keys [G, S, C] at their places behind the first one, as of a chunk that begins `start` tokens later. at: layer,
    start."""
    layer, start = at
    rotary = a.rotary_of(layer)
    if rotary is None or start == 0:
        return keys
    cos, sin = (x.expand(keys.shape[1], -1) for x in cosines_and_sines(rotary, a.head_channels, start, 1))
    return await suite.mask_for_cache(await suite.rotate(keys, cos, sin))
