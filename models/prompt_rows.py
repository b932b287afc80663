"""Rows of a prompt beside those that are cached, secret: what an encoder read of it, and what looks at its batches."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocols.suite import Value


@dataclass
class PromptRows:
    """What a decoder has of a prompt that an encoder read: made with its first token, the same for all that follow.

    rows: normalised, [P, D], until every layer has its keys and values of them; None before and after that.
    keys_and_values: of each layer of the decoder, [G, P, C] each."""

    rows: Value | None = None
    keys_and_values: dict[int, tuple[Value, Value]] = field(default_factory=dict)


@dataclass
class Looking:
    """Tokens that a policy has look at batches of a prompt, behind each of them, while it is processed; they are not cached.

    end [n, D]: the prompt's last ones, embedded at their own places. probes [P, D]: others, before they are at a place,
    which is behind the batch. ahead: how many of either look at the present batch; public.
    """

    end: Value | None = None
    probes: Value | None = None
    ahead: int = 0
