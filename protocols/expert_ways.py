"""How a mixture of experts is computed: the option `experts` of the secure suites, and what follows from it for a batch.

`dense`: every expert for every token. `capacity:F`: each expert has F times as many places as a batch of tokens would fill
on average, in whole places, and what finds none is left out (`models.experts`). `auto` is for whoever opens a session: it is
one of the two by the time it stands in a manifest (`models.costs.expert_ways`). Public, and equal at all roles.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from mpc.errors import ConfigurationError

DENSE = "dense"
AUTO = "auto"
MOST = 64.0
_CAPACITY = re.compile(r"capacity:(\d{1,3}(?:\.\d{1,6})?)")


@dataclass(frozen=True)
class ExpertsWay:
    """factor: of the places of an expert over the tokens that it has on average; None: every expert for every token."""

    factor: float | None = None

    @staticmethod
    def parse(text: Any) -> ExpertsWay:
        """Return the way that a text names. Raises `ConfigurationError` naming the option, its value and what is allowed.

        >>> ExpertsWay.parse("capacity:1.25").places(tokens=100, chosen=2, experts=8)
        32
        """
        if text in (DENSE, AUTO):
            return ExpertsWay()
        found = _CAPACITY.fullmatch(text) if isinstance(text, str) else None
        factor = 0.0 if found is None else float(found[1])
        if not 0 < factor <= MOST:
            raise ConfigurationError(
                f"experts = {text!r} must be 'dense', 'auto' or 'capacity:F', such as 'capacity:1.25', "
                f"with 0 < F <= {MOST:g}"
            )
        return ExpertsWay(factor)

    def places(self, tokens: int, chosen: int, experts: int) -> int | None:
        """Return an expert's places for a batch of tokens, each of which takes `chosen` of so many experts; None where every
        expert is computed for every token, as well where there would be a place for each of them anyway."""
        if self.factor is None:
            return None
        places = math.ceil(self.factor * tokens * chosen / experts)
        return places if places < tokens else None
