"""`mpcache party`: a compute party: holds shares of models and computes on them."""

from __future__ import annotations

import os
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
    """Run a compute party until SIGTERM or Ctrl-C.

    With `workers: N` in its file it starts N - 1 further processes, which hold its weights together with this one; or start
    all of them by `torchrun --nproc-per-node N --no-python mpcache party --config FILE`.
    """
    supervision.begin("party", supervised)
    from launch.local.openings import telling
    from launch.serve.ranks import given_place, party_ranks, serve_rank
    from launch.serve.roles import load_role, serve
    from parties.party.compute_party import ComputePartyServer
    from parties.program import MODEL

    settings = load_role(config, "party", insecure_trust_authority)
    program = telling(MODEL, supervision.report_seen) if supervised and show_openings else MODEL
    place = given_place(settings, os.environ)
    if place is not None and place.rank > 0:
        serve_rank(place, settings)
        return
    with party_ranks(settings, config, place) as ranks:
        serve(ComputePartyServer(settings, program, ranks.ranks), settings, supervised, ranks.failure)
