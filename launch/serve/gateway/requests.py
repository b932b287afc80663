"""From an HTTP request's parameters to what the parties are asked: prompt ids, lengths and the way to choose tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from launch.serve.gateway.catalogue import Served
from launch.serve.gateway.errors import ApiError, invalid
from launch.serve.gateway.generation import TextRequest
from launch.serve.gateway.parameters import ChatParameters, CompletionParameters, Parameters
from launch.serve.gateway.settings import GatewaySettings
from models.tokenizer.chat_template import TurnEnd
from parties.client.request import GenerationRequest
from parties.client.sampling_params import SamplingParams

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


def completion(parameters: CompletionParameters, served: Served, settings: GatewaySettings) -> TextRequest:
    """Return what /v1/completions asks for. Raises `ApiError` and `ConfigurationError`."""
    prompt = parameters.one_prompt()
    words = served.words.tokenizer
    ids = words.encode(prompt) if isinstance(prompt, str) else list(prompt)
    echo = "" if not parameters.echo else prompt if isinstance(prompt, str) else words.decode(ids)
    return _request(parameters, served, settings, _Prompt(ids, "prompt", COMPLETION_TOKENS, context=ids, echo=echo))


def chat(parameters: ChatParameters, served: Served, settings: GatewaySettings) -> TextRequest:
    """Return what /v1/chat/completions asks for. Raises `ApiError` and `ConfigurationError`."""
    words = served.words
    if words.template is None:
        reason = words.no_template.partition(": ")[2] or words.no_template
        raise invalid(f"this model cannot chat: {reason}", "messages", "no_chat_template")
    text = words.template.render([message.plain() for message in parameters.messages])
    ids = words.tokenizer.encode(text, special=False)
    end = words.template.turn_end
    return _request(parameters, served, settings, _Prompt(ids, "messages", settings.default_max_tokens, end))


def _request(parameters: Parameters, served: Served, settings: GatewaySettings, prompt: _Prompt) -> TextRequest:
    params = _params(parameters, settings, _most_tokens(parameters, served, prompt), prompt.end)
    draft = settings.draft if params.decoding == "greedy" else None
    request = GenerationRequest(prompt.ids, params, settings.suite, settings.policy, served.reference, draft)
    request.plan().check(served.reference.architecture)
    return TextRequest(served, request, prompt.context, prompt.echo)


def _most_tokens(parameters: Parameters, served: Served, prompt: _Prompt) -> int:
    """Return the most tokens to generate. Raises `ApiError` for a prompt that the model cannot take, or one too long."""
    architecture = served.reference.architecture
    ids, param = prompt.ids, prompt.param
    if not ids:
        raise invalid("the prompt is empty; give at least one token", param, "invalid_value")
    if not all(0 <= token < architecture.vocabulary for token in ids):
        raise invalid(
            f"a token of the prompt lies outside the vocabulary of {architecture.vocabulary}", param, "invalid_value"
        )
    room = architecture.room(len(ids))
    asked = parameters.most_tokens
    if room < 1 or (asked is not None and asked > room):
        raise invalid(
            f"This model's maximum context length is {architecture.positions + 1} tokens. However, you requested "
            f"{len(ids) + (asked or 1)} tokens ({len(ids)} in the {param}, {asked or 1} in the completion). "
            "Please reduce the length of one or both.",
            param,
            "context_length_exceeded",
        )
    return min(prompt.tokens, room) if asked is None else asked


def _params(parameters: Parameters, settings: GatewaySettings, max_tokens: int, end: TurnEnd) -> SamplingParams:
    common: dict[str, Any] = {
        "max_tokens": max_tokens,
        "stop": (*parameters.stops, *end.texts),
        "stop_token_ids": (*end.ids, *(parameters.stop_token_ids or ())),
        "fixed_length": settings.fixed_length,
    }
    top_k = parameters.top_k if parameters.top_k is not None and parameters.top_k > 0 else None
    top_p = parameters.top_p if parameters.top_p is not None and parameters.top_p < 1 else None
    temperature = parameters.temperature
    if temperature is None:
        temperature = settings.default_temperature
        if temperature == 0 and (top_k is not None or top_p is not None):
            temperature = 1.0  # who filters wants a sample
    if temperature == 0 or top_k == 1 or top_p == 0:
        return SamplingParams(**common)
    if parameters.seed is not None:
        raise invalid(
            "seed is not supported for a sample: its noise comes from an operating system's generator and is used once; "
            "leave seed out, or set temperature to 0 for an answer that can be repeated",
            "seed",
            "unsupported_parameter",
        )
    if top_k is None and top_p is None:
        return SamplingParams(**common, decoding="sample", temperature=temperature)
    if not settings.allow_logits:
        raise _needs_logits("top_k" if top_p is None else "top_p")
    return SamplingParams(**common, decoding="logits", temperature=temperature, top_k=top_k, top_p=top_p)


def _needs_logits(param: str) -> ApiError:
    return invalid(
        f"{param} needs the model's logits at this gateway, which it was not started to see; leave {param} out (temperature "
        "alone keeps logits shared), or start it with --allow-logits",
        param,
        "unsupported_parameter",
    )
