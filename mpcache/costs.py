"""What a private generation would cost, computed from public sizes alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike, fspath

from models.costs.estimation import estimate as trace
from models.costs.tracing import Setting, StageCosts
from models.encoder_architecture import EncoderArchitecture
from models.shapes import find_description, with_positions
from mpc.errors import ConfigurationError
from protocols.registry import DEFAULT_SUITE

_DEFAULT = Setting(DEFAULT_SUITE)


@dataclass(frozen=True)
class GenerationCosts:
    """Costs of a generation for a compute party, by stage.

    model_load: masking the weights, in the first session of a model and not in later ones. first_token: the prompt and the
    first token. further_tokens: all tokens after it together. session: `first_token` and `further_tokens`. memory_bytes:
    what a party needs at most, with its weights.
    """

    model_load: StageCosts
    first_token: StageCosts
    further_tokens: StageCosts
    session: StageCosts
    memory_bytes: int


def estimate(
    model: str | PathLike[str], prompt_tokens: int, new_tokens: int = 1, setting: Setting = _DEFAULT, kept: int = 1
) -> GenerationCosts:
    """Return what it costs to answer a prompt of `prompt_tokens` tokens with `new_tokens` tokens, without running it.

    Of an encoder it is one pass over a text of `prompt_tokens` tokens, padding included, to the output that it was trained
    for or that `setting.decoding` names.

    model: a known shape ("gpt2", "bert-base", ...; `models.shapes`), a checkpoint's folder, its config.json or a GGUF file;
    no weights are read. setting: suite, number of parties, cache policy, suite options, decoding and draft; suite `masked`,
    two parties and the full cache by default. kept: rows of a drafted step that stay, 1 at worst. Lengths beyond the model's
    own positions are estimated as if it had them.

    The session's own program runs on tensors without content, and what it counts is what parties count on the wire. Raises
    `ConfigurationError` for a length, suite, policy or option that cannot work, `CheckpointError` for an unsupported model.

    >>> costs = estimate("tiny", prompt_tokens=16, new_tokens=3)
    >>> costs.session.rounds == costs.first_token.rounds + costs.further_tokens.rounds
    True
    >>> three = estimate("tiny", prompt_tokens=16, new_tokens=3, setting=Setting("masked", parties=3))
    >>> three.session.bytes_sent > costs.session.bytes_sent
    True
    """
    for name, value in (("prompt_tokens", prompt_tokens), ("new_tokens", new_tokens), ("kept", kept)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"{name} = {value!r} must be a whole number, 1 or more")
    described = find_description(fspath(model))
    if isinstance(described, EncoderArchitecture) and setting.decoding == "greedy":
        setting = replace(setting, decoding=described.usual_output)
    architecture = with_positions(described, prompt_tokens + new_tokens - 1)
    found = trace(architecture, setting, prompt_tokens, new_tokens, kept=kept)
    return GenerationCosts(
        model_load=StageCosts.of(found.load),
        first_token=StageCosts.of(found.first),
        further_tokens=StageCosts.of(found.further),
        session=StageCosts.of(found.total),
        memory_bytes=found.memory_bytes,
    )
