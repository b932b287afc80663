"""`mpcache init`: the folders of a new deployment, one for each role and one for its authority."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.cli.commands.certs import split
from launch.terminal.console import out


def run(
    parties: Annotated[
        list[str],
        typer.Option(
            "--parties", metavar="NAME=HOST:PORT,...", help="The compute parties; without NAME they are party0, party1, ..."
        ),
    ],
    dealer: Annotated[str, typer.Option("--dealer", metavar="NAME=HOST:PORT", help="The dealer; usual name: dealer.")],
    directory: Annotated[Path, typer.Option("--out", help="New folder to write to.")],
    clients: Annotated[
        list[str] | None, typer.Option("--clients", help="Names, separated by commas; default: client.")
    ] = None,
    model_owners: Annotated[
        list[str] | None, typer.Option("--model-owners", help="Names, separated by commas; default: model-owner.")
    ] = None,
    days: Annotated[float, typer.Option("--days", help="Validity of the authority.")] = 3650,
    insecure_trust_authority: Annotated[
        bool,
        typer.Option(
            "--insecure-trust-authority",
            help="Need no fingerprints: whoever has the authority's key can then read prompts and weights.",
        ),
    ] = False,
    prefix: Annotated[
        str, typer.Option("--prefix", help="Where folders and program will lie on the hosts; for the systemd units.")
    ] = "/opt/mpcache",
) -> None:
    """Write one folder for each role of a deployment, and one for its authority. Nothing is overwritten.

    A role's folder has its commented configuration, a systemd unit, a container's files and the next commands. It has no
    secret: `mpcache certs request` makes the private key on the role's host.
    """
    from launch.deployment.folders import write_deployment
    from launch.deployment.plan import make_plan

    owners = split(model_owners) or ["model-owner"]
    plan = make_plan(split(parties), dealer.strip(), split(clients) or ["client"], owners, prefix, insecure_trust_authority)
    write_deployment(plan, directory, days)
    out.print(f"{directory}: {', '.join(m.name for m in plan.members)}, authority", soft_wrap=True)
    out.print("Copy each folder to the host of its role and follow the README.md in it; authority belongs on none of them.")
