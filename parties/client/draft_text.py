"""The text form of a draft: `off`; `ngram` with settings, `ngram:tokens=4,longest=3`; or the folder of a small public
checkpoint with the model's tokenizer, `FOLDER:tokens=4`."""

from __future__ import annotations

from models.drafting import DraftPlan
from mpc.errors import ConfigurationError
from parties.client.draft_model import model_draft
from parties.client.drafting import LONGEST, Draft, NGrams

OFF = "off"
NGRAM = "ngram"
TOKENS = 4  # guesses of a step where nothing else is said
MOST_LONGEST = 32


def parse_draft(text: str) -> Draft | None:
    """Return what a text stands for, None for `off`. Raises `ConfigurationError` naming the part that is wrong.

    >>> parse_draft("ngram:tokens=5").plan
    DraftPlan(tokens=5)
    """
    if text == OFF:
        return None
    name, settings = _split(text)
    if name != NGRAM:
        found = _settings(settings, {"tokens": TOKENS})
        return model_draft(name, DraftPlan(found["tokens"]))
    found = _settings(settings, {"tokens": TOKENS, "longest": LONGEST})
    if not 1 <= found["longest"] <= MOST_LONGEST:
        raise ConfigurationError(f"draft: longest = {found['longest']} must be a whole number from 1 to {MOST_LONGEST}")
    grams = NGrams(found["longest"])
    return Draft(DraftPlan(found["tokens"]), lambda: grams)


def _split(text: str) -> tuple[str, str]:
    """Return name (or folder, which may have colons in it) and settings."""
    name, _, settings = text.rpartition(":")
    return (name, settings) if name and "=" in settings else (text.removesuffix(":"), "")


def _settings(text: str, defaults: dict[str, int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = (x.strip() for x in part.partition("="))
        if name not in defaults:
            raise ConfigurationError(f"draft has no setting '{name[:60]}'; known: {', '.join(defaults)}")
        if not equals or name in found:
            raise ConfigurationError(f"draft: write '{name}=value' once, got '{text[:100]}'")
        try:
            found[name] = int(value)
        except ValueError:
            raise ConfigurationError(f"draft: {name} = {value[:60]!r} must be a whole number") from None
    return {**defaults, **found}
