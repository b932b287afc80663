"""What parties may agree to compute: an answer of a decoder, or one pass of an encoder."""

from __future__ import annotations

from typing import Literal, cast, get_args

from models.drafting import DraftPlan
from models.encoding import EncodingPlan
from models.generation import GenerationPlan
from models.outputs import Decoding, Output
from mpc.errors import ConfigurationError

AnyPlan = GenerationPlan | EncodingPlan
Leaving = Literal["greedy", "sample", "logits", "mean", "cls", "hidden", "pooled", "classes", "labels", "words"]
"""What leaves a program: a decoder's decoding, or an encoder's output."""
assert get_args(Leaving) == (*get_args(Decoding), *get_args(Output))


def make_plan(
    tokens: tuple[int, int], decoding: str, policy: str, temperature: float | None, draft: DraftPlan | None
) -> AnyPlan:
    """Return the plan of public choices. tokens: of the prompt, and new ones. Raises `ConfigurationError` for one that
    cannot be."""
    prompt, new = tokens
    if decoding not in get_args(Output):
        return GenerationPlan(prompt, new, cast(Decoding, decoding), policy, temperature, draft)
    for name, value, only in (
        ("policy", policy, "full"),
        ("new_tokens", new, 1),
        ("temperature", temperature, None),
        ("draft", draft, None),
    ):
        if value != only:
            raise ConfigurationError(
                f"{name} = {value!r} does not go with decoding '{decoding}': an encoder reads a text in one pass, without a "
                "cache, and generates nothing; leave it out"
            )
    return EncodingPlan(prompt, cast(Output, decoding))
