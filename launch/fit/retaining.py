"""Training of retaining heads (`models.policies.axes.retaining`): each layer's by itself, the model as it is.

Source: Huang et al., "Locret", 2024, section 3.2, and its code: a token's label is the largest score before softmax that any
query of the answer gives it, over the heads of the group; loss: smooth L1, and 0.0025 times the mean squared difference of
neighbours' scores; AdamW, warming up, then falling to 0, gradients cut at 0.5. Trained in plaintext by the model owner.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from launch.fit.examples import Example, Rows, rows_of
from launch.measure.quality.prefilled import PrefilledModel
from models.policies.axes.retaining import BOUND, FIRST, SECOND
from mpc.errors import CheckpointError
from protocols.bounds import LARGEST_WEIGHT
from protocols.plain.suite import PlainSuite, PlainValue, tensor_of

SMOOTHNESS = 0.0025
CUT = 0.5
LABELS = 8.0  # labels are divided by it, so that losses have the size of 1


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


@dataclass
class Heads:
    """The heads of all layers while they are trained. inner [F, W] of features divided by `size` [F], outer [W, G]."""

    inner: list[Tensor]
    outer: list[Tensor]
    size: list[Tensor]
    step: int = 0
    moments: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def fresh(cls, rows: Sequence[Rows], width: int, groups: int, seed: int) -> Heads:
        """Return heads at the start, for features of the size that an example has."""
        g = torch.Generator().manual_seed(seed)
        size = [row.features.std(0).clamp_min(1e-2) for row in rows]
        inner = [torch.randn(len(s), width, generator=g) / math.sqrt(len(s)) for s in size]
        return cls(inner, [torch.randn(width, groups, generator=g) / math.sqrt(width) for _ in rows], size)

    @property
    def trained(self) -> dict[str, Tensor]:
        """Return what is trained, by name."""
        pairs = (("inner", self.inner), ("outer", self.outer))
        return {f"{name}.{n}": tensor for name, tensors in pairs for n, tensor in enumerate(tensors)}

    def save(self, file: Path, about: str) -> None:
        """Write the state of the training; about: what it is the state of."""
        sizes = {f"size.{n}": tensor for n, tensor in enumerate(self.size)}
        tensors = {name: x.detach().contiguous() for name, x in {**self.trained, **sizes, **self.moments}.items()}
        beside = file.with_suffix(".tmp")
        save_file(tensors, beside, metadata={"step": str(self.step), "about": about})
        beside.replace(file)

    @classmethod
    def load(cls, file: Path, about: str) -> Heads | None:
        """Return a training's state; None where there is none of this training."""
        if not file.exists():
            return None
        opening: Callable[..., Mapping[str, Tensor]] = safe_open  # type: ignore[assignment]
        opened = opening(file, framework="pt")
        facts = opened.metadata()  # type: ignore[attr-defined]
        if facts.get("about") != about:
            return None
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # type: ignore[attr-defined]  # noqa: SIM118
        lists = [[tensors.pop(f"{kind}.{n}") for n in range(_count(tensors, kind))] for kind in ("inner", "outer", "size")]
        return cls(lists[0], lists[1], lists[2], int(facts["step"]), tensors)


def _count(tensors: Mapping[str, Tensor], kind: str) -> int:
    return sum(name.startswith(f"{kind}.") for name in tensors)


@dataclass
class RetainingTrainer:
    """Trains the heads of a model. file: where the state of the training is kept, every `every` steps. about: what the
    training depends on, as text: another one begins anew."""

    model: PrefilledModel
    width: int
    training: Training
    file: Path
    about: str
    every: int = 20
    losses: list[float] = field(default_factory=list)

    def run(self, examples: Sequence[Example], progress: Callable[[int, int], None]) -> dict[str, Tensor]:
        """Return the weights by canonical name. progress(done, total): steps."""
        heads = Heads.load(self.file, self.about)
        if heads is None:
            heads = Heads.fresh(rows_of(self.model, examples[0]), self.width, self._groups, self.training.seed)
        parameters = heads.trained
        optimiser = torch.optim.AdamW([p.requires_grad_() for p in parameters.values()], betas=(0.9, 0.95))
        self._restore(optimiser, heads, parameters)
        for step, batch in enumerate(self.training.batches(examples)):
            progress(step, self.training.steps)
            if step < heads.step:
                continue
            for group in optimiser.param_groups:
                group["lr"] = self.training.rate_at(step)
            self.losses.append(self._step(heads, batch, optimiser))
            heads.step = step + 1
            if heads.step % self.every == 0 or heads.step == self.training.steps:
                states = {name: optimiser.state[p] for name, p in parameters.items()}
                heads.moments = {f"{key}:{name}": s[key] for name, s in states.items() for key in ("exp_avg", "exp_avg_sq")}
                heads.save(self.file, self.about)
        progress(self.training.steps, self.training.steps)
        return self._exported(heads, examples)

    @property
    def _groups(self) -> int:
        return self.model.architecture.kv_heads

    def _restore(self, optimiser: torch.optim.Optimizer, heads: Heads, parameters: Mapping[str, Tensor]) -> None:
        for name, parameter in parameters.items() if heads.moments else ():
            moments = {key: heads.moments[f"{key}:{name}"] for key in ("exp_avg", "exp_avg_sq")}
            optimiser.state[parameter] = {"step": torch.tensor(float(heads.step)), **moments}

    def _scores(self, heads: Heads, layer: int, features: Tensor) -> Tensor:
        """Return scores [T, G] of features [T, F]."""
        hidden = (features / heads.size[layer]) @ heads.inner[layer]
        suite = PlainSuite()
        active = tensor_of(suite.run(suite.activation(PlainValue(hidden), self.model.architecture.activation)))
        return active @ heads.outer[layer]

    def _step(self, heads: Heads, batch: Sequence[Example], optimiser: torch.optim.Optimizer) -> float:
        optimiser.zero_grad()
        total = 0.0
        for example in batch:
            losses = []
            for layer, rows in enumerate(rows_of(self.model, example)):
                label = rows.scores.amax((1, 2)).T / LABELS
                found = self._scores(heads, layer, rows.features)
                smooth = (found[1:] - found[:-1]).square().mean()
                losses.append(functional.smooth_l1_loss(found, label) + SMOOTHNESS * smooth)
            loss = torch.stack(losses).mean() / len(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss)
        for parameter in heads.trained.values():
            parameter.grad = None if parameter.grad is None else parameter.grad.clamp(-CUT, CUT)
        optimiser.step()
        return total

    @torch.no_grad()
    def _exported(self, heads: Heads, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return the weights, each head's scores scaled to at most a quarter of what they are bound by."""
        most = [torch.zeros(self._groups) for _ in heads.outer]
        for example in examples[:8]:
            for layer, rows in enumerate(rows_of(self.model, example)):
                most[layer] = torch.maximum(most[layer], self._scores(heads, layer, rows.features).abs().amax(0))
        found = {}
        for layer, (inner, outer, size) in enumerate(zip(heads.inner, heads.outer, heads.size, strict=True)):
            found[f"policy.layers.{layer}.{FIRST}.weight"] = inner / size[:, None]
            found[f"policy.layers.{layer}.{SECOND}.weight"] = outer * (BOUND / 4 / most[layer].clamp_min(1e-6))
        for name, tensor in found.items():
            if float(tensor.abs().max()) >= 2.0**LARGEST_WEIGHT:
                raise CheckpointError(
                    f"weight '{name}' reaches {float(tensor.abs().max()):.4g}; train longer, or less steeply"
                )
        return found
