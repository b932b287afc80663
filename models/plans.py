"""What parties may agree to compute: an answer of a decoder, one pass of an encoder, or the rows of a prefix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

from models.chunks import ChunkPlan
from models.drafting import DraftPlan
from models.encoding import EncodingPlan
from models.generation import GenerationPlan
from models.outputs import Decoding, Output
from models.prefixes import ROWS, PrefixPlan, Registering
from mpc.errors import ConfigurationError

AnyPlan = GenerationPlan | EncodingPlan | PrefixPlan
Leaving = Literal["greedy", "sample", "logits", "mean", "cls", "hidden", "pooled", "classes", "labels", "words", "rows"]
"""What leaves a program: a decoder's decoding, an encoder's output, or rows of a prefix, which parties keep."""
assert get_args(Leaving) == (*get_args(Decoding), *get_args(Output), *get_args(Registering))


@dataclass(frozen=True)
class Lengths:
    """Tokens of a session, public. prompt: of the prompt, new: the most that are generated, behind: of the registered prefix
    that the session begins behind, 0 without one. chunks: between it and the prompt. texts: of an encoder's session, the
    padded length of each where there are several; `prompt` is then their sum. padded: `prompt` counts padding in front."""

    prompt: int
    new: int = 1
    behind: int = 0
    chunks: ChunkPlan | None = None
    texts: tuple[int, ...] = ()
    padded: bool = False


def make_plan(lengths: Lengths, decoding: str, policy: str, temperature: float | None, draft: DraftPlan | None) -> AnyPlan:
    """Return the plan of public choices. Raises `ConfigurationError` for one that cannot be."""
    if decoding not in (*get_args(Output), ROWS):
        if lengths.texts:
            raise ConfigurationError(f"texts do not go with decoding '{decoding}': a decoder's session has one prompt")
        chosen = cast(Decoding, decoding)
        before = lengths.behind, lengths.chunks
        return GenerationPlan(lengths.prompt, lengths.new, chosen, policy, temperature, draft, *before, lengths.padded)
    what = "registering a prefix" if decoding == ROWS else "an encoder"
    for name, value, only in (
        ("policy", policy, policy if decoding == ROWS else "full"),
        ("new_tokens", lengths.new, 1),
        ("temperature", temperature, None),
        ("draft", draft, None),
        ("behind", lengths.behind, 0),
        ("chunks", lengths.chunks, None),
        ("padded", lengths.padded, False),
    ):
        if value != only:
            raise ConfigurationError(
                f"{name} = {value!r} does not go with decoding '{decoding}': {what} reads a text in one pass, without what "
                f"was cached before, and generates nothing; leave it out, or give {only!r}"
            )
    if decoding == ROWS:
        return PrefixPlan(lengths.prompt, policy)
    plan = EncodingPlan(lengths.texts or (lengths.prompt,), cast(Output, decoding))
    if plan.prompt_tokens != lengths.prompt:
        raise ConfigurationError(f"texts of {plan.prompt_tokens} tokens in all do not fit prompt_tokens = {lengths.prompt}")
    return plan
