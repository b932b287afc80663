"""The suites by name: one line a suite."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from mpc.channel import Channel
from mpc.errors import ConfigurationError
from mpc.tape import Tape
from protocols.suite import Suite

# name -> (module, class, default fraction bits)
SUITES: dict[str, tuple[str, str, int]] = {
    "plain": ("protocols.plain.suite", "PlainSuite", 0),
    "crypten": ("protocols.crypten.suite", "CryptenSuite", 16),
    "masked": ("protocols.masked.suite", "MaskedSuite", 14),
}


def suite_class(name: str) -> type[Suite]:
    """The class of a suite. Raises `ConfigurationError` for an unknown name."""
    if name not in SUITES:
        raise ConfigurationError(f"unknown suite '{name}'; known: {', '.join(sorted(SUITES))}")
    module, attribute, _ = SUITES[name]
    found: type[Suite] = getattr(importlib.import_module(module), attribute)
    return found


def secure_suite(
    name: str,
    *,
    parties: int,
    tape: Tape,
    channel: Channel | None,
    fraction_bits: int | None = None,
    device: str = "cpu",
    **options: Any,
) -> Suite:
    """A suite that computes on shares, for a compute party (with its channel) or for the dealer (channel None)."""
    cls = suite_class(name)
    if name == "plain":
        raise ConfigurationError("suite 'plain' keeps nothing secret and cannot be run among parties")
    known = set(inspect.signature(cls.__init__).parameters) - {"self", "parties", "tape", "channel", "ledger"}
    for option in options:
        if option not in known:
            raise ConfigurationError(f"suite '{name}' has no option '{option}'; known: {', '.join(sorted(known))}")
    bits = SUITES[name][2] if fraction_bits is None else fraction_bits
    # every secure suite takes these keywords; `Suite` itself fixes none of them
    return cls(parties=parties, tape=tape, channel=channel, fraction_bits=bits, device=device, **options)  # type: ignore[call-arg]
