"""Systems of which one axis is another: dropped from now and then, with more tokens in some layers, merged or demoted.

Leaks: to parties and dealer their text and what the system inside leaks (docs/security.md, "Policies").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, get_args

from models.architecture import Architecture
from models.policies.axes.budget import Profile
from models.policies.axes.demote import Demote
from models.policies.axes.merge import Nearest, Rows
from models.policies.axes.schedule import Schedule
from models.policies.axes.similar import Similar
from models.policies.composition import Axes, System
from models.policies.eviction import Merge
from models.policies.settings import few_bits, numbers, one_of, whole
from mpc.errors import ConfigurationError

MERGERS: dict[str, Callable[[Rows], Merge]] = {"nearest": Nearest, "similar": Similar}


@dataclass(frozen=True)
class Changed(System):
    """Another system, of whose axes some are others."""

    inner: System
    usual: ClassVar[str] = "h2o, snapkv or tova"
    """Systems that can be inside."""

    def __post_init__(self) -> None:
        inside = self.inner
        if not isinstance(inside, System):
            raise ConfigurationError(
                f"policy {self.name}: '{inside.spec}' is no system of axes, of which {self.name} changes one; use "
                f"{self.usual} inside, or leave out {self.name}"
            )
        if not inside.axes.reader.reads_all:
            raise ConfigurationError(
                f"policy {self.name}: '{inside.spec}' reads some of what stays, by clusters or places that {self.name} "
                f"would change; use {self.usual} inside, or leave out {self.name}"
            )
        while isinstance(inside, Changed):
            if isinstance(inside, type(self)):
                raise ConfigurationError(
                    f"policy {self.name}: '{self.inner.spec}' is changed so already; leave out one of them"
                )
            inside = inside.inner

    def least_batch(self) -> tuple[str, int]:
        return self.inner.least_batch()

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        self.inner.check(architecture, prompt_tokens)


@dataclass(frozen=True)
class Lag(Changed):
    """Another system that drops tokens while decoding, but only when `every` tokens more than stay are cached, all at once:
    a fresh mask for what stays is paid for that often. Until then all of them are attended to.

    Text form: `lag:every=32|h2o:budget=0.2`.
    """

    every: int = 32
    name: ClassVar[str] = "lag"
    usual: ClassVar[str] = "h2o or tova"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self.name, "every", self.every, 1)
        if not self.inner.axes.scorer.decodes:
            raise ConfigurationError(
                f"policy {self.name}: the scores of '{self.inner.spec}' come from the prompt's last queries alone, so "
                f"nothing can go while decoding; use {self.usual} inside, or leave out {self.name}"
            )

    @property
    def spec(self) -> str:
        return f"{self.name}:every={self.every}|{self.inner.spec}"

    @property
    def axes(self) -> Axes:
        return replace(self.inner.axes, schedule=Schedule(self.every))


@dataclass(frozen=True)
class Layers(Changed):
    """Another system whose budget is divided among layers in proportion to public weights, see `Profile`.

    weights: a number a layer, `n*count` for several alike. Text form: `layers:weights=4 2 1*10|snapkv:budget=0.1`.
    """

    weights: str = ""
    name: ClassVar[str] = "layers"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._weights()

    def _weights(self) -> tuple[float, ...]:
        return numbers(self.name, "weights", self.weights)

    @property
    def spec(self) -> str:
        return f"{self.name}:weights={self.weights}|{self.inner.spec}"

    @property
    def axes(self) -> Axes:
        inside = self.inner.axes
        return replace(inside, budget=Profile(inside.budget.share, self._weights()))

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        """Refuse weights for another number of layers."""
        super().check(architecture, prompt_tokens)
        if (given := self.own_budgets) != architecture.layers:
            raise ConfigurationError(
                f"policy {self.name}: weights = '{self.weights}' are for {given} layers, the model has "
                f"{architecture.layers}; name one for each"
            )


@dataclass(frozen=True)
class Merging(Changed):
    """Another system, whose tokens that go join some that stay. how: `similar`, the one of the most similar key, where it
    is similar enough (`Similar`), or `nearest`, by position (`Nearest`). rows: `values`, keys stay what they are, or `both`.

    Text form: `merge:how=nearest,rows=both|snapkv:budget=0.5`.
    """

    how: str = "similar"
    rows: Rows = "values"
    name: ClassVar[str] = "merge"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.name, "how", self.how, tuple(MERGERS))
        one_of(self.name, "rows", self.rows, get_args(Rows))
        _only_drops(self.name, self.inner)

    @property
    def spec(self) -> str:
        return f"{self.name}:how={self.how},rows={self.rows}|{self.inner.spec}"

    @property
    def axes(self) -> Axes:
        return replace(self.inner.axes, merge=MERGERS[self.how](self.rows))


@dataclass(frozen=True)
class Demoting(Changed):
    """Another system, whose tokens that go stay with `fraction_bits` fraction bits of their keys and values (`Demote`).

    Text form: `demote:fraction_bits=2|snapkv:budget=0.1`.
    """

    fraction_bits: int = 2
    name: ClassVar[str] = "demote"

    def __post_init__(self) -> None:
        super().__post_init__()
        few_bits(self.name, "fraction_bits", self.fraction_bits)
        _only_drops(self.name, self.inner)

    @property
    def spec(self) -> str:
        return f"{self.name}:fraction_bits={self.fraction_bits}|{self.inner.spec}"

    @property
    def axes(self) -> Axes:
        return replace(self.inner.axes, merge=Demote(self.fraction_bits))

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        """As in `System`."""
        System.check(self, architecture, prompt_tokens)
        super().check(architecture, prompt_tokens)


def _only_drops(name: str, inner: System) -> None:
    """Raise `ConfigurationError` for a system inside that keeps something of tokens that go."""
    if inner.axes.merge.keeps:
        raise ConfigurationError(
            f"policy {name}: '{inner.spec}' {'demotes' if inner.holds else 'merges'} already; leave out {name}, or use "
            f"{Changed.usual} inside"
        )
