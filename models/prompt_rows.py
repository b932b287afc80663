"""What a decoder has of a prompt that an encoder read: secret, made with its first token, the same for all that follow."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocols.suite import Value


@dataclass
class PromptRows:
    """rows: normalised, [P, D], until every layer has its keys and values of them; None before and after that.
    keys_and_values: of each layer of the decoder, [G, P, C] each."""

    rows: Value | None = None
    keys_and_values: dict[int, tuple[Value, Value]] = field(default_factory=dict)
