"""One text at running encoders: what is asked for, the session in which it is, and what it gave."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from models.encoder_architecture import EncoderArchitecture
from models.encoding import EncoderInput, EncodingPlan, padded_length
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
    """What one pass of an encoder asks for. The text is secret.

    output: what this client learns, None for what the checkpoint was trained for. padded: the public length that the text
    is padded to, None for the next of few (`models.encoding.padded_length`). suite, model: as in `GenerationRequest`.
    """

    text: EncoderInput = field(repr=False)
    output: Output | None = None
    padded: int | None = None
    suite: SuiteSpec = USUAL
    model: ModelReference | str | None = None

    def plan(self, architecture: EncoderArchitecture) -> EncodingPlan:
        """Return what is public about it. Raises `ConfigurationError` for a text that does not fit."""
        count = len(self.text.ids)
        padded = padded_length(count, architecture.positions) if self.padded is None else self.padded
        plan = EncodingPlan(padded, self.output or architecture.usual_output)
        plan.check(architecture)
        return plan


@dataclass(frozen=True)
class EncodingResult:
    """What a session gave. values: the output, float64 [rows, columns], secret. costs, seconds: as in `GenerationResult`.
    plan: public. findings: what left its declared range on the way; then there are no values."""

    values: Tensor | None = field(repr=False)
    plan: EncodingPlan
    costs: dict[str, dict[str, Any]] = field(repr=False)
    seconds: float
    session: str
    findings: tuple[RangeFinding, ...] = ()

    def checked(self) -> Tensor:
        """Return the values. Raises `RangeExceeded` if a value left its range."""
        if self.values is None:
            raise RangeExceeded(self.findings)
        return self.values


class EncodingSession(Conversation):
    """Runs one encoding; then `values`, or what left its range in `findings`. The parties send one output and cannot tell
    whether it was of use."""

    def __init__(
        self,
        id: str,
        config: RoleConfig,
        manifest: Manifest,
        agreed: tuple[EncoderArchitecture, EncodingPlan, EncoderInput],
        on_progress: Callable[[str, int, int], None],
    ) -> None:
        self.architecture, self.plan, self.text = agreed
        super().__init__(id, config, manifest, self.architecture.layers, on_progress)
        self._rows = self.text.rows(self.architecture, self.plan)
        self.values: Tensor | None = None
        self.findings: tuple[RangeFinding, ...] = ()

    def _prompt(self) -> Tensor:
        return self._rows

    def _check_due(self, stream: PeerStream, state: Incoming, header: wire.OutputHeader) -> None:
        if state.step:
            raise WireError(f"{stream.peer} sent output {header.step}, one was asked for")

    def _shape_due(self) -> tuple[int, ...]:
        return self.architecture.output_shape(self.plan.output, self.plan.prompt_tokens)

    def _outputs_over(self, state: Incoming) -> bool:
        return state.step == 1

    def _take(self, step: int, value: Tensor, flags: Sequence[bytes]) -> None:
        self.seconds = time.perf_counter() - self._began
        self.findings = self._left_range(step, flags)
        if not self.findings:
            self.values = self.text.result(value, self.plan.output)
