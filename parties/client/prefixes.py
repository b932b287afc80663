"""Which registered prefix a request begins behind: by its name, or the longest public one that its prompt begins with."""

from __future__ import annotations

from collections.abc import Sequence

from mpc.errors import ConfigurationError
from parties.client.model_reference import ModelReference
from parties.wire.held_prefix import RegisteredPrefix
from parties.wire.manifest import row_options
from protocols.registry import SuiteSpec

AUTO = "auto"
"""In place of a name: whichever public prefix the prompt begins with, or none."""


def continues(wanted: str | None) -> bool:
    """Whether a prompt continues the text of the prefix that is asked for, and so begins with no token of its own that marks
    a beginning."""
    return wanted not in (None, AUTO)


def fits(prefix: RegisteredPrefix, suite: SuiteSpec) -> bool:
    """Whether sessions in this suite, its owner's bounds included, can begin behind a prefix."""
    made = (prefix.suite, prefix.fraction_bits, dict(prefix.options))
    return made == (suite.name, suite.fraction_bits, row_options(suite.options))


def chosen_prefix(
    reference: ModelReference, suite: SuiteSpec, wanted: str | None, ids: Sequence[int]
) -> tuple[RegisteredPrefix | None, list[int]]:
    """Return the prefix that a request begins behind, and what its prompt has behind it. wanted: its name or id, whose text
    the prompt `ids` continues; `AUTO`: one that the prompt begins with, if there is one; None: none.

    Raises `ConfigurationError` listing what there is, or saying what a prefix was registered for.
    """
    if wanted is None:
        return None, list(ids)
    if wanted == AUTO:
        return _found(reference, suite, ids)
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
    return found, list(ids)


def _found(reference: ModelReference, suite: SuiteSpec, ids: Sequence[int]) -> tuple[RegisteredPrefix | None, list[int]]:
    given = tuple(ids)
    fitting = [one for one in reference.prefixes if one.text and len(one.text) < len(given) and fits(one, suite)]
    begun = [one for one in fitting if given[: one.tokens] == one.text]
    if not begun:
        return None, list(given)
    longest = max(begun, key=lambda one: one.tokens)
    return longest, list(given[longest.tokens :])
