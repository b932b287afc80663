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

from launch.predict.eviction_costs import after_prompt, full_costs
from launch.predict.measured import Measurements
from launch.predict.networks import LOCALHOST, NETWORKS, Network
from models.architecture import Architecture
from models.cache import KVCache
from models.costs.program import NoInputs, StepPlan, fill, load, step
from models.costs.tracing import STEP, Setting
from models.decoder import Decoder
from models.policies import parse
from mpc.errors import ConfigurationError, MpcacheError
from mpc.ledger import Cost, Ledger


@dataclass(frozen=True)
class Choice:
    """One alternative. token: of one token after the prompt; once: of what the policy does after the prompt (importance,
    eviction, clusters), beyond the full cache. computing, computing_once: measured seconds of the same, None where nothing
    was measured. problem: why it cannot be used, else empty."""

    policy: str
    what: str
    token: Cost
    once: Cost
    problem: str = ""
    computing: float | None = None
    computing_once: float | None = None

    def seconds(self, network: Network, measured: bool = False) -> float:
        """Return the seconds of one token: delays and transfer. measured: what parties compute, too."""
        wire = network.latency_seconds(self.token.rounds) + network.transfer_seconds(self.token.bytes_sent)
        return wire + (self.computing or 0.0 if measured else 0.0)

    def once_seconds(self, network: Network, measured: bool = False) -> float:
        """Return the seconds of the work after the prompt, beyond the full cache's."""
        wire = network.latency_seconds(self.once.rounds) + network.transfer_seconds(self.once.bytes_sent)
        return wire + (self.computing_once or 0.0 if measured else 0.0)


def price(architecture: Architecture, setting: Setting, prompt: int, full: Cost | None = None) -> tuple[Cost, Cost]:
    """Return (one token after a prompt of `prompt` tokens, the policy's work after the prompt beyond the full cache's).

    full: see `after_prompt`.
    """
    token = trace_token(architecture, setting, prompt).total(STEP)
    return token, after_prompt(architecture, setting, prompt, full)


def trace_token(architecture: Architecture, setting: Setting, prompt: int, tokens: int = 1) -> Ledger:
    """Return the costs of one token after a prompt of `prompt` tokens (stage "step"), predicted; of the first `tokens`
    together."""
    return trace_step(architecture, setting, prompt, tokens)[0]


def trace_step(architecture: Architecture, setting: Setting, prompt: int, tokens: int = 1) -> tuple[Ledger, KVCache]:
    """Return the same, and the cache behind these tokens, without content."""
    suite, _ = setting.make()
    with torch.inference_mode():
        weights = suite.run(load(suite, architecture, NoInputs()))
        decoder = Decoder(suite, architecture, weights, parse(setting.policy))
        suite.ledger.costs.clear()
        cache = suite.run(fill(decoder, prompt, NoInputs()))
        suite.ledger.costs.clear()
        for _ in range(tokens):
            suite.run(step(decoder, cache, StepPlan(), None, STEP))
    return suite.ledger, cache


@dataclass(frozen=True)
class Plan:
    """What was compared. best: the fastest alternative on the network; full: everything kept. Where computing was measured,
    only what was measured is compared, computing included."""

    prompt: int
    new: int
    network: Network
    full: Choice
    choices: list[Choice]

    @property
    def measured(self) -> bool:
        """Whether computing was measured, of the full cache and of an alternative."""
        return self.full.computing is not None and any(c.computing is not None for c in self.choices)

    @property
    def comparable(self) -> list[Choice]:
        """Return the alternatives that can be used; those that were measured, if any."""
        return [c for c in self.choices if not c.problem and (c.computing is not None or not self.measured)]

    @property
    def best(self) -> Choice:
        """Return the choice with the least seconds online for the tokens asked for, of those that can be compared; the
        full cache if it is faster."""
        return min([*self.comparable, self.full], key=self.total_seconds)

    def total_seconds(self, choice: Choice) -> float:
        """Return the seconds of all new tokens after the first, and of the work after the prompt."""
        once = choice.once_seconds(self.network, self.measured)
        return once + (self.new - 1) * choice.seconds(self.network, self.measured)

    def pays_after(self, choice: Choice, network: Network | None = None, measured: bool = False) -> float:
        """Return the tokens after the first until the work after the prompt is paid for by faster tokens; infinity where
        it never is.

        network: the plan's by default. measured: with what parties compute, where that was measured.
        """
        network = self.network if network is None else network
        saved = self.full.seconds(network, measured) - choice.seconds(network, measured)
        return pays_after(choice.once_seconds(network, measured), saved)

    def pays_by_network(self, choice: Choice) -> dict[str, float]:
        """Return the same on every known network and on the plan's; with computing where it was measured."""
        networks = {LOCALHOST.name: LOCALHOST, **NETWORKS, self.network.name: self.network}
        measured = choice.computing is not None and self.full.computing is not None
        return {name: self.pays_after(choice, network, measured) for name, network in networks.items()}


def pays_after(once: float, saved: float) -> float:
    """Return how many times `saved` it takes to make up for `once`.

    >>> pays_after(once=10.0, saved=0.5), pays_after(once=10.0, saved=-0.5)
    (20.0, inf)
    """
    return 0.0 if once <= 0 and saved >= 0 else once / saved if saved > 0 else float("inf")


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt and of its answer; public."""

    prompt: int
    new: int


def make_plan(
    architecture: Architecture,
    setting: Setting,
    lengths: Lengths,
    network: Network,
    measured: Measurements | None = None,
) -> Plan:
    """Price all alternatives of the setting's policy. Raises `ConfigurationError` for a policy that has none.

    measured: seconds of what parties compute, for the policies that it names.
    """
    prompt = lengths.prompt
    ways = parse(setting.policy).alternatives(prompt, setting.make()[0])
    if not ways:
        raise ConfigurationError(f"policy '{setting.policy}' has no alternatives to plan; give one that starts with mpcache")
    known = measured or Measurements()
    without = full_costs(architecture, setting, prompt)
    full = Choice(
        "full",
        "full cache",
        *price(architecture, dataclasses.replace(setting, policy="full"), prompt, without),
        computing=known.token.get("full"),
        computing_once=0.0,
    )
    choices = []
    for what, changed in ways:
        try:
            changed.check(architecture, prompt)
            token, once = price(architecture, dataclasses.replace(setting, policy=changed.spec), prompt, without)
            computing, once_computing = known.token.get(changed.spec), known.once.get(changed.spec)
            found = Choice(changed.spec, what, token, once, computing=computing, computing_once=once_computing)
            choices.append(found)
        except MpcacheError as error:
            choices.append(Choice(changed.spec, what, Cost(), Cost(), str(error)))
    if all(c.problem for c in choices):
        raise ConfigurationError(f"no alternative fits: {choices[0].problem}")
    return Plan(prompt, lengths.new, network, full, choices)
