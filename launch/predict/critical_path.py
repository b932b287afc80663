"""The critical path of a layer: its rounds in order, and which operations' openings share each of them.

Nothing is planned by hand: openings that wait at the same time leave in one message (`protocols.schedule`), so the rounds
that the scheduler makes are the critical path. They are listened to while the step runs on tensors without content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from models.architectures import AnyArchitecture
from models.costs.estimation import alike, middle_layer
from models.costs.tracing import STEP, Setting, Trace, trace_step
from mpc.errors import ConfigurationError
from protocols.masked.context import Context, Routed
from protocols.schedule import Scheduler
from protocols.suite import Suite


@dataclass(frozen=True)
class Share:
    """What one operation sends in a round. part: of the layer (a foreign layer's is named in full)."""

    part: str
    operation: str
    openings: int
    bytes_sent: int


@dataclass(frozen=True)
class Round:
    """One round: everything in one message to each other party. The first share is the one it is booked on."""

    number: int
    shares: tuple[Share, ...]

    @property
    def bytes_sent(self) -> int:
        """Return the bytes that one party sends to all others."""
        return sum(share.bytes_sent for share in self.shares)


@dataclass(frozen=True)
class CriticalPath:
    """A layer's rounds. layer: its index in the traced model. trace: the step that they were heard in."""

    layer: int
    rounds: tuple[Round, ...]
    trace: Trace


Heard = list[list[tuple[str, str, int]]]


def _listen(suite: Suite, heard: Heard) -> None:
    """Write (stage, operation, bytes) of each opening of each round that the suite will make into `heard`."""
    context = getattr(suite, "context", None)
    if not isinstance(context, Context):
        raise ConfigurationError(
            f"suite '{suite.name}' runs one operation after the other, so its critical path is the list of its operations "
            "(`mpcache estimate` shows them); use --suite masked"
        )

    def flush(requests: list[Any]) -> Sequence[Any]:
        heard.append([(*r.key, _sent(r, context)) for r in requests])
        return context.flush(requests)

    suite.scheduler = Scheduler(flush)


def _sent(request: Any, c: Context) -> int:
    if isinstance(request, Routed):
        return request.bytes_of(c.perspective)[0]
    size: int = request.size
    return size * (c.parties - 1)


def _merged(parts: list[tuple[str, str, int]], prefix: str) -> tuple[Share, ...]:
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for stage, operation, size in parts:
        where = stage.removeprefix(prefix) if stage.startswith(prefix) else stage.partition("/")[2] or stage
        openings, total = sums.get((where, operation), (0, 0))
        sums[where, operation] = openings + 1, total + size
    return tuple(Share(part, operation, *counts) for (part, operation), counts in sums.items())


def critical_path(
    architecture: AnyArchitecture, setting: Setting, cached: int, tokens: int = 1, read: int = 0
) -> CriticalPath:
    """Return the rounds of a layer in the middle of the model, in a step of `tokens` tokens after `cached` ones. read: as in
    `models.costs.program.fill`.

    A round is the layer's when the ledger books it there: on its first opening. Raises `ConfigurationError` for a suite
    whose operations cannot share rounds.
    """
    reduced, setting, repeats = alike(architecture, setting)
    heard: Heard = []
    setting = replace(setting, prepare=lambda suite: _listen(suite, heard))
    trace = trace_step(reduced, setting, cached, tokens, agreed=cached > 0, read=read)
    layer = middle_layer(reduced, repeats)
    prefix = f"{STEP}/layer {layer}/"
    mine = [parts for parts in heard if parts and parts[0][0].startswith(prefix)]
    rounds = tuple(Round(number, _merged(parts, prefix)) for number, parts in enumerate(mine, 1))
    return CriticalPath(layer, rounds, trace)
