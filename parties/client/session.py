"""One generation at the client: what it does with each output, and when the answer ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from models.architecture import Architecture
from models.episodes import with_probes
from models.generation import capped
from models.padding import padded
from models.policies import parse
from mpc.errors import ConfigurationError, WireError
from mpc.packing import unpack
from mpc.ring import reduce
from parties.client.conversation import Conversation
from parties.client.drafting import Draft
from parties.client.outputs import Incoming
from parties.client.sampling import choose, seeded
from parties.client.sampling_params import SamplingParams
from parties.client.steps import Steps
from parties.config.role_config import RoleConfig
from parties.errors import WrongOutput
from parties.transport.peer_stream import PeerStream
from parties.wire import wire_pb2 as wire
from parties.wire.draft import kept
from parties.wire.held_prefix import RegisteredPrefix
from parties.wire.manifest import Manifest
from parties.wire.shares import COUNT_BITS
from protocols.range_findings import RangeFinding

FinishReason = Literal["stop", "length", "range"]


@dataclass(frozen=True)
class AgreedRequest:
    """A request with the manifest that all parties get for it. The prompt's token ids are secret. draft: how this client
    guesses, where the manifest has a draft. prefix: what the prompt continues, None without. places: which candidate each
    slot for a chunk reads, secret."""

    manifest: Manifest
    architecture: Architecture
    prompt_ids: list[int] = field(repr=False)
    params: SamplingParams
    draft: Draft | None = None
    prefix: RegisteredPrefix | None = None
    places: tuple[int, ...] = field(default=(), repr=False)

    @property
    def text_ids(self) -> list[int]:
        """Return the tokens of the whole text that this client knows before the answer."""
        return [*((self.prefix.text or ()) if self.prefix is not None else ()), *self.prompt_ids]


class ClientSession(Conversation):
    """Runs one generation against connected channels; then `tokens`, `costs`, why it ended and the times are there.

    An output on whose way a value left its range is not used: generation ends before its token, with what left its range in
    `findings`. The parties are told to finish as after a stop token, by the same message at the same moment: they cannot
    tell the two apart.

    A client that stops early tells the parties the answer's length, and a party that shifts its output shares whether that
    changed it. With `fixed_length` nothing that is sent depends on what is opened: whatever ends the answer (a stop token,
    the caller, a value beyond its range, an `adjust` that leaves no choice) ends it here alone, and the session goes on to
    its full number of tokens with the same messages.

    Shares that do not add up to a token end nothing here: the session goes on as after any token that is no stop token, to
    the next stop token or value beyond its range (with `fixed_length` to its full number), and `run` then raises
    `WrongOutput`. The caller sees no token after it, so that whatever else would have ended the answer no longer does.

    With a draft an output has a choice for each row of its step, and parties are told how many rows stay: as many as choices
    are tokens of the answer. An output on whose way a value left its range ends the answer before all of its tokens.
    """

    def __init__(
        self,
        id: str,
        config: RoleConfig,
        request: AgreedRequest,
        on_token: Callable[[int], bool | None],
        on_progress: Callable[[str, int, int], None],
    ) -> None:
        super().__init__(id, config, request.manifest, request.architecture.layers, on_progress)
        self.request = request
        self.stop_ids = request.params.ends(request.architecture.eos)
        self.tokens: list[int] = []
        self.token_seconds: list[float] = []
        self.finish_reason: FinishReason = "length"
        self.findings: tuple[RangeFinding, ...] = ()
        self.dropped_choices: int | None = None
        self._answered = False  # the answer is complete: outputs that still come are not looked at
        self._over = False  # and the parties have been told to finish
        self._on_token = on_token
        self._logits: list[Tensor] = []
        self._prg = None if request.params.seed is None else seeded(request.params.seed)
        self._steps = Steps(request.text_ids, request.manifest.new_tokens, request.draft)

    def all_logits(self) -> Tensor | None:
        """Return logits of all steps with a token, float64 [tokens, V]; None unless decoding was "logits"."""
        if self.request.manifest.decoding != "logits":
            return None
        none = torch.empty(0, self.request.architecture.vocabulary, dtype=torch.float64)
        return torch.stack(self._logits) if self._logits else none

    # ---- shares out --------------------------------------------------------------------------------------------------
    def _prompt(self) -> Tensor:
        if self.request.manifest.padded:
            return padded(self.request.prompt_ids, self.request.manifest.prompt_tokens)
        prompt = with_probes(self.request.prompt_ids, parse(self.request.manifest.policy).probes)
        return torch.tensor([*self.request.places, *prompt])

    def _go_on(self, step: int, stay: int, token: int) -> None:
        """Send what the parties need for the output after `step`: with a draft how many of its rows stay and the rows of the
        next step, in decoding "logits" the token. Nothing but the former where no more output is to come."""
        rows = len(self._steps.rows)
        if self.request.draft is not None and rows > 1:
            for stream in self._parties:
                self._send(stream, wire.ClientMessage(kept=kept(step, stay)))
        if not self._steps.left:
            return
        if self.request.draft is not None:
            draft = self._steps.draft()
            self._share("draft", step, (len(draft),), iter([torch.tensor(draft)]))
        elif self.request.manifest.decoding == "logits":
            self._share("token", step, (1,), iter([torch.tensor([token])]))

    def _check_due(self, stream: PeerStream, state: Incoming, header: wire.OutputHeader) -> None:
        if state.step >= self.request.manifest.new_tokens:
            raise WireError(f"{stream.peer} sent output {header.step}, {self.request.manifest.new_tokens} were asked for")
        if self.request.draft is not None and state.step > self._steps.taken:
            raise WireError(f"{stream.peer} sent output {header.step} before it had the draft's rows for it")

    def _shape_due(self, step: int) -> tuple[int, ...]:
        """Return the shape of the output that is due: a choice for each row, or logits."""
        if self.request.manifest.decoding == "logits":
            return 1, self.request.architecture.vocabulary
        return (len(self._steps.rows),)

    # ---- outputs -----------------------------------------------------------------------------------------------------
    def _ignores(self) -> bool:
        return self._over

    def _outputs_over(self, state: Incoming) -> bool:
        return self._over or state.step == self._steps.outputs

    def _count_dropped(self, shares: Sequence[bytes]) -> None:
        self.dropped_choices = _count(shares)

    def _take(self, step: int, value: Tensor, flags: Sequence[bytes]) -> None:
        """Go on as the class says."""
        if self.request.manifest.decoding == "logits":
            value = capped(self.request.architecture, value)
        if self._answered:
            self._choose_idly(value)
        elif findings := self._left_range(self._steps.produced, flags):
            self.findings = findings
            self.seconds = time.perf_counter() - self._began
            self._end(step, "range")
        if self._over:
            return
        choices = [None] if self._answered and value.dim() == 2 else self._choices(value)
        first = self._steps.produced
        stay = self._steps.take(choices)
        early = self._answered or self.request.params.fixed_length  # when it is sent depends on nothing that the caller does
        if early:
            self._go_on(step, stay, choices[0] or 0)
        self._answer(step, first, choices[:stay])
        if not early and not self._over:
            self._go_on(step, stay, choices[stay - 1] or 0)

    def _answer(self, step: int, first: int, choices: Sequence[int | None]) -> None:
        """Give the caller the tokens of output `step`, up to what ends the answer. first: the number of the first one."""
        for number, token in enumerate(choices, first):
            if self._answered:
                return
            if token is None:
                self._problem = self._problem or WrongOutput(number, self.request.manifest.parties, self.tokens)
            elif self._problem is None:
                self._accept(step, token)
            elif token in self.stop_ids:
                self._end(step, "stop")

    def _choices(self, value: Tensor) -> list[int | None]:
        """Return the tokens of an opened output [n], None for what is none; of logits [1, V] the chosen one."""
        if self.request.manifest.decoding == "logits":
            try:
                token = self._choose(value[0])
            except ConfigurationError as error:
                if not self.request.params.fixed_length:
                    raise
                self._problem, self._answered = error, True
                return [None]
            self._logits.append(value[0])
            return [token]
        found = [round(float(x)) for x in value]
        vocabulary = self.request.architecture.vocabulary
        whole = [0 <= token < vocabulary and float(x) == token for token, x in zip(found, value, strict=True)]
        return [token if fits else None for token, fits in zip(found, whole, strict=True)]

    def _choose_idly(self, value: Tensor) -> None:
        """Work, after the answer, as much as a choice takes, so that what is sent next comes no sooner."""
        if self.request.manifest.decoding == "logits":
            with suppress(Exception):
                self._choose(value[0])

    def _choose(self, logits: Tensor) -> int:
        """Choose a token from opened logits [V]. Raises `ConfigurationError` when `adjust` leaves no choice."""
        params = self.request.params
        tokens = [*self.request.architecture.continued(self.request.text_ids), *self.tokens]
        adjusted = logits if params.adjust is None else params.adjust(logits, tokens)
        if not math.isfinite(float(adjusted.max())):
            raise ConfigurationError(
                f"adjust (or a logits processor) returned logits for token {len(self.tokens) + 1} whose largest is "
                f"{float(adjusted.max())}: it must leave at least one token to choose, and give no NaN"
            )
        return choose(adjusted, params.temperature, params.top_k, params.top_p, self._prg)

    def _accept(self, step: int, token: int) -> None:
        self.seconds = time.perf_counter() - self._began
        self.tokens.append(token)
        self.token_seconds.append(self.seconds)
        self.step = f"token {step + 1}"
        more = self._on_token(token)
        if more is False or token in self.stop_ids:
            self._end(step, "stop")

    def _end(self, step: int, reason: FinishReason) -> None:
        """End the answer with this output. Whatever the reason, the parties are told the same, if they would go on and the
        length is not fixed."""
        self.finish_reason = reason
        self._answered = True
        if self.request.params.fixed_length:
            return
        self._over = True
        if step + 1 != self._steps.outputs or len(self._steps.rows) > 1:  # else nothing is waited for
            for stream in self._parties:
                self._send(stream, wire.ClientMessage(finish=wire.Finish()))


def _count(shares: Sequence[bytes]) -> int:
    """Return a number from all parties' shares of it."""
    total = torch.stack([unpack(share, COUNT_BITS, (1,)) for share in shares]).sum(0)
    return int(reduce(total, COUNT_BITS))
