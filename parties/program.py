"""What a session computes: the same program at every compute party and at the dealer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from models.architecture import Architecture
from models.decoder import Decoder, load_weights
from models.generation import Endpoint, GenerationPlan, generate
from models.policies import parse
from mpc.channel import Channel
from mpc.errors import ConfigurationError, MpcacheError
from mpc.tape import Tape
from parties.events import log
from parties.wire.manifest import Manifest
from protocols.registry import SUITES, secure_suite, suite_class
from protocols.suite import Suite

RESERVED_OPTIONS = ("parties", "tape", "channel", "ledger", "fraction_bits", "device", "name", "self")


@dataclass(frozen=True)
class Program:
    """load(suite, architecture, shares) returns weights that serve later sessions too; run(...) the number of tokens."""

    load: Callable[[Suite, Architecture, Callable[[str], Tensor | None]], dict[str, Any]]
    run: Callable[[Suite, Architecture, dict[str, Any], GenerationPlan, Tensor | None, Endpoint], int]


def _load(suite: Suite, architecture: Architecture, shares: Callable[[str], Tensor | None]) -> dict[str, Any]:
    loaded: dict[str, Any] = suite.run(load_weights(suite, architecture, shares))
    return loaded


def _run(
    suite: Suite,
    architecture: Architecture,
    weights: dict[str, Any],
    plan: GenerationPlan,
    prompt: Tensor | None,
    endpoint: Endpoint,
) -> int:
    decoder = Decoder(suite, architecture, weights, parse(plan.policy))
    return int(suite.run(generate(suite, decoder, plan, prompt, endpoint)))


def preload() -> None:
    """Import every suite, so that no session waits for that. One that cannot be imported is refused when asked for."""
    for name in SUITES:
        try:
            suite_class(name)
        except (MpcacheError, ImportError) as error:
            log.warning("suite '%s' cannot be used here: %s", name, error)


def make_suite(manifest: Manifest, tape: Tape, channel: Channel | None, device: str) -> Suite:
    """The suite of a manifest, for a party or (channel None) the dealer. Raises `ConfigurationError`."""
    try:
        return secure_suite(
            manifest.suite,
            parties=len(manifest.parties),
            tape=tape,
            channel=channel,
            fraction_bits=manifest.fraction_bits,
            device=device,
            **manifest.options,
        )
    except TypeError:
        raise ConfigurationError(
            f"suite '{manifest.suite}' does not take all of the options {', '.join(sorted(manifest.options)) or '(none)'}"
        ) from None


def plan_of(manifest: Manifest, architecture: Architecture) -> GenerationPlan:
    """The plan of a manifest, checked against the model and this installation. Raises `ConfigurationError`."""
    if manifest.suite == "plain":
        raise ConfigurationError("suite 'plain' keeps nothing secret and cannot be run among parties")
    if manifest.suite not in SUITES:
        raise ConfigurationError(f"unknown suite '{manifest.suite}'; known: {', '.join(sorted(SUITES))}")
    suite_class(manifest.suite)
    for option in manifest.options:
        if option in RESERVED_OPTIONS:
            raise ConfigurationError(f"'{option}' is not a suite option: the parties set it themselves")
    plan = GenerationPlan(
        manifest.prompt_tokens, manifest.new_tokens, manifest.decoding, manifest.policy, manifest.temperature
    )
    plan.check(architecture)
    return plan


DECODER = Program(_load, _run)


@dataclass(frozen=True)
class SessionProgram:
    """A program with all that a session runs it on but the secrets; the same at every party and at the dealer."""

    program: Program
    manifest: Manifest
    architecture: Architecture
    plan: GenerationPlan
    device: str

    @classmethod
    def of(cls, program: Program, manifest: Manifest, architecture: Architecture, device: str) -> SessionProgram:
        """Return the program of a manifest. Raises `ConfigurationError` as `plan_of` does."""
        return cls(program, manifest, architecture, plan_of(manifest, architecture), device)

    def suite(self, tape: Tape, channel: Channel | None) -> Suite:
        """Return the suite of the session, for a party or (channel None) for whom nothing is sent."""
        return make_suite(self.manifest, tape, channel, self.device)

    def load(self, suite: Suite, shares: Callable[[str], Tensor | None]) -> dict[str, Any]:
        """Load the weights, from shares(name) at a party and from nothing at the dealer."""
        return self.program.load(suite, self.architecture, shares)

    def run(self, suite: Suite, weights: dict[str, Any], prompt: Tensor | None, endpoint: Endpoint) -> int:
        """Generate; return the number of tokens. prompt: this party's share, None at the dealer."""
        return self.program.run(suite, self.architecture, weights, self.plan, prompt, endpoint)
