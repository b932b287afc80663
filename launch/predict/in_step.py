"""What sessions in step take on a network, beside the same sessions one after another."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from launch.predict.networks import Network
from models.costs.estimation import Estimate
from models.costs.in_step import InStep, in_step
from models.costs.rates import Rates
from models.costs.tracing import Costs


@dataclass(frozen=True)
class InStepSeconds:
    """One stage of sessions in step. seconds: of all together; seconds_in_turn: of one after another."""

    costs: InStep
    seconds: float
    seconds_in_turn: float

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain numbers, whole where they are counts."""
        counted = {name: round(value) for name, value in asdict(self.costs).items()}
        return {
            **counted,
            "rounds_saved": round(self.costs.rounds_saved),
            "seconds": self.seconds,
            "seconds_in_turn": self.seconds_in_turn,
        }


def in_step_stages(found: Estimate, sessions: int, network: Network, rates: Rates) -> dict[str, InStepSeconds]:
    """Return what so many sessions of these lengths take in step: "prefill", all prompts at the same time, and "token", a
    further token of each, as they are on average."""
    parties = found.setting.parties
    stages = {"prefill": (found.first, 1)}
    if found.new > 1:
        stages["token"] = (found.further, found.new - 1)
    return {name: _seconds(costs, count, (sessions, parties), network, rates) for name, (costs, count) in stages.items()}


def _seconds(costs: Costs, count: int, numbers: tuple[int, int], network: Network, rates: Rates) -> InStepSeconds:
    """Return the mean of `count` equal stages whose costs are given together. numbers: of sessions, of parties."""
    one = Costs({key: value / count for key, value in costs.items()})
    found = in_step(one, *numbers)
    compute, latency = rates.seconds(one), network.latency_seconds(found.rounds)
    together = latency + network.transfer_seconds(found.bytes_sent + found.overhead_bytes) + found.sessions * compute
    alone = latency + network.transfer_seconds(one.total("bytes_sent")) + compute
    return InStepSeconds(found, together, found.sessions * alone)
