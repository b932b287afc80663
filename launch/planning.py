"""Which way of MPCache's selection is cheapest: predicted for every alternative, on a network, for a model and a length.

The alternatives do the same thing at different costs: one level of clusters (fine or coarse ones) or two, and attention to
what was chosen by products of three factors, by gathering keys and values, or over all scores with a secret bias (where
ranks or a threshold decide, whichever the suite takes for that many clusters). Costs are those of the program itself on
tensors without content, so bytes and rounds are what parties would count. Nothing here depends on data.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from launch.bench.program import NoInputs, fill, load, step
from launch.networks import Network
from launch.tracing import STEP, Setting
from models.architecture import Architecture
from models.decoder import Decoder
from models.policies import parse
from models.policies.mpcache import GATHERINGS, MPCache
from mpc.errors import ConfigurationError, MpcacheError
from mpc.ledger import Cost


@dataclass(frozen=True)
class Choice:
    """One alternative. token: of one token after the prompt; once: of what the policy does after the prompt (eviction,
    clusters). problem: why it cannot be used, else empty."""

    policy: str
    what: str
    token: Cost
    once: Cost
    problem: str = ""

    def seconds(self, network: Network) -> float:
        """Of one token: round trips and transfer; what parties compute is not in it."""
        return network.latency_seconds(self.token.rounds) + network.transfer_seconds(self.token.bytes_sent)

    def once_seconds(self, network: Network) -> float:
        """Of the work after the prompt, its dealt bytes included: they must have arrived before."""
        return network.latency_seconds(self.once.rounds) + network.transfer_seconds(self.once.bytes_sent)

    def offline_seconds(self, network: Network) -> float:
        """Transfer of a token's dealt bytes."""
        return network.transfer_seconds(self.token.offline_bytes)


def price(architecture: Architecture, setting: Setting, prompt: int) -> tuple[Cost, Cost]:
    """(one token after a prompt of `prompt` tokens, the policy's work after the prompt)."""
    suite, _ = setting.make()
    with torch.inference_mode():
        weights = suite.run(load(suite, architecture, NoInputs()))
        decoder = Decoder(suite, architecture, weights, parse(setting.policy))
        suite.ledger.costs.clear()
        cache = suite.run(fill(suite, decoder, prompt, NoInputs()))
        once = suite.ledger.total()
        suite.ledger.costs.clear()
        suite.run(step(suite, decoder, cache, 1, None, STEP))
        return suite.ledger.total(STEP), once


def alternatives(policy: MPCache) -> list[tuple[str, MPCache]]:
    """(cluster sizes and gathering, policy) of all ways to do it."""
    wide = policy.coarse if policy.levels == 2 else 2 * policy.fine
    shapes = [
        (f"{policy.fine}", {"levels": 1}),
        (f"{wide}", {"levels": 1, "fine": wide, "coarse": 2 * wide}),
        (f"{wide}/{policy.fine}", {"levels": 2, "coarse": wide}),
    ]
    out = []
    for what, changes in shapes:
        for gathering in GATHERINGS:
            if gathering == "scores" and changes["levels"] == 2:
                continue
            changed = dataclasses.replace(policy, gathering=gathering, **changes)  # type: ignore[arg-type]
            out.append((f"{what} {gathering}", changed))
    return out


@dataclass(frozen=True)
class Plan:
    """What was compared. best: the fastest alternative on the network; full: everything kept."""

    prompt: int
    new: int
    network: Network
    full: Choice
    choices: list[Choice]

    @property
    def best(self) -> Choice:
        """Least seconds online for the tokens asked for, of those that can be used; the full cache if it is faster."""
        usable = [c for c in self.choices if not c.problem]
        return min([*usable, self.full], key=self.total_seconds)

    def total_seconds(self, choice: Choice) -> float:
        """Of all new tokens after the first, and of the work after the prompt beyond the full cache's."""
        extra = choice.once_seconds(self.network) - self.full.once_seconds(self.network)
        return max(extra, 0.0) + (self.new - 1) * choice.seconds(self.network)

    def pays_after(self, choice: Choice) -> float:
        """Tokens after which the work after the prompt is paid for by faster tokens; infinity where it never is."""
        extra = choice.once_seconds(self.network) - self.full.once_seconds(self.network)
        saved = self.full.seconds(self.network) - choice.seconds(self.network)
        return 0.0 if extra <= 0 else extra / saved if saved > 0 else float("inf")


def make_plan(architecture: Architecture, setting: Setting, prompt: int, new: int, network: Network) -> Plan:
    """Price all alternatives of the setting's MPCache policy. Raises `ConfigurationError` for another policy."""
    policy = parse(setting.policy)
    if not isinstance(policy, MPCache):
        raise ConfigurationError(f"policy '{setting.policy}' has no alternatives to plan; give one that starts with mpcache")
    full = Choice("full", "full cache", *price(architecture, dataclasses.replace(setting, policy="full"), prompt))
    choices = []
    for what, changed in alternatives(policy):
        try:
            changed.check(architecture, prompt)
            token, once = price(architecture, dataclasses.replace(setting, policy=changed.spec), prompt)
            choices.append(Choice(changed.spec, what, token, once))
        except MpcacheError as error:
            choices.append(Choice(changed.spec, what, Cost(), Cost(), str(error)))
    if all(c.problem for c in choices):
        raise ConfigurationError(f"no alternative fits: {choices[0].problem}")
    return Plan(prompt, new, network, full, choices)
