"""`mpcache init`: the folders of a new deployment, one for each role and one for its authority."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.commands.certs import split
from launch.terminal.console import out
from mpc.errors import ConfigurationError

if TYPE_CHECKING:
    from launch.deployment.plan import Member, Plan


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
    one_owner: Annotated[
        bool,
        typer.Option(
            "--one-owner",
            help="All roles are yours: make their keys, certificates and fingerprints here as well, each in its folder.",
        ),
    ] = False,
    prefix: Annotated[
        str, typer.Option("--prefix", help="Where folders and program will lie on the hosts; for the systemd units.")
    ] = "/opt/mpcache",
) -> None:
    """Write one folder for each role of a deployment, and one for its authority. Nothing is overwritten.

    A role's folder has its commented configuration, a systemd unit, a container's files and the next commands. It has no
    secret: `mpcache certs request` makes the private key on the role's host. With --one-owner it has the role's key and
    certificate and its peers' fingerprints, and nothing is left to do but to copy and to start.
    """
    from launch.deployment.folders import write_deployment
    from launch.deployment.plan import make_plan

    owners = split(model_owners) or ["model-owner"]
    plan = make_plan(split(parties), dealer.strip(), split(clients) or ["client"], owners, prefix, insecure_trust_authority)
    if one_owner and insecure_trust_authority:
        raise ConfigurationError("--one-owner writes all fingerprints; leave --insecure-trust-authority out")
    plan = replace(plan, one_owner=one_owner)
    write_deployment(plan, directory, days)
    out.print(f"{directory}: {', '.join(m.name for m in plan.members)}, authority", soft_wrap=True)
    if one_owner:
        return _tell_owner(plan, directory)
    out.print(
        "Copy each folder to the host of its role and follow the README.md in it; authority belongs on none of them. "
        "If all roles are yours: --one-owner makes the keys as well.",
        soft_wrap=True,
    )


def _tell_owner(plan: Plan, directory: Path) -> None:
    """Print the next commands of one person who owns all roles."""

    def config(member: Member) -> str:
        return f"--config {directory / member.name / member.name}.yaml"

    lines = ["Each folder has the private key of its role: copy the parties' to their hosts, and start them there,"]
    for party in plan.parties:
        lines.append(f"  scp -r {directory / party.name} {party.host}:")
        lines.append(f"  on {party.host}: mpcache party --config {party.name}/{party.name}.yaml")
    lines.append(f"the dealer on {plan.dealer.host} (copied likewise, if that is not this machine),")
    lines.append(f"  mpcache dealer {config(plan.dealer)}")
    lines.append("then here, the weights once and as many questions as you like:")
    lines.append(f"  mpcache status {config(plan.clients[0])}")
    lines.append(f"  mpcache model-owner {config(plan.model_owners[0])} --model CHECKPOINT")
    lines.append(f"  mpcache generate {config(plan.clients[0])} --model CHECKPOINT --prompt-file question.txt")
    lines.append("The folder authority certifies further names: keep it off the parties' hosts.")
    for line in lines:
        out.print(line, soft_wrap=True, markup=False, highlight=False)
