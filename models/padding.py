"""Padding in front of a prompt, which hides how long it is: where it ends is secret, and nothing attends to it.

A session whose plan is `padded` has a prompt of P tokens, of which the first s are padding; P is public, and s is known to
the client alone. It shares P tokens and the number s. Of s the parties make a one-hot row, as of a token
(`Operations.one_hot`): whatever is shared stands for one number below P, so nobody can ask for anything but the answer to a
prompt. By that row alone, with no further opening, token t is marked as padding where t < s.

Scores of marked tokens take a bias of -`PADDING_BIAS`. How much attention they get is checked (`Suite.unattended`), by the
marks as a channel more of the values: the queries of padding itself see nothing else, so of theirs 1 is taken.

Rotary positions count distances, so those of a prompt that stands s tokens further on say the same. Learned ones are read at
secret places t - s modulo P: the one-hot row, turned by t, times the rows of the table, each masked once a session.

What stands in the padding is the prompt itself, again and again, so that no value is out of the ordinary.

Costs beside those of a prompt of P tokens: 2 rounds, log2 P bits and P ring elements for row and marks; for each query and
head an element more of what attention gives, and the check, a round beside others. With learned positions P ring elements
more, and D for each token's row of the table. Leaks: nothing; parties learn P in place of the length
(docs/security.md, "Padded prompts").
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.architecture import Architecture
from models.architectures import without_encoder
from mpc.errors import ConfigurationError
from protocols.suite import Suite, Value

PADDING_BIAS = 32
"""What is taken from the scores of padding: its probability is below e^-22 unless its score lies 10 above all others."""


def padded(ids: Sequence[int], length: int) -> Tensor:
    """Return what a client shares of a prompt that is padded to `length` tokens, int64 [1 + length]: how many are padding,
    and the tokens. Secret.

    >>> padded([5, 6, 7], 5).tolist()
    [2, 5, 6, 5, 6, 7]
    """
    before = length - len(ids)
    return torch.tensor([before, *itertools.islice(itertools.cycle(ids), before), *ids])


def bucket(tokens: int, buckets: Sequence[int]) -> int:
    """Return the least of `buckets` that holds so many tokens. Raises `ConfigurationError` where none does.

    >>> bucket(65, (128, 64))
    128
    """
    found = [length for length in buckets if length >= tokens]
    if not found:
        raise ConfigurationError(
            f"the prompt is longer than the largest of prompt_buckets = {', '.join(map(str, buckets))}: shorten it, or name "
            "a larger one"
        )
    return min(found)


def check_buckets(buckets: Sequence[int]) -> None:
    """Raise `ConfigurationError`, naming the argument, for lengths that are none or not positive."""
    if any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in buckets):
        raise ConfigurationError(f"prompt_buckets: lengths must be positive integers, got {list(buckets)}")


def check_alone(policy: str, others: Mapping[str, object]) -> None:
    """Raise `ConfigurationError`, naming it, for a policy or anything else that a padded prompt does not go with. others: by
    name; what is asked for is neither None nor 0."""
    wrong = [f"policy '{policy}'"] * (policy != "full") + [name for name, value in others.items() if value]
    if wrong:
        raise ConfigurationError(
            f"{', '.join(wrong)} cannot go with a padded prompt: padding is hidden from attention to a whole cache alone, "
            "a token a step; use policy full without draft, prefix and chunks, or leave out the prompt buckets"
        )


def check_padded(architecture: Architecture, prompt: int, new: int) -> None:
    """Raise `ConfigurationError` where a padded prompt would be answered in another way than without padding."""
    without_encoder(architecture, "a padded prompt")
    for rotary in architecture.rotaries:
        if rotary.scaling == "dynamic" and prompt + new > rotary.original_positions:
            raise ConfigurationError(
                f"a prompt padded to {prompt} tokens with {new} new ones turns its keys by the padded length from "
                f"{rotary.original_positions} tokens on in this model (rotary scaling 'dynamic'): use a smaller bucket, or "
                "no padding"
            )


def check_experts(suite: Suite, architecture: Architecture) -> None:
    """Raise `ConfigurationError` where padding would take places of experts that the prompt's tokens then miss."""
    if architecture.experts is not None and suite.experts.factor is not None:
        raise ConfigurationError(
            f"experts = capacity:{suite.experts.factor:g}: padding of a prompt would take places of its tokens; use "
            "experts=dense, or no padding"
        )


@dataclass
class Padding:
    """The padding of a session's prompt. marks: 1 at padding, 0 at tokens [P]. held: the same for all tokens so far, masked
    for products [1, S, 1]. row: one-hot at s, masked [P], None where the model has no learned positions. table: their rows
    for the places so far, masked [1, S, D]."""

    marks: Value
    held: Value
    row: Value | None = None
    table: Value | None = None

    @classmethod
    async def of(cls, suite: Suite, start: Value, length: int, learned: bool) -> Padding:
        """Return the padding of a prompt of `length` tokens. start: s, `Suite.indices` [1]. 2 rounds."""
        row = suite.with_bound((await suite.one_hot(start, length)).reshape(length), 1.0)
        marks = suite.with_bound(row.cumsum(0) * -1 + 1.0, 1.0)
        masked = [marks.reshape(1, length, 1), *([row.reshape(1, length, 1)] if learned else [])]
        held, *turned = await suite.together(*map(suite.mask_for_cache, masked))
        return cls(marks, held, turned[0].reshape(length) if learned else None)

    async def follow(self, suite: Suite, tokens: int) -> None:
        """Go on behind the prompt, where so many tokens are no padding. 1 round, or none where zeros need no mask."""
        none = suite.with_bound(suite.public(0.0, (1, tokens, 1)), 1.0)
        self.held = await suite.append(self.held, none, 1)

    async def places(self, suite: Suite, table: Value, first: int, tokens: int) -> Value:
        """Return the rows [tokens, D] of learned positions of the prompt, `first` 0, or of the token at place `first` behind
        it. table: [positions, D]. 1 round."""
        assert self.row is not None
        length = self.row.shape[0]
        new = table[first : first + tokens]
        rows = new.reshape(1, *new.shape)
        self.table = await (suite.mask_for_cache(rows) if self.table is None else suite.append(self.table, rows, 1))
        count = self.table.shape[1]
        last = self.table if count == length else self.table[:, count - length :]
        turns = torch.arange(first, first + tokens)[:, None] - torch.arange(first + tokens - length, first + tokens)[None]
        found = await suite.matmul(self.row[turns % length].reshape(1, tokens, length), last)
        return suite.bounded_as(found, new, 0).reshape(tokens, table.shape[1])

    def marked(self, suite: Suite, values: Value) -> Value:
        """Return the values [G, S, C] of the last S tokens, masked, with their marks as a channel more; local."""
        groups, tokens, _ = values.shape
        marks = self.held[:, self.held.shape[1] - tokens :]
        return suite.concat([values, suite.concat([marks] * groups, 0)], 2)

    def bias(self, suite: Suite, cached: int, seen: int) -> Value:
        """Return what is added to the scores of the last `cached` of `seen` tokens, [1, 1, S]; local."""
        marks = self._of(suite, seen - cached, cached)
        return suite.with_bound(marks * -PADDING_BIAS, PADDING_BIAS).reshape(1, 1, cached)

    def wrong(self, suite: Suite, mass: Value, seen: int, group: int) -> Value:
        """Return how much of the attention of the last queries is on padding and should not be, of what it is, `mass`
        [G, R n, 1] of n of `seen` tokens; local."""
        rows = mass.shape[1] // group
        own = self._of(suite, seen - rows, rows).reshape(1, 1, rows, 1).expand(mass.shape[0], group, rows, 1)
        return mass - own.reshape(*mass.shape)

    def _of(self, suite: Suite, first: int, tokens: int) -> Value:
        """Return the marks of tokens from place `first` on: behind the prompt there are none."""
        length = self.marks.shape[0]
        own = self.marks[min(first, length) : min(first + tokens, length)]
        behind = tokens - own.shape[0]
        return suite.concat([own, suite.public(0.0, (behind,))], 0) if behind else own
