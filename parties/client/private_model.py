"""A shared model as its user sees it, in the shape of Hugging Face's `model.generate`."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from models.checkpoint import load_tokenizer, read_description
from models.outputs import Output
from models.tokenizer.stop_strings import TextUntil
from models.tokenizer.text import EncodedText, TextTokenizer
from mpc.errors import ConfigurationError
from parties.client.cancellation import Cancellation
from parties.client.client import Client, GenerationResult
from parties.client.draft_text import OFF, parse_draft
from parties.client.drafting import Draft
from parties.client.encoding import EncodingRequest
from parties.client.generation_options import GenerationOptions, needs_logits, read_options
from parties.client.model_reference import ModelReference, check_folder
from parties.client.prefixes import continues
from parties.client.prompts import Inputs, Prompt, PromptReader
from parties.client.request import GenerationRequest
from parties.client.sampling_params import GREEDY, SamplingParams
from parties.client.session import FinishReason
from parties.client.texts import Classification, LabelledToken, Pooling, TextReader, Texts, classified, labelled, stacked
from parties.config.role_config import RoleConfig, load_config
from protocols.range_findings import RangeFinding
from protocols.registry import USUAL, SuiteSpec, check_secure


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
class _Call:
    """One call: its prompt, what it asks the parties for, and what this side looks at while tokens come."""

    prompt: Prompt
    request: GenerationRequest
    options: GenerationOptions
    cancellation: Cancellation


class PrivateModel:
    """A model that compute parties hold in shares. Made by `connect`; calls from several threads may run at once.

    Every call raises `ConfigurationError` for an option that cannot work, before anything is sent, `Busy` when a party
    serves as many sessions as it may, `PeerLost` or `PeerSilent` (attribute `peer`) when a party is gone, and what else
    parties report (`mpc.errors`).

    When a value leaves its declared range on the way to a token, the answer ends before that token, and a result that
    cannot say so is none: `RangeExceeded` is raised, with the findings and what there is (`text`, `result`). Only
    `generate(return_dict_in_generate=True)` returns, with finish_reason "range".

    defaults: model, suite and policy of every call that does not say otherwise. folder: of the tokenizer, for the chat
    template. allow_logits: this client may learn logits.

    >>> with PrivateModel.connect("client.yaml", tokenizer="assistant", model="assistant") as model:
    ...     ids = model.generate("ab", max_new_tokens=4)
    ...     answer = model.complete("ab", SamplingParams(4))
    ...     pieces = list(model.stream("ab", max_new_tokens=4))
    >>> ids.shape[1] - len(model.tokenizer.encode("ab"))
    4
    """

    def __init__(
        self,
        client: Client,
        defaults: GenerationRequest,
        tokenizer: TextTokenizer | None = None,
        folder: Path | None = None,
        allow_logits: bool = False,
    ) -> None:
        self.client = client
        self.defaults = defaults
        self.tokenizer = tokenizer
        self.allow_logits = allow_logits
        self._folder = folder
        self._prompts = PromptReader(tokenizer, folder)
        self._drafts: dict[str, Draft | None] = {}

    @classmethod
    def connect(
        cls,
        config: RoleConfig | Path | str,
        *,
        tokenizer: Path | str | None = None,
        model: str | None = None,
        suite: SuiteSpec | str = USUAL,
        policy: str = "full",
        draft: str = OFF,
        prefix: str | None = None,
        prompt_buckets: Sequence[int] = (),
        allow_logits: bool = False,
    ) -> PrivateModel:
        """Connect to the parties of a client's configuration.

        tokenizer: folder with config.json and the tokenizer's files, needed for texts. model: a name or id; by default
        the only model. suite (a text, or a `SuiteSpec` with options), policy, draft, prefix, prompt_buckets: the defaults of
        each call. allow_logits: this client may learn logits, which top_k, top_p and penalties need, and which every party's
        configuration must grant it. Raises `ConfigurationError` when model and tokenizer do not fit, `PeerLost`.
        """
        client = Client(config if isinstance(config, RoleConfig) else load_config(config), keep_connections=True)
        try:
            folder = None if tokenizer is None else Path(tokenizer)
            described = None if folder is None else read_description(folder)
            reference = client.find_model(model)
            words = None
            if folder is not None and described is not None:
                words = load_tokenizer(folder, described)
                check_folder(folder, described, words, reference)
            asked = (_spec(suite), policy, reference, None, prefix)
            defaults = GenerationRequest((), GREEDY, *asked, prompt_buckets=prompt_buckets)
            found = cls(client, defaults, words, folder, allow_logits)
            found.defaults = replace(defaults, draft=found._draft(draft))
            return found
        except BaseException:
            client.close()
            raise

    @property
    def reference(self) -> ModelReference:
        """The shared model."""
        assert isinstance(self.defaults.model, ModelReference)
        return self.defaults.model

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def __enter__(self) -> PrivateModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ---- encoders --------------------------------------------------------------------------------------------------
    def embed(
        self,
        texts: Texts,
        *,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        suite: SuiteSpec | str | None = None,
        cancellation: Cancellation | None = None,
    ) -> Tensor:
        """Return the embeddings of texts, float32 [n, D], in one session; the model must be an encoder.

        pooling, normalize: by default as the tokenizer's folder says (a sentence encoder's), else the mean, of length 1.
        Parties learn how many there are, and lengths to within a few sizes. Raises `ConfigurationError` for a decoder, a
        text that is too long or a pooling that the model has not, before anything is sent; `RangeExceeded`.
        """
        reader = self._reader()
        output = reader.pooling(pooling)
        _, rows = self._encoded(reader, texts, output, suite, cancellation)
        return stacked(rows, reader.normalises(normalize))

    def classify(
        self,
        texts: Texts,
        *,
        labels: Sequence[str] | None = None,
        words: bool = False,
        suite: SuiteSpec | str | None = None,
        cancellation: Cancellation | None = None,
    ) -> list[Classification] | list[list[LabelledToken]]:
        """Return the class of each text, or with a head for tokens the labels of each text's tokens (with `words` of its
        words, each its first token's), in one session. labels: names instead of config.json's `id2label`. Raises as `embed`;
        `CheckpointError` where labels have no names."""
        reader = self._reader()
        named = reader.labels(labels, words)
        read, found = self._encoded(reader, texts, reader.architecture.usual_output, suite, cancellation)
        if reader.architecture.head == "labels":
            return [labelled(values, encoded, named, words) for encoded, values in zip(read, found, strict=True)]
        return [classified(values[0], named) for values in found]

    def _reader(self) -> TextReader:
        words, folder = self._prompts.tokenizer, self._folder
        assert folder is not None
        return TextReader(self.reference.encoder, words, folder)

    def _encoded(
        self,
        reader: TextReader,
        texts: Texts,
        output: Output,
        suite: SuiteSpec | str | None,
        cancellation: Cancellation | None,
    ) -> tuple[list[EncodedText], list[Tensor]]:
        spec = self.defaults.suite if suite is None else _spec(suite, self.defaults.suite)
        read = reader.read(texts)
        request = EncodingRequest([reader.input(one) for one in read], output, spec, self.reference)
        return read, self.client.encode_all(request, cancellation=cancellation)

    # ---- generation --------------------------------------------------------------------------------------------------
    def generate(
        self, inputs: Inputs | None = None, generation_config: Any = None, *, streamer: Any = None, **options: Any
    ) -> Any:
        """Return token ids of prompt and answer, int64 [1, T + new] (behind an encoder, as transformers, of the token that
        answers begin behind, and the answer); with return_dict_in_generate=True a `PrivateOutput`.

        inputs: one prompt, as token ids ([T] or [1, T]) or text; what a tokenizer of transformers returns fits as
        keywords (`**inputs`). generation_config: a `GenerationConfig`, whose values options go over, or `SamplingParams`
        instead of options. streamer: one of transformers' (put, end).
        options: max_new_tokens (20), max_length, do_sample, temperature, eos_token_id (instead of the model's own and the
        chat template's), stop_token_ids (besides them), stop_strings, stopping_criteria, fixed_length (False; True: parties
        generate all of max_new_tokens and the answer is cut here, so that they do not learn its length);
        where logits are allowed top_k, top_p, repetition_penalty, no_repeat_ngram_size, bad_words_ids, suppress_tokens,
        logits_processor, output_logits. policy, suite, draft, prefix: of this call; draft is "off", "ngram:tokens=4" or the
        folder of a small public checkpoint, and needs the likeliest tokens (no do_sample); prefix the name of a registered
        one that the prompt continues, "auto" for whichever public one it begins with, or None; prompt_buckets are lengths to
        pad the prompt to. cancellation: a `Cancellation`, which lets another thread end it with `Cancelled`.
        """
        prompt = self._read(_inputs(inputs, options), options)
        before = self.reference.architecture.continued(prompt.ids)
        if streamer is not None:
            streamer.put(torch.tensor([before]))
        try:
            as_dict = bool(_given(generation_config, options).get("return_dict_in_generate", False))
            call = self._call(prompt, generation_config, options)
            put = None if streamer is None else lambda token: streamer.put(torch.tensor([token]))
            result = self._run(call, put or (lambda token: None))
        finally:
            if streamer is not None:
                streamer.end()
        sequences = torch.tensor([[*before, *result.tokens]])
        if not as_dict:
            result.check_range()
            return sequences
        rows = result.logits if call.options.output_logits else None
        return PrivateOutput(sequences, None if rows is None else tuple(row.unsqueeze(0) for row in rows), result)

    def complete(self, prompt: Inputs, generation_config: Any = None, **options: Any) -> str:
        """Return the answer's text, without the prompt, up to a stop string. options: as `generate`."""
        return "".join(self.stream(prompt, generation_config, **options))

    def chat(self, messages: Sequence[Mapping[str, str]], generation_config: Any = None, **options: Any) -> str:
        """Return the assistant's answer to a conversation, by the checkpoint's chat template. options: as `generate`."""
        return "".join(self.stream(messages, generation_config, **options))

    def stream(
        self, prompt: Inputs | Sequence[Mapping[str, str]], generation_config: Any = None, **options: Any
    ) -> Iterator[str]:
        """Yield pieces of the answer's text as they come. prompt: text, token ids or messages. options: as `generate`.

        Leaving the iterator early (`close`, `break`) ends the session at the parties. `RangeExceeded` comes after the pieces
        of its `text`.
        """
        words = self._prompts.tokenizer
        call = self._call(self._read(prompt, options), generation_config, options)
        text = TextUntil(words.stream(call.prompt.context), list(call.options.params.stop))
        ends = call.request.params.ends(self.reference.architecture.eos)
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
                result = self._run(call, on_token)
                put(text.flush())
                result.check_range("".join(so_far))
                pieces.put(None)
            except BaseException as error:
                pieces.put(error)

        return _pieces(pieces, work, call.cancellation)

    def _call(self, prompt: Prompt, config: Any, options: Mapping[str, Any]) -> _Call:
        """Return what a call asks for. Raises `ConfigurationError` for an option that cannot work."""
        given = _given(config, options)
        cancellation = given.pop("cancellation", None) or Cancellation()
        policy, suite, draft = (given.pop(name, None) for name in ("policy", "suite", "draft"))
        prefix, buckets = (given.pop(name, getattr(self.defaults, name)) for name in ("prefix", "prompt_buckets"))
        read = {name: given.pop(name) for name in ("repair", "retrieval", "candidates") if name in given}
        chunks = replace(self.defaults.chunks, **({"names": given.pop("chunks")} if "chunks" in given else {}), **read)
        if isinstance(config, SamplingParams):
            if others := [name for name in given if name != "return_dict_in_generate"]:
                raise ConfigurationError(f"{', '.join(sorted(others))}: give SamplingParams or options, not both")
            if config.decoding == "logits" and not self.allow_logits:
                raise needs_logits("decoding 'logits'")
            asked = GenerationOptions(config, output_logits=config.decoding == "logits")
        else:
            before = len(self.reference.architecture.continued(prompt.ids))
            asked = read_options(given, before, self.allow_logits)
        asked = asked.at_turn_end(prompt.end)
        request = replace(
            self.defaults,
            prompt_ids=prompt.ids,
            params=replace(asked.params, stop=()),  # texts are looked for here
            policy=self.defaults.policy if policy is None else policy,
            suite=self.defaults.suite if suite is None else _spec(suite, self.defaults.suite),
            draft=self.defaults.draft if draft is None else self._draft(draft),
            prefix=prefix,
            chunks=chunks,
            prompt_buckets=buckets,
        )
        return _Call(prompt, request, asked, cancellation)

    def _read(self, prompt: Any, options: Mapping[str, Any]) -> Prompt:
        """Return a prompt that begins, or continues the prefix that the call asks for."""
        behind = continues(options.get("prefix", self.defaults.prefix)) or options.get("chunks", self.defaults.chunks.names)
        return self._prompts.read(prompt, not behind)

    def _draft(self, text: str) -> Draft | None:
        """Return the draft of a text; a checkpoint is read once. Raises `ConfigurationError` where it is not for this
        model."""
        if text not in self._drafts:
            if (draft := parse_draft(text)) is not None:
                draft.check(self.reference.architecture, self.tokenizer)
            self._drafts[text] = draft
        return self._drafts[text]

    def _run(self, call: _Call, on_token: Callable[[int], None]) -> GenerationResult:
        so_far = list(self.reference.architecture.continued(call.prompt.ids))
        stop = list(call.options.params.stop)
        until = TextUntil(self._prompts.tokenizer.stream(call.prompt.context), stop) if stop else None

        def more(token: int) -> bool:
            on_token(token)
            so_far.append(token)
            if until is not None:
                until.push(token)
            criteria = call.options.criteria
            ended = any(bool(torch.as_tensor(rule(torch.tensor([so_far]), None)).all()) for rule in criteria)
            return not ended and (until is None or not until.stopped)

        return self.client.generate(call.request, on_token=more, cancellation=call.cancellation)


def _spec(suite: SuiteSpec | str, options_of: SuiteSpec = USUAL) -> SuiteSpec:
    """Return a suite by its name, with the options of another one. Raises `ConfigurationError`."""
    return suite if isinstance(suite, SuiteSpec) else SuiteSpec(check_secure(suite), options=options_of.options)


def _inputs(inputs: Inputs | None, options: dict[str, Any]) -> Any:
    """Return the prompt that was given, and take what a tokenizer returns with it out of the options."""
    input_ids = options.pop("input_ids", None)
    if (inputs is None) == (input_ids is None):
        raise ConfigurationError("give the prompt once: as the first argument or as input_ids")
    mask, kinds = options.pop("attention_mask", None), options.pop("token_type_ids", None)
    if mask is not None and not bool((torch.as_tensor(mask) == 1).all()):
        raise ConfigurationError("attention_mask: padding is not supported; give one prompt without padding")
    if kinds is not None and bool(torch.as_tensor(kinds).any()):
        raise ConfigurationError("token_type_ids: only zeros are supported; leave them out")
    return inputs if inputs is not None else input_ids


def _given(config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options over those of a `GenerationConfig`."""
    if config is None or isinstance(config, SamplingParams):
        return dict(options)
    return {**{name: value for name, value in config.to_dict().items() if value is not None}, **options}


def _pieces(
    pieces: queue.SimpleQueue[str | BaseException | None], work: Callable[[], None], cancellation: Cancellation
) -> Iterator[str]:
    threading.Thread(target=work, name="generate", daemon=True).start()
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            if piece:
                yield piece
    finally:
        cancellation.cancel()
