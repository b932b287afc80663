"""Networks by name or by numbers, and what a ledger's costs take on them."""

from __future__ import annotations

from dataclasses import dataclass

from mpc.errors import ConfigurationError

WAKING_SECONDS = 0.3e-3
"""Measured on 2 virtual processors with GPT-2 on "lan"; gone where something of lowest priority keeps processors awake."""


@dataclass(frozen=True)
class Network:
    """round_trip: seconds. bandwidth: bits a second, in each direction, of one party's connection. loss: share of packets
    that get lost, in the network lab (`launch.lab`); estimates know of none. waking: seconds that a round costs beyond the
    one-way delay, since processors fall idle while they wait."""

    name: str
    round_trip: float
    bandwidth: float
    loss: float = 0.0
    waking: float = WAKING_SECONDS

    def latency_seconds(self, rounds: float) -> float:
        """Return the delays of rounds: all parties send at the same moment, so a round takes one one-way delay, half a
        round trip, and waking up."""
        return rounds * (self.round_trip / 2 + self.waking)

    def transfer_seconds(self, bytes_sent: float) -> float:
        """Return the seconds of transferring what one party sends."""
        return bytes_sent * 8 / self.bandwidth


NETWORKS = {
    "lan": Network("lan", 0.8e-3, 3e9),
    "wan": Network("wan", 40e-3, 400e6),
    "mobile": Network("mobile", 80e-3, 50e6),
}

SLOWEST, FEWEST, MOST = 100_000, 0.001, 100_000_000  # milliseconds, and Mbit/s, of a network of one's own
LOCALHOST = Network("localhost", 0.1e-3, 20e9, waking=0.0)
"""Processes of one machine; what they need for a message is computing, not in these numbers."""


def find_network(text: str) -> Network:
    """Return the network of a name in `NETWORKS`, "localhost", or of "RTT_MS,MBIT_PER_SECOND". Raises `ConfigurationError`
    for anything else.

    >>> find_network("10,1000").latency_seconds(rounds=100)  # 10 ms there and back, 0.3 ms to wake up in each round
    0.53
    """
    if text in NETWORKS or text == LOCALHOST.name:
        return NETWORKS.get(text, LOCALHOST)
    numbers = text.split(",")
    try:
        milliseconds, megabits = (float(part) for part in numbers)
    except ValueError:
        raise _unknown(text) from None
    if not (0 <= milliseconds <= SLOWEST and FEWEST <= megabits <= MOST):
        raise _unknown(text)
    return Network(text, milliseconds / 1e3, megabits * 1e6)


def _unknown(text: str) -> ConfigurationError:
    return ConfigurationError(
        f"network '{text}' is not one of {', '.join(NETWORKS)}, {LOCALHOST.name}, nor a round trip in milliseconds and a "
        f"bandwidth in Mbit/s such as 10,1000 (up to {SLOWEST:,} ms, {FEWEST} to {MOST:,} Mbit/s)"
    )
