"""From an HTTP request's parameters to what the parties are asked: prompt ids, lengths and the way to choose tokens."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from launch.serve.gateway.catalogue import Served
from launch.serve.gateway.errors import ApiError, invalid
from launch.serve.gateway.formats import Held
from launch.serve.gateway.generation import TextRequest
from launch.serve.gateway.logits import Adjustment
from launch.serve.gateway.parameters import MOST_ANSWERS, ChatParameters, CompletionParameters, Parameters
from launch.serve.gateway.prefixes import behind
from launch.serve.gateway.responses import ResponsesParameters
from launch.serve.gateway.settings import GatewaySettings
from models.architecture import Architecture
from models.generation import token_indices
from models.padding import bucket
from models.policies import parse
from models.tokenizer.chat_template import TurnEnd
from mpc.errors import ConfigurationError
from parties.client.request import GenerationRequest
from parties.client.sampling_params import SamplingParams

WHOLE = "full"  # the policy that keeps and attends to every token
COMPLETION_TOKENS = 16  # OpenAI's default of max_tokens for completions


@dataclass(frozen=True)
class _Prompt:
    """A prompt from one parameter of a request. tokens: the most to generate where the request does not say. end: of the
    assistant's turn. context, echo: what the answer's text continues, and begins with."""

    ids: list[int] = field(repr=False)
    param: str
    tokens: int
    end: TurnEnd = field(default_factory=TurnEnd)
    context: list[int] = field(default_factory=list, repr=False)
    echo: str = field(default="", repr=False)


def completion(parameters: CompletionParameters, served: Served, settings: GatewaySettings) -> list[TextRequest]:
    """Return what /v1/completions asks for: `n` answers to each prompt. Raises `ApiError` and `ConfigurationError`."""
    words, found = served.words.tokenizer, []
    for prompt in parameters.prompts():
        ids = words.encode(prompt) if isinstance(prompt, str) else list(prompt)
        echo = "" if not parameters.echo else prompt if isinstance(prompt, str) else words.decode(ids)
        whole = _Prompt(ids, "prompt", COMPLETION_TOKENS, context=ids, echo=echo)
        found += _requests(parameters, served, settings, whole)
    if len(found) > MOST_ANSWERS:
        raise invalid(f"at most {MOST_ANSWERS} answers a request; send several requests", "prompt", "invalid_value")
    return found


def chat(parameters: ChatParameters | ResponsesParameters, served: Served, settings: GatewaySettings) -> list[TextRequest]:
    """Return what /v1/chat/completions or /v1/responses asks for: `n` answers. Raises `ApiError` and
    `ConfigurationError`."""
    words = served.words
    if words.template is None:
        reason = words.no_template.partition(": ")[2] or words.no_template
        raise invalid(f"this model cannot chat: {reason}", parameters.turns_in, "no_chat_template")
    text = words.template.render(parameters.turns)
    ids = words.tokenizer.encode(text, special=False)
    end = words.template.turn_end
    return _requests(parameters, served, settings, _Prompt(ids, parameters.turns_in, settings.default_max_tokens, end))


def _requests(parameters: Parameters, served: Served, settings: GatewaySettings, prompt: _Prompt) -> list[TextRequest]:
    """Return `n` requests of one prompt; of a seed each has the next one."""
    prefix, ids, before = behind(served.reference, parameters.prefix or settings.prefix, prompt.ids)
    length = bucket(len(prompt.ids), settings.prompt_buckets) if settings.prompt_buckets else len(prompt.ids)
    most = _most_tokens(parameters, served, prompt, before + length)
    _check_logits(parameters, settings)
    format = parameters.format
    matcher = None if format is None else served.words.formats.matcher(format)
    policy = fitting_policy(settings.policy, served.reference.architecture, before + len(prompt.ids))
    found = []
    for number in range(parameters.n or 1):
        params = _params(parameters, settings, prompt, most)
        held = None
        if params.decoding == "logits":
            adjust = _adjustment(parameters, served, prompt)
            if matcher is not None:
                held = Held(matcher.deep_copy(), params.ends(served.reference.architecture.eos), adjust)
            seed = None if params.seed is None else params.seed + number
            params = replace(params, adjust=adjust if held is None else held, seed=seed)
        draft = settings.draft if params.decoding == "greedy" else None
        made = (ids, params, settings.suite, policy, served.reference, draft, prefix)
        request = GenerationRequest(*made, prompt_buckets=settings.prompt_buckets)
        request.plan(before + len(prompt.ids) - len(ids)).check(served.reference.architecture)
        found.append(TextRequest(served, request, prompt.context, prompt.echo, parameters.most_likely, number > 0, held))
    return found


def fitting_policy(policy: str, architecture: Architecture, prompt_tokens: int) -> str:
    """Return the policy, or "full" where its budget does not hold what always stays of so short a prompt, but would of the
    longest one. Raises nothing: what no length mends, the request's plan refuses."""
    known = parse(policy)
    try:
        known.check(architecture, prompt_tokens)
    except ConfigurationError:
        with suppress(ConfigurationError):
            known.check(architecture, max(prompt_tokens, architecture.positions))
            return WHOLE
    return policy


def _most_tokens(parameters: Parameters, served: Served, prompt: _Prompt, given: int) -> int:
    """Return the most tokens to generate. given: tokens of the prompt, with padding and what is in front of
    it. Raises `ApiError` for a prompt that the model cannot take, or one too long."""
    architecture = served.reference.architecture
    ids, param = prompt.ids, prompt.param
    try:
        token_indices(ids, architecture.vocabulary)
    except ConfigurationError as error:
        raise invalid(str(error), param, "invalid_value") from None
    room = architecture.room(given)
    asked = parameters.most_tokens
    if room < 1 or (asked is not None and asked > room):
        most = f"maximum context length is {architecture.positions + 1} tokens"
        if architecture.encoder is not None:
            most = f"prompt and completion may have {architecture.positions} tokens each"
        raise invalid(
            f"This model's {most}. However, you requested {given + (asked or 1)} tokens ({given} in the {param}, "
            f"{asked or 1} in the completion). Please reduce the length of one or both.",
            param,
            "context_length_exceeded",
        )
    return min(prompt.tokens, room) if asked is None else asked


def _check_logits(parameters: Parameters, settings: GatewaySettings) -> None:
    """Leave out what needs logits that this gateway may not see, or raise `ApiError` naming it."""
    if settings.allow_logits:
        return
    for name in _needing_logits(parameters, _temperature(parameters, settings)):
        if not settings.drop_unsupported:
            raise _needs_logits(name)
        parameters.drop(name)


def _params(parameters: Parameters, settings: GatewaySettings, prompt: _Prompt, most: int) -> SamplingParams:
    """Return how tokens are chosen, up to what changes logits. most: tokens of the answer."""
    temperature = _temperature(parameters, settings)
    same: dict[str, Any] = {
        "max_tokens": most,
        "stop": (*parameters.stops, *prompt.end.texts),
        "stop_token_ids": (*prompt.end.ids, *(parameters.stop_token_ids or ())),
        "fixed_length": settings.fixed_length,
    }
    if _needing_logits(parameters, temperature):
        if temperature is not None:
            filters = {"top_k": _top_k(parameters), "top_p": _top_p(parameters), "seed": parameters.seed}
            same |= {"temperature": temperature, **filters}
        return SamplingParams(**same, decoding="logits")
    return (
        SamplingParams(**same) if temperature is None else SamplingParams(**same, decoding="sample", temperature=temperature)
    )


def _top_k(parameters: Parameters) -> int | None:
    return parameters.top_k if parameters.top_k is not None and parameters.top_k > 0 else None


def _top_p(parameters: Parameters) -> float | None:
    return parameters.top_p if parameters.top_p is not None and parameters.top_p < 1 else None


def _temperature(parameters: Parameters, settings: GatewaySettings) -> float | None:
    """Return the temperature of a sample, None for the likeliest tokens."""
    top_k, top_p, temperature = _top_k(parameters), _top_p(parameters), parameters.temperature
    if temperature is None:
        temperature = settings.default_temperature
        if temperature == 0 and (top_k is not None or top_p is not None):
            temperature = 1.0  # who filters wants a sample
    return None if temperature == 0 or top_k == 1 or top_p == 0 else temperature


def _needing_logits(parameters: Parameters, temperature: float | None) -> list[str]:
    """Return the parameters that only whoever sees logits can meet."""
    found = parameters.of_logits()
    if temperature is not None:
        filters = {"top_p": _top_p(parameters), "top_k": _top_k(parameters), "seed": parameters.seed}
        found += [name for name, value in filters.items() if value is not None]
    return found


def _adjustment(parameters: Parameters, served: Served, prompt: _Prompt) -> Adjustment | None:
    """Return what changes logits, None for nothing. Raises `ApiError` for a bias of a token that there is not."""
    vocabulary = served.reference.architecture.vocabulary
    bias = {int(token): value for token, value in (parameters.logit_bias or {}).items()}
    for token in bias:
        if token >= vocabulary:
            message = f"logit_bias: token {token} lies outside the vocabulary, 0 to {vocabulary - 1}"
            raise invalid(message, "logit_bias", "invalid_value")
    before = len(served.reference.architecture.continued(prompt.ids))
    made = Adjustment(
        before,
        bias,
        parameters.presence_penalty or 0.0,
        parameters.frequency_penalty or 0.0,
        parameters.repetition_penalty or 1.0,
    )
    return made if made != Adjustment(before) else None


def _needs_logits(param: str) -> ApiError:
    if param == "seed":
        return invalid(
            "seed is not supported for a sample on shares: its noise comes from an operating system's generator and is used "
            "once; leave seed out, set temperature to 0 for an answer that can be repeated, or start the gateway with "
            "--allow-logits",
            "seed",
            "unsupported_parameter",
        )
    return invalid(
        f"{param} needs the model's logits at this gateway, which it was not started to see; leave {param} out (temperature "
        "alone keeps logits shared), or start it with --allow-logits",
        param,
        "unsupported_parameter",
    )
