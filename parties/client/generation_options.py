"""Options of Hugging Face's `generate`, as far as they can work on shares; the others are refused with the reason.

What needs logits (filters, penalties, processors) works only where this client may learn them: `decoding = "logits"`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from models.tokenizer.chat_template import TurnEnd
from mpc.errors import ConfigurationError
from parties.client.sampling_params import Adjust, SamplingParams

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
    "assistant_model": ((), "the parties verify tokens that this client drafts; give draft='FOLDER'"),
    "prompt_lookup_num_tokens": ((), "the parties verify tokens that this client drafts; give draft='ngram:tokens=N'"),
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
class GenerationOptions:
    """What the options say. criteria: transformers' stopping criteria. output_logits: whether the result has logits."""

    params: SamplingParams
    criteria: Sequence[Callable[..., Any]] = ()
    output_logits: bool = False

    def at_turn_end(self, end: TurnEnd) -> GenerationOptions:
        """Return the options for an answer that also ends where a chat template ends the assistant's turn.

        Who says which tokens end an answer (`eos_token_id`, `ignore_eos`) means these and no others.
        """
        params = self.params
        if params.ignore_eos:
            return self
        stop, tokens = (*params.stop, *end.texts), (*params.stop_token_ids, *end.ids)
        return replace(self, params=replace(params, stop=stop, stop_token_ids=tokens))


def read_options(options: Mapping[str, Any], prompt_tokens: int, allow_logits: bool) -> GenerationOptions:
    """Return what `generate(**options)` asks for. Raises `ConfigurationError` naming the option, its value and the remedy.

    >>> read_options({"max_new_tokens": 8, "do_sample": True, "temperature": 0.5}, 3, allow_logits=False).params.decoding
    'sample'
    >>> read_options({"num_beams": 4}, 3, allow_logits=False)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    mpc.errors.ConfigurationError: num_beams = 4 cannot work on shares: ...
    """
    given = {name: value for name, value in options.items() if value is not None and not name.startswith("_")}
    _refuse(given)
    logits = {name: given[name] for name in _LOGITS if name in given and not _neutral(given[name], _LOGITS[name])}
    if logits and not allow_logits:
        raise needs_logits(", ".join(logits))
    sample = bool(given.get("do_sample", False))
    temperature = float(given["temperature"]) if "temperature" in given else None
    if not sample and (temperature not in (None, 1.0) or {"top_k", "top_p"} & set(logits)):
        raise ConfigurationError("temperature, top_k and top_p need do_sample=True; without it the likeliest token is taken")
    eos = _ids(given.get("eos_token_id"))
    params = SamplingParams(
        max_tokens=_new_tokens(given, prompt_tokens),
        decoding="logits" if logits else "sample" if sample else "greedy",
        temperature=(1.0 if temperature is None else temperature) if sample else None,
        top_k=logits.get("top_k"),
        top_p=logits.get("top_p"),
        stop=_strings(given.get("stop_strings")),
        stop_token_ids=(*(eos or ()), *(_ids(given.get("stop_token_ids")) or ())),
        ignore_eos=eos is not None,
        adjust=_adjust(logits),
        fixed_length=bool(given.get("fixed_length", False)),
    )
    return GenerationOptions(params, list(given.get("stopping_criteria", [])), bool(given.get("output_logits", False)))


def needs_logits(what: str) -> ConfigurationError:
    """Return the error of what needs logits where this client was not allowed to learn them."""
    return ConfigurationError(
        f"{what}: needs the logits at this client; connect with allow_logits=True if it may learn them"
    )


def _refuse(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in REFUSED:
            neutral, reason = REFUSED[name]
            if value not in neutral:
                raise ConfigurationError(f"{name} = {_brief(value)} cannot work on shares: {reason}")
        elif name not in (*_LOGITS, *_USED, *_IGNORED):
            raise ConfigurationError(
                f"'{name}' is not an option of private generation; known: {', '.join(sorted((*_USED, *_LOGITS)))}"
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


def _strings(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    found = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(text, str) and text for text in found):
        raise ConfigurationError("stop_strings: needs a text, or a list of texts that are not empty")
    return found


def _adjust(logits: Mapping[str, Any]) -> Adjust | None:
    """Return transformers' own processors, in the order in which its `generate` applies them."""
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
