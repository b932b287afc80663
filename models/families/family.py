"""What a model family says about itself.

A family reads config.json into an `Architecture`, lists the checkpoint's tensors with their shapes, and makes each
canonical weight from them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor

from models.architecture import Architecture
from models.config import Config
from models.description import Description
from mpc.errors import CheckpointError, ConfigurationError

Read = Callable[[str], Tensor]
"""Reads one tensor of the checkpoint by its name without prefix, as float64."""


COMPUTED = r"(.*\.)?(rotary_emb\.inv_freq|embeddings\.position_ids)"
"""Tensors of earlier files, of any family, that hold what config.json says."""


class CheckpointFamily(ABC):
    """One checkpoint's layout. Raises `CheckpointError` for options that it does not compute.

    prefix: what the full model puts before the base model's tensor names; both forms are read. embedding: the tensor that
    a tied head shares; head: its own name. computes: options of `models.config.UNSUPPORTED` that this family reads.
    buffers: regular expressions of tensors that hold no weights. defaults: what transformers takes for options that
    config.json leaves out; sizes have none here, a file without them is not a checkpoint's.
    """

    prefix: ClassVar[str]
    embedding: ClassVar[str]
    head: ClassVar[str] = "lm_head.weight"
    computes: ClassVar[tuple[str, ...]] = ()
    buffers: ClassVar[tuple[str, ...]] = ()
    tied_by_default: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Any]] = {}

    architecture: Description

    def __init__(self, config: Config) -> None:
        config.refuse_unsupported(self.computes)
        self.config = config.with_defaults(self.defaults)
        try:
            self.architecture = self.describe()
        except ConfigurationError as error:
            raise CheckpointError(f"{config.path}: {error}") from None

    @abstractmethod
    def describe(self) -> Description:
        """Return the architecture that config.json describes."""

    @abstractmethod
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the names (without prefix) and shapes of the tensors that the checkpoint must hold, and no others but
        buffers."""

    def known_as(self, stored: str) -> str:
        """Return a stored tensor's name without prefix, as `tensors` has it."""
        return stored.removeprefix(self.prefix)

    @property
    def behind(self) -> frozenset[str]:
        """Return what names of tensors behind the base model begin with: these have no prefix."""
        return frozenset({self.head.split(".")[0]})

    def written(self, name: str, stored: Collection[str]) -> str:
        """Return the name that a tensor of `tensors` has, or would have, in files with these."""
        bare = name.split(".")[0] in self.behind or not any(full.startswith(self.prefix) for full in stored)
        return name if bare else self.prefix + name

    def stored_as(self, names: Collection[str]) -> None:
        """Hear which tensors (without prefix) there are, before `tensors` is asked, where several layouts are read."""
        return None

    @abstractmethod
    def weight(self, name: str, read: Read) -> Tensor:
        """Return one canonical weight, float64."""

    @property
    def tied(self) -> bool:
        """Whether the head is the token embedding."""
        return self.config.flag("tie_word_embeddings", self.tied_by_default)


class Family(CheckpointFamily):
    """A decoder's layout."""

    architecture: Architecture

    @abstractmethod
    def describe(self) -> Architecture:
        """Return the architecture that config.json describes."""


def split_layer(name: str) -> tuple[int, str]:
    """Return 'layers.3.mlp.up.bias' -> (3, 'mlp.up.bias')."""
    _, layer, part = name.split(".", 2)
    return int(layer), part
