"""What a session computes: the same program at every compute party and at the dealer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from models.architectures import AnyArchitecture, decoder_of, encoder_of
from models.chunk_choice import load_blocks
from models.chunks import BlockShares
from models.decoder import Decoder
from models.encoder import Encoder
from models.encoding import EncodingPlan, encode
from models.generation import Endpoint, GenerationPlan, generate
from models.loaded import load_weights
from models.plans import AnyPlan
from models.policies import parse
from models.prefix_rows import Shares
from models.prefix_scores import scores_of
from models.prefixes import Keep, PrefixPlan, forget, register
from mpc.channel import Channel
from mpc.errors import MpcacheError
from mpc.tape import Tape
from parties.events import log
from parties.wire.manifest import Manifest
from protocols.registry import SUITES, secure_suite, suite_class
from protocols.suite import Suite


def _load(suite: Suite, architecture: AnyArchitecture, shares: Callable[[str], Tensor | None]) -> dict[str, Any]:
    loaded: dict[str, Any] = suite.run(load_weights(suite, architecture, shares))
    return loaded


def _run(
    suite: Suite,
    architecture: AnyArchitecture,
    weights: dict[str, Any],
    plan: AnyPlan,
    prompt: Tensor | None,
    endpoint: Endpoint,
) -> int:
    if isinstance(plan, EncodingPlan):
        encoder = Encoder(suite, encoder_of(architecture, "the session's model"), weights)
        return int(suite.run(encode(suite, encoder, plan, prompt, endpoint)))
    assert isinstance(plan, GenerationPlan)
    architecture = decoder_of(architecture, "the session's model")
    decoder = Decoder(suite, architecture, weights, parse(plan.policy))
    return int(suite.run(generate(suite, decoder, plan, prompt, endpoint)))


def _load_rows(suite: Suite, architecture: AnyArchitecture, plan: AnyPlan, shares: BlockShares) -> dict[str, Any]:
    a = decoder_of(architecture, "a prefix's model")
    loaded: dict[str, Any] = suite.run(
        load_blocks(suite, a, plan.behind, plan.chunks, shares, scores_of(parse(plan.policy)))
    )
    return loaded


def _register(
    suite: Suite,
    architecture: AnyArchitecture,
    weights: dict[str, Any],
    plan: PrefixPlan,
    prompt: Tensor | None,
    endpoint: Endpoint,
    keep: Keep,
) -> int:
    decoder = Decoder(suite, decoder_of(architecture, "a prefix's model"), weights, plan.noting)
    return int(suite.run(register(suite, decoder, plan, prompt, endpoint, keep)))


@dataclass(frozen=True)
class Program:
    """load(suite, architecture, shares) returns weights that serve later sessions too; run(...) the number of outputs.
    load_rows and register: the same for a registered prefix (`models.prefix_rows`, `models.prefixes`)."""

    load: Callable[[Suite, AnyArchitecture, Shares], dict[str, Any]]
    run: Callable[[Suite, AnyArchitecture, dict[str, Any], AnyPlan, Tensor | None, Endpoint], int]
    load_rows: Callable[[Suite, AnyArchitecture, AnyPlan, BlockShares], dict[str, Any]] = _load_rows
    register: Callable[[Suite, AnyArchitecture, dict[str, Any], PrefixPlan, Tensor | None, Endpoint, Keep], int] = _register


def preload() -> None:
    """Import every suite, so that no session waits for that. One that cannot be imported is refused when asked for."""
    for name in SUITES:
        try:
            suite_class(name)
        except (MpcacheError, ImportError) as error:
            log.warning("suite '%s' cannot be used here: %s", name, error)


def plan_of(manifest: Manifest, architecture: AnyArchitecture) -> AnyPlan:
    """Return the plan of a manifest, checked against the model and this installation.

    Raises `ConfigurationError`, and `RangeError` for a bound that the suite does not have.
    """
    suite_class(manifest.spec.name)
    plan = manifest.plan
    plan.check(architecture)
    return plan


MODEL = Program(_load, _run)


@dataclass(frozen=True)
class SessionProgram:
    """A program with all that a session runs it on but the secrets; the same at every party and at the dealer."""

    program: Program
    manifest: Manifest
    architecture: AnyArchitecture
    plan: AnyPlan
    device: str

    @classmethod
    def of(cls, program: Program, manifest: Manifest, architecture: AnyArchitecture, device: str) -> SessionProgram:
        """Return the program of a manifest. Raises `ConfigurationError` as `plan_of` does."""
        return cls(program, manifest, architecture, plan_of(manifest, architecture), device)

    def suite(self, tape: Tape, channel: Channel | None) -> Suite:
        """Return the suite of the session, for a party or (channel None) for whom nothing is sent."""
        manifest, parties = self.manifest, len(self.manifest.parties)
        return secure_suite(manifest.spec, parties=parties, tape=tape, channel=channel)

    def load(self, suite: Suite, shares: Callable[[str], Tensor | None]) -> dict[str, Any]:
        """Load the weights, from shares(name) at a party and from nothing at the dealer."""
        return self.program.load(suite, self.architecture, shares)

    @property
    def reads_rows(self) -> bool:
        """Whether the session begins behind registered texts."""
        return self.plan.behind > 0 or self.plan.chunks is not None

    def load_rows(self, suite: Suite, shares: BlockShares) -> dict[str, Any]:
        """Load the rows of the blocks that the session begins behind, as `load` does."""
        return self.program.load_rows(suite, self.architecture, self.plan, shares)

    def run(
        self, suite: Suite, weights: dict[str, Any], prompt: Tensor | None, endpoint: Endpoint, keep: Keep = forget
    ) -> int:
        """Generate; return the number of tokens. weights: with the rows of a prefix, where the session begins behind one.
        prompt: this party's share, None at the dealer. keep: takes the rows of a prefix that is registered."""
        if isinstance(self.plan, PrefixPlan):
            return self.program.register(suite, self.architecture, weights, self.plan, prompt, endpoint, keep)
        return self.program.run(suite, self.architecture, weights, self.plan, prompt, endpoint)
