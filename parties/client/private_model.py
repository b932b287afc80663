"""A shared model as its user sees it, in the shape of Hugging Face's `model.generate`."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from models.architecture import Architecture
from models.checkpoint import read_architecture
from models.tokenizer.chat_template import ChatTemplate, TurnEnd
from models.tokenizer.stop_strings import TextUntil
from models.tokenizer.text import TextTokenizer
from mpc.errors import ConfigurationError
from parties.client.cancellation import Cancellation
from parties.client.client import DEFAULT_SUITE, Client, GenerationResult
from parties.client.generation_options import Choices, read_options
from parties.client.model_reference import ModelReference
from parties.client.session import FinishReason
from parties.config.role_config import RoleConfig, load_config
from parties.errors import Cancelled
from parties.wire.manifest import Option
from protocols.range_findings import RangeFinding
from protocols.registry import SUITES

Inputs = str | Sequence[int] | Tensor


@dataclass(frozen=True)
class PrivateOutput:
    """`generate(return_dict_in_generate=True)`. sequences: int64 [1, T + new], logits: [1, V] each; both secret.

    With finish_reason "range" the answer ends before a token on whose way a value left its range; see `findings`.
    """

    sequences: Tensor = field(repr=False)
    logits: tuple[Tensor, ...] | None = field(repr=False)
    result: GenerationResult

    @property
    def finish_reason(self) -> FinishReason:
        """Why the answer ended: "stop", "length" or "range"."""
        return self.result.finish_reason

    @property
    def findings(self) -> tuple[RangeFinding, ...]:
        """What left its range on the way to the token that is not here."""
        return self.result.findings


@dataclass(frozen=True)
class _Prompt:
    """ids: of the prompt; context: what the answer's text continues, nothing in a conversation; end: of its turn."""

    ids: list[int] = field(repr=False)
    context: list[int] = field(repr=False)
    end: TurnEnd = field(default_factory=TurnEnd)

    def ends(self, choices: Choices, eos: Sequence[int]) -> list[int]:
        """Tokens that end the answer; who says which (eos_token_id) means these and no others."""
        given = choices.stop_ids
        return sorted({*(given if given is not None else (*eos, *self.end.ids)), *choices.more_stop_ids})

    def stops(self, choices: Choices) -> list[str]:
        """Texts that end the answer."""
        return [*choices.stop_strings, *(self.end.texts if choices.stop_ids is None else ())]


class PrivateModel:
    """A model that compute parties hold in shares. Made by `connect`; calls from several threads may run at once.

    Every call raises `ConfigurationError` for an option that cannot work, before anything is sent, `Busy` when a party
    serves as many sessions as it may, `PeerLost` or `PeerSilent` (attribute `peer`) when a party is gone, and what else
    parties report (`mpc.errors`).

    When a value leaves its declared range on the way to a token, the answer ends before that token, and a result that
    cannot say so is none: `RangeExceeded` is raised, with the findings and what there is (`text`, `result`). Only
    `generate(return_dict_in_generate=True)` returns, with finish_reason "range".
    """

    def __init__(
        self,
        client: Client,
        reference: ModelReference,
        tokenizer: TextTokenizer | None = None,
        folder: Path | None = None,
        *,
        suite: str = DEFAULT_SUITE,
        policy: str = "full",
        options: Mapping[str, Option] | None = None,
        allow_logits: bool = False,
    ) -> None:
        self.client = client
        self.reference = reference
        self.tokenizer = tokenizer
        self.suite = _secure(suite)
        self.policy = policy
        self.options = dict(options or {})
        self.allow_logits = allow_logits
        self._folder = folder
        self._template: ChatTemplate | None = None

    @classmethod
    def connect(
        cls,
        config: RoleConfig | Path | str,
        *,
        tokenizer: Path | str | None = None,
        model: str | None = None,
        suite: str = DEFAULT_SUITE,
        policy: str = "full",
        options: Mapping[str, Option] | None = None,
        allow_logits: bool = False,
    ) -> PrivateModel:
        """Connect to the parties of a client's configuration.

        tokenizer: folder with config.json and the tokenizer's files, needed for texts. model: a name or id; by default
        the only model. suite, policy, options: the default of each call. allow_logits: this client may learn logits,
        which top_k, top_p and penalties need, and which every party's configuration must grant it. Raises
        `ConfigurationError` when model and tokenizer do not fit, `PeerLost`.
        """
        _secure(suite)
        client = Client(config if isinstance(config, RoleConfig) else load_config(config), keep_connections=True)
        try:
            folder = None if tokenizer is None else Path(tokenizer)
            architecture = None if folder is None else read_architecture(folder)
            reference = client.find_model(model)
            words = None
            if folder is not None and architecture is not None:
                check_architecture(folder, architecture, reference)
                words = TextTokenizer.load(folder, architecture.eos)
            settings: dict[str, Any] = {"suite": suite, "policy": policy, "options": options, "allow_logits": allow_logits}
            return cls(client, reference, words, folder, **settings)
        except BaseException:
            client.close()
            raise

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def __enter__(self) -> PrivateModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ---- generation --------------------------------------------------------------------------------------------------
    def generate(
        self,
        inputs: Inputs | None = None,
        generation_config: Any = None,
        *,
        input_ids: Inputs | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        streamer: Any = None,
        policy: str | None = None,
        suite: str | None = None,
        cancellation: Cancellation | None = None,
        **options: Any,
    ) -> Any:
        """Token ids of prompt and answer, int64 [1, T + new]; with return_dict_in_generate=True a `PrivateOutput`.

        inputs: one prompt, as token ids ([T] or [1, T]) or text; what a tokenizer of transformers returns fits as
        keywords (`**inputs`). streamer: one of transformers' (put, end).
        options: max_new_tokens (20), max_length, do_sample, temperature, eos_token_id (instead of the model's own and the
        chat template's), stop_token_ids (besides them), stop_strings, stopping_criteria, fixed_length (False; True: parties
        generate all of max_new_tokens and the answer is cut here, so that they do not learn its length);
        where logits are allowed top_k, top_p, repetition_penalty, no_repeat_ngram_size, bad_words_ids, suppress_tokens,
        logits_processor, output_logits. cancellation: lets another thread end it with `Cancelled`.
        """
        if (inputs is None) == (input_ids is None):
            raise ConfigurationError("give the prompt once: as the first argument or as input_ids")
        prompt = self._prompt(inputs if inputs is not None else input_ids)
        if attention_mask is not None and not bool((torch.as_tensor(attention_mask) == 1).all()):
            raise ConfigurationError("attention_mask: padding is not supported; give one prompt without padding")
        if token_type_ids is not None and bool(torch.as_tensor(token_type_ids).any()):
            raise ConfigurationError("token_type_ids: only zeros are supported; leave them out")
        if generation_config is not None:
            options = {**{k: v for k, v in generation_config.to_dict().items() if v is not None}, **options}
        as_dict = bool(options.get("return_dict_in_generate", False))
        if streamer is not None:
            streamer.put(torch.tensor([prompt.ids]))
        try:
            result = self._run(
                prompt,
                options,
                policy,
                suite,
                cancellation,
                lambda token: None if streamer is None else streamer.put(torch.tensor([token])),
            )
        finally:
            if streamer is not None:
                streamer.end()
        sequences = torch.tensor([[*prompt.ids, *result.tokens]])
        if not as_dict:
            result.check_range()
            return sequences
        rows = result.logits if options.get("output_logits") else None
        return PrivateOutput(sequences, None if rows is None else tuple(row.unsqueeze(0) for row in rows), result)

    def complete(self, prompt: Inputs, **options: Any) -> str:
        """The answer's text, without the prompt, up to a stop string. options: as `generate`."""
        return "".join(self.stream(prompt, **options))

    def chat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        """The assistant's answer to a conversation, by the checkpoint's chat template. options: as `generate`."""
        return "".join(self.stream(messages, **options))

    def stream(self, prompt: Inputs | Sequence[Mapping[str, str]], **options: Any) -> Iterator[str]:
        """Pieces of the answer's text as they come. prompt: text, token ids or messages. options: as `generate`.

        Leaving the iterator early (`close`, `break`) ends the session at the parties. `RangeExceeded` comes after the pieces
        of its `text`.
        """
        words = self._words()
        asked = self._prompt(prompt)
        policy, suite = options.pop("policy", None), options.pop("suite", None)
        cancellation = options.pop("cancellation", None) or Cancellation()
        choices = read_options(options, len(asked.ids), self.allow_logits)
        text = TextUntil(words.stream(asked.context), asked.stops(choices))
        ends = set(asked.ends(choices, self.reference.architecture.eos))
        pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()

        so_far: list[str] = []

        def put(piece: str) -> None:
            so_far.append(piece)
            pieces.put(piece)

        def on_token(token: int) -> None:
            if token not in ends:
                put(text.push(token))

        def work() -> None:
            try:
                result = self._run(asked, options, policy, suite, cancellation, on_token)
                put(text.flush())
                result.check_range("".join(so_far))
                pieces.put(None)
            except BaseException as error:
                pieces.put(error)

        return _pieces(pieces, work, cancellation)

    def _run(
        self,
        prompt: _Prompt,
        options: Mapping[str, Any],
        policy: str | None,
        suite: str | None,
        cancellation: Cancellation | None,
        on_token: Any,
    ) -> GenerationResult:
        choices = read_options(options, len(prompt.ids), self.allow_logits)
        so_far, stops = list(prompt.ids), prompt.stops(choices)
        until = TextUntil(self._words().stream(prompt.context), stops) if stops else None

        def more(token: int) -> bool:
            on_token(token)
            so_far.append(token)
            if until is not None:
                until.push(token)
            ended = any(bool(torch.as_tensor(rule(torch.tensor([so_far]), None)).all()) for rule in choices.criteria)
            return not ended and (until is None or not until.stopped)

        return self.client.generate(
            prompt.ids,
            choices.new_tokens,
            model=self.reference,
            suite=self.suite if suite is None else _secure(suite),
            options=self.options,
            policy=self.policy if policy is None else policy,
            decoding=choices.decoding,
            temperature=choices.temperature,
            top_k=choices.top_k,
            top_p=choices.top_p,
            stop_ids=prompt.ends(choices, self.reference.architecture.eos),
            adjust=choices.adjust,
            fixed_length=choices.fixed_length,
            cancellation=cancellation,
            on_token=more,
        )

    # ---- prompts -----------------------------------------------------------------------------------------------------
    def _words(self) -> TextTokenizer:
        if self.tokenizer is None:
            raise ConfigurationError(
                "texts need a tokenizer: PrivateModel.connect(..., tokenizer=FOLDER), or give token ids"
            )
        return self.tokenizer

    def _prompt(self, prompt: Any) -> _Prompt:
        """A text, token ids or messages as what the parties are asked."""
        if isinstance(prompt, str):
            ids = self._words().encode(prompt)
            return _Prompt(ids, ids)
        if isinstance(prompt, Tensor):
            if prompt.dim() > 2 or (prompt.dim() == 2 and prompt.shape[0] != 1):
                raise ConfigurationError(f"input_ids has shape {list(prompt.shape)}; give one prompt, [T] or [1, T]")
            ids = [int(token) for token in prompt.flatten().tolist()]
            return _Prompt(ids, ids)
        found = list(prompt)
        if found and all(isinstance(message, Mapping) for message in found):
            if self._template is None:
                words = self._words()
                assert self._folder is not None
                self._template = ChatTemplate.load(self._folder, words)
            ids = self._words().encode(self._template.render(found), special=False)
            return _Prompt(ids, [], self._template.turn_end)
        if not all(isinstance(token, int) for token in found):
            raise ConfigurationError("the prompt is no text, no list of token ids and no list of messages")
        return _Prompt(found, found)


def _pieces(pieces: queue.SimpleQueue[str | BaseException | None], work: Any, cancellation: Cancellation) -> Iterator[str]:
    threading.Thread(target=work, name="generate", daemon=True).start()
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            if piece:
                yield piece
    finally:
        cancellation.cancel()


def _secure(suite: str) -> str:
    secure = sorted(name for name in SUITES if name != "plain")
    if suite not in secure:
        why = "keeps nothing secret" if suite == "plain" else "is unknown"
        raise ConfigurationError(f"suite '{suite}' {why}; choose one of: {', '.join(secure)}")
    return suite


def check_architecture(folder: Path, architecture: Architecture, reference: ModelReference) -> None:
    """Raise `ConfigurationError` unless the folder's config.json describes the shared model."""
    if reference.architecture != architecture:
        raise ConfigurationError(
            f"{folder} describes another architecture than the shared model '{reference.name}'; "
            "give the folder whose config.json and tokenizer belong to it"
        )


__all__ = ["Cancellation", "Cancelled", "PrivateModel", "PrivateOutput"]
