"""One pass of an encoder over a text: the program that compute parties, dealer and the plain reference all run.

What leaves the program goes to the client alone, as output shares of step 0. What is public: the padded length and which
output is wanted (`EncodingPlan`). Texts are padded to few lengths (`padded_length`), so parties learn a text's length to
within a bucket. Of a mean the parties make the sum of the rows that the client marks, with shares of 1 at its n tokens; the
client divides by n: no party divides by a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from models.architectures import AnyArchitecture, encoder_of
from models.checkpoint import Checkpoint
from models.encoder import ROWS, Encoder, Probe, Text
from models.encoder_architecture import EncoderArchitecture
from models.generation import Endpoint, token_indices
from models.loaded import load_weights
from models.outputs import Output
from mpc.errors import ConfigurationError
from protocols.plain.suite import PlainSuite
from protocols.suite import Suite, Value

SMALLEST = 16
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class EncodingPlan:
    """What is public about an encoding. prompt_tokens: of the padded text. output: what the client learns. Raises
    `ConfigurationError` naming the argument and its value."""

    prompt_tokens: int
    output: Output

    new_tokens: ClassVar[int] = 1
    policy: ClassVar[str] = "full"
    temperature: ClassVar[None] = None
    draft: ClassVar[None] = None
    behind: ClassVar[int] = 0

    def __post_init__(self) -> None:
        tokens = self.prompt_tokens
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
            raise ConfigurationError(f"prompt_tokens must be a positive integer, got {tokens!r}")

    @property
    def decoding(self) -> Output:
        """What leaves the program."""
        return self.output

    @property
    def prompt_shape(self) -> tuple[int, int]:
        """Shape of what the client shares of its text."""
        return len(ROWS), self.prompt_tokens

    def check(self, described: AnyArchitecture) -> None:
        """Raise `ConfigurationError` unless the model is an encoder, has the positions and the output."""
        architecture = encoder_of(described, f"output '{self.output}'")
        architecture.check_output(self.output)
        if self.prompt_tokens > architecture.positions:
            raise ConfigurationError(
                f"a text of {self.prompt_tokens} tokens, padding included, does not fit the model's "
                f"{architecture.positions} positions; shorten it"
            )


def padded_length(tokens: int, most: int) -> int:
    """Return the length that a text of so many tokens is padded to: 16, or the next of 1, 1.5 times a power of two, at most
    `most`, the model's positions. Raises `ConfigurationError` for a text that does not fit.

    >>> [padded_length(n, 512) for n in (3, 17, 24, 25, 100, 400)]
    [16, 24, 24, 32, 128, 512]
    """
    if tokens > most:
        raise ConfigurationError(
            f"the text has {tokens} tokens with its special ones, the model has {most} positions; shorten it"
        )
    power = SMALLEST
    while power < tokens:
        power *= 2
    length = power * 3 // 4 if power > SMALLEST and tokens <= power * 3 // 4 else power
    return min(length, most)


@dataclass(frozen=True)
class EncoderInput:
    """A text as its client knows it; secret. ids: its tokens, special ones included. types: of each, all 0 by default.
    place: whose word is wanted, for output "words"."""

    ids: Sequence[int]
    types: Sequence[int] = ()
    place: int | None = None

    def rows(self, architecture: EncoderArchitecture, plan: EncodingPlan) -> Tensor:
        """Return what the client shares, int64 [4, T] (`models.encoder.ROWS`). Raises `ConfigurationError` naming what does
        not fit, not its (secret) value."""
        plan.check(architecture)
        count, padding = len(self.ids), plan.prompt_tokens - len(self.ids)
        if padding < 0:
            raise ConfigurationError(f"the text has {count} tokens, the plan has room for {plan.prompt_tokens}")
        ids = token_indices([*self.ids, *([architecture.pad] * padding)], architecture.vocabulary)
        types = list(self.types) or [0] * count
        if len(types) != count or not all(0 <= kind < architecture.types for kind in types):
            raise ConfigurationError(f"types: one of 0 to {architecture.types - 1} is needed for each of the {count} tokens")
        mask = torch.zeros(plan.prompt_tokens, dtype=torch.int64)
        mask[:count] = 1
        return torch.stack([ids, mask, torch.tensor([*types, *([0] * padding)]), self._places(plan, mask)])

    def _places(self, plan: EncodingPlan, mask: Tensor) -> Tensor:
        if plan.output != "words":
            return mask
        if self.place is None or not 0 <= self.place < len(self.ids):
            raise ConfigurationError(f"place: output 'words' needs one of the text's {len(self.ids)} places")
        return (torch.arange(len(mask)) == self.place).to(torch.int64)

    def result(self, opened: Tensor, output: Output) -> Tensor:
        """Return an output of the text, from what was opened: without the rows of padding, the mean of a sum."""
        if output == "mean":
            return opened / len(self.ids)
        return opened[: len(self.ids)] if output in ("hidden", "labels") else opened


async def encode(suite: Suite, encoder: Encoder, plan: EncodingPlan, share: Tensor | None, endpoint: Endpoint) -> int:
    """Run the plan; returns the number of outputs, 1.

    share: this party's share of the client's rows, int64 `plan.prompt_shape`; None at the dealer. Ledger stage "prefill".
    """
    plan.check(encoder.architecture)

    def progress(done: int, total: int) -> None:
        endpoint.progress("prefill", done, total)

    with suite.ledger.timed("prefill"):
        found = await outputs(suite, encoder, plan, share, progress)
        shown = replace(suite.output(found), flags=suite.flags())
    endpoint.emit(0, shown)
    return 1


async def outputs(
    suite: Suite,
    encoder: Encoder,
    plan: EncodingPlan,
    share: Tensor | None,
    progress: Progress = lambda done, total: None,
) -> Value:
    """Return what the client is to learn, [rows, columns]; arguments as in `encode`."""
    text = Text.shared(suite, encoder.architecture, plan.prompt_tokens, share)
    rows = await encoder.forward(text, progress)
    return await encoder.output(rows, text, plan.output)


class PlainEncoder:
    """A checkpoint of an encoder loaded into the suite `plain`: the reference for what parties compute."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, suite: PlainSuite | None = None) -> None:
        self.architecture = architecture = checkpoint.encoder
        self.suite = PlainSuite(dtype) if suite is None else suite
        self.weights: dict[str, Value] = self.suite.run(
            load_weights(self.suite, architecture, checkpoint.weights.__getitem__)
        )

    @torch.inference_mode()
    def output(self, text: EncoderInput, output: Output, padded: int | None = None, probe: Probe | None = None) -> Tensor:
        """Return an output of a text, [rows, columns]. padded: its length with padding, by default as sessions pad it."""
        length = padded_length(len(text.ids), self.architecture.positions) if padded is None else padded
        plan = EncodingPlan(length, output)
        return text.result(self.run(text.rows(self.architecture, plan), plan, probe), output)

    @torch.inference_mode()
    def run(self, rows: Tensor, plan: EncodingPlan, probe: Probe | None = None) -> Tensor:
        """Return what a plan gives for a client's rows, as it leaves the program."""
        encoder = Encoder(self.suite, self.architecture, self.weights, probe)
        return self.suite.output(self.suite.run(outputs(self.suite, encoder, plan, rows))).share
