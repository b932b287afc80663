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
    supervised: SupervisedOption = False,
) -> None:
    """Share a checkpoint's weights among the compute parties and leave; they keep them for later sessions."""
    if supervised:
        supervision.end_with_parent()
    from launch.console import out
    from launch.serving import load_role
    from parties.model_owner import share_model

    settings = load_role(config, "model-owner")
    identifier = share_model(settings, model, name or model.resolve().name)
    out.print(f"{name or model.resolve().name} is shared among {', '.join(settings.party_names)} (id {identifier})")
