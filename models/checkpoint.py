"""A Hugging Face checkpoint directory as an architecture, canonical weights and a tokenizer.

Only safetensors files are read: a .bin checkpoint is a pickle, and unpickling runs code of whoever wrote it. File headers
are checked when the checkpoint is opened; a weight's data is read when it is asked for, one at a time, so that a
checkpoint needs no more memory than its largest fused weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.architecture import Architecture
from models.architectures import AnyArchitecture, decoder_of, encoder_of
from models.balancing import Balance
from models.config import Config, brief, read_json
from models.encoder_architecture import EncoderArchitecture
from models.families.encoder_family import EncoderFamily
from models.families.family import COMPUTED, Family
from models.families.registry import family_for
from models.policy_file import WithLearned, described
from models.tokenizer.text import TextTokenizer
from mpc.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies and what its header says."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]


class TensorFiles:
    """The tensors of one or several safetensors files, read one at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open: dict[Path, Any] = {}
        self.stored: dict[str, _Stored] = {}
        for file, names in self._files().items():
            self._add(file, names)

    def _files(self) -> dict[Path, set[str] | None]:
        """Return file -> names the index promises in it (None: all that it holds)."""
        if (self.directory / SINGLE).exists():
            return {self.directory / SINGLE: None}
        index = self.directory / INDEX
        if index.exists():
            listed = read_json(index).get("weight_map")
            if not isinstance(listed, dict) or not listed:
                raise CheckpointError(f"{index}: 'weight_map' is missing or empty; download the file again")
            files: dict[Path, set[str] | None] = {}
            for tensor, name in listed.items():
                if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                    raise CheckpointError(
                        f"{index}: tensor '{tensor}' is said to lie in {brief(name)}; "
                        "the name of a .safetensors file in the same directory is needed"
                    )
                promised = files.setdefault(self.directory / name, set())
                assert promised is not None
                promised.add(tensor)
            return files
        pickles = sorted(self.directory.glob("*.bin")) + sorted(self.directory.glob("*.pt*"))
        if pickles:
            raise CheckpointError(
                f"{pickles[0]}: only safetensors files are read, because this one is a pickle, which runs code when it "
                "is loaded; convert it where you trust it: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT)"
            )
        raise CheckpointError(
            f"{self.directory}: neither {SINGLE} nor {INDEX} is there; a Hugging Face checkpoint is needed"
        )

    def _add(self, file: Path, promised: set[str] | None) -> None:
        try:
            with file.open("rb") as opened:
                start = opened.read(40)
            if start.startswith(b"version https://git-lfs"):
                raise CheckpointError(f"{file}: is a Git LFS pointer, not the weights; run 'git lfs pull' in its directory")
            handle: Any = safe_open(file, framework="pt")
            names = set(handle.keys())
        except FileNotFoundError:
            raise CheckpointError(f"{file}: no such file, but {INDEX} lists it; download it") from None
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file}: truncated or not a safetensors file ({error}); download it again") from None
        for name in sorted((promised or set()) - names):
            raise CheckpointError(f"{file}: tensor '{name}' is missing, but {INDEX} lists it here; download both again")
        self._open[file] = handle
        for name in names:
            if name in self.stored:
                raise CheckpointError(f"{file}: tensor '{name}' is also in {self.stored[name].file.name}; keep one of them")
            header = handle.get_slice(name)
            self.stored[name] = _Stored(file, name, header.get_dtype(), tuple(header.get_shape()))

    def read(self, stored: _Stored) -> Tensor:
        """Return the tensor as float64."""
        try:
            tensor: Tensor = self._open[stored.file].get_tensor(stored.name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{stored.file}: tensor '{stored.name}' cannot be read ({error}); download it again"
            ) from None
        if not _finite(tensor):
            raise CheckpointError(f"{stored.file}: tensor '{stored.name}' holds infinities or NaN; use an intact checkpoint")
        return tensor.to(torch.float64)


class CanonicalWeights(Mapping[str, Tensor]):
    """Canonical weights by name, computed in float64 at each look-up and returned in `dtype`.

    balanced: with the powers of two of `models.balancing`, which change no result.
    """

    def __init__(
        self, family: Family | EncoderFamily, files: TensorFiles, dtype: torch.dtype, balanced: bool = True
    ) -> None:
        self._family = family
        self._files = files
        self._dtype = dtype
        self._shapes = family.architecture.weight_shapes()
        self._sources = _match(family, files)
        self._balance = Balance(family.architecture, self._unbalanced) if balanced else None

    def _unbalanced(self, name: str) -> Tensor:
        return self._family.weight(name, self._read)

    def _read(self, name: str) -> Tensor:
        return self._files.read(self._sources[name])

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._shapes:
            raise KeyError(name)
        tensor = self._unbalanced(name)
        if self._balance is not None:
            tensor = self._balance(name, tensor)
        tensor = tensor.to(self._dtype).contiguous()
        if tuple(tensor.shape) != self._shapes[name]:
            raise CheckpointError(f"weight '{name}' came out as {list(tensor.shape)}, {list(self._shapes[name])} is needed")
        if not _finite(tensor):
            raise CheckpointError(f"weight '{name}' leaves the range of {self._dtype}; load it as torch.float32 or float64")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def _finite(tensor: Tensor) -> bool:
    """Whether every element is finite, by one float64 sum: infinities and NaN survive it, finite float32 cannot overflow."""
    return math.isfinite(tensor.sum(dtype=torch.float64).item())


def _match(family: Family | EncoderFamily, files: TensorFiles) -> dict[str, _Stored]:
    """Return the family's tensors found in the files, each with the right dtype and shape, and nothing else in them."""
    family.stored_as([family.known_as(full) for full in files.stored])
    wanted = family.tensors()
    found: dict[str, _Stored] = {}
    for full, stored in files.stored.items():
        name = family.known_as(full)
        if name in found:
            raise CheckpointError(f"{stored.file}: tensors '{full}' and '{found[name].name}' are the same weight; keep one")
        if name in wanted or (name == family.head and family.tied):
            found[name] = stored
        elif not any(re.fullmatch(pattern, name) for pattern in (COMPUTED, *family.buffers)):
            raise CheckpointError(
                f"{stored.file}: tensor '{full}' is not part of a {family.architecture.family} model as config.json "
                "describes it; a model that needs it is not supported"
            )
    for name, shape in wanted.items():
        if name not in found:
            remedy = " (set tie_word_embeddings to true if the head is the embedding)" if name == family.head else ""
            full = family.written(name, files.stored)
            raise CheckpointError(f"{files.directory}: tensor '{full}' is missing{remedy}; use a complete checkpoint")
        if found[name].shape != shape:
            raise CheckpointError(
                f"{found[name].file}: tensor '{found[name].name}' has shape {list(found[name].shape)}, "
                f"config.json describes {list(shape)}; the two belong to different models"
            )
    for stored in found.values():
        if stored.dtype not in DTYPES:
            raise CheckpointError(
                f"{stored.file}: tensor '{stored.name}' has dtype {stored.dtype}; supported: {', '.join(DTYPES)}"
            )
    if family.tied and family.head in found:
        head = found.pop(family.head)
        if head.shape != found[family.embedding].shape or not torch.equal(
            files.read(head), files.read(found[family.embedding])
        ):
            raise CheckpointError(
                f"{head.file}: tensor '{head.name}' differs from the embedding, but config.json ties the two; "
                "set tie_word_embeddings to false to use it"
            )
    return found


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk: what is public about it, and its secret weights (float tensors, read when asked for)."""

    directory: Path
    description: AnyArchitecture
    weights: Mapping[str, Tensor]

    @property
    def architecture(self) -> Architecture:
        """Return the description of a decoder. Raises `ConfigurationError` for an encoder, which writes no text."""
        return decoder_of(self.description, str(self.directory))

    @property
    def encoder(self) -> EncoderArchitecture:
        """Return the description of an encoder. Raises `ConfigurationError` for a decoder."""
        return encoder_of(self.description, str(self.directory))

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """Return the directory's tokenizer. Raises `CheckpointError` when its files are missing or unreadable."""
        return load_tokenizer(self.directory, self.description)


def read_description(directory: str | Path) -> AnyArchitecture:
    """Return what a directory's config.json alone describes, and the names and shapes of what policies have learned of it;
    no weights are needed."""
    found: AnyArchitecture = _family(Path(directory)).architecture
    return described(Path(directory), found) if isinstance(found, Architecture) else found


def load_tokenizer(directory: Path, description: AnyArchitecture) -> TextTokenizer:
    """Return a folder's tokenizer, for a model. Raises `CheckpointError` naming the file."""
    continues = not isinstance(description, Architecture) or description.encoder is None
    return TextTokenizer.load(directory, description.eos, continues)


def read_architecture(directory: str | Path) -> Architecture:
    """Return the architecture of a decoder's directory. Raises `ConfigurationError` for an encoder's."""
    return decoder_of(read_description(directory), str(directory))


def load_checkpoint(directory: str | Path, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Open a checkpoint: config.json, model.safetensors or its shards, what policies have learned of it (in
    policy.safetensors), and (when asked for) tokenizer files.

    Raises `CheckpointError` naming file, tensor or key, its value and the remedy.
    """
    path = Path(directory)
    family = _family(path)
    weights: Mapping[str, Tensor] = CanonicalWeights(family, TensorFiles(path), dtype)
    architecture: AnyArchitecture = family.architecture
    if isinstance(architecture, Architecture):
        architecture = described(path, architecture)
        weights = WithLearned(weights, path, architecture, dtype) if architecture.learned else weights
    return Checkpoint(path, architecture, weights)


def _family(directory: Path) -> Family | EncoderFamily:
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory; a Hugging Face checkpoint directory is needed")
    values = read_json(directory / "config.json")
    generation = directory / "generation_config.json"
    if generation.exists():
        said = read_json(generation)
        values |= {key: said[key] for key in ("eos_token_id", "decoder_start_token_id") if said.get(key) is not None}
    return family_for(Config(values, directory / "config.json"))
