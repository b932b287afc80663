"""What may be set of a suite: one dataclass a suite.

It alone knows which options there are, which kinds of values they bound and what holds where nothing is said. All of it is
public.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import ClassVar

from mpc.errors import ConfigurationError, RangeError
from protocols.bounds import RANGE_KINDS, RANGES, Bounds
from protocols.expert_ways import DENSE, ExpertsWay

ONLINE = "online"
PREFERENCES = ("auto", "rounds", "bytes", ONLINE)

OptionValue = bool | int | float | str | None
"""An option's value as it comes from a command line, a file or the wire."""


@dataclass(frozen=True)
class Network:
    """What parties are connected by. round_seconds: from a message to the answer that it lets the other party send;
    bytes_per_second: of a link. dealt_before: nobody waits for what is dealt, as it is there before it is used."""

    round_seconds: float = 0.01
    bytes_per_second: float = 1.25e8
    dealt_before: bool = False

    @classmethod
    @cache
    def parse(cls, text: str) -> Network | None:
        """Return the network of a text such as `40ms/400mbit`, or with everything dealt before `online:40ms/400mbit`, or
        `online` on the usual one; None for another text. From 0.01 to 10 000 ms, and 1 to 1 000 000 Mbit/s.

        >>> Network.parse("40ms/400mbit"), Network.parse("0ms/1mbit"), Network.parse("rounds")
        (Network(round_seconds=0.04, bytes_per_second=50000000.0, dealt_before=False), None, None)
        >>> Network.parse("online") == Network.parse("online:10ms/1000mbit") == Network(dealt_before=True)
        True
        """
        if text == ONLINE:
            return cls(dealt_before=True)
        found = re.fullmatch(rf"({ONLINE}:)?(\d{{1,5}}(?:\.\d{{1,3}})?)ms/(\d{{1,7}}(?:\.\d{{1,3}})?)mbit", text, re.ASCII)
        if found is None:
            return None
        delay, rate = float(found[2]), float(found[3])
        fits = 0.01 <= delay <= 1e4 and 1 <= rate <= 1e6
        return cls(delay / 1000, rate * 125_000, bool(found[1])) if fits else None


USUAL_NETWORK = Network()
"""What `auto` assumes: a network between organisations of one region, links of 1 Gbit/s."""


@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """A suite's settings. A suite without secrets has none but its precision.

    fraction_bits: of activations. bounds: those in force, of every kind that can be declared.
    """

    kinds: ClassVar[tuple[str, ...]] = ()
    """The kinds of values whose bounds are options."""

    fraction_bits: int = 0
    bounds: Mapping[str, Bounds] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def known(cls) -> list[str]:
        """Return the names of what may be set, in alphabetical order."""
        return sorted(option.name for option in fields(cls) if option.init)


@dataclass(frozen=True, kw_only=True)
class BoundedOptions(SuiteOptions):
    """Settings of a suite whose user declares public bounds: each log2 of the bound, for all layers or by layer
    (`protocols.bounds`).

    residual: the norm of a row of the residual stream (one channel of a token can have thousands). score: the spread of a
    row of attention scores, or of a router's logits, is below 7/8 2^score. value: cached values. activation: outputs of
    linear layers. logits: as `activation` where it is None.

    experts: how mixtures of experts are computed, `dense` or `capacity:F` (`protocols.expert_ways`); where a session says
    nothing its client chooses by predicted cost. Raises `RangeError` naming the option, its value and what is allowed.
    """

    kinds: ClassVar[tuple[str, ...]] = RANGE_KINDS
    way: ExpertsWay = field(default_factory=ExpertsWay, init=False, repr=False, compare=False)

    residual: int | str = RANGES["residual"].usual
    score: int | str = RANGES["score"].usual
    value: int | str = RANGES["value"].usual
    activation: int | str = RANGES["activation"].usual
    logits: int | str | None = None
    experts: str = DENSE

    def __post_init__(self) -> None:
        given = {
            "residual": self.residual,
            "score": self.score,
            "value": self.value,
            "activation": self.activation,
            "logits": self.activation if self.logits is None else self.logits,
        }
        bounds = {kind: Bounds.parse(kind, value, RANGES[kind].low, RANGES[kind].high) for kind, value in given.items()}
        object.__setattr__(self, "bounds", bounds)
        object.__setattr__(self, "way", ExpertsWay.parse(self.experts))


@dataclass(frozen=True, kw_only=True)
class MaskedOptions(BoundedOptions):
    """Settings of the suite `masked`: 8 to 16 fraction bits, and bounds from which its rings follow.

    prefer: of gates that have several forms the one with the fewest `rounds` or the fewest `bytes`, or the one that is
    predicted to be done soonest (`protocols.masked.forms`) on a network, such as `40ms/400mbit`; `auto` is `10ms/1000mbit`.
    `online`, or `online:40ms/400mbit`, takes what is dealt to be there before: only what parties send and compute counts.

    >>> options = MaskedOptions(score=8, residual="10*2 15")
    >>> options.fraction_bits, options.bounds["score"].at(0), options.bounds["residual"].at(2)
    (14, 8, 15)
    """

    fraction_bits: int = 14
    prefer: str = "auto"

    @property
    def dealt_before(self) -> bool:
        """Whether everything is taken to be dealt before it is used."""
        found = Network.parse(self.prefer)
        return found is not None and found.dealt_before

    def __post_init__(self) -> None:
        known = isinstance(self.prefer, str) and (self.prefer in PREFERENCES or Network.parse(self.prefer))
        if not known:
            raise ConfigurationError(
                f"suite 'masked': prefer = {self.prefer!r} must be one of {', '.join(PREFERENCES)}, or a network's round "
                "trip and rate such as 40ms/400mbit or online:40ms/400mbit (0.01 to 10000 ms, 1 to 1000000 Mbit/s)"
            )
        if not _within(self.fraction_bits, 8, 16):
            raise RangeError(f"suite 'masked' needs 8 to 16 fraction bits, got {self.fraction_bits!r}")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class CryptenOptions(BoundedOptions):
    """Settings of the suite `crypten`: 8 to 20 fraction bits; of the bounds only `residual` decides on a ring.

    crypten_own: CrypTen's own way (`protocols.crypten.own`), which takes and ignores the bounds.

    >>> CryptenOptions(crypten_own=True).fraction_bits
    16
    """

    fraction_bits: int = 16
    crypten_own: bool = False

    def __post_init__(self) -> None:
        if not _within(self.fraction_bits, 8, 20):
            raise ConfigurationError(f"fraction_bits must be between 8 and 20, got {self.fraction_bits!r}")
        if not isinstance(self.crypten_own, bool):
            raise ConfigurationError(f"crypten_own = {self.crypten_own!r} must be true or false")
        super().__post_init__()


def _within(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
