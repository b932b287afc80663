"""A compute party's shares of models on disk, so that the model owner may be offline and the party restarted.

A model is a folder named by its id: `model.json` (public facts, SHA-256 of every other file and of these facts) and either
`seed.safetensors` (256 bits from which all shares are expanded) or one `NNNN.safetensors` a weight (the last party). Files
have mode 0600, folders 0700; a folder is written under a temporary name and renamed when it is complete, and a receipt is
sent when files, folder and its name are on disk. A file is checked whenever weights are loaded from it.

Every storing has a random nonce that the party makes itself. Dealt masks of weights belong to a nonce (see
`parties.tapes.journal`, `parties.server.weight_cache`), not to the model's id, which its owner chooses: whoever stores other
weights under an id of before gets no mask of before. `storing.json` holds the nonces of all parties, as they told them at
the model's first session: shares of different storings do not mix.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from models.architectures import parse_description
from mpc.errors import CheckpointError, ConfigurationError, EnvironmentProblem, ManifestMismatch, MpcacheError
from mpc.random import SEED_BYTES, Prg, derive_seed
from parties.events import log
from parties.files import sync_folder, write_file
from parties.party.stored_folder import (
    Digest,
    IncomingFolder,
    check_of,
    checked_share,
    load_checked,
    made_root,
    remove_folder,
)
from parties.wire.manifest import ID_PATTERN, Identifier
from parties.wire.shares import BITS
from protocols.ranges import checked_ranges


class StoredModel(BaseModel):
    """The public facts of a stored model. index: whose share it is; seeded: the share is expanded from a seed; ranges: the
    owner's bounds by suite, None where the model was never calibrated; tokenizer: the digest of the owner's, empty without
    one; nonce: 128 random bits of this party, new at every storing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: Identifier
    name: Annotated[str, Field(max_length=200)]
    architecture: str
    owner: str
    parties: list[str]
    index: Annotated[int, Field(ge=0)]
    fraction_bits: int
    seeded: bool
    ranges: dict[str, dict[str, int | str]] | None = None
    tokenizer: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    nonce: Identifier

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return names and shapes of the weights, in order."""
        return parse_description(self.architecture).weight_shapes()


class StoredFiles(BaseModel):
    """`model.json`. files: SHA-256 of each file's content by its name without ending; check: of facts and files."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    facts: StoredModel
    files: dict[str, Digest]
    check: Digest

    @classmethod
    def of(cls, facts: StoredModel, files: Mapping[str, str]) -> StoredFiles:
        """Return facts and files with their check."""
        return cls(facts=facts, files=dict(files), check=check_of(facts, files))

    def intact(self) -> bool:
        """Whether facts and files are what was stored."""
        return self.check == check_of(self.facts, self.files)


WHAT, REMEDY = "model store", "share the model again"


class Incoming(IncomingFolder):
    """A model that is being stored; nobody sees it until `publish`. Raises `EnvironmentProblem` when the disk refuses."""

    def __init__(self, root: Path, facts: StoredModel) -> None:
        super().__init__(root, WHAT, REMEDY)
        self.facts = facts

    def seed(self, seed: bytes) -> None:
        """Store the seed of all shares."""
        self.write("seed", {"seed": torch.frombuffer(bytearray(seed), dtype=torch.uint8)})

    def weight(self, share: Tensor) -> None:
        """Store the share of the next weight, in the order of the architecture's weights."""
        self.write(f"{len(self.files):04d}", {"share": share.contiguous()})

    def publish(self) -> None:
        """Make the model visible. All of it is on disk when this returns."""
        facts = StoredFiles.of(self.facts, self.files).model_dump_json(indent=1).encode()
        self.commit(self.facts.model, "model.json", facts)


def read_model(folder: Path) -> StoredFiles:
    """Return facts and checksums of a stored model. Raises `CheckpointError` where they are not what was stored, or a file
    is missing."""
    try:
        stored = StoredFiles.model_validate_json((folder / "model.json").read_bytes())
        shapes = stored.facts.shapes()
        checked_ranges(stored.facts.ranges or {}, f"{folder}/model.json")
    except (OSError, ValidationError, ConfigurationError) as error:
        raise CheckpointError(
            f"{folder} is not a stored model ({type(error).__name__}): remove it and share the model again"
        ) from None
    if not stored.intact() or stored.facts.model != folder.name:
        raise CheckpointError(f"{folder}/model.json is not what was stored: remove {folder} and share the model again")
    files = ["seed"] if stored.facts.seeded else [f"{i:04d}" for i in range(len(shapes))]
    for name in files:
        if name not in stored.files or not (folder / f"{name}.safetensors").is_file():
            raise CheckpointError(f"{folder}/{name}.safetensors is missing: remove {folder} and share the model again")
    return stored


class ModelStore:
    """All models of one party. Raises `EnvironmentProblem` when the folder cannot be written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._models: dict[str, StoredModel] = {}
        self._files: dict[str, Mapping[str, str]] = {}
        made_root(root, "model store")
        for folder in sorted(root.iterdir()):
            if ID_PATTERN.fullmatch(folder.name):
                try:
                    self._add(read_model(folder))
                except MpcacheError as error:
                    log.warning("%s", error)

    def _add(self, stored: StoredFiles) -> None:
        self._models[stored.facts.model] = stored.facts
        self._files[stored.facts.model] = stored.files

    def models(self) -> list[StoredModel]:
        """Return all stored models."""
        with self._lock:
            return list(self._models.values())

    def get(self, model: str) -> StoredModel | None:
        """Return one stored model."""
        with self._lock:
            return self._models.get(model)

    def begin(self, facts: StoredModel) -> Incoming:
        """Start to store a model. Raises `ConfigurationError` when its id is taken."""
        with self._lock:
            self._check_id(facts.model)
        return Incoming(self.root, facts)

    def _check_id(self, model: str) -> None:
        if model in self._models:
            raise ConfigurationError(f"model {model} is stored already: share the model under a new id")

    def complete(self, incoming: Incoming, check: Callable[[list[StoredModel]], None] = lambda models: None) -> None:
        """Make a model visible to sessions, durably.

        check(models): may refuse it for what is stored by now. Raises `ConfigurationError` when its id was taken meanwhile.
        """
        with self._lock:
            self._check_id(incoming.facts.model)
            check(list(self._models.values()))
            incoming.publish()
            self._models[incoming.facts.model] = incoming.facts
            self._files[incoming.facts.model] = incoming.files

    def remove(self, facts: StoredModel) -> None:
        """Take a model away; a session that has not loaded all of its weights yet fails.

        Raises `EnvironmentProblem` when its folder cannot be removed; then the model is still there.
        """
        with self._lock:
            try:
                gone = remove_folder(self.root, facts.model)
            except OSError as error:
                raise EnvironmentProblem(
                    f"model {facts.model} cannot be removed from {self.root} ({error.strerror}): check its permissions"
                ) from None
            self._models.pop(facts.model, None)
            self._files.pop(facts.model, None)
        shutil.rmtree(gone, ignore_errors=True)  # what is left goes at the next start

    def agree(self, facts: StoredModel, nonces: Mapping[str, str]) -> None:
        """Hold the parties' nonces of a model's storing together, for ever: the first ones that are told count.

        Raises `ManifestMismatch` naming the party that has stored the model anew since, `EnvironmentProblem` when the disk
        refuses.
        """
        file = self.root / facts.model / "storing.json"
        with self._lock:
            try:
                known = json.loads(file.read_bytes()) if file.exists() else {}
                if not isinstance(known, dict) or (file.exists() and not known):
                    raise ValueError
                if not known:
                    write_file(file, json.dumps(dict(nonces), sort_keys=True).encode(), 0o600)
                    sync_folder(file.parent)
            except OSError as error:
                raise EnvironmentProblem(
                    f"{self._named(file)} cannot be written ({error.strerror}): free disk space, or make it writable"
                ) from None
            except ValueError:
                raise CheckpointError(
                    f"{self._named(file)} is damaged: remove its folder and share the model again at all parties"
                ) from None
        if known and (others := [name for name, nonce in nonces.items() if known.get(name) != nonce]):
            raise ManifestMismatch(
                f"{others[0]} holds another storing of model {facts.model} than the one that its first session used: its "
                "owner must share the model again, at all parties"
            )

    def share(self, facts: StoredModel, name: str) -> Tensor:
        """Return this party's share of a weight: int64 in Z_2^64, `facts.fraction_bits` fraction bits. Secret.

        Raises `CheckpointError` naming the file when it cannot be read, is not what was stored or has another shape.
        """
        shapes = facts.shapes()
        folder, shape = self.root / facts.model, shapes[name]
        if facts.seeded:
            seed = self._load(facts, folder / "seed.safetensors", "seed", (SEED_BYTES,), torch.uint8)
            return Prg(derive_seed(seed.numpy().tobytes(), "weight", name)).ring(shape, BITS)
        path = folder / f"{list(shapes).index(name):04d}.safetensors"
        return self._load(facts, path, "share", shape, torch.int64)

    def _named(self, path: Path) -> str:
        """Name a file, for an error that a client reads as well: not where the store lies."""
        return f"{path.relative_to(self.root)} of the model store"

    def _current(self, facts: StoredModel) -> Mapping[str, str]:
        """Return the checksums of this storing. Raises `CheckpointError` when it was removed, or another one took its id."""
        with self._lock:
            found = self._models.get(facts.model)
            if found is None or found.nonce != facts.nonce:
                raise CheckpointError(f"model {facts.model} was removed while its weights were loaded: ask again")
            return self._files[facts.model]

    def _load(self, facts: StoredModel, path: Path, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        named, remedy = self._named(path), "remove its folder and share the model again"
        digest = self._current(facts).get(path.stem)
        tensor = checked_share(load_checked(path, digest, named, remedy).get(key), shape, dtype, named, remedy)
        self._current(facts)  # still, so what was read is this storing's
        return tensor
