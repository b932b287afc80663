"""Which form of a gate is run, where there are several: the one place.

Forms give the same value and differ in rounds, bytes and work: harmonics or one-hot bits, point functions or tables. A gate
lists what each form of it costs for its number of elements, and `choose` takes the one that is done soonest, by constants,
by the network that the suite's option `prefer` names, and by public sizes, never by a clock: dealer, parties and estimate
decide alike. `prefer` may also be `rounds` (fewest rounds first) or `bytes` (fewest dealt and sent bytes first), and with
`online` what is dealt is there before: neither its bytes nor the dealer's work count.

Leaks: nothing; public sizes decide (docs/security.md, "Choice of dealing").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocols.options import USUAL_NETWORK, Network


@dataclass(frozen=True)
class Form:
    """What a form of a gate costs. rounds: beyond those of the cheapest form; sent: bytes of a party; dealt: bytes to all
    parties; work: seconds on one core at the busiest party, online; dealing: seconds at the dealer."""

    name: str
    rounds: int
    sent: float
    dealt: float
    work: float = 0.0
    dealing: float = 0.0


BYTE_WORK, BYTE_DEALING = 5e-9, 1.5e-8
"""Seconds that a dealt byte takes a party and the dealer, about, where no more is known of a gate."""


def by_bytes(name: str, rounds: int, sent: float, dealt: float) -> Form:
    """Return a form whose work follows from its bytes."""
    return Form(name, rounds, sent, dealt, BYTE_WORK * dealt, BYTE_DEALING * dealt)


def network(prefer: str) -> Network:
    """Return the network that a preference names, the usual one where it names none."""
    return Network.parse(prefer) or USUAL_NETWORK


def round_bytes(prefer: str) -> float:
    """Return the bytes that a round is worth, for plans with many sizes to choose, most of whose bytes are dealt: by the
    network, or by a party's work where they are dealt before; ten megabytes where rounds are what counts, none where bytes
    are.

    >>> round_bytes("auto"), round_bytes("40ms/400mbit"), round_bytes("bytes"), round_bytes("online")
    (1250000.0, 2000000.0, 0.0, 2000000.0)
    """
    found = network(prefer)
    by_network = found.round_seconds * (1 / BYTE_WORK if found.dealt_before else found.bytes_per_second)
    return {"rounds": 1e7, "bytes": 0.0}.get(prefer, by_network)


def seconds(form: Form, network: Network = USUAL_NETWORK) -> float:
    """Return the seconds that a form takes from the dealer's first step to the last party's last, or, where everything is
    dealt before, from the parties' first."""
    online = form.rounds * network.round_seconds + form.sent / network.bytes_per_second + form.work
    return online if network.dealt_before else online + form.dealt / network.bytes_per_second + form.dealing


def choose(forms: Sequence[Form], prefer: str = "auto") -> str:
    """Return the name of the form to run; of equals the first.

    >>> few = [Form("point functions", 0, 0, 1000), Form("bits", 1, 100, 300)]
    >>> many = [Form(f.name, f.rounds, 1e5 * f.sent, 1e5 * f.dealt) for f in few]
    >>> choose(few), choose(many), choose(many, "rounds"), choose(few, "bytes"), choose(many, "900ms/1000mbit")
    ('point functions', 'bits', 'point functions', 'bits', 'point functions')
    >>> choose(many, "online")
    'point functions'
    """
    here = network(prefer)
    if prefer == "rounds":
        return min(forms, key=lambda f: (f.rounds, seconds(f, here))).name
    if prefer == "bytes":
        return min(forms, key=lambda f: (f.sent + f.dealt, seconds(f, here))).name
    return min(forms, key=lambda f: seconds(f, here)).name
