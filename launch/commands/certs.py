"""`mpcache certs`: an authority and an identity for every role of a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.console import out
from mpc.errors import ConfigurationError


def run(
    directory: Annotated[Path, typer.Option("--out", help="Folder to write to; must hold no authority yet.")],
    names: Annotated[list[str], typer.Option("--names", help="Names of the roles, separated by commas; may be repeated.")],
    days: Annotated[float, typer.Option("--days", help="Validity of the identities and of the authority.")] = 365,
    hosts: Annotated[
        list[str] | None,
        typer.Option("--hosts", help="Host names or addresses that the roles are reached at, separated by commas."),
    ] = None,
) -> None:
    """Make a deployment's certificate authority and one identity per role.

    Each role needs its own NAME.crt and NAME.key and the common authority.crt. authority.key stays where identities
    are made.
    """
    from parties.certificates import create_deployment

    wanted = _split(names)
    try:
        create_deployment(directory, wanted, days, hosts=_split(hosts or []))
    except OSError as error:
        raise ConfigurationError(f"--out {directory} cannot be written: {error.strerror}; name a folder that can") from None
    out.print(f"{directory}: authority.crt, authority.key (keep it to yourself), and for each role NAME.crt and NAME.key:")
    for name in wanted:
        out.print(f"  {name}: copy {name}.crt, {name}.key and authority.crt to its host")


def _split(values: list[str]) -> list[str]:
    return [item.strip() for value in values for item in value.split(",") if item.strip()]
