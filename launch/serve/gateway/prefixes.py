"""Which registered prefix a request of the gateway begins behind."""

from __future__ import annotations

from collections.abc import Sequence

from launch.serve.gateway.errors import invalid
from parties.client.model_reference import ModelReference
from parties.client.prefixes import AUTO, OFF


def behind(reference: ModelReference, wanted: str | None, ids: Sequence[int]) -> tuple[str | None, list[int], int]:
    """Return the prefix that a prompt begins behind, what of the prompt is behind it, and how many tokens of it are not in
    the prompt.

    wanted: the name or id of a public one, whose text the prompt begins with; of a secret one, which the prompt continues as
    it is; `AUTO`: the longest public one that the prompt begins with; `OFF` or None: none. Raises `ApiError` for one that is
    not there, and for a prompt that does not begin with its text.
    """
    if wanted in (None, OFF, AUTO):
        return (AUTO if wanted == AUTO else None), list(ids), 0
    found = [one for one in reference.prefixes if wanted in (one.name, one.prefix)]
    if len(found) != 1:
        offered = ", ".join(sorted(one.name for one in reference.prefixes)) or "none"
        raise invalid(f"no such prefix of this model is registered: {offered}", "prefix", "prefix_not_found", 404)
    (prefix,) = found
    if prefix.text is None:
        return prefix.prefix, list(ids), prefix.tokens
    if tuple(ids[: prefix.tokens]) != prefix.text or len(ids) <= prefix.tokens:
        raise invalid(
            "the prompt does not begin with this prefix's text and go on: begin it with that text, token by token, or leave "
            "prefix out",
            "prefix",
            "invalid_value",
        )
    return prefix.prefix, list(ids[prefix.tokens :]), 0
