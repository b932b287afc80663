"""`mpcache model-owner`: shares a model's weights among the compute parties, once."""

from __future__ import annotations

from typing import Annotated

import typer

from launch import supervision
from launch.options import ConfigOption, ModelOption, SupervisedOption


def run(
    config: ConfigOption,
    model: ModelOption,
    name: Annotated[str | None, typer.Option("--name", help="Name that clients ask for; default: the folder's.")] = None,
    fraction_bits: Annotated[
        int, typer.Option("--fraction-bits", min=8, max=24, help="Precision of the shared weights.")
    ] = 16,
    supervised: SupervisedOption = False,
) -> None:
    """Share a checkpoint's weights among the compute parties and leave; they keep them for later sessions."""
    if supervised:
        supervision.end_with_parent()
    from launch.console import out
    from launch.serving import load_role
    from parties.model_owner import share_model

    settings = load_role(config, "model-owner")
    shared = share_model(settings, model, name, fraction_bits)
    out.print(f"{shared.name} is shared among {', '.join(shared.parties)} (id {shared.id})")
