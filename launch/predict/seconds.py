"""Seconds of a stage on a network: what parties and dealer compute, on hosts of their own or on this machine together.

Parties and the dealer work at the same time: the dealer's stream arrives while parties compute, so the slower of both sides
counts; the parties' alone where a suite's options say that all is dealt before (`prefer=online`). Where all run on this
machine they share its processors, which have all of their work to do, and wait now and then.
"""

from __future__ import annotations

from dataclasses import dataclass

from launch.predict.networks import LOCALHOST, Network
from models.costs.rates import START_ENTRIES, Rates, weights_of
from models.costs.tracing import Costs, Setting
from mpc.role_process import processors
from protocols.options import MaskedOptions

PARTY_SIDE = "a party's computing + rounds x (half a round trip + 0.3 ms) + bytes sent / bandwidth"
DEALER_SIDE = "the dealer's computing + bytes dealt / bandwidth"
BUSY, BEGINNING = 0.92, 0.78
"""Share of the time that processors which all roles share have work, measured: within a session, and while one begins, when
roles wait for each other more."""


@dataclass(frozen=True)
class StageSeconds:
    """Seconds of one stage. party, dealer: that a party and the dealer compute; latency, transfer: of the parties' messages;
    dealt: of what the dealer sends; together: of all work on this machine's processors, 0 for hosts of their own.
    dealt_before: nobody waits for the dealer."""

    party: float
    dealer: float
    latency: float
    transfer: float
    dealt: float
    together: float = 0.0
    dealt_before: bool = False

    @property
    def total(self) -> float:
        """Return the seconds of the stage."""
        waited_for = 0.0 if self.dealt_before else self.dealer + self.dealt
        return max(self.party + self.latency + self.transfer, waited_for, self.together)


@dataclass(frozen=True)
class Machines:
    """Where a session of a suite runs. cores: of the machine that has all roles, where the network is `LOCALHOST`.
    dealt_before: as in `StageSeconds`."""

    network: Network
    rates: Rates
    parties: int = 2
    cores: int = 0
    suite: str = "masked"
    dealt_before: bool = False

    @classmethod
    def of(cls, network: Network, rates: Rates, setting: Setting) -> Machines:
        """Return machines like this one: one of them on localhost, else one for each role."""
        settings = setting.spec.settings
        before = isinstance(settings, MaskedOptions) and settings.dealt_before
        cores = processors() if network == LOCALHOST else 0
        return cls(network, rates, setting.parties, cores, setting.suite, before)

    @property
    def formula(self) -> str:
        """Say how seconds are predicted."""
        if self.dealt_before:
            words, roles = f"{PARTY_SIDE}; what is dealt is there before", "the parties"
        else:
            words, roles = f"the slower of two sides: {PARTY_SIDE}; {DEALER_SIDE}", "all roles"
        busy = f"{100 * BUSY:.0f} % of their time, of a prompt {100 * BEGINNING:.0f} %"
        return words + (f", or, on one machine, the computing of {roles} / its processors ({busy})" if self.cores else "")

    def start_seconds(self) -> float:
        """Return the seconds until all servers are there: Python and its packages, once a process."""
        alone = START_ENTRIES / self.rates.entries
        return alone * max(1.0, (self.parties + 1) / self.cores) if self.cores else alone

    def seconds(self, costs: Costs, part: str | None = None, sessions: int = 0) -> StageSeconds:
        """Return the seconds of a stage, or of one part of it; sessions: that begin with it."""
        party, dealer = (
            self.rates.seconds(costs, part, weights, sessions) for weights in weights_of(self.suite, self.parties)
        )
        rounds, sent, dealt = (costs.total(name, part) for name in ("rounds", "bytes_sent", "offline_bytes"))
        together = self.parties * party + (0.0 if self.dealt_before else dealer)
        return StageSeconds(
            party,
            dealer,
            self.network.latency_seconds(rounds),
            self.network.transfer_seconds(sent),
            self.network.transfer_seconds(dealt),
            together / ((BEGINNING if sessions else BUSY) * self.cores) if self.cores else 0.0,
            self.dealt_before,
        )
