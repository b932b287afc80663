"""From a request's parameters to what the parties are asked: prompt ids, lengths and the way to choose tokens."""

from __future__ import annotations

from launch.serve.gateway.catalogue import Served
from launch.serve.gateway.errors import ApiError, invalid
from launch.serve.gateway.generation import Question
from launch.serve.gateway.parameters import ChatParameters, CompletionParameters, Parameters
from launch.serve.gateway.settings import GatewaySettings
from models.generation import Decoding, GenerationPlan
from models.tokenizer.chat_template import TurnEnd

COMPLETION_TOKENS = 16  # OpenAI's default of max_tokens for completions


def completion(parameters: CompletionParameters, served: Served, settings: GatewaySettings) -> Question:
    """What /v1/completions asks for. Raises `ApiError` and `ConfigurationError`."""
    prompt = parameters.one_prompt()
    words = served.words.tokenizer
    ids = words.encode(prompt) if isinstance(prompt, str) else list(prompt)
    echo = "" if not parameters.echo else prompt if isinstance(prompt, str) else words.decode(ids)
    return _question(parameters, served, settings, ids, "prompt", COMPLETION_TOKENS, echo, TurnEnd(), ids)


def chat(parameters: ChatParameters, served: Served, settings: GatewaySettings) -> Question:
    """What /v1/chat/completions asks for. Raises `ApiError` and `ConfigurationError`."""
    words = served.words
    if words.template is None:
        reason = words.no_template.partition(": ")[2] or words.no_template
        raise invalid(f"this model cannot chat: {reason}", "messages", "no_chat_template")
    text = words.template.render([message.plain() for message in parameters.messages])
    ids = words.tokenizer.encode(text, special=False)
    end = words.template.turn_end
    return _question(parameters, served, settings, ids, "messages", settings.default_max_tokens, "", end, [])


def _question(
    parameters: Parameters,
    served: Served,
    settings: GatewaySettings,
    ids: list[int],
    param: str,
    default_tokens: int,
    echo: str,
    end: TurnEnd,
    context: list[int],
) -> Question:
    architecture = served.reference.architecture
    if not ids:
        raise invalid("the prompt is empty; give at least one token", param, "invalid_value")
    if not all(0 <= token < architecture.vocabulary for token in ids):
        raise invalid(
            f"a token of the prompt lies outside the vocabulary of {architecture.vocabulary}", param, "invalid_value"
        )
    room = architecture.positions - len(ids) + 1  # the last token needs no position
    asked = parameters.most_tokens
    if room < 1 or (asked is not None and asked > room):
        raise invalid(
            f"This model's maximum context length is {architecture.positions + 1} tokens. However, you requested "
            f"{len(ids) + (asked or 1)} tokens ({len(ids)} in the {param}, {asked or 1} in the completion). "
            "Please reduce the length of one or both.",
            param,
            "context_length_exceeded",
        )
    new_tokens = min(default_tokens, room) if asked is None else asked
    decoding, temperature, top_k, top_p = _choice(parameters, settings)
    agreed = temperature if decoding == "sample" else None
    GenerationPlan(len(ids), new_tokens, decoding, settings.policy, agreed).check(architecture)
    ends = frozenset((*architecture.eos, *end.ids, *(parameters.stop_token_ids or ())))
    stops = [*parameters.stops, *end.texts]
    return Question(served, ids, new_tokens, decoding, temperature, top_k, top_p, stops, ends, context, echo)


def _choice(parameters: Parameters, settings: GatewaySettings) -> tuple[Decoding, float | None, int | None, float | None]:
    """decoding, temperature, top_k, top_p."""
    top_k = parameters.top_k if parameters.top_k is not None and parameters.top_k > 0 else None
    top_p = parameters.top_p if parameters.top_p is not None and parameters.top_p < 1 else None
    temperature = parameters.temperature
    if temperature is None:
        temperature = settings.default_temperature
        if temperature == 0 and (top_k is not None or top_p is not None):
            temperature = 1.0  # who filters wants a sample
    if temperature == 0 or top_k == 1 or top_p == 0:
        return "greedy", None, None, None
    if parameters.seed is not None:
        raise invalid(
            "seed is not supported for a sample: its noise comes from an operating system's generator and is used once; "
            "leave seed out, or set temperature to 0 for an answer that can be repeated",
            "seed",
            "unsupported_parameter",
        )
    if top_k is None and top_p is None:
        return "sample", temperature, None, None
    if not settings.allow_logits:
        raise _needs_logits("top_k" if top_p is None else "top_p")
    return "logits", temperature, top_k, top_p


def _needs_logits(param: str) -> ApiError:
    return invalid(
        f"{param} needs the model's logits at this gateway, which it was not started to see; leave {param} out (temperature "
        "alone keeps logits shared), or start it with --allow-logits",
        param,
        "unsupported_parameter",
    )
