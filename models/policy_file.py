"""`policy.safetensors`: what cache policies have learned of the checkpoint that it lies beside, one file for all of them.

Tensors are named `policy.layers.N.{part}`, every part in every layer. The header names the checkpoint by its digest
(`models.digest`), so weights of another model are refused where they are read. The digest stays with the owner: to anyone
else it would tell which checkpoint the secret model is. What parties and clients hold in common is the model's random id,
which stands for its learned weights too, and their public shapes in the architecture.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.architecture import Architecture, LearnedPart
from models.digest import POLICY_FILE, model_digest
from models.learned import NAME
from mpc.errors import CheckpointError, ConfigurationError

FORMAT = "1"


class PolicyFile:
    """The opened file. Raises `CheckpointError` naming the file, the tensor and the remedy for what is none."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / POLICY_FILE
        open_file: Any = safe_open
        try:
            self._opened = open_file(self.file, framework="pt")
        except (OSError, SafetensorError) as error:
            raise self._wrong(f"truncated or not a safetensors file ({error})") from None
        self.about: dict[str, str] = self._opened.metadata() or {}
        if self.about.get("format") != FORMAT or "model" not in self.about:
            raise self._wrong("its header does not say which checkpoint it was learned of")

    def _wrong(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: {what}; make it again by `mpcache fit`, or take it away")

    def parts(self, layers: int) -> tuple[LearnedPart, ...]:
        """Return its parts, which every one of `layers` layers must have in the same shape."""
        shapes: dict[str, dict[int, tuple[int, ...]]] = {}
        names: list[str] = self._opened.keys()
        for name in names:
            match = NAME.fullmatch(name)
            if match is None:
                raise self._wrong(f"tensor '{name[:80]}' is not named policy.layers.N.PART")
            shapes.setdefault(match[2], {})[int(match[1])] = tuple(self._opened.get_slice(name).get_shape())
        for part, found in shapes.items():
            if set(found) != set(range(layers)):
                raise self._wrong(f"'{part}' is there for {len(found)} layers, the model has {layers}")
            if len(set(found.values())) > 1:
                raise self._wrong(f"'{part}' has different shapes in different layers")
        try:
            return tuple(LearnedPart(name=part, shape=found[0]) for part, found in sorted(shapes.items()))
        except ConfigurationError as error:
            raise self._wrong(str(error)) from None

    def check_model(self, directory: Path) -> None:
        """Raise `CheckpointError` unless it was learned of the checkpoint in this directory."""
        own = model_digest(directory)
        if self.about["model"] != own:
            raise self._wrong(
                f"it was learned of another model (digest {self.about['model'][:12]}, this one's is {own[:12]})"
            )

    def read(self, name: str) -> Tensor:
        """Return a tensor as float64."""
        tensor: Tensor = self._opened.get_tensor(name).to(torch.float64)
        if not math.isfinite(tensor.sum().item()):
            raise self._wrong(f"tensor '{name}' holds infinities or NaN")
        return tensor


def described(directory: Path, architecture: Architecture) -> Architecture:
    """Return a checkpoint's architecture with what lies beside it."""
    if not (directory / POLICY_FILE).exists():
        return architecture
    return architecture.model_copy(update={"learned": PolicyFile(directory).parts(architecture.layers)})


class WithLearned(Mapping[str, Tensor]):
    """A checkpoint's weights and those of the policy file beside it, by name, in `dtype`."""

    def __init__(
        self, weights: Mapping[str, Tensor], directory: Path, architecture: Architecture, dtype: torch.dtype
    ) -> None:
        self._weights = weights
        self._file = PolicyFile(directory)
        self._file.check_model(directory)
        self._shapes = architecture.weight_shapes()
        self._dtype = dtype

    def __getitem__(self, name: str) -> Tensor:
        if name.startswith("policy.") and name in self._shapes:
            return self._file.read(name).to(self._dtype).contiguous()
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def write(directory: Path, tensors: Mapping[str, Tensor], model: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write the file into a directory, all of it or nothing, for the checkpoint in `model`; return it."""
    about = {"format": FORMAT, "model": model_digest(model)}
    directory.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".mpcache-", suffix=".tmp", dir=directory)
    os.close(handle)
    try:
        save_file({key: value.to(dtype).contiguous() for key, value in tensors.items()}, name, metadata=about)
        os.chmod(name, 0o644)
        os.replace(name, directory / POLICY_FILE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{directory / POLICY_FILE} cannot be written ({error})") from None
    finally:
        Path(name).unlink(missing_ok=True)
    return directory / POLICY_FILE
