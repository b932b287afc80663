"""Passes of an encoder over texts: the program that compute parties, dealer and the plain reference all run.

What leaves the program goes to the client alone, as output shares, one step a batch. What is public: how many texts there
are, the padded length of each, and which output is wanted (`EncodingPlan`). Texts are padded to few lengths
(`padded_length`), so parties learn a text's length to within a bucket. Of a mean the parties make the sum of the rows that
the client marks, with shares of 1 at its n tokens; the client divides by n: no party divides by a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise
from typing import ClassVar

import torch
from torch import Tensor

from models.architectures import AnyArchitecture, encoder_of
from models.checkpoint import Checkpoint
from models.encoder import ROWS, Batch, Encoder, Probe
from models.encoder_architecture import EncoderArchitecture
from models.generation import Endpoint, token_indices
from models.loaded import load_weights
from models.outputs import Output
from mpc.errors import ConfigurationError
from protocols.plain.suite import PlainSuite
from protocols.suite import Suite, Value

SMALLEST = 16
BATCH_TOKENS = 512
"""Most tokens of a batch of several texts, padding included: what a party holds at once grows with them, and from some
hundred tokens on the bytes of a batch take longer than its rounds."""
MOST_TEXTS = 2048
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class EncodingPlan:
    """What is public about an encoding. texts: the padded length of each text, in order: neighbours of one length are read
    together, in batches of at most `BATCH_TOKENS` tokens. output: what the client learns of each. Raises
    `ConfigurationError` naming the argument and its value.

    >>> EncodingPlan((16, 16, 32), "mean").batches
    ((2, 16), (1, 32))
    """

    texts: tuple[int, ...]
    output: Output

    new_tokens: ClassVar[int] = 1
    policy: ClassVar[str] = "full"
    temperature: ClassVar[None] = None
    draft: ClassVar[None] = None
    behind: ClassVar[int] = 0
    chunks: ClassVar[None] = None
    padded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.texts) <= MOST_TEXTS:
            raise ConfigurationError(f"texts: a session reads 1 to {MOST_TEXTS} of them, got {len(self.texts)}")
        for tokens in self.texts:
            if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
                raise ConfigurationError(f"texts: a length must be a positive integer, got {tokens!r}")

    @property
    def decoding(self) -> Output:
        """What leaves the program."""
        return self.output

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all texts, padding included."""
        return sum(self.texts)

    @property
    def prompt_shape(self) -> tuple[int, int]:
        """Shape of what the client shares of its texts."""
        return len(ROWS), self.prompt_tokens

    @property
    def batches(self) -> tuple[tuple[int, int], ...]:
        """Return how many texts each batch has, and of which padded length."""
        found = []
        for length, same in groupby(self.texts):
            count, most = len(list(same)), max(1, BATCH_TOKENS // length)
            found += [(min(most, count - first), length) for first in range(0, count, most)]
        return tuple(found)

    def check(self, described: AnyArchitecture) -> None:
        """Raise `ConfigurationError` unless the model is an encoder, has the positions and the output."""
        architecture = encoder_of(described, f"output '{self.output}'")
        architecture.check_output(self.output)
        if max(self.texts) > architecture.positions:
            raise ConfigurationError(
                f"a text of {max(self.texts)} tokens, padding included, does not fit the model's "
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

    def rows(self, architecture: EncoderArchitecture, length: int, output: Output) -> Tensor:
        """Return what the client shares of a text that is padded to `length` tokens, int64 [4, T] (`models.encoder.ROWS`).
        Raises `ConfigurationError` naming what does not fit, not its (secret) value."""
        count, padding = len(self.ids), length - len(self.ids)
        if padding < 0:
            raise ConfigurationError(f"the text has {count} tokens, the plan has room for {length}")
        architecture.check_text(self.ids)
        ids = token_indices([*self.ids, *([architecture.pad] * padding)], architecture.vocabulary)
        types = list(self.types) or [0] * count
        if len(types) != count or not all(0 <= kind < architecture.types for kind in types):
            raise ConfigurationError(f"types: one of 0 to {architecture.types - 1} is needed for each of the {count} tokens")
        mask = torch.zeros(length, dtype=torch.int64)
        mask[:count] = 1
        return torch.stack([ids, mask, torch.tensor([*types, *([0] * padding)]), self._places(output, mask)])

    def _places(self, output: Output, mask: Tensor) -> Tensor:
        if output != "words":
            return mask
        if self.place is None or not 0 <= self.place < len(self.ids):
            raise ConfigurationError(f"place: output 'words' needs one of the text's {len(self.ids)} places")
        return (torch.arange(len(mask)) == self.place).to(torch.int64)

    def result(self, opened: Tensor, output: Output) -> Tensor:
        """Return an output of the text, from what was opened: without the rows of padding, the mean of a sum."""
        if output == "mean":
            return opened / len(self.ids)
        return opened[: len(self.ids)] if output in ("hidden", "labels") else opened


def shared_rows(architecture: EncoderArchitecture, plan: EncodingPlan, texts: Sequence[EncoderInput]) -> Tensor:
    """Return what a client shares of its texts, int64 `plan.prompt_shape`. Raises `ConfigurationError` as
    `EncoderInput.rows` does."""
    plan.check(architecture)
    if len(texts) != len(plan.texts):
        raise ConfigurationError(f"{len(texts)} texts were given, the plan has {len(plan.texts)}")
    rows = [text.rows(architecture, length, plan.output) for text, length in zip(texts, plan.texts, strict=True)]
    return torch.cat(rows, 1)


def results(opened: Sequence[Tensor], plan: EncodingPlan, texts: Sequence[EncoderInput]) -> list[Tensor]:
    """Return the output of each text, of those of all batches."""
    each = [rows for (count, _), found in zip(plan.batches, opened, strict=True) for rows in found.chunk(count)]
    return [text.result(rows, plan.output) for text, rows in zip(texts, each, strict=True)]


async def encode(suite: Suite, encoder: Encoder, plan: EncodingPlan, share: Tensor | None, endpoint: Endpoint) -> int:
    """Run the plan; returns the number of outputs, one a batch.

    share: this party's share of the client's rows, int64 `plan.prompt_shape`; None at the dealer. Ledger stage "prefill".
    """
    plan.check(encoder.architecture)
    sizes = plan.batches

    for number, given in enumerate(by_batch(plan, share)):

        def progress(done: int, total: int, before: int = number) -> None:
            endpoint.progress("prefill", before * total + done, len(sizes) * total)

        with suite.ledger.timed("prefill"):
            found = await outputs(suite, encoder, sizes[number], plan.output, given, progress)
            shown = replace(suite.output(found), flags=suite.flags())
        if not endpoint.emit(number, shown):
            return number + 1
    return len(sizes)


def by_batch(plan: EncodingPlan, share: Tensor | None) -> list[Tensor | None]:
    """Return a role's share of what the client shared, `plan.prompt_shape`, by batch."""
    ends = list(accumulate((count * length for count, length in plan.batches), initial=0))
    return [None if share is None else share[:, first:end] for first, end in pairwise(ends)]


async def outputs(
    suite: Suite,
    encoder: Encoder,
    sizes: tuple[int, int],
    output: Output,
    share: Tensor | None,
    progress: Progress = lambda done, total: None,
) -> Value:
    """Return what the client is to learn of a batch, [rows, columns]. sizes: texts, and their padded length. share: of this
    role, int64 [4, texts * length]. progress: as in `Encoder.forward`."""
    texts = Batch.shared(suite, encoder.architecture, sizes, share)
    rows = await encoder.forward(texts, progress)
    return await encoder.output(rows, texts, output)


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
        plan = EncodingPlan((length,), output)
        (found,) = self.run(shared_rows(self.architecture, plan, [text]), plan, probe)
        return text.result(found, output)

    @torch.inference_mode()
    def run(self, rows: Tensor, plan: EncodingPlan, probe: Probe | None = None) -> list[Tensor]:
        """Return what a plan gives for a client's rows, batch by batch, as it leaves the program."""
        suite, encoder = self.suite, Encoder(self.suite, self.architecture, self.weights, probe)
        given = zip(plan.batches, by_batch(plan, rows), strict=True)
        return [suite.output(suite.run(outputs(suite, encoder, sizes, plan.output, part))).share for sizes, part in given]
