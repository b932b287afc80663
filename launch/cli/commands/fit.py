"""`mpcache fit`: what a cache policy learns of a checkpoint, and the profile of its layers and heads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.cli.options import JsonOption, ModelOption
from launch.terminal.console import out, print_json


def run(
    model: ModelOption,
    policy: Annotated[str, typer.Option("--policy", help="The policy that learns, such as locret:width=128.")],
    prompts: Annotated[
        Path, typer.Option("--prompts", help='Prompts like those to come: lines {"prompt": "...", "answer": "..."}.')
    ],
    folder: Annotated[Path, typer.Option("--out", help="Where policy.safetensors and profile.json are written.")],
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of training.")] = 240,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Prompts of a step.")] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the start and the order of prompts.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train in plaintext what a policy learns of a checkpoint, and average how its layers and heads attend.

    For the model owner: values are seen here. Put policy.safetensors beside the checkpoint and share the model again; the
    profile's lines go into policies' texts, which are public. A training that was broken off goes on when called again.
    See docs/policies.md, "Learned weights".
    """
    from launch.fit.fitting import Fitting, fit
    from launch.fit.training import Training
    from launch.terminal.progress import stages

    with stages() as progress:
        found = fit(Fitting(model, policy, prompts, folder, Training(steps, batch, seed=seed)), progress)
    if as_json:
        print_json(
            {
                "weights": None if found.weights is None else str(found.weights),
                "profile": str(found.profile),
                "loss": found.loss,
                "policies": found.policies,
            }
        )
        return
    if found.weights is not None:
        loss = "" if found.loss is None else f", loss {found.loss:.4g}"
        out.print(f"{found.weights}{loss}", soft_wrap=True, markup=False)
    out.print(f"{found.profile}", soft_wrap=True, markup=False)
    for kind, text in found.policies.items():
        out.print(f"  {kind}: {text}", soft_wrap=True, markup=False)
