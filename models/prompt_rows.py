"""What a session has of a prompt beside its cached rows, secret: what an encoder read, padding, what looks at batches."""

from __future__ import annotations

from dataclasses import dataclass, field

from models.padding import Padding
from protocols.suite import Value


@dataclass
class PromptRows:
    """What a decoder has of its prompt: made with the first token, the same for all that follow.

    rows: of an encoder that read it, normalised, [P, D], until every layer has its keys and values of them; None before and
    after that. keys_and_values: of them, of each layer of the decoder, [G, P, C] each. start: of a padded prompt, how many
    of its tokens are padding, `Suite.indices` [1], until `padding` is made of it; None without padding."""

    rows: Value | None = None
    keys_and_values: dict[int, tuple[Value, Value]] = field(default_factory=dict)
    start: Value | None = None
    padding: Padding | None = None


@dataclass
class Looking:
    """Tokens that a policy has look at batches of a prompt, behind each of them, while it is processed; they are not cached.

    end [n, D]: the prompt's last ones, embedded at their own places. probes [P, D]: others, before they are at a place,
    which is behind the batch. ahead: how many of either look at the present batch; public.
    """

    end: Value | None = None
    probes: Value | None = None
    ahead: int = 0
