"""Chunks of documents behind a prefix: rows that were registered on their own, put together in any order for one prompt.

A chunk is a registered text (`models.prefixes`), whose rows were computed at the first places, behind nothing. Behind a
prefix, each chunk has its places behind those before it. Keys turn with their place: when rows are loaded, they are turned
by the public angles of the distance, which is linear, before they are masked; values stay as they are. What a chunk's rows
lack is that its tokens have not seen what stands before it. So the first `again` tokens of each are computed again, in the
prompt's own batch, where every token sees all before its place; the chunks' other rows are taken as they are.

Source: Agarwal et al., "Cache-Craft" (arXiv 2502.15734), whose share of tokens is given here and public; the first ones are
taken, which attend to what stands before most (Hu et al., "EPIC", arXiv 2410.15332). Cache-Craft's own tokens and shares
are right less often (`tests/tools/chunk_questions.py`).

Leaks: to parties and dealer the number of chunks, their lengths and how many tokens are computed again
(docs/security.md, "Registered prefixes").

Axis names as in `protocols.suite`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from models.architecture import Architecture
from models.architectures import without_encoder
from models.cache import CachePolicy
from models.masks import Places
from models.prefix_rows import LOAD_ROWS, PARTS, rows_name, rows_shapes
from models.rotary import cosines_and_sines
from mpc.errors import ConfigurationError
from protocols.suite import Suite, Value

MOST_CHUNKS = 64
MOST_CANDIDATES = 1024
BlockShares = Callable[[int, str], Tensor | None]
"""By a block's number, 0 for the prefix, then the chunks, and a name of its own rows: this party's share of them."""


@dataclass(frozen=True)
class ChunkPlan:
    """What is public about the chunks of a prompt. lengths: of each, in order, in tokens; again: the first tokens of each
    that are computed again, all of a chunk that has no more. among: of how many candidates, all as long as these, the client
    chooses each in secret (`models.chunk_choice`); 0: which they are is public. Raises `ConfigurationError` naming the
    argument and its value.

    >>> ChunkPlan((5, 2), again=3).kept, ChunkPlan((5, 2), again=3).repaired
    ((2, 0), 5)
    """

    lengths: tuple[int, ...]
    again: int
    among: int = 0

    def __post_init__(self) -> None:
        if not 1 <= len(self.lengths) <= MOST_CHUNKS or min(self.lengths) < 1:
            raise ConfigurationError(f"chunks: 1 to {MOST_CHUNKS} of them, each of a token or more, got {self.lengths}")
        if self.again < 0:
            raise ConfigurationError(f"again must be 0 or more tokens of each chunk, got {self.again}")
        if not 0 <= self.among <= MOST_CANDIDATES:
            raise ConfigurationError(f"among: a chunk is one of at most {MOST_CANDIDATES} candidates, got {self.among}")
        if self.among and len(set(self.lengths)) > 1:
            raise ConfigurationError(f"chunks that are chosen in secret are equally long, got {self.lengths}")

    def asked(self) -> ChunkPlan:
        """Return itself, for who asks for it, or has it dealt. Raises `ConfigurationError` for more tokens to be computed
        again than a chunk has, and for a choice in secret among one."""
        if self.again > max(self.lengths):
            raise ConfigurationError(
                f"again: tokens of each chunk, from 0 to the {max(self.lengths)} of the longest one, got {self.again}"
            )
        if self.among == 1:
            raise ConfigurationError(
                "a chunk that is chosen in secret is one of 2 candidates or more, got 1: parties would know which it is; "
                "register more texts of its length, or choose with retrieval 'public'"
            )
        return self

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
    def given(self) -> int:
        """Numbers that a session is given of chunks beside its prompt: the tokens that are computed again; of candidates
        those of all, and one for each slot."""
        return self.repaired if not self.among else self.among * self.firsts[0] + len(self.lengths)

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


async def load_chunks(
    suite: Suite, architecture: Architecture, behind: int, plan: ChunkPlan, shares: BlockShares
) -> dict[str, Value]:
    """Return the rows of a prefix of `behind` tokens and of the chunks behind it, by the names and as lasting as those of
    `models.prefix_rows.load_rows`: what `begin_behind` lets a cache hold. Recorded under stage `LOAD_ROWS`.

    Keys that move are turned on the way (`Suite.rotate`). Costs: as `load_rows`, and a round more where keys move.
    """
    suite.begin(architecture.layers + 1, architecture.score_cap)
    found: dict[str, Value] = {}
    kept = _blocks(behind, plan)
    if not kept:
        return found
    with suite.ledger.timed(LOAD_ROWS):
        for layer in range(architecture.layers):
            suite.at(layer)
            blocks = [_block(suite, architecture, layer, shares, place) for place in kept]
            for part, values in zip(PARTS, zip(*await suite.together(*blocks), strict=True), strict=True):
                own = [suite.own_rows(value) for value in values]
                name = rows_name(layer, part)
                found[name] = values[0] if len(own) == 1 else await suite.lasting(suite.concat(own, 1))
    return found


@dataclass(frozen=True)
class _Place:
    """Where a block's rows go: its number, 0 for the prefix; its tokens, the first of them left out; its start."""

    number: int
    tokens: int
    first: int
    start: int


def _blocks(behind: int, plan: ChunkPlan) -> list[_Place]:
    """Return the blocks of which rows are kept."""
    chunks = zip(plan.lengths, plan.firsts, plan.starts(behind), strict=True)
    every = [_Place(0, behind, 0, 0), *(_Place(number, *chunk) for number, chunk in enumerate(chunks, 1))]
    return [one for one in every if one.tokens > one.first]


async def _block(suite: Suite, a: Architecture, layer: int, shares: BlockShares, place: _Place) -> tuple[Value, Value]:
    """Return a block's keys, turned to their place, and values [G, S, C], lasting."""
    shapes, given = rows_shapes(a, place.tokens), []
    for part in PARTS:
        name = rows_name(layer, part)
        rows = suite.stored_rows(shapes[name], shares(place.number, name))
        given.append(rows[:, place.first :])
    rotary = a.rotary_of(layer)
    if rotary is not None and place.start:
        cos, sin = cosines_and_sines(rotary, a.head_channels, place.start, 1)
        count = place.tokens - place.first
        given[0] = await suite.rotate(given[0], cos.expand(count, -1), sin.expand(count, -1))
    keys, values = await suite.together(*(suite.lasting(x) for x in given))
    return keys, values
