"""Where the roles of a benchmark take their inputs from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from launch.measure.bench.inputs import BenchInputs
from protocols.suite import Suite


def step_name(repetition: int) -> str:
    """Return the ledger stage of a measured repetition."""
    return f"step {repetition}"


@dataclass(frozen=True)
class RealInputs:
    """The values themselves, for the suite `plain`."""

    inputs: BenchInputs

    def weight(self, suite: Suite, name: str, shape: Sequence[int]) -> Tensor:
        """Return a float weight."""
        return self.inputs.weight(name, shape)

    def cached(self, suite: Suite, name: str, shape: Sequence[int]) -> Tensor:
        """Return the float keys, values or attention mass."""
        return self.inputs.cached(name, shape)

    def tokens(self, suite: Suite, count: int, chosen: bool) -> Tensor:
        """Return indices, or one-hot rows."""
        return self.inputs.tokens(count, chosen)


@dataclass(frozen=True)
class SharedInputs:
    """One compute party's shares."""

    inputs: BenchInputs
    party: int

    @property
    def _last(self) -> bool:
        return self.party == self.inputs.parties - 1

    def weight(self, suite: Suite, name: str, shape: Sequence[int]) -> Tensor:
        """Return this party's share of a weight."""
        value = self.inputs.weight(name, shape) if self._last else None
        return self.inputs.share(name, value, shape, suite.weight_fraction_bits, self.party)

    def cached(self, suite: Suite, name: str, shape: Sequence[int]) -> Tensor:
        """Return this party's share of keys, values or attention mass."""
        value = self.inputs.cached(name, shape) if self._last else None
        return self.inputs.share(name, value, shape, suite.fraction_bits, self.party)

    def tokens(self, suite: Suite, count: int, chosen: bool) -> Tensor:
        """Return this party's share of indices, or of one-hot rows."""
        value = self.inputs.tokens(count, chosen) if self._last else None
        shape = (count, self.inputs.architecture.vocabulary) if chosen else (count,)
        return self.inputs.share("tokens", value, shape, 0, self.party)
