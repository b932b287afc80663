"""A compute party's shares of registered prefixes on disk: what sessions of later days begin behind, after a restart too.

A prefix owns pages of the store (`parties.pages.page_store`): one for the keys, and one for the values, of each layer, this
party's share in Z_2^64 (`models.prefixes`). They are written while a session computes them, and seen, all at once, when the
model owner has said that no value left its range (`parties.party.registering`); the public facts lie in the index beside
them. As of models, every storing has a nonce of the party's own, to which masks belong.

Rows fit one storing of a model, one suite with its fraction bits and options, and one set of parties, in order. Nothing in
them depends on the dealer: masks come from the dealer of the session that loads them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from models.architectures import decoder_of, parse_description
from models.policies import parse
from models.prefix_rows import rows_shapes
from models.prefix_scores import scores_of
from mpc.errors import CheckpointError, ConfigurationError, MpcacheError
from parties.events import log
from parties.pages.index import Owner, PageRow
from parties.pages.page_store import Incoming, PageStore, named_page
from parties.party.store import StoredModel
from parties.party.stored_folder import checked_share
from parties.wire.manifest import Identifier, Manifest, PrefixName
from protocols.options import OptionValue

REMEDY = "let the model owner take the prefix away and register it again (`mpcache prefix rm`, `mpcache prefix add`)"
ELEMENT_BYTES = 8
IDS = "ids"  # of a secret text, shared


class StoredPrefix(BaseModel):
    """The public facts of a stored prefix. storing: the nonce of this party's shares of the model; index: whose share it is;
    options: of the suite, but for how experts are computed; session: in which the rows were computed; text: the token ids,
    None where they are secret; nonce: 128 random bits of this party, new at every storing; scores: kind of those beside the
    rows (`models.prefix_scores`), empty without."""

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
    scores: str = ""

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
            scores=needed_scores(manifest),
        )

    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Return names and shapes of the rows, in order."""
        return rows_shapes(decoder_of(parse_description(self.architecture), "a prefix's model"), self.tokens, self.scores)

    @property
    def size(self) -> int:
        """Return the bytes of the rows' shares."""
        return ELEMENT_BYTES * sum(math.prod(shape) for shape in self.shapes().values())

    def unfit(self, manifest: Manifest, model: StoredModel, tokens: int) -> str:
        """Return why a session cannot begin behind it, as a text of so many tokens, in words; empty if it can."""
        found = [
            (self.model == model.model, "belongs to another model"),
            (self.storing == model.nonce, "was computed with another storing of the model, which was shared again since"),
            (self.parties == manifest.parties, f"is shared among {', '.join(self.parties)}"),
            (self.suite == manifest.suite, f"was computed in suite '{self.suite}'"),
            (self.fraction_bits == manifest.fraction_bits, f"was computed with {self.fraction_bits} fraction bits"),
            (self.options == manifest.row_options, f"was computed with suite options {_words(self.options)}"),
            (self.tokens == tokens, f"has {self.tokens} tokens, not {tokens}"),
            (
                needed_scores(manifest) in ("", self.scores),
                f"was registered without the scores that policy {manifest.policy} begins with (`prefix add --policy`)",
            ),
        ]
        return next((words for fits, words in found if not fits), "")


def needed_scores(manifest: Manifest) -> str:
    """Return the kind of scores that a session needs of its prefix, or stores with the one that it registers."""
    return scores_of(parse(manifest.policy))


def _words(options: Mapping[str, OptionValue]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items()) or "as usual"


class IncomingPrefix:
    """A prefix that is being stored; nobody sees it until `PrefixStore.complete`. Raises `EnvironmentProblem` when the disk
    refuses."""

    def __init__(self, pages: PageStore, facts: StoredPrefix) -> None:
        self.facts = facts
        self.pages: Incoming = pages.begin(facts.prefix, "register the prefix again")

    def rows(self, name: str, share: Tensor) -> None:
        """Store the share of the next rows, in the order of `StoredPrefix.shapes`."""
        shapes, count = self.facts.shapes(), len(self.pages.rows)
        if list(shapes)[count] != name or tuple(share.shape) != shapes[name]:
            raise RuntimeError(f"rows '{name}' {list(share.shape)} are not those that are due")
        self._write(f"{count:04d}", share)

    def ids(self, share: Tensor) -> None:
        """Store the share of a secret text's token ids, behind all rows."""
        self._write(IDS, share)

    def _write(self, name: str, share: Tensor) -> None:
        self.pages.write(name, {"share": share.detach().cpu().contiguous()})


class PrefixStore:
    """All registered prefixes of one party. pages: where their rows lie. most: bytes that rows may take together."""

    def __init__(self, pages: PageStore, most: int) -> None:
        self.pages = pages
        self.most = most
        self._lock = threading.Lock()
        self._held: dict[str, tuple[StoredPrefix, Owner]] = {}
        self._coming: dict[str, int] = {}  # bytes that are being written, by id
        for owner in pages.owners("prefix"):
            try:
                found = read(owner)
                self._held[found.prefix] = found, owner
            except MpcacheError as error:
                log.warning("%s", error)

    def prefixes(self) -> list[StoredPrefix]:
        """Return all stored prefixes."""
        with self._lock:
            return [facts for facts, _ in self._held.values()]

    def of_model(self, model: str) -> list[StoredPrefix]:
        """Return the stored prefixes of a model."""
        return [facts for facts in self.prefixes() if facts.model == model]

    def get(self, prefix: str) -> StoredPrefix | None:
        """Return one stored prefix."""
        with self._lock:
            found = self._held.get(prefix)
            return None if found is None else found[0]

    def begin(self, facts: StoredPrefix) -> IncomingPrefix:
        """Start to store a prefix. Raises `ConfigurationError` when its id or its name is taken, or it has no room."""
        with self._lock:
            self._check(facts)
            taken = sum(self._coming.values()) + sum(found.size for found, _ in self._held.values())
            if taken + facts.size > self.most:
                raise ConfigurationError(
                    f"the rows of prefix {facts.name} take {facts.size:,} bytes beside {taken:,} of others, and this party "
                    f"stores at most {self.most:,}: take one away (`mpcache prefix rm`), or raise 'max_prefix_bytes' in its "
                    "'limits'"
                )
            self._coming[facts.prefix] = facts.size
        try:
            return IncomingPrefix(self.pages, facts)
        except BaseException:
            self._arrived(facts)
            raise

    def _check(self, facts: StoredPrefix) -> None:
        held = [found for found, _ in self._held.values()]
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
            incoming.pages.commit(facts.model_dump(mode="json"))
            self._held[facts.prefix] = facts, incoming.pages.owner

    def discard(self, incoming: IncomingPrefix) -> None:
        """Remove what was written of a prefix that is not to be stored."""
        incoming.pages.discard()
        self._arrived(incoming.facts)

    def remove(self, facts: StoredPrefix) -> None:
        """Take a prefix away; a session that has not loaded all of its rows yet fails. Raises `EnvironmentProblem` when the
        disk refuses; then the prefix is still there."""
        with self._lock:
            found = self._held.get(facts.prefix)
            if found is not None:
                self.pages.remove(found[1])
                del self._held[facts.prefix]

    def share(self, facts: StoredPrefix, name: str) -> Tensor:
        """Return this party's share of rows, int64 [G, S, C] in Z_2^64. Secret.

        Raises `CheckpointError` naming the file when it cannot be read, or is not what was stored.
        """
        shapes = facts.shapes()
        return self._load(facts, f"{list(shapes).index(name):04d}", shapes[name])

    def ids(self, facts: StoredPrefix) -> Tensor:
        """Return this party's share of the text's token ids, int64 [T] in Z_2^64; party 0 holds those of a public text.
        Raises `CheckpointError` as `share` does."""
        if facts.text is None:
            return self._load(facts, IDS, (facts.tokens,))
        return torch.tensor(facts.text) * int(facts.index == 0)

    def _load(self, facts: StoredPrefix, name: str, shape: tuple[int, ...]) -> Tensor:
        with self._lock:
            found = self._held.get(facts.prefix)
        if found is None or found[0].nonce != facts.nonce:
            raise CheckpointError(f"prefix {facts.name} was removed while its rows were loaded: ask without it")
        owner = found[1]
        rows: dict[str, PageRow] = self.pages.index.pages(owner)
        tensors = self.pages.read(owner, name, rows.get(name), REMEDY)
        return checked_share(tensors.get("share"), shape, torch.int64, named_page(owner, name), REMEDY)


def read(owner: Owner) -> StoredPrefix:
    """Return the facts of a stored prefix. Raises `CheckpointError` where they are none."""
    try:
        found = StoredPrefix.model_validate(owner.facts)
        found.shapes()
    except (ValidationError, ConfigurationError) as error:
        raise CheckpointError(
            f"the index of the store says nothing of {owner.folder} that this version can read ({type(error).__name__}): "
            f"remove it (`mpcache store gc`), and {REMEDY}"
        ) from None
    return found
