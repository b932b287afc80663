"""Tokens that go are not lost: their rows stay, with few fraction bits, in a segment of their own.

A token that was demoted stays so: what was cut of it is gone. Public steps, the same for all rows, make rounding local,
where steps by each row's extremes would be secret divisions; keys and queries are balanced by channel in the weights
already (`models.balancing`), so that no channel of keys is lost in a step.

Leaks: nothing; which rows are demoted stays shared, how many are is public (docs/security.md, "Policies").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from models.policies.axes.codecs import hold_few_bits
from models.policies.eviction import Event, Merge, Moving
from protocols.suite import Suite, Value


@dataclass(frozen=True)
class Demote(Merge):
    """fraction_bits: of keys and values of the tokens that go; public.

    Source: Yang et al., "No Token Left Behind: Reliable KV Cache Compression via Importance-Aware Mixed Precision
    Quantization", 2024, section 3; there steps follow from each row's extremes.
    """

    fraction_bits: int
    holds: ClassVar[bool] = True

    async def before(self, suite: Suite, event: Event) -> list[Moving]:
        keys, values, *scored = event.parts
        moving = [Moving(event.chosen, [keys, values], event.count, "all")]
        return [*moving, Moving(event.chosen, scored, event.count)] if scored else moving

    async def after(self, suite: Suite, event: Event, moved: Sequence[Sequence[Value]]) -> Sequence[Value]:
        """Hold what goes behind what went before; 1 round."""
        both, *scored = moved
        await hold_few_bits(suite, event.entry, [x[:, event.count :] for x in both], self.fraction_bits)
        return [*(x[:, : event.count] for x in both), *(row for rows in scored for row in rows)]
