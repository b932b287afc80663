"""`mpcache party`: a compute party: holds shares of models and computes on them."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.cli.options import ConfigOption, SupervisedOption, TrustAuthorityOption
from launch.local import supervision


def run(
    config: ConfigOption,
    insecure_trust_authority: TrustAuthorityOption = False,
    supervised: SupervisedOption = False,
    show_openings: Annotated[bool, typer.Option("--show-openings", hidden=True)] = False,
) -> None:
    """Run a compute party until SIGTERM or Ctrl-C."""
    if supervised:
        supervision.end_with_parent()
    from launch.local.openings import telling
    from launch.serve.roles import load_role, serve
    from parties.party.compute_party import ComputePartyServer
    from parties.program import MODEL

    settings = load_role(config, "party", insecure_trust_authority)
    program = telling(MODEL, supervision.report_seen) if supervised and show_openings else MODEL
    serve(ComputePartyServer(settings, program), settings, supervised)
