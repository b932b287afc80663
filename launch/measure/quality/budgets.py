"""Which policies are compared: texts, with a budget where a text does not fix it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from models.architecture import Architecture
from models.policies import parse
from models.policies.registry import POLICIES
from mpc.errors import ConfigurationError

SETTINGS = ("budget", "dynamic")
"""The setting that `--budgets` sets, by policy the first of these that it has."""


@dataclass(frozen=True)
class Contender:
    """asked: the text given. policy: with the budget in it. budget: None where the text leaves nothing to set."""

    asked: str
    policy: str
    budget: float | None

    def problem(self, architecture: Architecture, length: int) -> str | None:
        """Return why the policy cannot serve prompts of this length; None when it can."""
        try:
            policy = parse(self.policy, plaintext=True)
            policy.check(architecture, length + policy.probes)
        except ConfigurationError as error:
            return str(error)
        return None


def default_policies(architecture: Architecture) -> list[str]:
    """Return all policies, without what needs more than two layers where the model has no more than three."""
    changes = {"mpcache": "mpcache:sharing=1", "quest": "quest:skip=0"} if architecture.layers < 4 else {}
    return [changes.get(name, name) for name in POLICIES]


def contenders(texts: Sequence[str], budgets: Sequence[float], plaintext: bool = False) -> list[Contender]:
    """Return every policy at every budget. Raises `ConfigurationError` for an unknown policy or a budget outside (0, 1].

    plaintext: see `models.policies.registry.parse`.
    """
    for budget in budgets:
        if not 0 < budget <= 1:
            raise ConfigurationError(f"--budgets {budget:g}: a budget is a share above 0 and up to 1, such as 0.1")
    if len(set(budgets)) < len(budgets):
        raise ConfigurationError(f"--budgets {','.join(f'{b:g}' for b in budgets)}: a budget is named twice")
    found: dict[str, Contender] = {}
    for text in texts:
        parse(text, plaintext)
        if with_budget(text, 1.0) == text:
            found.setdefault(text, Contender(text, text, None))
            continue
        for budget in budgets:
            policy = with_budget(text, budget)
            parse(policy, plaintext)
            found.setdefault(policy, Contender(text, policy, budget))
    return list(found.values())


def policy_texts(given: Sequence[str]) -> list[str]:
    """Return policies that are separated by spaces. A word that begins with a digit is another number of the policy before.

    >>> policy_texts(["full layers:weights=4 2 1*10|snapkv", "h2o"])
    ['full', 'layers:weights=4 2 1*10|snapkv', 'h2o']
    """
    found: list[str] = []
    for text in given:
        first = len(found)
        for word in text.split():
            if word[0].isdigit() and len(found) > first:
                found[-1] += f" {word}"
            else:
                found.append(word)
    return found


def with_budget(text: str, budget: float, settings: Sequence[str] = SETTINGS) -> str:
    """Return the policy's text with its budget set wherever the text leaves it open; wrappers keep their own settings.

    settings: what is set, of each policy the first of these that it has."""
    around, bar, inner = text.partition("|")
    if bar:
        return f"{around}|{with_budget(inner, budget, settings)}"
    return ";".join(_single(part, budget, settings) for part in text.split(";"))


def _single(text: str, budget: float, wanted: Sequence[str]) -> str:
    policy, at, layers = text.partition("@")
    name, _, settings = policy.strip().partition(":")
    known = {field.name for field in dataclasses.fields(POLICIES[name])}  # type: ignore[arg-type]
    found = next((setting for setting in wanted if setting in known), None)
    given = {part.partition("=")[0].strip() for part in settings.split(",") if part}
    if found is None or found in given:
        return text
    whole = ",".join(filter(None, [settings, f"{found}={budget!r}"]))
    return f"{name}:{whole}{at}{layers}"
