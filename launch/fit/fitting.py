"""What `mpcache fit` makes: learned weights of a policy, and the profile of a model's layers and heads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from launch.fit.examples import read_examples
from launch.fit.gates import Gates
from launch.fit.low_rank import low_rank_factors
from launch.fit.low_rank_steps import LowRankFactors
from launch.fit.profiles import KINDS, profile_of
from launch.fit.retaining import RetainingHeads
from launch.fit.training import Learner, Run, Training
from launch.measure.quality.prefilled import PrefilledModel
from launch.terminal.outputs import make_writable_folder
from models.architecture import Architecture
from models.cache import CachePolicy
from models.checkpoint import load_checkpoint
from models.digest import POLICY_FILE, model_digest
from models.learned import parts_of
from models.policies import parse
from models.policies.axes.gate import Gate
from models.policies.axes.retaining import RetainingHead
from models.policies.axes.scorers import Scorer
from models.policies.composition import System
from models.policies.cskv import CSKV
from models.policies.wrappers import Around
from models.policy_file import PolicyFile, write
from mpc.errors import ConfigurationError

PROFILE, STATE, FACTORS = "profile.json", "fit.state", "factors.state"
HEADS, PROFILED = 2, 16


@dataclass(frozen=True)
class Fitting:
    """What is asked for. policy: its text. profiled: how many prompts the profile is an average of."""

    model: Path
    policy: str
    prompts: Path
    out: Path
    training: Training = field(default_factory=Training)
    profiled: int = PROFILED


@dataclass(frozen=True)
class Fitted:
    """What was written. weights: None where the policy learns none; loss: of the last step, None where no step was left."""

    profile: Path
    weights: Path | None
    loss: float | None
    policies: dict[str, str]


Progress = Callable[[str, int, int], None]


def fit(asked: Fitting, progress: Progress) -> Fitted:
    """Train what the policy learns, make the profile, write both. Training goes on where one of the same settings was
    broken off. Raises `ConfigurationError` before anything is computed for what cannot work."""
    policy = parse(asked.policy)
    checkpoint = load_checkpoint(asked.model)
    a = checkpoint.architecture
    parts = parts_of(policy.weight_shapes(a))
    examples = read_examples(checkpoint, asked.prompts)
    make_writable_folder(asked.out)
    kept = _kept(asked, a, parts)
    model = PrefilledModel(replace(checkpoint, description=a.model_copy(update={"learned": ()})))
    learner = _learner(policy, model)
    weights, loss, learned = None, None, dict[str, Tensor]()
    for one in _all_of(policy):
        if isinstance(one, CSKV) and not one.whole:
            start, _ = low_rank_factors(model, one.learned(a), examples, lambda *at: progress("factors", *at))
            run = _run(asked, LowRankFactors(model, start, one.window), FACTORS)
            learned.update(run.run(examples, lambda done, total: progress("train", done, total)))
            loss = run.losses[-1] if run.losses else None
    if learner is not None:
        run = _run(asked, learner, STATE)
        learned.update(run.run(examples, lambda done, total: progress("train", done, total)))
        loss = run.losses[-1] if run.losses else None
    if learned:
        weights = write(asked.out, {**kept, **learned}, asked.model, torch.float16)
    few = examples[: asked.profiled]
    profile = profile_of(model, few, lambda done, total: progress("profile", done, total))
    layers = {kind: profile.weights(kind) for kind in KINDS}
    heads = profile.retrieval(HEADS)
    policies = {kind: f"layers:weights={text}" for kind, text in layers.items()} | {"heads": f"compresskv:heads={heads}"}
    facts: dict[str, Any] = {
        "format": 1,
        "model_digest": model_digest(asked.model),
        "prompts": len(few),
        "layers": layers,
        "heads": heads,
        "policies": policies,
        "fitted": {"policy": asked.policy, "training": asdict(asked.training), "loss": loss} if learned else None,
    }
    file = asked.out / PROFILE
    try:
        file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--out {asked.out}: {PROFILE} cannot be written ({error.strerror})") from None
    for state in (STATE, FACTORS):
        (asked.out / state).unlink(missing_ok=True)
    return Fitted(file, weights, loss, policies)


def _retaining(model: PrefilledModel, scorer: Scorer, share: float) -> Learner:
    assert isinstance(scorer, RetainingHead)
    return RetainingHeads(model, scorer.width)


def _gate(model: PrefilledModel, scorer: Scorer, share: float) -> Learner:
    assert isinstance(scorer, Gate)
    return Gates(model, scorer.heads, scorer.channels, share)


LEARNERS: dict[type[Scorer], Callable[[PrefilledModel, Scorer, float], Learner]] = {RetainingHead: _retaining, Gate: _gate}
"""By the scorer that learns, of a model, the scorer and the share of tokens that is to stay."""


def _all_of(policy: CachePolicy) -> Iterator[CachePolicy]:
    """Yield a policy and those of layer 0 inside, from the outermost on."""
    yield policy
    while isinstance(policy, Around):
        policy = policy.of(0)
        yield policy


def _learner(policy: CachePolicy, model: PrefilledModel) -> Learner | None:
    """Return what trains what a policy learns in steps; None where it learns nothing so. Raises `ConfigurationError`."""
    *_, inside = _all_of(policy)
    if not inside.weight_shapes(model.architecture):
        return None
    if not isinstance(inside, System) or type(inside.axes.scorer) not in LEARNERS:
        raise ConfigurationError(
            f"--policy {policy.spec}: what it learns is not trained here; name locret, attention-gate or cskv|full"
        )
    axes = inside.axes
    return LEARNERS[type(axes.scorer)](model, axes.scorer, axes.budget.share)


def _run(asked: Fitting, learner: Learner, state: str) -> Run:
    prompts = hashlib.sha256(asked.prompts.read_bytes()).hexdigest()
    about = json.dumps([asked.policy, asdict(asked.training), model_digest(asked.model), prompts])
    return Run(learner, asked.training, asked.out / state, about)


def _kept(asked: Fitting, architecture: Architecture, parts: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return what other policies have learned of the model before, in the file that is written anew."""
    if not (asked.out / POLICY_FILE).exists():
        return {}
    there = PolicyFile(asked.out)
    there.parts(architecture.layers)
    there.check_model(asked.model)
    old = load_file(asked.out / POLICY_FILE)
    return {name: tensor for name, tensor in old.items() if not set(parts_of({name: tuple(tensor.shape)})) & set(parts)}
