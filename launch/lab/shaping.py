"""A network's numbers as settings of the kernel: bandwidth, buffers, sizes of segments."""

from __future__ import annotations

from dataclasses import dataclass

from launch.predict.networks import Network
from mpc.errors import ConfigurationError

MTU = 1500
FRAME = MTU + 14
LARGEST_SEGMENT = 65536
BURST_SECONDS = 1e-3
BUFFER_SECONDS = 50e-3
LEAST_BUFFER, MOST_BUFFER = 64 << 10, 1 << 30
LEAST_RATE, MOST_RATE = 1e5, 1e11
MOST_ROUND_TRIP = 10.0


def check_shapeable(network: Network) -> Network:
    """Return the network itself. Raises `ConfigurationError` for numbers that links cannot be given."""
    if not LEAST_RATE <= network.bandwidth <= MOST_RATE:
        raise ConfigurationError(
            f"--rate {network.bandwidth / 1e6:g}: a link of the lab has {LEAST_RATE / 1e6:g} to {MOST_RATE / 1e6:g} Mbit/s"
        )
    if not 0 <= network.round_trip <= MOST_ROUND_TRIP:
        raise ConfigurationError(f"--rtt {network.round_trip * 1e3:g}: must be 0 to {MOST_ROUND_TRIP * 1e3:g} milliseconds")
    if not 0 <= network.loss < 1:
        raise ConfigurationError(f"--loss {network.loss * 100:g}: must be 0 or more and below 100 percent")
    return network


@dataclass(frozen=True)
class Shape:
    """burst: bytes that pass at once, one millisecond's worth; buffer: bytes that may wait at a link, then packets are lost,
    one bandwidth-delay product and 50 ms at least; segment: bytes that TCP hands to the link at once; window: bytes that
    TCP may have under way."""

    network: Network

    @property
    def burst(self) -> int:
        return max(2 * FRAME, int(self.network.bandwidth / 8 * BURST_SECONDS))

    @property
    def buffer(self) -> int:
        wanted = self.network.bandwidth / 8 * max(BUFFER_SECONDS, self.network.round_trip)
        return min(MOST_BUFFER, max(LEAST_BUFFER, int(wanted)))

    @property
    def segment(self) -> int:
        return min(LARGEST_SEGMENT, self.burst - FRAME)

    @property
    def window(self) -> int:
        return int(4 * self.network.bandwidth / 8 * (self.network.round_trip + BUFFER_SECONDS))

    def bucket(self) -> list[object]:
        """Return the arguments of `tc` for the bandwidth of one direction of a link."""
        return ["tbf", "rate", f"{int(self.network.bandwidth)}bit", "burst", self.burst, "limit", self.buffer]

    def netem(self) -> list[object]:
        """Return the arguments of `tc` for the delay of one direction, and for loss."""
        delay = f"{self.network.round_trip / 2 * 1e6:.0f}us"
        loss = ["loss", f"{self.network.loss * 100:g}%"] if self.network.loss else []
        return ["netem", "delay", delay, *loss, "limit", 2 * self.buffer // FRAME + 1000]

    def held(self, roles: int) -> int:
        """Return the bytes that a relay of `roles` roles may hold: what all links together bring while a packet waits, twice
        that."""
        return int(2 * roles * self.network.bandwidth / 8 * self.network.round_trip / 2) + (4 << 20)
