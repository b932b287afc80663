"""Options of Hugging Face's `generate`, as far as they can work on shares; the others are refused with the reason.

What needs logits (filters, penalties, processors) works only where this client may learn them: `decoding = "logits"`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.generation import Decoding
from mpc.errors import ConfigurationError
from parties.client.session import Adjust

DEFAULT_NEW_TOKENS = 20  # as transformers
_SHARED = "stays shared among the parties; nobody sees it"
_ONE = "one answer a call; call again, or from several threads at once"

# option -> (its values that change nothing, why any other cannot work)
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((1,), "beam search compares scores of sequences, which no party may see"),
    "num_return_sequences": ((1,), _ONE),
    "output_scores": ((False,), f"the score {_SHARED}; ask for output_logits where logits are allowed"),
    "output_attentions": ((False,), f"attention {_SHARED}"),
    "output_hidden_states": ((False,), f"a hidden state {_SHARED}"),
    "use_cache": ((True,), "parties always keep a cache"),
    "past_key_values": ((), f"the cache {_SHARED}"),
    "inputs_embeds": ((), "the embedding is looked up on shares; give token ids"),
    "assistant_model": ((), "no second model can verify tokens that are shared"),
    "prompt_lookup_num_tokens": ((), "tokens to verify are shared"),
    "guidance_scale": ((1, 1.0), "it needs a second generation in step with the first"),
    "seed": ((), "the dealer's noise comes from its operating system's generator and is used once"),
}
_LOGITS: dict[str, tuple[Any, ...]] = {
    "top_k": (0, 50_000_000),
    "top_p": (1, 1.0),
    "repetition_penalty": (1, 1.0),
    "no_repeat_ngram_size": (0,),
    "suppress_tokens": ([],),
    "bad_words_ids": ([],),
    "logits_processor": ([],),
    "output_logits": (False,),
}
_USED = (
    "max_new_tokens",
    "max_length",
    "do_sample",
    "temperature",
    "eos_token_id",
    "stop_token_ids",
    "stop_strings",
    "stopping_criteria",
    "fixed_length",
)
_IGNORED = ("pad_token_id", "bos_token_id", "tokenizer", "return_dict_in_generate", "transformers_version", "synced_gpus")


@dataclass(frozen=True)
class Choices:
    """What the options say, in `Client.generate`'s terms. stop_ids None: the model's end-of-text tokens;
    more_stop_ids: further ones."""

    new_tokens: int
    decoding: Decoding
    temperature: float | None
    top_k: int | None
    top_p: float | None
    stop_ids: list[int] | None
    more_stop_ids: list[int]
    stop_strings: list[str] = field(repr=False)
    adjust: Adjust | None
    criteria: Sequence[Callable[..., Any]]
    output_logits: bool
    fixed_length: bool


def read_options(options: Mapping[str, Any], prompt_tokens: int, allow_logits: bool) -> Choices:
    """Choices of `generate(**options)`. Raises `ConfigurationError` naming the option, its value and the remedy."""
    given = {name: value for name, value in options.items() if value is not None and not name.startswith("_")}
    for name, value in given.items():
        if name in REFUSED:
            neutral, reason = REFUSED[name]
            if value not in neutral:
                raise ConfigurationError(f"{name} = {_brief(value)} cannot work on shares: {reason}")
        elif name not in (*_LOGITS, *_USED, *_IGNORED):
            raise ConfigurationError(
                f"'{name}' is not an option of private generation; known: {', '.join(sorted((*_USED, *_LOGITS)))}"
            )
    logits = {name: given[name] for name in _LOGITS if name in given and not _neutral(given[name], _LOGITS[name])}
    if logits and not allow_logits:
        raise ConfigurationError(
            f"{', '.join(logits)}: needs the logits at this client; connect with allow_logits=True if it may learn them"
        )
    sample = bool(given.get("do_sample", False))
    temperature = float(given["temperature"]) if "temperature" in given else None
    if not sample and (temperature not in (None, 1.0) or {"top_k", "top_p"} & set(logits)):
        raise ConfigurationError("temperature, top_k and top_p need do_sample=True; without it the likeliest token is taken")
    decoding: Decoding = "logits" if logits else "sample" if sample else "greedy"
    return Choices(
        new_tokens=_new_tokens(given, prompt_tokens),
        decoding=decoding,
        temperature=(1.0 if temperature is None else temperature) if sample else None,
        top_k=logits.get("top_k"),
        top_p=logits.get("top_p"),
        stop_ids=_ids(given.get("eos_token_id")),
        more_stop_ids=_ids(given.get("stop_token_ids")) or [],
        stop_strings=_strings(given.get("stop_strings")),
        adjust=_adjust(logits),
        criteria=list(given.get("stopping_criteria", [])),
        output_logits=bool(given.get("output_logits", False)),
        fixed_length=bool(given.get("fixed_length", False)),
    )


def _neutral(value: Any, values: tuple[Any, ...]) -> bool:
    return not isinstance(value, Tensor) and any(value == neutral for neutral in values)


def _brief(value: Any) -> str:
    return repr(value) if isinstance(value, bool | int | float | str) and len(repr(value)) < 40 else type(value).__name__


def _new_tokens(given: Mapping[str, Any], prompt_tokens: int) -> int:
    if "max_new_tokens" in given:
        return int(given["max_new_tokens"])
    if "max_length" not in given:
        return DEFAULT_NEW_TOKENS
    most = int(given["max_length"]) - prompt_tokens
    if most < 1:
        raise ConfigurationError(
            f"max_length = {given['max_length']} leaves no room after a prompt of {prompt_tokens} tokens; use max_new_tokens"
        )
    return most


def _ids(value: Any) -> list[int] | None:
    if value is None:
        return None
    if isinstance(value, Tensor):
        value = value.flatten().tolist()
    return [int(value)] if isinstance(value, int) else [int(token) for token in value]


def _strings(value: Any) -> list[str]:
    if value is None:
        return []
    found = [value] if isinstance(value, str) else list(value)
    if not all(isinstance(text, str) and text for text in found):
        raise ConfigurationError("stop_strings: needs a text, or a list of texts that are not empty")
    return found


def _adjust(logits: Mapping[str, Any]) -> Adjust | None:
    """transformers' own processors, in the order in which its `generate` applies them."""
    from transformers import LogitsProcessorList
    from transformers.generation import logits_process as processors

    chain = LogitsProcessorList()
    if "repetition_penalty" in logits:
        chain.append(processors.RepetitionPenaltyLogitsProcessor(penalty=float(logits["repetition_penalty"])))
    if "no_repeat_ngram_size" in logits:
        chain.append(processors.NoRepeatNGramLogitsProcessor(int(logits["no_repeat_ngram_size"])))
    if "bad_words_ids" in logits:
        chain.append(processors.NoBadWordsLogitsProcessor(logits["bad_words_ids"]))
    if "suppress_tokens" in logits:
        chain.append(processors.SuppressTokensLogitsProcessor(logits["suppress_tokens"]))
    chain.extend(logits.get("logits_processor", []))
    if not chain:
        return None

    def adjust(row: Tensor, tokens: Sequence[int]) -> Tensor:
        scores: Tensor = chain(torch.tensor([list(tokens)]), row.to(torch.float32).unsqueeze(0))
        return scores[0]

    return adjust
