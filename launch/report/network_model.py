"""Seconds on another network, from what was measured on this machine and what the ledger counted.

    seconds = seconds on localhost + rounds x (one-way delay + waking up) + bytes that a party sends / bandwidth

Seconds on localhost hold the computing and what a message costs a process. In a round all parties send at the same
moment, so it takes one one-way delay, half a round trip. Meanwhile processors fall idle, which they hardly do on localhost:
waking up adds to every round. Bytes in both directions travel at the same time (full duplex).
Runs between shaped namespaces say how far off this is: `comparisons`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launch.measure.bench.cell import LOCALHOST
from launch.predict.networks import Network, find_network
from launch.report.rows import Row


def predict(network: Network, rounds: float, bytes_sent: float, local_seconds: float) -> float:
    """Return the seconds of a step on `network`. bytes_sent: of the party that sends most.

    >>> round(predict(find_network("wan"), rounds=75, bytes_sent=79_000, local_seconds=0.11), 2)
    1.63
    """
    return local_seconds + network.latency_seconds(rounds) + network.transfer_seconds(bytes_sent)


def predicted_seconds(row: Row, network: Network, local: Row | None = None) -> float | None:
    """Return the seconds of a row that was measured, or whose setting was: `local`. None where no seconds were measured."""
    seconds = row.seconds if local is None else local.seconds
    return None if seconds is None else predict(network, row.rounds, row.bytes_sent, seconds)


@dataclass(frozen=True)
class Compared:
    """A step shaped for real, and what the model said of it from the run on localhost."""

    shaped: Row
    predicted: float

    @property
    def error(self) -> float:
        """Return (predicted - measured) / measured."""
        measured = self.shaped.seconds
        assert measured is not None
        return (self.predicted - measured) / measured


def comparisons(rows: Sequence[Row]) -> list[Compared]:
    """Return every shaped result that has the same cell on localhost beside it; of peers no exact rounds are known."""
    local = {r.cell.model_copy(update={"network": LOCALHOST}).key: r for r in rows if r.cell.network == LOCALHOST}
    out = []
    for row in rows:
        if row.cell.network == LOCALHOST or row.cell.measure == "peer" or row.seconds is None:
            continue
        base = local.get(row.cell.model_copy(update={"network": LOCALHOST}).key)
        if base is not None and base.seconds is not None:
            out.append(Compared(row, predict(find_network(row.cell.network), base.rounds, base.bytes_sent, base.seconds)))
    return out
