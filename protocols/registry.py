"""The suites by name: one line a suite. A `SuiteSpec` says which one computes, and with which settings."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mpc.errors import ConfigurationError
from protocols.options import CryptenOptions, MaskedOptions, OptionValue, SuiteOptions

if TYPE_CHECKING:
    from mpc.channel import Channel
    from mpc.tape import Tape
    from protocols.suite import Suite

DEFAULT_SUITE = "masked"
PLAIN = "plain"
CRYPTEN_VERSION = "0.4.1"


@dataclass(frozen=True)
class SuiteEntry:
    """Where a suite's class is, and what may be set of it. install: the command for what it needs beside this package."""

    module: str
    attribute: str
    options: type[SuiteOptions]
    install: str = ""


SUITES: dict[str, SuiteEntry] = {
    PLAIN: SuiteEntry("protocols.plain.suite", "PlainSuite", SuiteOptions),
    "crypten": SuiteEntry(
        "protocols.crypten.suite", "CryptenSuite", CryptenOptions, f"pip install --no-deps crypten=={CRYPTEN_VERSION}"
    ),
    "masked": SuiteEntry("protocols.masked.suite", "MaskedSuite", MaskedOptions),
}


def _entry(name: str) -> SuiteEntry:
    if name not in SUITES:
        raise ConfigurationError(f"unknown suite '{name}'; known: {', '.join(sorted(SUITES))}")
    return SUITES[name]


def suite_class(name: str) -> type[Suite]:
    """Import and return the class of a suite. Raises `ConfigurationError` for an unknown name."""
    entry = _entry(name)
    found: type[Suite] = getattr(importlib.import_module(entry.module), entry.attribute)
    return found


def secure_suites() -> list[str]:
    """Return the names of the suites that keep secrets, in alphabetical order."""
    return sorted(name for name in SUITES if name != PLAIN)


def check_secure(name: str) -> str:
    """Return the name itself. Raises `ConfigurationError` for an unknown suite or one that keeps nothing secret."""
    if name not in secure_suites():
        why = "keeps nothing secret" if name == PLAIN else "is unknown"
        raise ConfigurationError(f"suite '{name}' {why}; choose one of: {', '.join(secure_suites())}")
    return name


@dataclass(frozen=True, init=False)
class SuiteSpec:
    """Which secure suite computes, with which precision and options. Public; parties and dealer hold the same.

    fraction_bits: of activations; by default the suite's usual ones, or those among `options`. options: what was said, by
    name; what was not said is left out, and may come from a model's owner (`over`). settings: all of them, with the usual
    ones where nothing was said. Raises `ConfigurationError` for a suite
    or an option that there is not, and what the suite's options raise for a value (`protocols.options`).

    >>> spec = SuiteSpec("masked", options={"score": 8})
    >>> spec
    SuiteSpec(name='masked', fraction_bits=14, options={'score': 8})
    >>> spec.settings.bounds["score"].at(0), spec.settings.bounds["value"].at(0)
    (8, 6)
    """

    name: str
    fraction_bits: int
    options: Mapping[str, OptionValue]
    settings: SuiteOptions = field(compare=False, repr=False, init=False)

    def __init__(
        self,
        name: str = DEFAULT_SUITE,
        fraction_bits: int | None = None,
        options: Mapping[str, OptionValue] | None = None,
    ) -> None:
        given: dict[str, Any] = dict(options or {})
        kind = _entry(name).options
        if name == PLAIN:
            raise ConfigurationError(f"suite '{PLAIN}' keeps nothing secret and cannot be run among parties")
        if fraction_bits is None:
            fraction_bits = given.pop("fraction_bits", kind.fraction_bits)
        elif "fraction_bits" in given:
            raise ConfigurationError(f"suite '{name}': fraction_bits was given twice")
        known = kind.known()
        for option in given:
            if option not in known:
                raise ConfigurationError(f"suite '{name}' has no option '{option}'; known: {', '.join(known)}")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "fraction_bits", fraction_bits)
        object.__setattr__(self, "options", given)
        object.__setattr__(self, "settings", kind(fraction_bits=fraction_bits, **given))

    def over(self, bounds: Mapping[str, OptionValue]) -> SuiteSpec:
        """Return this spec with further options where it says nothing itself: a model owner's bounds."""
        return SuiteSpec(self.name, self.fraction_bits, {**bounds, **self.options})


USUAL = SuiteSpec()


def secure_suite(spec: SuiteSpec, *, parties: int, tape: Tape, channel: Channel | None) -> Suite:
    """Return a suite that computes on shares, for a compute party (with its channel) or for the dealer (channel None).

    It computes where its tape delivers to."""
    make: Any = suite_class(spec.name)  # every secure suite takes these keywords; `Suite` itself fixes none of them
    suite: Suite = make(parties=parties, tape=tape, channel=channel, options=spec.settings)
    return suite
