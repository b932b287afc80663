"""`mpcache model-owner`: shares a model's weights among the compute parties, once, or takes them away."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.cli.options import MODEL_HELP, ConfigOption, SupervisedOption, TrustAuthorityOption, model_option
from launch.local import supervision
from mpc.errors import ConfigurationError


def run(
    config: ConfigOption,
    model: Annotated[Path | None, model_option(MODEL_HELP)] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name that clients ask for; default: the folder's.")] = None,
    fraction_bits: Annotated[
        int, typer.Option("--fraction-bits", min=8, max=24, help="Precision of the shared weights.")
    ] = 16,
    replace: Annotated[
        bool, typer.Option("--replace", help="Once it is shared, take this owner's earlier models of that name away.")
    ] = False,
    remove: Annotated[
        str | None, typer.Option("--remove", metavar="NAME", help="Take this owner's models of that name away, share none.")
    ] = None,
    no_calibration: Annotated[
        bool, typer.Option("--no-calibration", help="Give no bounds with the model: sessions use the suite's usual ones.")
    ] = False,
    insecure_trust_authority: TrustAuthorityOption = False,
    ranges: Annotated[str | None, typer.Option("--ranges", hidden=True)] = None,
    supervised: SupervisedOption = False,
) -> None:
    """Share a checkpoint's weights among the compute parties and leave; they keep them for later sessions.

    Bounds of the checkpoint's `mpcache.json`, made where it is missing, go with them; see docs/ranges.md.
    """
    if supervised:
        supervision.end_with_parent()
    from launch.checkpoints.calibrating import calibration_for
    from launch.serve.roles import load_role
    from launch.terminal.console import out
    from launch.terminal.progress import stages
    from parties.model_owner.model_owner import SharingTerms, owned_models, remove_models, share_model
    from parties.wire.model_ranges import unpack_ranges

    if (model is None) == (remove is None) or (remove is not None and (replace or name is not None)):
        raise ConfigurationError("give --model CHECKPOINT to share a model, or --remove NAME alone to take one away")
    settings = load_role(config, "model-owner", insecure_trust_authority)
    if model is None:
        assert remove is not None
        old = list(owned_models(settings, remove))
        if not old:
            raise ConfigurationError(f"--remove '{remove}': no party holds a model of that name of '{settings.name}'")
        remove_models(settings, old)
        out.print(f"{remove} is removed ({', '.join(old)})")
        return
    if ranges is not None:
        bounds = unpack_ranges(ranges, "--ranges")
    else:
        bounds = None if no_calibration else calibration_for(model).suites
    with stages() as bar:
        report = supervision.report_progress if supervised else bar
        shared = share_model(settings, model, name, SharingTerms(fraction_bits, bounds), report)
    out.print(f"{shared.name} is shared among {', '.join(shared.parties)} (id {shared.id})")
    old = [one for one in owned_models(settings, shared.name) if one != shared.id]
    if old and replace:
        remove_models(settings, old)
        out.print(f"it replaces {', '.join(old)}")
    elif old:
        ids = ", ".join(old)
        out.print(f"beside it lies {ids} of the same name: --replace takes that away, or clients give an id (--name)")
