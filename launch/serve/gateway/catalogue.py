"""The models that this gateway offers: each one's shares at the parties, and its tokenizer here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from launch.serve.gateway.errors import invalid
from launch.serve.gateway.formats import FormatReader
from models.architectures import AnyArchitecture
from models.checkpoint import load_tokenizer, read_description
from models.tokenizer.chat_template import ChatTemplate
from models.tokenizer.text import TextTokenizer
from mpc.errors import CheckpointError, ConfigurationError, MpcacheError
from parties.client.client import Client
from parties.client.model_reference import ModelReference, check_folder

REFRESH_SECONDS = 10.0
FAILURE_SECONDS = 2.0


@dataclass(frozen=True)
class Words:
    """A tokenizer's folder. template: None with the reason in `no_template`."""

    folder: Path
    architecture: AnyArchitecture
    tokenizer: TextTokenizer
    template: ChatTemplate | None
    no_template: str

    @classmethod
    def load(cls, folder: Path) -> Words:
        """Read a folder. Raises `CheckpointError` when config.json or the tokenizer is missing or unreadable."""
        architecture = read_description(folder)
        tokenizer = load_tokenizer(folder, architecture)
        try:
            return cls(folder, architecture, tokenizer, ChatTemplate.load(folder, tokenizer), "")
        except CheckpointError as error:
            return cls(folder, architecture, tokenizer, None, str(error))

    def fits(self, reference: ModelReference) -> bool:
        """Whether architecture and tokenizer are those of a shared model."""
        return reference.description == self.architecture and reference.reads_as(self.tokenizer)

    @cached_property
    def formats(self) -> FormatReader:
        """Return what reads formats that answers are held to."""
        return FormatReader(self.tokenizer, self.architecture.vocabulary)


@dataclass(frozen=True)
class Served:
    """A model with its tokenizer. created: seconds since 1970 when this gateway first saw it."""

    reference: ModelReference
    words: Words
    created: int

    @property
    def name(self) -> str:
        """What requests call it."""
        return self.reference.name

    def of_kind(self, encoder: bool) -> Served:
        """Return itself. Raises `ApiError` for a decoder where an encoder is asked for, and the other way round."""
        try:
            _ = self.reference.encoder if encoder else self.reference.architecture
        except ConfigurationError as error:
            raise invalid(str(error), "model") from error
        return self


class Catalogue:
    """Looks models up at the parties: at the start, and again when a request names one that is not known here.

    wanted: model name -> tokenizer; empty: every model whose architecture and tokenizer are those of `default`.
    """

    def __init__(self, client: Client, default: Words, wanted: dict[str, Words]) -> None:
        self._client = client
        self._default = default
        self._wanted = wanted
        self._lock = threading.Lock()
        self._served: dict[str, Served] = {}
        self._refreshed = -REFRESH_SECONDS
        self._failed = 0.0
        self._problem: MpcacheError | None = None

    def refresh(self, on_waiting: Callable[[str], None] = lambda reason: None) -> None:
        """Ask the parties what they hold, at most every 10 s. Raises `PeerLost`, `ConfigurationError`."""
        with self._lock:
            if time.monotonic() - self._refreshed < REFRESH_SECONDS:
                return
            if self._problem is not None and time.monotonic() - self._failed < FAILURE_SECONDS:
                raise self._problem  # whoever waited for the same answer does not wait again
            try:
                held, self._problem = self._client.models(on_waiting), None
            except MpcacheError as error:
                self._problem, self._failed = error, time.monotonic()
                raise
            found: dict[str, Served] = {}
            for reference in held:
                words = self._wanted.get(reference.name) or self._wanted.get(reference.id)
                if words is not None:
                    check_folder(words.folder, words.architecture, words.tokenizer, reference)
                elif not self._wanted and self._default.fits(reference):
                    words = self._default
                if words is not None:
                    before = self._served.get(reference.id)
                    created = int(time.time()) if before is None else before.created
                    found[reference.id] = Served(reference, words, created)
            self._served = found
            self._refreshed = time.monotonic()

    def check(self) -> None:
        """Raise `ConfigurationError` unless every wanted model is there, and at least one."""
        known = {name for served in self._served.values() for name in (served.name, served.reference.id)}
        missing = [name for name in self._wanted if name not in known]
        if missing or not self._served:
            what = f"no model '{missing[0]}'" if missing else f"no model that fits {self._default.folder}"
            said = [f"the parties hold {what}; `mpcache client` lists what they hold", *self._client.disputes]
            raise ConfigurationError("; ".join(said))

    def all(self) -> list[Served]:
        """Return the models as last seen."""
        return list(self._served.values())

    def known(self, name: str) -> Served | None:
        """Return the model of this name or id as last seen; None for none and for several."""
        found = [s for s in self._served.values() if name in (s.name, s.reference.id)]
        return found[0] if len(found) == 1 else None

    def find(self, name: str) -> Served:
        """Return the model of this name or id as last seen. Raises `ApiError` 404 without repeating an unknown name."""
        if (served := self.known(name)) is not None:
            return served
        found = [s for s in self._served.values() if name in (s.name, s.reference.id)]
        offered = ", ".join(sorted(s.reference.id if len(found) > 1 else s.name for s in found or self.all())) or "none"
        what = "several models have this name, say which by its id" if found else "no such model is served here; served"
        raise invalid(f"{what}: {offered}", "model", "model_not_found", 404)
