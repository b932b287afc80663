"""Texts at running encoders: what is asked for, the session in which they are, and what it gave."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from models.encoder_architecture import EncoderArchitecture
from models.encoding import MOST_TEXTS, EncoderInput, EncodingPlan, padded_length, results, shared_rows
from models.outputs import Output
from mpc.errors import WireError
from parties.client.conversation import Conversation
from parties.client.model_reference import ModelReference
from parties.client.outputs import Incoming
from parties.config.role_config import RoleConfig
from parties.errors import RangeExceeded
from parties.transport.peer_stream import PeerStream
from parties.wire import wire_pb2 as wire
from parties.wire.manifest import Manifest
from protocols.range_findings import RangeFinding
from protocols.registry import USUAL, SuiteSpec


@dataclass(frozen=True)
class EncodingRequest:
    """What one session with an encoder asks for. The texts are secret.

    output: what this client learns of each, None for what the checkpoint was trained for. Each text is padded to the next of
    few lengths (`models.encoding.padded_length`). suite, model: as in `GenerationRequest`.
    """

    texts: Sequence[EncoderInput] = field(repr=False)
    output: Output | None = None
    suite: SuiteSpec = USUAL
    model: ModelReference | str | None = None

    def order(self, architecture: EncoderArchitecture) -> list[int]:
        """Return the places of the texts in the order in which the session reads them: by padded length, so that parties
        learn nothing of which text has which. Raises `ConfigurationError` for a text that does not fit."""
        lengths = self._lengths(architecture)
        return sorted(range(len(lengths)), key=lengths.__getitem__)

    def _lengths(self, architecture: EncoderArchitecture) -> list[int]:
        return [padded_length(len(text.ids), architecture.positions) for text in self.texts]

    def plan(self, architecture: EncoderArchitecture) -> EncodingPlan:
        """Return what is public about it. Raises `ConfigurationError` for texts that do not fit."""
        plan = EncodingPlan(tuple(sorted(self._lengths(architecture))), self.output or architecture.usual_output)
        plan.check(architecture)
        return plan

    def sessions(self, architecture: EncoderArchitecture, most: int) -> Iterator[list[int]]:
        """Yield the places of the texts of each session that they take: one, where they have no more than `most` tokens with
        their padding."""
        lengths, found, total = self._lengths(architecture), list[int](), 0
        for place in self.order(architecture):
            if found and (total + lengths[place] > most or len(found) == MOST_TEXTS):
                yield found
                found, total = [], 0
            found, total = [*found, place], total + lengths[place]
        yield found


def in_place(order: Sequence[int], values: Sequence[Tensor]) -> list[Tensor]:
    """Return values each at the place that `order` says of it."""
    return [value for _, value in sorted(zip(order, values, strict=True), key=lambda pair: pair[0])]


@dataclass(frozen=True)
class EncodingResult:
    """What a session gave. values: the output of each text, float64 [rows, columns], secret. costs, seconds: as in
    `GenerationResult`. plan: public. findings: what left its declared range on the way; then there are no values."""

    values: list[Tensor] | None = field(repr=False)
    plan: EncodingPlan
    costs: dict[str, dict[str, Any]] = field(repr=False)
    seconds: float
    session: str
    findings: tuple[RangeFinding, ...] = ()

    def checked(self) -> list[Tensor]:
        """Return the values, text by text. Raises `RangeExceeded` if a value left its range."""
        if self.values is None:
            raise RangeExceeded(self.findings)
        return self.values


class EncodingSession(Conversation):
    """Runs one encoding; then `values` by text, or what left its range in `findings`. The parties send an output a batch and
    cannot tell whether it was of use."""

    def __init__(
        self,
        id: str,
        config: RoleConfig,
        manifest: Manifest,
        agreed: tuple[EncoderArchitecture, EncodingPlan, Sequence[EncoderInput]],
        on_progress: Callable[[str, int, int], None],
    ) -> None:
        self.architecture, self.plan, self.texts = agreed
        super().__init__(id, config, manifest, self.architecture.layers, on_progress)
        self._rows = shared_rows(self.architecture, self.plan, self.texts)
        self._opened_batches: list[Tensor] = []
        self.values: list[Tensor] | None = None
        self.findings: tuple[RangeFinding, ...] = ()

    def _prompt(self) -> Tensor:
        return self._rows

    def _check_due(self, stream: PeerStream, state: Incoming, header: wire.OutputHeader) -> None:
        due = len(self.plan.batches)
        if state.step >= due:
            raise WireError(f"{stream.peer} sent output {header.step}, {due} were asked for")

    def _shape_due(self, step: int) -> tuple[int, ...]:
        count, length = self.plan.batches[step]
        rows, columns = self.architecture.output_shape(self.plan.output, length)
        return count * rows, columns

    def _outputs_over(self, state: Incoming) -> bool:
        return state.step == len(self.plan.batches)

    def _take(self, step: int, value: Tensor, flags: Sequence[bytes]) -> None:
        self.seconds = time.perf_counter() - self._began
        self.findings = tuple(dict.fromkeys((*self.findings, *self._left_range(0, flags))))
        self._opened_batches.append(value)
        if not self.findings and len(self._opened_batches) == len(self.plan.batches):
            self.values = results(self._opened_batches, self.plan, self.texts)
