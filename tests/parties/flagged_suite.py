"""A suite whose range flags are planted: the real program on shares, and flags that a test chooses."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from protocols.masked.suite import MaskedSuite
from protocols.options import MaskedOptions
from protocols.registry import SuiteEntry
from tests.parties.toy import Flags

ENTRY = SuiteEntry("tests.parties.flagged_suite", "FlaggedSuite", MaskedOptions)  # of `protocols.registry.SUITES`


class FlaggedSuite(MaskedSuite):
    """`masked` with `planted` flags of the outputs of a session."""

    name: ClassVar[str] = "flagged"
    planted: ClassVar[Flags] = Flags(None)
    _outputs = 0

    def flags(self) -> Tensor | None:
        """Of the next output."""
        self._outputs += 1
        channel = self.context.channel
        return self.planted.share(-1 if channel is None else channel.party, self.parties, self._outputs - 1)
