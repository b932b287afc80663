"""A compute party's shares of registered prefixes on disk: what sessions of later days begin behind, after a restart too.

A prefix is a folder named by its id, in the folder `prefixes` of the store: `prefix.json` (public facts, and SHA-256 of the
rest) and one `NNNN.safetensors` for the keys, and one for the values, of each layer: this party's share in Z_2^64
(`models.prefixes`). It is written while a session computes it, and seen when the model owner has said that no value left its
range (`parties.party.registering`). As of models, every storing has a nonce of the party's own, to which masks belong.

Rows fit one storing of a model, one suite with its fraction bits and options, and one set of parties, in order. Nothing in
them depends on the dealer: masks come from the dealer of the session that loads them.
"""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from models.architectures import decoder_of, parse_description
from models.prefix_rows import rows_shapes
from mpc.errors import CheckpointError, ConfigurationError, EnvironmentProblem, MpcacheError
from parties.events import log
from parties.party.store import StoredModel
from parties.party.stored_folder import (
    Digest,
    IncomingFolder,
    check_of,
    checked_share,
    load_checked,
    made_root,
    remove_folder,
)
from parties.wire.manifest import ID_PATTERN, Identifier, Manifest, PrefixName
from protocols.options import OptionValue

FOLDER = "prefixes"
FACTS = "prefix.json"
REMEDY = "let the model owner take the prefix away and register it again (`mpcache prefix rm`, `mpcache prefix add`)"
ELEMENT_BYTES = 8


class StoredPrefix(BaseModel):
    """The public facts of a stored prefix. storing: the nonce of this party's shares of the model; index: whose share it is;
    options: of the suite, but for how experts are computed; session: in which the rows were computed; text: the token ids,
    None where they are secret; nonce: 128 random bits of this party, new at every storing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prefix: Identifier
    name: PrefixName
    model: Identifier
    storing: Identifier
    owner: str
    parties: list[str]
    index: Annotated[int, Field(ge=0)]
    architecture: str
    suite: str
    fraction_bits: int
    options: dict[str, OptionValue]
    tokens: Annotated[int, Field(ge=1)]
    session: Identifier
    text: list[int] | None
    nonce: Identifier

    @classmethod
    def of(cls, manifest: Manifest, model: StoredModel, session: str, text: list[int] | None, nonce: str) -> StoredPrefix:
        """Return the facts of what a session registers."""
        prefix = manifest.prefix
        assert prefix is not None
        assert prefix.name is not None
        return cls(
            prefix=prefix.id,
            name=prefix.name,
            model=model.model,
            storing=model.nonce,
            owner=model.owner,
            parties=model.parties,
            index=model.index,
            architecture=model.architecture,
            suite=manifest.suite,
            fraction_bits=manifest.fraction_bits,
            options=manifest.row_options,
            tokens=manifest.prompt_tokens,
            session=session,
            text=text,
            nonce=nonce,
        )

    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Return names and shapes of the rows, in order."""
        return rows_shapes(decoder_of(parse_description(self.architecture), "a prefix's model"), self.tokens)

    @property
    def size(self) -> int:
        """Return the bytes of the rows' shares."""
        return ELEMENT_BYTES * sum(math.prod(shape) for shape in self.shapes().values())

    def unfit(self, manifest: Manifest, model: StoredModel) -> str:
        """Return why a session cannot begin behind it, in words; empty if it can."""
        found = [
            (self.model == model.model, "belongs to another model"),
            (self.storing == model.nonce, "was computed with another storing of the model, which was shared again since"),
            (self.parties == manifest.parties, f"is shared among {', '.join(self.parties)}"),
            (self.suite == manifest.suite, f"was computed in suite '{self.suite}'"),
            (self.fraction_bits == manifest.fraction_bits, f"was computed with {self.fraction_bits} fraction bits"),
            (self.options == manifest.row_options, f"was computed with suite options {_words(self.options)}"),
            (self.tokens == manifest.prefix_tokens, f"has {self.tokens} tokens, not {manifest.prefix_tokens}"),
        ]
        return next((words for fits, words in found if not fits), "")


def _words(options: Mapping[str, OptionValue]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items()) or "as usual"


class PrefixFiles(BaseModel):
    """`prefix.json`. files: SHA-256 of each file's content by its name without ending; check: of facts and files."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    facts: StoredPrefix
    files: dict[str, Digest]
    check: Digest


class IncomingPrefix(IncomingFolder):
    """A prefix that is being stored; nobody sees it until `PrefixStore.complete`."""

    def __init__(self, root: Path, facts: StoredPrefix) -> None:
        super().__init__(root, "prefix store", "register the prefix again")
        self.facts = facts

    def rows(self, name: str, share: Tensor) -> None:
        """Store the share of the next rows, in the order of `StoredPrefix.shapes`. Raises `EnvironmentProblem`."""
        shapes = self.facts.shapes()
        if list(shapes)[len(self.files)] != name or tuple(share.shape) != shapes[name]:
            raise RuntimeError(f"rows '{name}' {list(share.shape)} are not those that are due")
        self.write(f"{len(self.files):04d}", {"share": share.detach().cpu().contiguous()})

    def publish(self) -> None:
        """Make the prefix visible. All of it is on disk when this returns."""
        found = PrefixFiles(facts=self.facts, files=dict(self.files), check=check_of(self.facts, self.files))
        self.commit(self.facts.prefix, FACTS, found.model_dump_json(indent=1).encode())


class PrefixStore:
    """All registered prefixes of one party. store: the folder of its models. most: bytes that rows may take together.

    Raises `EnvironmentProblem` when the folder cannot be written.
    """

    def __init__(self, store: Path, most: int) -> None:
        self.root = store / FOLDER
        self.most = most
        self._lock = threading.Lock()
        self._held: dict[str, PrefixFiles] = {}
        self._coming: dict[str, int] = {}  # bytes that are being written, by id
        made_root(self.root, "prefix store")
        for folder in sorted(self.root.iterdir()):
            if ID_PATTERN.fullmatch(folder.name):
                try:
                    found = read(folder)
                    self._held[found.facts.prefix] = found
                except MpcacheError as error:
                    log.warning("%s", error)

    def prefixes(self) -> list[StoredPrefix]:
        """Return all stored prefixes."""
        with self._lock:
            return [found.facts for found in self._held.values()]

    def of_model(self, model: str) -> list[StoredPrefix]:
        """Return the stored prefixes of a model."""
        return [facts for facts in self.prefixes() if facts.model == model]

    def get(self, prefix: str) -> StoredPrefix | None:
        """Return one stored prefix."""
        with self._lock:
            found = self._held.get(prefix)
            return None if found is None else found.facts

    def begin(self, facts: StoredPrefix) -> IncomingPrefix:
        """Start to store a prefix. Raises `ConfigurationError` when its id or its name is taken, or it has no room."""
        with self._lock:
            self._check(facts)
            taken = sum(self._coming.values()) + sum(found.facts.size for found in self._held.values())
            if taken + facts.size > self.most:
                raise ConfigurationError(
                    f"the rows of prefix {facts.name} take {facts.size:,} bytes beside {taken:,} of others, and this party "
                    f"stores at most {self.most:,}: take one away (`mpcache prefix rm`), or raise 'max_prefix_bytes' in its "
                    "'limits'"
                )
            self._coming[facts.prefix] = facts.size
        try:
            return IncomingPrefix(self.root, facts)
        except BaseException:
            self._arrived(facts)
            raise

    def _check(self, facts: StoredPrefix) -> None:
        held = [found.facts for found in self._held.values()]
        if facts.prefix in self._held or facts.prefix in self._coming:
            raise ConfigurationError(f"prefix {facts.prefix} is stored already: register it under a new id")
        if any((other.model, other.name) == (facts.model, facts.name) for other in held):
            raise ConfigurationError(
                f"the model has a prefix '{facts.name}' already: take it away (`mpcache prefix rm`), or choose another name"
            )

    def _arrived(self, facts: StoredPrefix) -> None:
        with self._lock:
            self._coming.pop(facts.prefix, None)

    def complete(self, incoming: IncomingPrefix) -> None:
        """Make a prefix visible to sessions, durably. Raises `ConfigurationError` when its name was taken meanwhile."""
        facts = incoming.facts
        with self._lock:
            self._coming.pop(facts.prefix, None)
            self._check(facts)
            incoming.publish()
            self._held[facts.prefix] = PrefixFiles(
                facts=facts, files=dict(incoming.files), check=check_of(facts, incoming.files)
            )

    def discard(self, incoming: IncomingPrefix) -> None:
        """Remove what was written of a prefix that is not to be stored."""
        incoming.discard()
        self._arrived(incoming.facts)

    def remove(self, facts: StoredPrefix) -> None:
        """Take a prefix away; a session that has not loaded all of its rows yet fails.

        Raises `EnvironmentProblem` when its folder cannot be removed; then the prefix is still there.
        """
        with self._lock:
            try:
                gone = remove_folder(self.root, facts.prefix)
            except OSError as error:
                raise EnvironmentProblem(
                    f"prefix {facts.name} cannot be removed from the prefix store ({error.strerror}): check its permissions"
                ) from None
            self._held.pop(facts.prefix, None)
        shutil.rmtree(gone, ignore_errors=True)  # what is left goes at the next start

    def share(self, facts: StoredPrefix, name: str) -> Tensor:
        """Return this party's share of rows, int64 [G, S, C] in Z_2^64. Secret.

        Raises `CheckpointError` naming the file when it cannot be read, or is not what was stored.
        """
        shapes = facts.shapes()
        with self._lock:
            found = self._held.get(facts.prefix)
            if found is None or found.facts.nonce != facts.nonce:
                raise CheckpointError(f"prefix {facts.name} was removed while its rows were loaded: ask without it")
        return load_rows_of(self.root / facts.prefix, found, list(shapes).index(name), shapes[name])


def read(folder: Path) -> PrefixFiles:
    """Return the facts of a stored prefix. Raises `CheckpointError` where they are not what was stored, or a file is
    missing."""
    named = f"{FOLDER}/{folder.name} of the store"
    try:
        found = PrefixFiles.model_validate_json((folder / FACTS).read_bytes())
        count = len(found.facts.shapes())
    except (OSError, ValidationError, ConfigurationError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{named} is not a stored prefix ({type(error).__name__}): remove it, and {REMEDY}") from None
    if found.check != check_of(found.facts, found.files) or found.facts.prefix != folder.name:
        raise CheckpointError(f"{named}: {FACTS} is not what was stored: remove the folder, and {REMEDY}")
    for number in range(count):
        if f"{number:04d}" not in found.files or not (folder / f"{number:04d}.safetensors").is_file():
            raise CheckpointError(f"{named}: {number:04d}.safetensors is missing: remove the folder, and {REMEDY}")
    return found


def load_rows_of(folder: Path, found: PrefixFiles, number: int, shape: tuple[int, ...]) -> Tensor:
    """Return the share in file `number` of a stored prefix. Raises `CheckpointError` as `PrefixStore.share` does."""
    name = f"{number:04d}"
    named = f"{FOLDER}/{folder.name}/{name}.safetensors of the store"
    tensors = load_checked(folder / f"{name}.safetensors", found.files.get(name), named, REMEDY)
    return checked_share(tensors.get("share"), shape, torch.int64, named, REMEDY)
