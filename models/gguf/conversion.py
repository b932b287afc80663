"""From a GGUF file to a Hugging Face checkpoint folder, in the memory of one file of weights.

Weights are written as the file has them: 16-bit numbers as they are, quantised ones as the float32 that their blocks
stand for. Nothing is calibrated, rounded or quantised again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from models.architecture import Architecture
from models.checkpoint import INDEX, SINGLE
from models.config import Config
from models.families.family import Family
from models.families.registry import decoder_family
from models.gguf.configuration import config_values, special_id, unexpected
from models.gguf.header import GgufHeader, read_header
from models.gguf.vocabulary import write_tokenizer
from models.gguf.weights import Source, load, sources
from mpc.errors import EnvironmentProblem

SHARD_BYTES = 1 << 30
CONFIG, GENERATION = "config.json", "generation_config.json"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class GgufModel:
    """A model in a GGUF file, checked against its metadata; weights are read when they are written.

    Raises `CheckpointError` naming what is missing, damaged or not supported.
    """

    header: GgufHeader
    config: dict[str, Any]
    family: Family
    tensors: list[Source]

    @classmethod
    def open(cls, path: Path) -> GgufModel:
        """Return the model in a file."""
        header = read_header(path)
        config = config_values(header)
        family = decoder_family(Config(config, path))
        found = sources(header, family)
        wrong = unexpected(header, {source.stored.name for source in found})
        if wrong is not None:
            raise wrong
        return cls(header, config, family, found)

    @property
    def architecture(self) -> Architecture:
        """Return what is public about it."""
        return self.family.architecture

    @cached_property
    def size(self) -> int:
        """Return the bytes of its weights in the checkpoint."""
        return sum(source.size for source in self.tensors)

    def write(self, folder: Path, progress: Progress = lambda done, total: None) -> None:
        """Write the checkpoint into an empty folder. progress(bytes written, bytes of all weights)."""
        _write_json(folder / CONFIG, {key: value for key, value in self.config.items() if value is not None})
        _write_json(folder / GENERATION, self._generation())
        write_tokenizer(self.header, folder)
        done = 0
        shards = self._shards()
        places: dict[str, str] = {}
        for number, shard in enumerate(shards):
            name = SINGLE if len(shards) == 1 else f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
            weights = {}
            for source in shard:
                weights[source.name] = load(self.header, source)
                done += source.size
                progress(done, self.size)
            try:
                save_file(weights, folder / name, metadata={"format": "pt"})
            except SafetensorError as error:
                raise EnvironmentProblem(f"{folder / name} cannot be written ({error}); is the disk full?") from None
            (folder / name).chmod((folder / CONFIG).stat().st_mode & 0o777)  # readable for whom the other files are
            places |= dict.fromkeys(weights, name)
        if len(shards) > 1:
            _write_json(folder / INDEX, {"metadata": {"total_size": self.size}, "weight_map": places})

    def _shards(self) -> list[list[Source]]:
        """Return the tensors in groups of at most `SHARD_BYTES`, or of one that is larger."""
        shards: list[list[Source]] = [[]]
        room = SHARD_BYTES
        for source in self.tensors:
            if shards[-1] and source.size > room:
                shards.append([])
                room = SHARD_BYTES
            shards[-1].append(source)
            room -= source.size
        return shards

    def _generation(self) -> dict[str, Any]:
        """Return generation_config.json: a turn's and a message's end also end a generation, where the file names them."""
        ends = [special_id(self.header, role) for role in ("eos", "eot", "eom")]
        values = {f"{role}_token_id": special_id(self.header, role) for role in ("bos", "pad")}
        found = list(dict.fromkeys(token for token in ends if token is not None))
        return {key: value for key, value in {**values, "eos_token_id": found or None}.items() if value is not None}

    def origin(self) -> str:
        """Return what the file says of itself: a line for each of name, author, licence and address."""
        keys = ("name", "organization", "author", "license", "license.link", "url", "source.url", "source.repo_url")
        said = ((key, self.header.metadata.get(f"general.{key}")) for key in keys)
        return "".join(f"{key}: {' '.join(str(value)[:200].split())}\n" for key, value in said if isinstance(value, str))


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
