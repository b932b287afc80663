"""A compute party's shares of models on disk, so that the model owner may be offline and the party restarted.

A model is a folder named by its id: `model.json` (public facts) and either `seed.safetensors` (256 bits from which all
shares are expanded) or one `NNNN.safetensors` a weight (the last party). Files have mode 0600, folders 0700; a folder is
written under a temporary name and renamed when it is complete.
"""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from models.architecture import Architecture
from mpc.errors import CheckpointError, ConfigurationError, EnvironmentProblem, MpcacheError
from mpc.random import SEED_BYTES, Prg, derive_seed
from parties.failures import log
from parties.manifest import ID_PATTERN, Identifier, new_id
from parties.shares import BITS
from protocols.ranges import checked_ranges

TEMPORARY = ".incoming-"
WEIGHT_FRACTION_BITS = (8, 24)  # the fewest and the most that weights may be shared with


class StoredModel(BaseModel):
    """The public facts of a stored model. index: whose share it is; seeded: the share is expanded from a seed; ranges: the
    owner's bounds by suite, None where the model was never calibrated."""

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

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights, in order."""
        return Architecture.from_json(self.architecture).weight_shapes()


def _write(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)


class Incoming:
    """A model that is being stored; nobody sees it until `commit`."""

    def __init__(self, root: Path, facts: StoredModel) -> None:
        self.facts = facts
        self._target = root / facts.model
        self._folder = root / f"{TEMPORARY}{new_id()}"
        self._folder.mkdir(mode=0o700)
        self._next = 0

    def seed(self, seed: bytes) -> None:
        """Store the seed of all shares."""
        words = torch.frombuffer(bytearray(seed), dtype=torch.uint8)
        _write(self._folder / "seed.safetensors", save({"seed": words}))

    def weight(self, share: Tensor) -> None:
        """Store the share of the next weight, in the order of the architecture's weights."""
        _write(self._folder / f"{self._next:04d}.safetensors", save({"share": share.contiguous()}))
        self._next += 1

    def commit(self) -> None:
        """Make the model visible."""
        _write(self._folder / "model.json", self.facts.model_dump_json(indent=1).encode())
        self._folder.rename(self._target)

    def discard(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self._folder, ignore_errors=True)


class ModelStore:
    """All models of one party. Raises `EnvironmentProblem` when the folder cannot be written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._models: dict[str, StoredModel] = {}
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            root.chmod(0o700)
            for left in root.glob(f"{TEMPORARY}*"):
                shutil.rmtree(left, ignore_errors=True)
        except OSError as error:
            raise EnvironmentProblem(
                f"model store {root} cannot be written ({error.strerror}): choose another folder in 'store'"
            ) from None
        for folder in sorted(root.iterdir()):
            if ID_PATTERN.fullmatch(folder.name):
                try:
                    self._models[folder.name] = self._read(folder)
                except MpcacheError as error:
                    log.warning("%s", error)

    def _read(self, folder: Path) -> StoredModel:
        try:
            facts = StoredModel.model_validate_json((folder / "model.json").read_bytes())
            shapes = facts.shapes()
            checked_ranges(facts.ranges or {}, f"{folder}/model.json")
        except (OSError, ValidationError, ConfigurationError) as error:
            raise CheckpointError(
                f"{folder} is not a stored model ({type(error).__name__}): remove it and share the model again"
            ) from None
        files = ["seed"] if facts.seeded else [f"{i:04d}" for i in range(len(shapes))]
        for name in files:
            if not (folder / f"{name}.safetensors").is_file():
                raise CheckpointError(f"{folder}/{name}.safetensors is missing: remove {folder} and share the model again")
        return facts

    def models(self) -> list[StoredModel]:
        """All stored models."""
        with self._lock:
            return list(self._models.values())

    def get(self, model: str) -> StoredModel | None:
        """One stored model."""
        with self._lock:
            return self._models.get(model)

    def begin(self, facts: StoredModel) -> Incoming:
        """Start to store a model. Raises `ConfigurationError` when its id is taken."""
        if self.get(facts.model) is not None:
            raise ConfigurationError(f"model {facts.model} is stored already: share the model under a new id")
        return Incoming(self.root, facts)

    def complete(self, incoming: Incoming) -> None:
        """Make a model visible to sessions."""
        with self._lock:
            incoming.commit()
            self._models[incoming.facts.model] = incoming.facts

    def remove(self, facts: StoredModel) -> None:
        """Take a model away; a session that has not loaded all of its weights yet fails.

        Raises `EnvironmentProblem` when its folder cannot be removed; then the model is still there.
        """
        with self._lock:
            gone = self.root / f"{TEMPORARY}{new_id()}"
            try:
                (self.root / facts.model).rename(gone)
            except OSError as error:
                raise EnvironmentProblem(
                    f"model {facts.model} cannot be removed from {self.root} ({error.strerror}): check its permissions"
                ) from None
            self._models.pop(facts.model, None)
        shutil.rmtree(gone, ignore_errors=True)  # what is left goes at the next start

    def share(self, facts: StoredModel, name: str) -> Tensor:
        """This party's share of a weight: int64 in Z_2^64, `facts.fraction_bits` fraction bits. Secret.

        Raises `CheckpointError` naming the file when it cannot be read or has another shape.
        """
        shapes = facts.shapes()
        folder, shape = self.root / facts.model, shapes[name]
        if facts.seeded:
            seed = self._load(folder / "seed.safetensors", "seed", (SEED_BYTES,), torch.uint8)
            return Prg(derive_seed(seed.numpy().tobytes(), "weight", name)).ring(shape, BITS)
        path = folder / f"{list(shapes).index(name):04d}.safetensors"
        return self._load(path, "share", shape, torch.int64)

    def _load(self, path: Path, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        remedy = f"remove {path.parent} and share the model again"
        try:
            tensor = load_file(path)[key]
        except (OSError, SafetensorError, KeyError) as error:
            raise CheckpointError(f"{path} cannot be read ({type(error).__name__}): {remedy}") from None
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise CheckpointError(
                f"{path} holds {list(tensor.shape)} {tensor.dtype}, expected {list(shape)} {dtype}: {remedy}"
            )
        return tensor
