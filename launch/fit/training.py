"""The loop that trains what a policy learns: AdamW over the owner's examples, kept on disk so that it can go on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from launch.fit.examples import Example
from mpc.errors import CheckpointError
from protocols.bounds import LARGEST_WEIGHT

MOMENTS = ("exp_avg", "exp_avg_sq")
CUT = 0.5


@dataclass(frozen=True)
class Training:
    """steps: of `batch` examples each. rate: the largest, reached after `warm_up` steps. seed: of start and order."""

    steps: int = 240
    batch: int = 4
    rate: float = 2e-3
    warm_up: int = 40
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Return a step's rate, from 0 on: up in a line, then down as half a cosine."""
        rest = max(0.0, (step - self.warm_up) / max(1, self.steps - self.warm_up))
        return self.rate * min((step + 1) / self.warm_up, 0.5 * (1 + math.cos(math.pi * rest)))

    def batches(self, examples: Sequence[Example]) -> Iterator[list[Example]]:
        """Yield the examples of each step, from the first one on: all of them in a random order, again and again."""
        generator = torch.Generator().manual_seed(self.seed)
        order: list[int] = []
        for _ in range(self.steps):
            while len(order) < self.batch:
                order += torch.randperm(len(examples), generator=generator).tolist()
            yield [examples[n] for n in order[: self.batch]]
            del order[: self.batch]


class Learner(ABC):
    """What is trained of a policy, the model as it is."""

    @abstractmethod
    def fresh(self, example: Example, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return what is trained and what stays, by name, as they are at the start. example: one to take sizes from."""

    @abstractmethod
    def loss(self, state: dict[str, Tensor], example: Example) -> Tensor:
        """Return the loss of an example. state: what is trained and what stays."""

    @abstractmethod
    def exported(self, state: dict[str, Tensor], examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return the weights by canonical name."""


@dataclass
class Run:
    """A training. file: where its state is kept, every `every` steps. about: what it depends on, as text: another one begins
    anew. losses: of the steps of this call."""

    learner: Learner
    training: Training
    file: Path
    about: str
    every: int = 20
    losses: list[float] = field(default_factory=list)

    def run(self, examples: Sequence[Example], progress: Callable[[int, int], None]) -> dict[str, Tensor]:
        """Return the weights by canonical name. progress(done, total): steps. Raises `CheckpointError` for weights that the
        rings have no room for."""
        found = self._load()
        trained, stays = self.learner.fresh(examples[0], self.training.seed)
        begun = 0 if found is None else int(found.pop("step"))
        names = list(trained)
        if found is not None:
            trained, stays = {name: found[name] for name in trained}, {name: found[name] for name in stays}
        optimiser = torch.optim.AdamW([trained[name].requires_grad_() for name in names], betas=(0.9, 0.95))
        for name in names if found is not None else ():
            assert found is not None
            moments = {key: found[f"{key}:{name}"] for key in MOMENTS}
            optimiser.state[trained[name]] = {"step": torch.tensor(float(begun)), **moments}
        for step, batch in enumerate(self.training.batches(examples)):
            progress(step, self.training.steps)
            if step < begun:
                continue
            self._step({**trained, **stays}, batch, optimiser, self.training.rate_at(step))
            if (step + 1) % self.every == 0 or step + 1 == self.training.steps:
                moments = {f"{key}:{name}": optimiser.state[trained[name]][key] for name in names for key in MOMENTS}
                self._save({**trained, **stays, **moments}, step + 1)
        progress(self.training.steps, self.training.steps)
        with torch.no_grad():
            weights = self.learner.exported({**trained, **stays}, examples)
        for name, tensor in weights.items():
            largest = float(tensor.abs().max())
            if not largest < 2.0**LARGEST_WEIGHT:
                raise CheckpointError(f"weight '{name}' reaches {largest:.4g}, rings have room below {2**LARGEST_WEIGHT}")
        return weights

    def _step(
        self, state: dict[str, Tensor], batch: Sequence[Example], optimiser: torch.optim.Optimizer, rate: float
    ) -> None:
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        total = 0.0
        for example in batch:
            loss = self.learner.loss(state, example) / len(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        for group in optimiser.param_groups:
            torch.nn.utils.clip_grad_value_(group["params"], CUT)
        optimiser.step()
        self.losses.append(total)

    def _save(self, tensors: dict[str, Tensor], step: int) -> None:
        beside = self.file.with_suffix(".tmp")
        whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()} | {"step": torch.tensor(step)}
        try:
            save_file(whole, beside, metadata={"about": self.about})
            beside.replace(self.file)
        except (OSError, SafetensorError) as error:
            beside.unlink(missing_ok=True)
            raise CheckpointError(f"{self.file}: the training's state cannot be written ({error})") from None

    def _load(self) -> dict[str, Tensor] | None:
        """Return the state of this training; None where there is none."""
        if not self.file.exists():
            return None
        opening: Any = safe_open
        try:
            opened = opening(self.file, framework="pt")
        except (OSError, SafetensorError) as error:
            what = "is no state of a training"
            raise CheckpointError(f"{self.file} {what} ({error}); take it away to begin anew") from None
        if (opened.metadata() or {}).get("about") != self.about:
            return None
        names: list[str] = opened.keys()
        return {name: opened.get_tensor(name) for name in names}
