"""Whom `generate` and `chat` ask: parties started for the command, or running ones; and what is looked at before.

All that can be known without a process is: the request against the model, its tokenizer and its chat template.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from launch.terminal.console import err

if TYPE_CHECKING:
    from launch.terminal.answering import Answer, Asking
    from models.architecture import Architecture
    from models.tokenizer.text import TextTokenizer
    from parties.client.prompts import PromptReader
    from parties.client.request import GenerationRequest
    from parties.config.role_config import RoleConfig

Asked = str | Sequence[Mapping[str, str]]
"""A text to go on with, or a conversation whose next turn is the model's. Secret."""


@dataclass(frozen=True)
class Started:
    """The processes that a command starts: so many compute parties, each computing on `device`."""

    parties: int
    device: str


@dataclass(frozen=True)
class Place:
    """Where the model is: its folder here; and whom to ask: parties to start, or a client's configuration and the name of
    the shared model among running ones."""

    folder: Path
    started: Started
    config: RoleConfig | None = None
    name: str | None = None


class Partner:
    """A model to ask. request: all but the prompt."""

    def __init__(self, asking: Asking, reader: PromptReader, architecture: Architecture, request: GenerationRequest) -> None:
        self._asking = asking
        self._reader = reader
        self._architecture = architecture
        self._request = request

    def answer(self, asked: Asked) -> Answer:
        """Ask. Raises `ConfigurationError` for a prompt that the model cannot take, before anything is sent."""
        request, context = prompted(self._request, self._reader, asked, self._architecture)
        return self._asking.answer(request, context)


def prompted(
    request: GenerationRequest, reader: PromptReader, asked: Asked, architecture: Architecture
) -> tuple[GenerationRequest, list[int]]:
    """Return the request with a prompt, and the tokens that the answer's text continues. What the model cannot do is refused
    before anything is started or sent."""
    from models.generation import token_indices
    from parties.client.prefixes import continues

    prompt = reader.read(asked, not continues(request.prefix) and not request.chunks.names)
    params = replace(
        request.params,
        stop=(*request.params.stop, *prompt.end.texts),
        stop_token_ids=(*request.params.stop_token_ids, *prompt.end.ids),
    )
    request = replace(request, prompt_ids=prompt.ids, params=params)
    token_indices(request.prompt_ids, architecture.vocabulary)
    request.plan().check(architecture)
    if request.draft is not None:
        request.draft.check(architecture, reader.tokenizer)
    return request, prompt.context


@contextmanager
def partner(place: Place, request: GenerationRequest, first: Asked, streaming: bool) -> Iterator[Partner]:
    """Give the model to ask. first: what will be asked first, or the shortest of it, which is checked before anything
    starts."""
    with (
        _running(place, request, first, streaming)
        if place.config is not None
        else _local(place, request, first, streaming) as found
    ):
        yield found


@contextmanager
def _local(place: Place, request: GenerationRequest, first: Asked, streaming: bool) -> Iterator[Partner]:
    from launch.checkpoints.calibrating import calibration_for
    from launch.local.deployment import local_deployment
    from launch.predict.room import check_session
    from launch.terminal.answering import Asking
    from launch.terminal.progress import stages
    from models.checkpoint import load_checkpoint
    from models.costs.tracing import Setting
    from parties.client.client import Client
    from parties.client.prompts import PromptReader

    checkpoint = load_checkpoint(place.folder)
    reader = PromptReader(checkpoint.tokenizer, place.folder)
    ready, _ = prompted(request, reader, first, checkpoint.architecture)
    calibration = calibration_for(place.folder, request.suite)
    spec = request.suite.over(calibration.suites.get(request.suite.name, {}))
    plan = ready.plan()
    setting = Setting(spec.name, place.started.parties, request.policy, spec.options, padded=plan.padded)
    check_session(checkpoint.architecture, setting, plan.prompt_tokens, plan.new_tokens)
    shared_name = place.folder.resolve().name
    status = err.status("starting processes")
    with status, local_deployment(place.started.parties, place.started.device) as deployment:
        status.stop()
        with stages() as progress:
            deployment.share_model(place.folder, shared_name, calibration.suites, on_progress=progress)
        asking = Asking(Client(deployment.client), checkpoint.tokenizer, streaming, deployment.watched)
        yield Partner(asking, reader, checkpoint.architecture, replace(request, model=shared_name))


def _says_once() -> Callable[[str], None]:
    """Return what says for whom it is waited, each reason once."""
    said: set[str] = set()

    def say(reason: str) -> None:
        if reason not in said:
            said.add(reason)
            err.print(f"waiting for {reason}", soft_wrap=True)

    return say


@contextmanager
def _running(place: Place, request: GenerationRequest, first: Asked, streaming: bool) -> Iterator[Partner]:
    from launch.checkpoints.calibrating import warn_if_never_calibrated
    from launch.terminal.answering import Asking
    from models.checkpoint import load_tokenizer, read_architecture
    from parties.client.client import Client
    from parties.client.model_reference import check_folder
    from parties.client.prompts import PromptReader

    assert place.config is not None
    client = Client(place.config)
    architecture = read_architecture(place.folder)
    tokenizer: TextTokenizer = load_tokenizer(place.folder, architecture)
    reader = PromptReader(tokenizer, place.folder)
    prompted(request, reader, first, architecture)
    reference = client.find_model(place.name or place.folder.resolve().name, _says_once())
    check_folder(place.folder, architecture, tokenizer, reference)
    warn_if_never_calibrated(reference)
    yield Partner(Asking(client, tokenizer, streaming), reader, architecture, replace(request, model=reference))


def messages(system: str | None, text: str) -> list[Mapping[str, str]]:
    """Return a conversation of one question. Secret."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": text}]
