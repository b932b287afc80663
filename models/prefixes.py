"""Registering a prefix: the program that computes a text's keys and values once, for sessions that begin behind it.

The rows leave the program as shares for the very party that computes them (`Keep`), re-randomised as outputs are
(`Suite.output`), so what is stored depends on no mask of this session. The client that registers learns one number, 0, and
the range flags of the text; by them it says whether the rows are to be kept (`parties.party.prefix_store`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from models.architecture import Architecture
from models.architectures import AnyArchitecture, decoder_of
from models.cache import CachePolicy
from models.decoder import Decoder
from models.generation import Endpoint, check_positive
from models.policies import parse
from models.prefill import prefill
from models.prefix_rows import check_registrable, parts_of, rows_name
from models.prefix_scores import Noting, noted, scores_of
from mpc.errors import ConfigurationError
from mpc.ring import RING_BITS
from protocols.expert_ways import DENSE
from protocols.suite import OutputShare, Suite

Registering = Literal["rows"]
ROWS: Registering = "rows"
"""What leaves the program, in place of a decoding: a party's own shares of rows, to be stored there."""

Keep = Callable[[str, Tensor], None]
"""Takes this party's share of rows by a name of `models.prefix_rows.rows_shapes`, int64 in Z_2^64 with the suite's fraction
bits; a shape tensor at roles that hold none."""


def forget(name: str, share: Tensor) -> None:
    """Keep nothing: at the dealer, and in a pass ahead of the values."""


@dataclass(frozen=True)
class PrefixPlan:
    """What is public about registering a prefix. prompt_tokens: of its text. policy: whose scores are stored, for sessions
    with it (`models.prefix_scores`); "full": none. Raises `ConfigurationError` naming the argument and its
    value."""

    prompt_tokens: int
    policy: str = "full"

    new_tokens: ClassVar[int] = 1
    temperature: ClassVar[None] = None
    draft: ClassVar[None] = None
    behind: ClassVar[int] = 0
    chunks: ClassVar[None] = None
    padded: ClassVar[bool] = False
    decoding: ClassVar[Registering] = ROWS

    def __post_init__(self) -> None:
        check_positive("prompt_tokens", self.prompt_tokens)
        _ = self.noting

    @property
    def noting(self) -> CachePolicy | None:
        """Return the policy that the text is computed with; None: the full cache."""
        return None if self.policy == "full" else Noting(parse(self.policy))

    @property
    def scores(self) -> str:
        """Return the kind of scores that are stored; empty without."""
        return "" if self.policy == "full" else scores_of(parse(self.policy))

    @property
    def prompt_shape(self) -> tuple[int, ...]:
        """Shape of what is shared of the text."""
        return (self.prompt_tokens,)

    def check(self, described: AnyArchitecture) -> None:
        """Raise `ConfigurationError` unless the model is a decoder that holds the text and a token behind it."""
        architecture = decoder_of(described, "a registered prefix")
        check_registrable(architecture, self.prompt_tokens)
        if (noting := self.noting) is not None:
            noting.check(architecture, self.prompt_tokens)
        if self.prompt_tokens >= architecture.positions:
            raise ConfigurationError(
                f"a prefix of {self.prompt_tokens} tokens leaves no room for a prompt behind it: the model has "
                f"{architecture.positions} positions; shorten it"
            )


def check_way(suite: Suite, architecture: Architecture) -> None:
    """Raise `ConfigurationError` where experts have few places: what a prefix's tokens miss, no later session hears of."""
    if architecture.experts is not None and suite.experts.factor is not None:
        raise ConfigurationError(
            f"experts = capacity:{suite.experts.factor:g}: a registered prefix needs every expert for every token; use "
            f"experts={DENSE}"
        )


async def register(
    suite: Suite, decoder: Decoder, plan: PrefixPlan, prompt_share: Tensor | None, endpoint: Endpoint, keep: Keep
) -> int:
    """Run the plan; returns the number of outputs, 1: the number 0 with the range flags of the whole text.

    prompt_share: this party's int64 share of the text's token indices [T]; None at the dealer. keep: takes the rows. Ledger
    stage "prefill". Costs: those of a prompt, and a dealt sharing of zero for every row. Raises `ConfigurationError` as
    `PrefixPlan.check` and `check_way` do.
    """
    with suite.ledger.timed("prefill"):
        shown = await registered(decoder, plan, prompt_share, keep, endpoint.progress)
    endpoint.emit(0, shown)
    return 1


async def registered(
    decoder: Decoder,
    plan: PrefixPlan,
    prompt_share: Tensor | None,
    keep: Keep,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> OutputShare:
    """Return what `register` emits, once the rows are kept. What they take is recorded as stage "layer N/stored"."""
    suite, architecture = decoder.suite, decoder.architecture
    plan.check(architecture)
    assert isinstance(decoder.policy, Noting) == bool(plan.scores)
    check_way(suite, architecture)
    prompt = suite.indices(plan.prompt_tokens, prompt_share, architecture.vocabulary)
    cache = decoder.new_cache()
    await prefill(decoder, cache, prompt, lambda done, total: progress("prefill", done, total))
    for layer, entry in enumerate(cache.layers):
        cache.enter(layer)
        with suite.ledger.timed(f"layer {layer}/stored"):
            scores = (noted(cache, layer),) if plan.scores else ()
            for part, rows in zip(parts_of(plan.scores), (*entry.keys_and_values(), *scores), strict=True):
                share = suite.output(rows)
                if suite.name != "plain" and (share.bits, share.fraction_bits) != (RING_BITS, suite.fraction_bits):
                    raise RuntimeError(f"rows of layer {layer} lie in Z_2^{share.bits}, {share.fraction_bits} fraction bits")
                keep(rows_name(layer, part), share.share)
    return replace(suite.output(suite.public(0.0, (1,))), flags=suite.flags())
