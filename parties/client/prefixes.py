"""Which registered prefix a request begins behind, by its name, or the longest public one that its prompt begins with; and
which chunks it reads behind that, as a secret among candidates or in public."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from models.chunks import ChunkPlan
from models.policies import parse
from models.prefix_scores import scores_of
from mpc.errors import ConfigurationError
from parties.client.model_reference import ModelReference
from parties.wire.held_prefix import RegisteredPrefix
from parties.wire.manifest import row_options
from protocols.registry import SuiteSpec

SECRET, PUBLIC = "secret", "public"
RETRIEVALS = (SECRET, PUBLIC)
AUTO, OFF = "auto", "off"
"""In place of a name: whichever public prefix the prompt begins with, or none; none, where another one is usual."""


def continues(wanted: str | None) -> bool:
    """Whether a prompt continues the text of the prefix that is asked for, and so begins with no token of its own that marks
    a beginning."""
    return wanted not in (None, AUTO)


def fits(prefix: RegisteredPrefix, suite: SuiteSpec) -> bool:
    """Whether sessions in this suite, its owner's bounds included, can begin behind a prefix."""
    made = (prefix.suite, prefix.fraction_bits, dict(prefix.options))
    return made == (suite.name, suite.fraction_bits, row_options(suite.options))


def chosen_prefix(
    reference: ModelReference, suite: SuiteSpec, wanted: str | None, ids: Sequence[int], policy: str = "full"
) -> tuple[RegisteredPrefix | None, list[int]]:
    """Return the prefix that a request begins behind, and what its prompt has behind it. wanted: its name or id, whose text
    the prompt `ids` continues; `AUTO`: one that the prompt begins with, if there is one; None: none. policy: of the session,
    which may begin with a prefix's scores.

    Raises `ConfigurationError` listing what there is, or saying what a prefix was registered for.
    """
    if wanted is None:
        return None, list(ids)
    scores = scores_of(parse(policy))
    if wanted == AUTO:
        return _found(reference, suite, ids, scores)
    found = named_prefix(reference, suite, wanted)
    if scores not in ("", found.scores):
        raise ConfigurationError(
            f"prefix '{found.name}' was registered without the scores that policy {policy} begins with: let the model owner "
            "register it with them (`mpcache prefix add --policy`), or ask without it"
        )
    return found, list(ids)


def named_prefix(reference: ModelReference, suite: SuiteSpec, wanted: str) -> RegisteredPrefix:
    """Return the registered text of a name or id. Raises `ConfigurationError` as `chosen_prefix`."""
    known = [one for one in reference.prefixes if wanted in (one.name, one.prefix)]
    if len(known) != 1:
        listed = ", ".join(one.name for one in reference.prefixes) or "none: its owner registers them, `mpcache prefix add`"
        raise ConfigurationError(
            f"prefix '{wanted[:64]}': {len(known)} of model '{reference.name}' fit; all parties hold: {listed}"
        )
    (found,) = known
    if not fits(found, suite):
        options = ", ".join(f"{name}={value}" for name, value in found.options.items()) or "no options"
        raise ConfigurationError(
            f"prefix '{found.name}' was registered for suite '{found.suite}' with {found.fraction_bits} fraction bits and "
            f"{options}: ask with these, or without it"
        )
    return found


@dataclass(frozen=True)
class ReadChunks:
    """The chunks that a request reads. texts: that parties are told of: these chunks, or all candidates; plan: what is
    public of them, None without any. places: of each chunk among the candidates, secret; none where all are public."""

    texts: Sequence[RegisteredPrefix] = ()
    plan: ChunkPlan | None = None
    places: tuple[int, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class ChunkChoice:
    """What a request asks of chunks. names: of registered texts, in order. repair: how many of their first tokens are
    computed again, as a share of the longest one's. retrieval: "secret", so that parties learn of the chunks that each is
    one of `candidates` (names or ids; None: all registered texts of their length that fit), or "public"."""

    names: Sequence[str] = ()
    repair: float = 0.2
    retrieval: str = SECRET
    candidates: Sequence[str] | None = None

    def of(self, reference: ModelReference, suite: SuiteSpec, prefix: RegisteredPrefix | None) -> ReadChunks:
        """Return the registered texts. prefix: what they stand behind, no candidate unless it is named. Raises
        `ConfigurationError` as `chosen_prefix`, for a share that is none, and for chunks that cannot be told from candidates
        by nothing but their number."""
        if not 0 <= self.repair <= 1:
            raise ConfigurationError(
                f"repair = {self.repair}: the share of tokens that are computed again lies between 0 and 1"
            )
        if self.retrieval not in RETRIEVALS:
            raise ConfigurationError(f"retrieval = '{self.retrieval[:64]}'; known: {', '.join(RETRIEVALS)}")
        if self.candidates is not None and (self.retrieval != SECRET or not self.names):
            raise ConfigurationError(
                "candidates: chunks are chosen among them in secret; give chunks, and retrieval 'secret'"
            )
        wanted = [named_prefix(reference, suite, name) for name in self.names]
        if not wanted:
            return ReadChunks()
        again = math.ceil(self.repair * max(one.tokens for one in wanted))
        lengths = tuple(one.tokens for one in wanted)
        if self.retrieval == PUBLIC:
            return ReadChunks(wanted, ChunkPlan(lengths, again))
        found = self._candidates(reference, suite, prefix, lengths[0])
        if other := [f"{one.name} ({one.tokens})" for one in (*wanted, *found) if one.tokens != lengths[0]]:
            raise ConfigurationError(
                f"{', '.join(dict.fromkeys(other))}: candidates are as long as the chunk {wanted[0].name}, {lengths[0]} "
                "tokens, or their length would say which one is read; register texts of one length (`mpcache prefix add "
                "--split`), "
                "name candidates of one length, or choose with retrieval 'public'"
            )
        ids = [one.prefix for one in found]
        if missing := [one.name for one in wanted if one.prefix not in ids]:
            raise ConfigurationError(f"{', '.join(missing)}: not among the candidates; name them there, too")
        return ReadChunks(
            found, ChunkPlan(lengths, again, len(found)).asked(), tuple(ids.index(one.prefix) for one in wanted)
        )

    def _candidates(
        self, reference: ModelReference, suite: SuiteSpec, prefix: RegisteredPrefix | None, tokens: int
    ) -> list[RegisteredPrefix]:
        """Return all candidates, in an order that says nothing and is the same for all clients."""
        if self.candidates is None:
            known = [one for one in reference.prefixes if one.tokens == tokens and one != prefix and fits(one, suite)]
        else:
            known = list(
                {one.prefix: one for one in (named_prefix(reference, suite, name) for name in self.candidates)}.values()
            )
        return sorted(known, key=lambda one: one.prefix)


def _found(
    reference: ModelReference, suite: SuiteSpec, ids: Sequence[int], scores: str
) -> tuple[RegisteredPrefix | None, list[int]]:
    given = tuple(ids)
    there = [one for one in reference.prefixes if one.text and scores in ("", one.scores)]
    fitting = [one for one in there if one.tokens < len(given) and fits(one, suite)]
    begun = [one for one in fitting if given[: one.tokens] == one.text]
    if not begun:
        return None, list(given)
    longest = max(begun, key=lambda one: one.tokens)
    return longest, list(given[longest.tokens :])
